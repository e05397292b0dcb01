"""The ASGI application of the served models. Knows no socket and no command line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from ortserve.gateway.access.access import Access
from ortserve.gateway.access.grant import Grant
from ortserve.gateway.batches.dispatch import Dispatcher, Handler
from ortserve.gateway.batches.jobs import BatchJobs
from ortserve.gateway.errors import ApiError, Problem, invalid_url, method_not_allowed
from ortserve.gateway.exchange import Exchange
from ortserve.gateway.fleet.fleet import Fleet
from ortserve.gateway.http.edge import Edge, Gate, problem_response
from ortserve.gateway.http.room import Room
from ortserve.gateway.http.watch import Patience
from ortserve.gateway.options.edge import EdgeOptions
from ortserve.gateway.pool import WorkPool
from ortserve.gateway.responses.record import interrupted
from ortserve.gateway.responses.runs import Runs
from ortserve.gateway.routes.admin import CacheRoute
from ortserve.gateway.routes.admin_models import AdminModelsRoute, NewModel
from ortserve.gateway.routes.chat import ChatRoute
from ortserve.gateway.routes.completions import CompletionRoute
from ortserve.gateway.routes.documentation import DocumentationRoute
from ortserve.gateway.routes.embeddings import EmbeddingsRoute
from ortserve.gateway.routes.health import HealthRoute
from ortserve.gateway.routes.messages import MessagesRoute
from ortserve.gateway.routes.metrics import MetricsRoute
from ortserve.gateway.routes.models import ModelsRoute
from ortserve.gateway.routes.scoring import ScoringRoute
from ortserve.gateway.routes.tokenizing import TokenizingRoute
from ortserve.gateway.schema.batches import ENDPOINTS
from ortserve.gateway.served.warming import Whose
from ortserve.gateway.state_routes import kept_routes, response_routes
from ortserve.gateway.store.state import State
from ortserve.gateway.telemetry.metrics import Metrics
from ortserve.gateway.telemetry.tracing import Tracing
from ortserve.gateway.transport.forwarded import Forwarded
from ortserve.gateway.usage.ledger import Ledger

RATE_HEADERS = [
    name
    for noun in ("requests", "tokens")
    for word in ("limit", "remaining", "reset")
    for name in (f"x-ratelimit-{word}-{noun}", f"anthropic-ratelimit-{noun}-{word}")
]


def build_app(
    fleet: Fleet,
    *,
    api_key: str | None = None,
    admin_key: str | None = None,
    patience: Patience | None = None,
    edge: EdgeOptions | None = None,
    strict_parameters: bool = False,
    state: State | None = None,
    access: Access | None = None,
    ledger: Ledger | None = None,
    admin_metrics: bool = False,
    log_prompts: bool = False,
    tracing: Tracing | None = None,
    new_model: NewModel | None = None,
    refused: Callable[[], None] | None = None,
) -> Starlette:
    """Routes and layers. `patience` bounds silent and stalled streams.

    `access` holds the keys; None: those of `api_key` and `admin_key` alone. Without an administrator's key nobody may
    administrate. With `strict_parameters`, fields that no table knows are refused instead of reported. `state` (None:
    one in memory) is closed when the application ends. What is used goes to the `ledger`, which keeps the budgets. With
    `admin_metrics` only administrators read metrics, with `log_prompts` the bodies of requests are logged. `tracing`
    takes the spans of requests. `new_model` makes specs of the sources that an administrator names (None: none may be).
    `refused` is called for each request that a full queue refuses.
    """
    patience = patience or Patience()
    edge = edge or EdgeOptions()
    metrics = Metrics(fleet)
    models = ModelsRoute(fleet)
    health = HealthRoute(fleet)
    pool = WorkPool()  # of what no model is needed for
    scoring = ScoringRoute(fleet, pool, patience)
    state = state or State()
    runs = Runs(lambda exchange, seconds: metrics.count_generated(exchange, "/v1/responses", seconds))
    access = access or Access(api_key=api_key, admin_key=admin_key)
    settle = partial(_settle, [one.record for one in (ledger, tracing) if one is not None])
    check_budget = _unbounded if ledger is None else ledger.spending.check
    answering = [
        *_generating_routes(fleet, pool, state, patience),
        *response_routes(fleet, pool, state, runs, patience),
        Route("/v1/embeddings", EmbeddingsRoute(fleet, pool, patience).post, methods=["POST"]),
    ]
    dispatcher = Dispatcher(_handlers(answering), metrics.count, access, lambda: fleet.directory, settle, check_budget)
    jobs = BatchJobs(state, dispatcher)
    routes = [
        *answering,
        *kept_routes(state, runs, jobs, pool, patience),
        Route("/v1/rerank", scoring.rerank, methods=["POST"]),
        Route("/v1/score", scoring.score, methods=["POST"]),
        Route("/v1/models", models.index),
        Route("/v1/models/{id:path}", models.one),
        *_admin_routes(fleet, pool, access.whose, new_model),
        Route("/health", health.get),
        Route("/health/live", health.live),
        Route("/health/ready", health.ready),
        Route("/metrics", MetricsRoute(metrics).get),
        Route("/", health.get),
    ]
    described = DocumentationRoute(routes, base_path=edge.base_path)
    routes += [Route("/openapi.json", described.document), Route("/docs", described.page)]
    gate = Middleware(
        Gate,
        access=access,
        directory=lambda: fleet.directory,
        settle=settle,
        check_budget=check_budget,
        check_room=Room(fleet, refused).check,
        max_body_bytes=edge.max_body_bytes,
        admin_metrics=admin_metrics,
    )
    app = Starlette(
        routes=routes,
        middleware=[*_edge_layers(edge, metrics, strict_parameters, log_prompts), gate],
        lifespan=partial(_living, state, runs, jobs, access, pool),
        exception_handlers={HTTPException: _http_problem, ApiError: _api_problem},
    )
    app.router.redirect_slashes = False
    return app


def _edge_layers(edge: EdgeOptions, metrics: Metrics, strict_parameters: bool, log_prompts: bool) -> list[Middleware]:
    """What a request passes before any key is asked for, the outermost first."""
    return [
        Middleware(Forwarded, trusted=edge.trusted_proxies, base_path=edge.base_path),
        Middleware(
            Edge,
            metrics=metrics,
            max_body_bytes=edge.max_body_bytes,
            body_s=edge.body_s,
            strict_parameters=strict_parameters,
            log_prompts=log_prompts,
        ),
        *_cors(edge.cors_origins),
    ]


def _cors(origins: Sequence[str]) -> list[Middleware]:
    """Answers preflights before any key is asked for, and lets pages of these origins read replies."""
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST", "DELETE", "OPTIONS"],
            allow_headers=["*"],  # reflected: a literal * would not cover Authorization
            expose_headers=["x-request-id", "request-id", "x-ortserve-ignored", "retry-after", *RATE_HEADERS],
        )
    ]


def _settle(records: Sequence[Callable[[Exchange], None]], exchange: Exchange) -> None:
    """Hand an exchange that has ended to whoever keeps accounts of it."""
    for record in records:
        record(exchange)


def _unbounded(_: Grant) -> None:
    """Without accounts there are no budgets."""


def _generating_routes(fleet: Fleet, pool: WorkPool, state: State, patience: Patience) -> list[Route]:
    """The endpoints of models that generate."""
    messages = MessagesRoute(fleet, pool, patience)
    tokenizing = TokenizingRoute(fleet, pool)
    return [
        Route("/v1/chat/completions", ChatRoute(fleet, pool, state.completions, patience).post, methods=["POST"]),
        Route("/v1/completions", CompletionRoute(fleet, pool, patience).post, methods=["POST"]),
        Route("/v1/messages", messages.post, methods=["POST"]),
        Route("/v1/messages/count_tokens", messages.count_tokens, methods=["POST"]),
        Route("/v1/tokenize", tokenizing.tokenize, methods=["POST"]),
        Route("/v1/detokenize", tokenizing.detokenize, methods=["POST"]),
        Route("/v1/tokenizer_info", tokenizing.info),
    ]


def _admin_routes(fleet: Fleet, pool: WorkPool, whose: Whose, new_model: NewModel | None) -> list[Route]:
    """The administrator's; `whose` tells which tenant a key belongs to."""
    cache = CacheRoute(fleet, pool, whose)
    models = AdminModelsRoute(fleet, pool, new_model)
    return [
        Route("/admin/cache/stats", cache.stats),
        Route("/admin/cache/entries", cache.entries),
        Route("/admin/cache/clear", cache.clear, methods=["POST"]),
        Route("/admin/cache/warm", cache.warm, methods=["POST"]),
        Route("/admin/models", models.index),
        Route("/admin/models/load", models.load, methods=["POST"]),
        Route("/admin/models/unload", models.unload, methods=["POST"]),
        Route("/admin/models/swap", models.swap, methods=["POST"]),
    ]


def _handlers(routes: Sequence[Route]) -> Mapping[str, Handler]:
    """What batches may ask, by path."""
    return {route.path: route.endpoint for route in routes if route.path in ENDPOINTS}


@asynccontextmanager
async def _living(
    state: State, runs: Runs, jobs: BatchJobs, access: Access, pool: WorkPool, _: Starlette
) -> AsyncIterator[None]:
    """What runs beside requests, from the server's start to its end."""
    state.responses.end_interrupted(interrupted)
    jobs.resume()
    state.start()
    watching = asyncio.create_task(access.watch())
    try:
        yield
    finally:
        watching.cancel()
        await jobs.close()
        await runs.close()
        await state.close()
        pool.close()


async def _http_problem(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: no such path, or not with this method."""
    assert isinstance(error, HTTPException)
    path = request.scope["raw_path"].decode("latin-1")  # as the client wrote it
    if error.status_code == 405:
        # Starlette names only the methods of the first of a path's routes.
        routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
        allowed = {method for route in routes for method in route.methods}
        problem = method_not_allowed(request.method, path, ", ".join(sorted(allowed)))
    elif error.status_code == 404:
        problem = invalid_url(request.method, path)
    else:
        problem = Problem(error.status_code, error.detail)
    return problem_response(problem, request.scope)


async def _api_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return problem_response(error.problem, request.scope)
