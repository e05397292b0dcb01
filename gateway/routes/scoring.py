"""POST /v1/rerank and POST /v1/score. Know no tokenizer and no encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.answers.embeddings import EncoderUsage
from ortserve.gateway.answers.scoring import RankedDocument, RankedResult, RerankReply, ScoreReply, ScoreValue
from ortserve.gateway.encoders.service import Encoded, EncoderService, Truncation
from ortserve.gateway.exchange import exchange_of
from ortserve.gateway.fleet.fleet import Fleet
from ortserve.gateway.http.watch import Patience
from ortserve.gateway.pool import WorkPool
from ortserve.gateway.request_fields.encoders import RERANK, SCORE
from ortserve.gateway.routes.bodies import json_response, now, read_request, reply_id
from ortserve.gateway.routes.whole import CLIENT_CLOSED, wait_while_connected
from ortserve.gateway.schema.scoring import RerankRequest, read_rerank, read_score


@dataclass(frozen=True, slots=True)
class ScoringRoute:
    """The endpoints of all encoders."""

    fleet: Fleet
    pool: WorkPool
    patience: Patience

    async def rerank(self, request: Request) -> Response:
        """Documents by their relevance to one query."""
        call = await read_request(request, RERANK, read_rerank, self.pool)
        service = await self.fleet.encoder(call.model, exchange_of(request.scope), "rerank", "embeddings")
        truncation = _truncation(service, call.truncate, call.longest_document)
        queries = [call.query] * len(call.documents)
        encoded = await self._score(request, service, queries, call.documents, truncation)
        if encoded is None:
            return Response(status_code=CLIENT_CLOSED)
        reply = RerankReply(reply_id("rerank"), service.name, _ranked(call, encoded), _usage(encoded))
        return json_response(reply)

    async def score(self, request: Request) -> Response:
        """One score for each pair."""
        call = await read_request(request, SCORE, read_score, self.pool)
        service = await self.fleet.encoder(call.model, exchange_of(request.scope), "rerank", "embeddings")
        truncation = _truncation(service, call.truncate, None)
        encoded = await self._score(request, service, call.firsts, call.seconds, truncation)
        if encoded is None:
            return Response(status_code=CLIENT_CLOSED)
        data = [ScoreValue(index, float(score)) for index, score in enumerate(encoded.rows[:, 0])]
        return json_response(ScoreReply(reply_id("score"), now(), service.name, data, _usage(encoded)))

    async def _score(
        self,
        request: Request,
        service: EncoderService,
        firsts: Sequence[str],
        seconds: Sequence[str],
        truncation: Truncation,
    ) -> Encoded | None:
        work = service.score(firsts, seconds, truncation, exchange_of(request.scope).turn(is_streamed=False).max_wait_s)
        encoded = await wait_while_connected(request, work, self.patience)
        if encoded is not None:
            exchange_of(request.scope).note_prompt(encoded.num_tokens)
        return encoded


def _truncation(service: EncoderService, truncate: int | None, longest_document: int | None) -> Truncation:
    return Truncation(service.max_length if truncate == -1 else truncate, longest_document)


def _ranked(call: RerankRequest, encoded: Encoded) -> list[RankedResult]:
    scores = encoded.rows[:, 0]
    best = np.argsort(-scores, kind="stable")[: call.top_n]
    return [
        RankedResult(
            int(index),
            float(scores[index]),
            RankedDocument(call.documents[index]) if call.return_documents else None,
        )
        for index in best
    ]


def _usage(encoded: Encoded) -> EncoderUsage:
    return EncoderUsage(encoded.num_tokens, encoded.num_tokens)
