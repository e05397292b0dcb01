"""The endpoints that remember, and which of them need a model that generates. Knows no socket and no layer."""

from __future__ import annotations

from starlette.routing import Route

from ortserve.gateway.batches.jobs import BatchJobs
from ortserve.gateway.fleet.fleet import Fleet
from ortserve.gateway.http.watch import Patience
from ortserve.gateway.pool import WorkPool
from ortserve.gateway.responses.runs import Runs
from ortserve.gateway.routes.batches import BatchesRoute
from ortserve.gateway.routes.conversations import ConversationsRoute
from ortserve.gateway.routes.files import FilesRoute
from ortserve.gateway.routes.kept_chat import KeptChatRoute
from ortserve.gateway.routes.kept_responses import KeptResponsesRoute
from ortserve.gateway.routes.responses import ResponsesRoute
from ortserve.gateway.store.state import State


def response_routes(fleet: Fleet, pool: WorkPool, state: State, runs: Runs, patience: Patience) -> list[Route]:
    """Of models that generate."""
    responses = ResponsesRoute(fleet, pool, state, runs, patience)
    return [
        Route("/v1/responses", responses.post, methods=["POST"]),
        Route("/v1/responses/input_tokens", responses.input_tokens, methods=["POST"]),
    ]


def kept_routes(state: State, runs: Runs, jobs: BatchJobs, pool: WorkPool, patience: Patience) -> list[Route]:
    """Of what is kept, whatever models there are."""
    chat = KeptChatRoute(state, pool)
    kept = KeptResponsesRoute(state, runs, patience)
    conversations = ConversationsRoute(state, pool)
    files, batches = FilesRoute(state), BatchesRoute(state, jobs, pool)
    return [
        Route("/v1/chat/completions", chat.index, methods=["GET"]),
        Route("/v1/chat/completions/{id}", chat.get, methods=["GET"]),
        Route("/v1/chat/completions/{id}", chat.update, methods=["POST"]),
        Route("/v1/chat/completions/{id}", chat.delete, methods=["DELETE"]),
        Route("/v1/chat/completions/{id}/messages", chat.messages, methods=["GET"]),
        Route("/v1/responses/{id}", kept.get, methods=["GET"]),
        Route("/v1/responses/{id}", kept.delete, methods=["DELETE"]),
        Route("/v1/responses/{id}/cancel", kept.cancel, methods=["POST"]),
        Route("/v1/responses/{id}/input_items", kept.input_items, methods=["GET"]),
        Route("/v1/conversations", conversations.create, methods=["POST"]),
        Route("/v1/conversations/{id}", conversations.get, methods=["GET"]),
        Route("/v1/conversations/{id}", conversations.update, methods=["POST"]),
        Route("/v1/conversations/{id}", conversations.delete, methods=["DELETE"]),
        Route("/v1/conversations/{id}/items", conversations.add_items, methods=["POST"]),
        Route("/v1/conversations/{id}/items", conversations.list_items, methods=["GET"]),
        Route("/v1/conversations/{id}/items/{item_id}", conversations.get_item, methods=["GET"]),
        Route("/v1/conversations/{id}/items/{item_id}", conversations.delete_item, methods=["DELETE"]),
        Route("/v1/files", files.upload, methods=["POST"]),
        Route("/v1/files", files.index, methods=["GET"]),
        Route("/v1/files/{id}", files.get, methods=["GET"]),
        Route("/v1/files/{id}", files.delete, methods=["DELETE"]),
        Route("/v1/files/{id}/content", files.content, methods=["GET"]),
        Route("/v1/batches", batches.create, methods=["POST"]),
        Route("/v1/batches", batches.index, methods=["GET"]),
        Route("/v1/batches/{id}", batches.get, methods=["GET"]),
        Route("/v1/batches/{id}/cancel", batches.cancel, methods=["POST"]),
    ]
