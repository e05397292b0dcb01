"""POST /v1/tokenize, /v1/detokenize and GET /v1/tokenizer_info. Know no engine: nothing is generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.answers.tokenizing import DetokenizeReply, TokenizeReply, TokenizerInfoReply, TokenPiece
from ortserve.gateway.exchange import exchange_of
from ortserve.gateway.fleet.fleet import Fleet
from ortserve.gateway.pool import WorkPool
from ortserve.gateway.prompts.prompt import INLINE_BYTES
from ortserve.gateway.request_fields.tokenizing import DETOKENIZE, TOKENIZE
from ortserve.gateway.routes.bodies import asked_model, json_response, read_addressed
from ortserve.gateway.schema.tokenizing import TokenizeRequest, read_detokenize, read_tokenize
from ortserve.gateway.served.service import ModelService

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class TokenizingRoute:
    """The endpoints of all models that generate."""

    fleet: Fleet
    pool: WorkPool

    async def tokenize(self, request: Request) -> Response:
        """Ids of a text, which may be longer than the context, or of a conversation's prompt."""
        service, call = await read_addressed(
            request,
            TOKENIZE,
            lambda fields, service: read_tokenize(fields, service.vocabulary),
            self.fleet,
            self.pool,
        )
        size = len(exchange_of(request.scope).body)
        source = call.source
        if isinstance(source, str):
            ids: Sequence[int] = await _run(
                service, lambda: service.tokenizer.encode(source, add_special_tokens=call.adds_special_tokens), size
            )
        else:
            ids = (await service.prompts.encode_chat(source, num_body_bytes=size)).ids
        return await _run(service, lambda: json_response(_reply(service, call, ids)), size)

    async def detokenize(self, request: Request) -> Response:
        """The text of ids."""
        service, call = await read_addressed(
            request,
            DETOKENIZE,
            lambda fields, service: read_detokenize(fields, service.vocabulary),
            self.fleet,
            self.pool,
        )
        size = len(exchange_of(request.scope).body)
        text = await _run(service, lambda: service.tokenizer.decode_whole(call.ids), size)
        return json_response(DetokenizeReply(text, text))

    async def info(self, request: Request) -> Response:
        """What clients that tokenize elsewhere need to know; `?model=NAME`."""
        service = await asked_model(request, self.fleet)
        manifest = service.manifest
        spelling = service.tokenizer.spelling
        reply = TokenizerInfoReply(
            bos_token=None if manifest.bos_token_id is None else spelling(manifest.bos_token_id),
            eos_token=spelling(manifest.eos_token_ids[0]) if manifest.eos_token_ids else None,
            pad_token=None,  # nothing here is padded
            chat_template=service.prompts.template_source,
            vocab_size=service.vocabulary.num_tokens,
            model_max_length=service.max_context,
        )
        return json_response(reply)


def _reply(service: ModelService, call: TokenizeRequest, ids: Sequence[int]) -> TokenizeReply:
    tokenizer = service.tokenizer
    tokens: list[int] | list[TokenPiece] = list(ids)
    if call.with_pieces:
        tokens = [TokenPiece(token, _piece(tokenizer.whole_bytes(token))) for token in ids]
    names = [tokenizer.spelling(token) for token in ids] if call.names_tokens else None
    return TokenizeReply(len(ids), service.max_context, tokens, names)


async def _run(service: ModelService, work: Callable[[], Result], size: int) -> Result:
    return work() if size <= INLINE_BYTES else await service.pool.run(work)


def _piece(data: bytes) -> str | list[int]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)
