"""Models as GET /v1/models lists them. Knows no fleet."""

from __future__ import annotations

from typing import Literal

import msgspec


class GenerationValues(msgspec.Struct, frozen=True):
    """Sampling values used when a request omits them."""

    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float


class ModelReply(msgspec.Struct, frozen=True):
    """One entry of GET /v1/models. All fields after the third are extensions."""

    id: str
    created: int
    owned_by: str
    max_model_len: int
    context_length: int
    verified: bool
    generation_defaults: GenerationValues
    state: str  # ready, or what it is instead: loading, unloaded, ...
    object: Literal["model"] = "model"


class EncoderReply(msgspec.Struct, frozen=True):
    """An encoder in GET /v1/models. All fields after the third are extensions."""

    id: str
    created: int
    owned_by: str
    max_model_len: int
    context_length: int
    verified: bool
    task: str
    dimensions: list[int]
    prompt_names: list[str]
    state: str
    object: Literal["model"] = "model"


class ModelList(msgspec.Struct, frozen=True):
    """The answer to GET /v1/models."""

    data: list[ModelReply | EncoderReply]
    object: Literal["list"] = "list"
