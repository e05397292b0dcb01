"""The answers to POST /v1/tokenize and /v1/detokenize, and what is told of the tokenizer. Knows no token."""

from __future__ import annotations

import msgspec


class TokenPiece(msgspec.Struct, frozen=True):
    """A token and its part of the text: as bytes where these alone are not UTF-8."""

    id: int
    piece: str | list[int]


class TokenizeReply(msgspec.Struct, frozen=True):
    """The answer to POST /v1/tokenize. `token_strs` are the vocabulary's own spellings."""

    count: int
    max_model_len: int
    tokens: list[int] | list[TokenPiece]
    token_strs: list[str] | None


class DetokenizeReply(msgspec.Struct, frozen=True):
    """The answer to POST /v1/detokenize: one text under both names."""

    prompt: str
    content: str


class TokenizerInfoReply(msgspec.Struct, frozen=True):
    """The answer to GET /v1/tokenizer_info: what evaluation harnesses ask of a tokenizer that they do not have."""

    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    chat_template: str | None
    vocab_size: int
    model_max_length: int
