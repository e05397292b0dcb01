"""What the server has done, as Prometheus metrics: counted per request, read from the models when asked.

Knows no prompt, no key and no tenant: no label can tell one caller from another. All counts belong to the event loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import Metric

from ortserve.gateway.encoders.service import EncoderService
from ortserve.gateway.served.service import ModelService
from ortserve.gateway.tally import TOKEN_SECONDS, Tally
from ortserve.gateway.telemetry.draft_metrics import draft_metrics
from ortserve.gateway.telemetry.model_metrics import cache_metrics, encoder_metrics, engine_metrics, fleet_metrics
from ortserve.gateway.telemetry.prometheus import Tallies, counter, histogram

if TYPE_CHECKING:
    from ortserve.gateway.exchange import Exchange
    from ortserve.gateway.fleet.fleet import Fleet

OTHER = "other"
UNKNOWN = "unknown"  # whatever strangers call it
ROUTES = (
    "/", "/health", "/health/live", "/health/ready", "/metrics", "/openapi.json", "/docs",
    "/v1/chat/completions", "/v1/completions", "/v1/models",
    "/v1/messages", "/v1/messages/count_tokens", "/v1/responses", "/v1/responses/input_tokens",
    "/v1/conversations", "/v1/files", "/v1/batches",
    "/v1/embeddings", "/v1/rerank", "/v1/score",
    "/admin/cache/stats", "/admin/cache/entries", "/admin/cache/clear", "/admin/cache/warm",
    "/admin/models", "/admin/models/load", "/admin/models/unload", "/admin/models/swap",
)  # fmt: skip
PATTERNS = (
    "/v1/chat/completions/{id}", "/v1/chat/completions/{id}/messages",
    "/v1/responses/{id}", "/v1/responses/{id}/cancel", "/v1/responses/{id}/input_items",
    "/v1/batches/{id}", "/v1/batches/{id}/cancel", "/v1/files/{id}", "/v1/files/{id}/content",
    "/v1/conversations/{id}", "/v1/conversations/{id}/items", "/v1/conversations/{id}/items/{item}",
)  # fmt: skip
MODEL_ROUTE = "/v1/models/"  # names may have slashes
MODEL = ("model",)
TOKEN_COUNTERS = (
    ("prompt_tokens", "Tokens of prompts"),
    ("cached_prompt_tokens", "Tokens of prompts that were not computed"),
    ("output_tokens", "Tokens generated"),
)


class Metrics:
    """The counts of one server: two servers in one process do not mix."""

    def __init__(self, fleet: Fleet) -> None:
        """What models do is read off them; what requests were is counted here, by served name."""
        self._fleet = fleet
        self._requests: Counter[tuple[str, ...]] = Counter()  # by route, status, outcome
        self._ignored: Counter[tuple[str, ...]] = Counter()  # by route, field
        self._errors: Counter[tuple[str, ...]] = Counter()  # by route, code
        self._tokens: dict[str, Counter[tuple[str, ...]]] = {kind: Counter() for kind, _ in TOKEN_COUNTERS}  # by model
        self._seconds: Tallies = {}  # by route, model
        self._queue: Tallies = {}  # by model, as those that follow
        self._first_token: Tallies = {}
        self._intervals: Tallies = {}

    def count(self, exchange: Exchange, path: str, seconds: float) -> None:
        """Take over one exchange when it has ended. `path` is canonical."""
        route = route_of(path)
        self._requests[route, str(exchange.status), exchange.outcome] += 1
        if exchange.error_code is not None:
            self._errors[route, exchange.error_code] += 1
        unheeded = exchange.unheeded
        for name in unheeded.ignored:
            self._ignored[route, name] += 1
        if unheeded.unknown:
            self._ignored[route, UNKNOWN] += len(unheeded.unknown)
        self.count_generated(exchange, path, seconds)

    def count_generated(self, exchange: Exchange, path: str, seconds: float) -> None:
        """Take over the tokens and times of one that may have been answered before they were known."""
        timings, route, model = exchange.timings, route_of(path), (exchange.model,)
        if timings is None:
            return
        self._seconds.setdefault((route, *model), Tally()).add(seconds)
        self._tokens["prompt_tokens"][model] += exchange.num_prompt_tokens or 0
        self._tokens["cached_prompt_tokens"][model] += exchange.num_cached_tokens or 0
        self._tokens["output_tokens"][model] += exchange.num_output_tokens or 0
        if exchange.first_token_s is not None:
            self._first_token.setdefault(model, Tally()).add(exchange.first_token_s)
        for queue_s in timings.queue_s:
            self._queue.setdefault(model, Tally()).add(queue_s)
        self._intervals.setdefault(model, Tally(TOKEN_SECONDS)).merge(timings.intervals)

    def collect(self) -> Iterator[Metric]:
        """Everything as of now."""
        yield counter("requests", "HTTP requests that have ended", self._requests, ("route", "status", "outcome"))
        yield counter("errors", "Replies that were an error, by its code", self._errors, ("route", "code"))
        yield counter("ignored_fields", "Request fields without effect", self._ignored, ("route", "field"))
        yield histogram(
            "request_seconds", "From the first byte to the last, of generations", self._seconds, ("route", "model")
        )
        for kind, help_ in TOKEN_COUNTERS:
            yield counter(kind, help_, self._tokens[kind], MODEL)
        yield histogram("queue_seconds", "From submission to the first step of a sequence", self._queue, MODEL)
        yield histogram("time_to_first_token_seconds", "From the first byte to a token", self._first_token, MODEL)
        yield histogram("inter_token_seconds", "Between two tokens of a sequence", self._intervals, MODEL)
        states = self._fleet.states()
        yield from fleet_metrics(self._fleet, states)
        engines = {state.name: state.service.driver for state in states if isinstance(state.service, ModelService)}
        if engines:
            yield from engine_metrics(engines)
            yield from cache_metrics({name: driver.cache_stats() for name, driver in engines.items()})
            yield from draft_metrics({name: driver.draft_stats() for name, driver in engines.items()})
        encoders = {state.name: state.service.driver for state in states if isinstance(state.service, EncoderService)}
        if encoders:
            yield from encoder_metrics({name: driver.stats() for name, driver in encoders.items()})


def route_of(path: str) -> str:
    """A label of bounded variety: what strangers ask for must not become series."""
    if path in ROUTES:
        return path
    if path.startswith(MODEL_ROUTE):
        return f"{MODEL_ROUTE}{{id}}"
    parts = path.split("/")
    return next((pattern for pattern in PATTERNS if _matches(pattern.split("/"), parts)), OTHER)


def _matches(pattern: list[str], parts: list[str]) -> bool:
    return len(pattern) == len(parts) and all(
        word == part or word.startswith("{") for word, part in zip(pattern, parts, strict=True)
    )
