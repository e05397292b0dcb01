"""Every endpoint with a JSON body and what it takes. The documentation and the tests go through this list."""

from __future__ import annotations

from dataclasses import dataclass

from ortserve.gateway.request_fields.admin import CLEAR, LOAD, SWAP, UNLOAD, WARM
from ortserve.gateway.request_fields.batches import BATCHES
from ortserve.gateway.request_fields.chat import CHAT
from ortserve.gateway.request_fields.completions import COMPLETIONS
from ortserve.gateway.request_fields.conversations import CONVERSATION_ITEMS, CONVERSATIONS, METADATA_UPDATE
from ortserve.gateway.request_fields.encoders import EMBEDDINGS, RERANK, SCORE
from ortserve.gateway.request_fields.messages import MESSAGES
from ortserve.gateway.request_fields.responses import RESPONSES
from ortserve.gateway.request_fields.table import FieldTable
from ortserve.gateway.request_fields.tokenizing import DETOKENIZE, TOKENIZE


@dataclass(frozen=True, slots=True)
class BodyContract:
    """What POST on a path takes."""

    path: str
    table: FieldTable


BODIES = (
    BodyContract("/v1/chat/completions", CHAT),
    BodyContract("/v1/chat/completions/{id}", METADATA_UPDATE),
    BodyContract("/v1/completions", COMPLETIONS),
    BodyContract("/v1/messages", MESSAGES),
    BodyContract("/v1/messages/count_tokens", MESSAGES),
    BodyContract("/v1/responses", RESPONSES),
    BodyContract("/v1/responses/input_tokens", RESPONSES),
    BodyContract("/v1/conversations", CONVERSATIONS),
    BodyContract("/v1/conversations/{id}", METADATA_UPDATE),
    BodyContract("/v1/conversations/{id}/items", CONVERSATION_ITEMS),
    BodyContract("/v1/batches", BATCHES),
    BodyContract("/v1/embeddings", EMBEDDINGS),
    BodyContract("/v1/rerank", RERANK),
    BodyContract("/v1/score", SCORE),
    BodyContract("/v1/tokenize", TOKENIZE),
    BodyContract("/v1/detokenize", DETOKENIZE),
    BodyContract("/admin/cache/warm", WARM),
    BodyContract("/admin/cache/clear", CLEAR),
    BodyContract("/admin/models/load", LOAD),
    BodyContract("/admin/models/unload", UNLOAD),
    BodyContract("/admin/models/swap", SWAP),
)


def table_of(path: str) -> FieldTable:
    """Raises `StopIteration` for a path without a body."""
    return next(body.table for body in BODIES if body.path == path)
