"""The request fields of the APIs' specifications, from the client libraries' types. Knows no server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from anthropic.types.message_count_tokens_params import MessageCountTokensParams
from anthropic.types.message_create_params import MessageCreateParams
from openai.types.batch_create_params import BatchCreateParams
from openai.types.chat.completion_create_params import CompletionCreateParams as ChatCreateParams
from openai.types.completion_create_params import CompletionCreateParams
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.responses.response_create_params import ResponseCreateParams
from typing_extensions import get_type_hints, is_typeddict

SPECIFICATIONS: Mapping[str, Any] = {
    "/v1/chat/completions": ChatCreateParams,
    "/v1/completions": CompletionCreateParams,
    "/v1/batches": BatchCreateParams,
    "/v1/embeddings": EmbeddingCreateParams,
    "/v1/responses": ResponseCreateParams,
    "/v1/messages": MessageCreateParams,
    "/v1/messages/count_tokens": MessageCountTokensParams,
}


def fields_of(type_: Any) -> list[str]:
    """Every field as `stream_options.include_usage`, elements of arrays as their array."""
    return sorted(set(_walk(type_, "", ())))


def _walk(type_: Any, path: str, inside: tuple[Any, ...]) -> Iterator[str]:
    if is_typeddict(type_):
        if type_ in inside:  # schemas within schemas
            return
        for name, inner in get_type_hints(type_).items():
            below = f"{path}.{name}" if path else name
            yield below
            yield from _walk(inner, below, (*inside, type_))
        return
    for argument in get_args(type_):
        yield from _walk(argument, path, inside)
