"""The answers to POST /v1/rerank and /v1/score. Knows no encoder."""

from __future__ import annotations

from typing import Literal

import msgspec

from ortserve.gateway.answers.embeddings import EncoderUsage


class RankedDocument(msgspec.Struct, frozen=True):
    """A document as it was sent."""

    text: str


class RankedResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """One document's place in the request and its score."""

    index: int
    relevance_score: float
    document: RankedDocument | None = None


class RerankReply(msgspec.Struct, frozen=True):
    """The answer to POST /v1/rerank, most relevant first."""

    id: str
    model: str
    results: list[RankedResult]
    usage: EncoderUsage


class ScoreValue(msgspec.Struct, frozen=True):
    """The score of one pair."""

    index: int
    score: float
    object: Literal["score"] = "score"


class ScoreReply(msgspec.Struct, frozen=True):
    """The answer to POST /v1/score."""

    id: str
    created: int
    model: str
    data: list[ScoreValue]
    usage: EncoderUsage
    object: Literal["list"] = "list"
