"""Reads what each token stands for from a tokenizer.json, for drafters that compare texts. Knows no text itself.

Two alphabets are known: bytes written as letters (GPT-2 and its heirs), and pieces with a mark for the space
(SentencePiece). Of other tokenizers nothing is said.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

_TOKENIZER = "tokenizer.json"
_SPACE = "\u2581"
_BYTE = "<0x"


class _Added(msgspec.Struct):
    id: int


class _Model(msgspec.Struct):
    type: str | None = None
    vocab: Any = None


class _Tokenizer(msgspec.Struct):
    model: _Model
    decoder: Any = None
    added_tokens: list[_Added] = []


def read_words(folder: Path, num_tokens: int) -> list[bytes]:
    """The bytes of each token, by id: empty for those without text. An empty list where nothing is known."""
    try:
        tokenizer = msgspec.json.decode((folder / _TOKENIZER).read_bytes(), type=_Tokenizer)
    except (OSError, msgspec.MsgspecError):
        return []
    vocabulary, decoders = tokenizer.model.vocab, _types(tokenizer.decoder)
    if not isinstance(vocabulary, dict) or tokenizer.model.type not in (None, "BPE"):
        return []
    if "ByteLevel" in decoders:
        alphabet = _letters()
        texts = {word: bytes(alphabet[one] for one in word if one in alphabet) for word in vocabulary}
    elif "ByteFallback" in decoders:
        texts = {word: _piece(word) for word in vocabulary}
    else:
        return []
    added = {one.id for one in tokenizer.added_tokens}
    words = [b""] * num_tokens
    for word, token in vocabulary.items():
        if isinstance(token, int) and 0 <= token < num_tokens and token not in added:
            words[token] = texts[word]
    return words


def _types(decoder: Any) -> set[str]:
    """Of a decoder and of those it is made of."""
    if not isinstance(decoder, dict):
        return set()
    parts = decoder.get("decoders")
    return {str(decoder.get("type"))}.union(*map(_types, parts if isinstance(parts, list) else []))


def _letters() -> dict[str, int]:
    """The byte for each letter of the byte-level alphabet: printable ones are themselves, others follow from 256 on."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


def _piece(word: str) -> bytes:
    if word.startswith(_BYTE) and word.endswith(">") and len(word) == len(_BYTE) + 3:
        return bytes.fromhex(word[len(_BYTE) : -1])
    return word.replace(_SPACE, " ").encode()
