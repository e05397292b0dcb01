"""The answer to POST /v1/embeddings. Knows no encoder."""

from __future__ import annotations

from base64 import b64encode
from typing import Literal

import msgspec
import numpy as np

from ortserve.runtime.encoders.encoder import Rows


class EncoderUsage(msgspec.Struct, frozen=True):
    """Tokens that were encoded."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingValue(msgspec.Struct, frozen=True):
    """The embedding of one input: numbers, or base64 of little-endian float32."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingReply(msgspec.Struct, frozen=True):
    """The answer to POST /v1/embeddings."""

    data: list[EmbeddingValue]
    model: str
    usage: EncoderUsage
    object: Literal["list"] = "list"


def embedding_values(rows: Rows, *, is_base64: bool) -> list[EmbeddingValue]:
    """One value a row."""
    if is_base64:
        little = rows.astype("<f4")
        return [EmbeddingValue(index, b64encode(row.tobytes()).decode()) for index, row in enumerate(little)]
    return [EmbeddingValue(index, row) for index, row in enumerate(rows.astype(np.float64).tolist())]
