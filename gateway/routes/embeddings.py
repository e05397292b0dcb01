"""POST /v1/embeddings. Knows no tokenizer and no encoder."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.answers.embeddings import EmbeddingReply, EncoderUsage, embedding_values
from ortserve.gateway.encoders.service import Encoded, EncoderService, Truncation, normalized
from ortserve.gateway.errors import bad_request
from ortserve.gateway.exchange import exchange_of
from ortserve.gateway.fleet.fleet import Fleet
from ortserve.gateway.http.watch import Patience
from ortserve.gateway.pool import WorkPool
from ortserve.gateway.request_fields.encoders import EMBEDDINGS
from ortserve.gateway.routes.bodies import read_request
from ortserve.gateway.routes.whole import CLIENT_CLOSED, wait_while_connected
from ortserve.gateway.schema.embeddings import EmbeddingRequest, read_embedding

INLINE_NUMBERS = 8192  # writing so many as decimals stays below 1 ms


@dataclass(frozen=True, slots=True)
class EmbeddingsRoute:
    """The endpoint of all encoders that make embeddings."""

    fleet: Fleet
    pool: WorkPool
    patience: Patience

    async def post(self, request: Request) -> Response:
        """Embed every input."""
        exchange = exchange_of(request.scope)
        call = await read_request(request, EMBEDDINGS, read_embedding, self.pool)
        service = await self.fleet.encoder(call.model, exchange, "embeddings")
        service.check_dimensions(call.dimensions)
        _check_token_ids(call, service)
        truncation = Truncation(service.max_length if call.truncate == -1 else call.truncate)
        work = service.embed(
            call.inputs,
            prompt_name=call.prompt_name,
            truncation=truncation,
            max_wait_s=exchange.turn(is_streamed=False).max_wait_s,
        )
        encoded = await wait_while_connected(request, work, self.patience)
        if encoded is None:
            return Response(status_code=CLIENT_CLOSED)
        exchange.note_prompt(encoded.num_tokens)
        size = len(encoded.rows) * service.manifest.num_outputs
        body = (
            _body(service, call, encoded)
            if size <= INLINE_NUMBERS
            else await service.pool.run(lambda: _body(service, call, encoded))
        )
        return Response(body, media_type="application/json")


def _body(service: EncoderService, call: EmbeddingRequest, encoded: Encoded) -> bytes:
    rows = encoded.rows
    if call.dimensions is not None and call.dimensions < rows.shape[1]:
        rows = rows[:, : call.dimensions]
        rows = normalized(rows) if service.manifest.normalized else rows
    usage = EncoderUsage(encoded.num_tokens, encoded.num_tokens)
    reply = EmbeddingReply(embedding_values(rows, is_base64=call.is_base64), service.name, usage)
    return msgspec.json.encode(reply)


def _check_token_ids(call: EmbeddingRequest, service: EncoderService) -> None:
    """Clients often send ids of OpenAI's tokenizers, which another model turns into plausible nonsense."""
    if service.accepts_token_ids or all(isinstance(one, str) for one in call.inputs):
        return
    message = (
        "Invalid 'input': token ids are refused, since most clients send those of another model's tokenizer. Send text"
        " (in LangChain: check_embedding_ctx_length=False), or start the server with --accept-token-ids if"
        " the ids are this model's."
    )
    raise bad_request(message, param="input", code="unsupported_value")
