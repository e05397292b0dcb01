"""Writes down what a checkpoint's files say about its use: ids, tokenizer size, defaults. Knows no graph."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ortserve.export.errors import ExportError
from ortserve.export.sources.checkpoint import Checkpoint
from ortserve.runtime.manifest import GenerationDefaults


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """What the manifest says about tokens."""

    num_tokens: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    add_bos: bool


def describe_tokens(checkpoint: Checkpoint, vocab_size: int) -> TokenFacts:
    """Merge tokenizer.json, tokenizer_config.json, generation_config.json and config.json.

    Raises `ExportError` when tokenizer.json cannot be read or knows more ids than the embedding has rows.
    """
    tokenizer = open_tokenizer(checkpoint)
    num_tokens = vocab_size
    if tokenizer is not None:
        num_tokens = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if not 0 < num_tokens <= vocab_size:
            raise ExportError(
                f"{checkpoint.folder}: tokenizer.json knows {num_tokens} ids, the embedding has {vocab_size} rows:"
                " the files belong to different checkpoints"
            )
    bos = _bos_id(checkpoint, tokenizer)
    return TokenFacts(
        num_tokens=num_tokens,
        eos_token_ids=_eos_ids(checkpoint, tokenizer, vocab_size),
        bos_token_id=bos,
        add_bos=_needs_bos(checkpoint, tokenizer, bos),
    )


def describe_generation(checkpoint: Checkpoint) -> GenerationDefaults:
    """The author's sampling values; `do_sample: false` means greedy: temperature 0 and nothing else."""
    fields = checkpoint.generation_config
    if fields.get("do_sample") is False:
        return GenerationDefaults(temperature=0.0)

    def positive(key: str, most: float = math.inf) -> float | None:
        value = fields.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return float(value) if 0 < value <= most and math.isfinite(value) else None

    top_k = positive("top_k")
    return GenerationDefaults(
        temperature=positive("temperature"),
        top_p=positive("top_p", 1.0),
        top_k=None if top_k is None or top_k % 1 else int(top_k),
        repetition_penalty=positive("repetition_penalty"),
    )


def open_tokenizer(checkpoint: Checkpoint) -> Any:
    """A `tokenizers.Tokenizer`, or None when the checkpoint has no tokenizer.json."""
    path = checkpoint.folder / "tokenizer.json"
    if not path.exists():
        return None
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ExportError(f"{path} is no readable tokenizer ({error}): download it again") from None


def _token_id(checkpoint: Checkpoint, tokenizer: Any, key: str) -> int | None:
    """The id of a special token that tokenizer_config.json names as text or as an object with `content`."""
    token = checkpoint.tokenizer_config.get(key)
    text = token.get("content") if isinstance(token, dict) else token
    if tokenizer is None or not isinstance(text, str):
        return None
    found = tokenizer.token_to_id(text)
    return None if found is None else int(found)


def _ids(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(item for item in values if isinstance(item, int) and not isinstance(item, bool))


def _eos_ids(checkpoint: Checkpoint, tokenizer: Any, vocab_size: int) -> tuple[int, ...]:
    named = [
        *_ids(checkpoint.generation_config.get("eos_token_id")),
        *_ids(checkpoint.config.get("eos_token_id")),
        *_ids(_token_id(checkpoint, tokenizer, "eos_token")),
    ]
    return tuple(sorted({token for token in named if 0 <= token < vocab_size}))


def _bos_id(checkpoint: Checkpoint, tokenizer: Any) -> int | None:
    if "bos_token" in checkpoint.tokenizer_config:  # null there means: this model has none
        return _token_id(checkpoint, tokenizer, "bos_token")
    named = _ids(checkpoint.generation_config.get("bos_token_id")) or _ids(checkpoint.config.get("bos_token_id"))
    return named[0] if named else None


def _needs_bos(checkpoint: Checkpoint, tokenizer: Any, bos: int | None) -> bool:
    """The model expects a BOS and encoding a text with special tokens does not already begin with it."""
    if bos is None or tokenizer is None:
        return False
    wanted = checkpoint.tokenizer_config.get("add_bos_token")
    if wanted is None:  # transformers' default: only the Llama tokenizer classes add it
        wanted = str(checkpoint.tokenizer_config.get("tokenizer_class", "")).startswith("LlamaTokenizer")
    ids = tokenizer.encode("a", add_special_tokens=True).ids
    return bool(wanted) and ids[:1] != [bos]
