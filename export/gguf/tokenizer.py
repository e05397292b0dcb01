"""Makes the tokenizer files of a checkpoint from a GGUF file's metadata. Knows no tensors.

Kinds that `tokenizers` represents exactly: byte-level BPE with a pre-tokenizer that is known by name, and
SentencePiece's BPE, whose merges follow from the scores. Others are a named error. Source of the pre-tokenizers: the
published tokenizer.json files of the models that llama.cpp's names stand for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ortserve.export.errors import ExportError
from ortserve.export.gguf.file import GgufFile

PREFIX = "tokenizer.ggml."
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # token types
SPACE = "▁"  # SentencePiece's
MAX_PIECE = 256  # characters of a piece that merges are looked for in
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_GPT2 = {**_BYTES, "use_regex": True}


def _split(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _BYTES]}


PRE_TOKENIZERS: Mapping[str, dict[str, Any]] = {
    "gpt-2": _GPT2,
    "llama-bpe": _split(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + _LETTERS + "{1,3}" + _REST),
    "qwen2": _split(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + _LETTERS + _REST),
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _GPT2]},
}


def write_gguf_tokenizer(file: GgufFile, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json; nothing where the file has no tokenizer.

    Raises `ExportError` for tokenizers that cannot be represented exactly, and for damaged metadata.
    """
    kind = file.metadata.get(f"{PREFIX}model")
    if kind is None:
        return
    if kind not in ("gpt2", "llama"):
        raise ExportError(f"{file.path}: tokenizer {kind!r} is not supported: export reads gpt2 and llama")
    words = _words(file)
    tokenizer = _byte_level(file, words) if kind == "gpt2" else _sentence_piece(file, words)
    added = _added(file, words)
    tokenizer |= {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "post_processor": None}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    config = {
        "bos_token": _named(file, words, "bos_token_id"),
        "eos_token": _named(file, words, "eos_token_id"),
        "add_bos_token": file.metadata.get(f"{PREFIX}add_bos_token", kind == "llama"),
    }
    template = file.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")


def gguf_eos_ids(file: GgufFile) -> list[int]:
    """Ids that end a text or a turn."""
    named = (file.metadata.get(f"{PREFIX}{key}") for key in ("eos_token_id", "eot_token_id"))
    return [token for token in dict.fromkeys(named) if isinstance(token, int)]


def _byte_level(file: GgufFile, words: Sequence[str]) -> dict[str, Any]:
    pre = file.metadata.get(f"{PREFIX}pre")
    if not isinstance(pre, str) or pre not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise ExportError(f"{file.path}: pre-tokenizer {pre!r} is not supported: export reads {known}")
    merges = _texts(file, "merges")
    known_words = set(words)
    pairs = [merge.split(" ") for merge in merges]
    for pair in pairs:
        if len(pair) != 2 or not {*pair, "".join(pair)} <= known_words:
            raise ExportError(f"{file.path}: the merge {' '.join(pair)[:80]!r} is not of tokens: the file is damaged")
    return {
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": PRE_TOKENIZERS[pre],
        "decoder": _GPT2,
        "model": _model(words, pairs, ignore_merges=pre == "llama-bpe"),
    }


def _sentence_piece(file: GgufFile, words: Sequence[str]) -> dict[str, Any]:
    scores = file.metadata.get(f"{PREFIX}scores")
    if not isinstance(scores, list) or len(scores) != len(words):
        raise ExportError(f"{file.path}: {PREFIX}scores is no list of {len(words)} numbers, one for each token")
    kinds = _kinds(file, words)
    prefix = file.metadata.get(f"{PREFIX}add_space_prefix", True)
    unknown = _named(file, words, "unknown_token_id")
    steps: list[dict[str, Any]] = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    merges = _merges_by_score(file, words, scores, kinds)
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {**_model(words, merges), "unk_token": unknown, "fuse_unk": True, "byte_fallback": True},
    }


def _merges_by_score(
    file: GgufFile, words: Sequence[str], scores: Sequence[float], kinds: Sequence[int]
) -> list[list[str]]:
    """Pairs of pieces that make a piece, highest score first: the order in which SentencePiece would join them.

    Raises `ExportError` when two pieces that are made have the same score, which leaves their order to the text.
    """
    score_of = {word: score for word, score, kind in zip(words, scores, kinds, strict=True) if kind == NORMAL}
    found: list[tuple[float, float, float, list[str]]] = []
    made: dict[float, str] = {}
    for word, score in score_of.items():
        if len(word) > MAX_PIECE:
            raise ExportError(f"{file.path}: the piece {word[:40]!r} has {len(word)} characters: the file is damaged")
        halves = [(word[:place], word[place:]) for place in range(1, len(word))]
        pairs = [[left, right] for left, right in halves if left in score_of and right in score_of]
        if pairs and made.setdefault(score, word) != word:
            raise ExportError(f"{file.path}: the pieces {made[score]!r} and {word!r} have the same score {score}")
        found += [(-score, -score_of[left], -score_of[right], [left, right]) for left, right in pairs]
    return [pair for *_, pair in sorted(found)]


def _model(words: Sequence[str], merges: Sequence[Sequence[str]], *, ignore_merges: bool = False) -> dict[str, Any]:
    return {
        "type": "BPE",
        "vocab": {word: index for index, word in enumerate(words)},
        "merges": merges,
        "ignore_merges": ignore_merges,
        "unk_token": None,
        "byte_fallback": False,
        "fuse_unk": False,
    }


def _added(file: GgufFile, words: Sequence[str]) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": index, "content": words[index], **flags, "special": kind == CONTROL}
        for index, kind in enumerate(_kinds(file, words))
        if kind in (CONTROL, USER_DEFINED)
    ]


def _words(file: GgufFile) -> list[str]:
    words = _texts(file, "tokens")
    if not words or len(set(words)) != len(words):
        raise ExportError(f"{file.path}: {PREFIX}tokens is empty or names a token twice: the file is damaged")
    return words


def _kinds(file: GgufFile, words: Sequence[str]) -> list[int]:
    kinds = file.metadata.get(f"{PREFIX}token_type")
    if not isinstance(kinds, list) or len(kinds) != len(words):
        raise ExportError(f"{file.path}: {PREFIX}token_type is no list of {len(words)} kinds, one for each token")
    return kinds


def _texts(file: GgufFile, key: str) -> list[str]:
    values = file.metadata.get(f"{PREFIX}{key}")
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ExportError(f"{file.path}: {PREFIX}{key} is no list of texts: the file is damaged")
    return values


def _named(file: GgufFile, words: Sequence[str], key: str) -> str | None:
    index = file.metadata.get(f"{PREFIX}{key}")
    if index is None:
        return None
    if not isinstance(index, int) or not 0 <= index < len(words):
        raise ExportError(f"{file.path}: {PREFIX}{key} {index!r} is no id below {len(words)}: the file is damaged")
    return words[index]
