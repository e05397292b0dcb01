"""What a checkpoint says it does after its last layer: pooling, dense layers, normalization. Knows files, no graph.

The files are those of sentence-transformers: modules.json, N_Pooling/config.json, sentence_bert_config.json and
config_sentence_transformers.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ortserve.export.errors import ExportError
from ortserve.export.sources.json_fields import JsonObject, integer, read_json, read_optional_json

OLD_POOLING_NAMES = {  # in the order their results are joined
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
POOLING_MODES = tuple(OLD_POOLING_NAMES.values())
POSITIONS_AFTER_PADDING = ("camembert", "mpnet", "roberta", "xlm-roberta")  # positions begin at pad_token_id + 1
UNSTATED = 1_000_000  # tokenizers without a limit state a huge one


@dataclass(frozen=True, slots=True)
class SentenceModules:
    """The checkpoint's own account."""

    family: str
    pooling: tuple[str, ...]
    num_dense: int
    normalized: bool
    max_length: int  # tokens, special ones included
    pad_token_id: int
    vocab_size: int
    prompts: Mapping[str, str]
    default_prompt: str | None
    dimensions: tuple[int, ...]
    notes: tuple[str, ...]  # what was assumed


def read_modules(folder: Path) -> SentenceModules:
    """Read all of it. Raises `ExportError` for what is missing, damaged or not known here."""
    config = read_json(folder / "config.json")
    chain, notes = _chain(folder)
    pooling, include_prompt = _pooling(folder, chain)
    own = read_optional_json(folder / "config_sentence_transformers.json")
    prompts = {str(name): str(text) for name, text in (own.get("prompts") or {}).items() if text}
    if prompts and not include_prompt:
        raise ExportError(f"{folder} leaves prompts out of its pooling, which is not supported: nothing was exported")
    default = own.get("default_prompt_name")
    stated = config.get("matryoshka_dimensions") or own.get("matryoshka_dimensions") or ()
    return SentenceModules(
        family=str(config.get("model_type", "unknown")),
        pooling=pooling,
        num_dense=sum(kind == "Dense" for kind, _ in chain),
        normalized=any(kind == "Normalize" for kind, _ in chain),
        max_length=_max_length(folder, config),
        pad_token_id=_pad_token_id(config),
        vocab_size=integer(config, "vocab_size"),
        prompts=prompts,
        default_prompt=str(default) if default in prompts else None,
        dimensions=tuple(sorted(int(size) for size in stated)),
        notes=notes,
    )


def read_classifier(folder: Path) -> tuple[SentenceModules, str]:
    """The same of a cross-encoder, and the name of the function its logit goes through. Raises `ExportError`."""
    config = read_json(folder / "config.json")
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, dict) else int(config.get("num_labels") or 2)
    if count != 1:
        raise ExportError(f"{folder} has {count} labels, and a reranker has one: export it with another tool")
    own = config.get("sentence_transformers")
    path = (own or {}).get("activation_fn") or config.get("sbert_ce_default_activation_function")
    facts = SentenceModules(
        family=str(config.get("model_type", "unknown")),
        pooling=(),
        num_dense=0,
        normalized=False,
        max_length=_max_length(folder, config),
        pad_token_id=_pad_token_id(config),
        vocab_size=integer(config, "vocab_size"),
        prompts={},
        default_prompt=None,
        dimensions=(),
        notes=() if path else ("the checkpoint names no activation: scores go through a sigmoid",),
    )
    return facts, str(path or "Sigmoid").rsplit(".", 1)[-1]


def _chain(folder: Path) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """Kind and path of every module after the first; without modules.json: mean pooling, as sentence-transformers."""
    path = folder / "modules.json"
    if not path.exists():
        note = "the checkpoint has no modules.json: mean pooling, not normalized"
        return [("Pooling", "")], (note,)
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        kinds = [(str(module["type"]).rsplit(".", 1)[-1], str(module["path"])) for module in modules]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{path} cannot be read ({error}): download it again") from None
    names = [kind for kind, _ in kinds]
    if names[:2] != ["Transformer", "Pooling"] or not set(names[2:]) <= {"Dense", "Normalize"}:
        raise ExportError(
            f"{path} lists {', '.join(names)}: exported are Transformer, Pooling, then Dense and Normalize"
        )
    if "Normalize" in names and names.index("Normalize") != len(names) - 1:
        raise ExportError(f"{path} normalizes before its last module, which is not supported: nothing was exported")
    if kinds[0][1]:
        raise ExportError(f"{path} keeps its transformer in {kinds[0][1]}: export a checkpoint that has it beside it")
    return kinds[1:], ()


def _pooling(folder: Path, chain: Sequence[tuple[str, str]]) -> tuple[tuple[str, ...], bool]:
    """The modes in the order they are joined, and whether prompts take part."""
    path = chain[0][1]
    if not path:
        return ("mean",), True
    fields = read_json(folder / path / "config.json")
    stated = fields.get("pooling_mode")
    if stated is None:
        modes = [mode for name, mode in OLD_POOLING_NAMES.items() if fields.get(name) is True]
    else:
        modes = [stated] if isinstance(stated, str) else [str(mode) for mode in stated]
    unknown = [mode for mode in modes if mode not in POOLING_MODES]
    if unknown or not modes:
        raise ExportError(f"{folder / path}: pooling {unknown or 'none'} is unknown; known: {', '.join(POOLING_MODES)}")
    return tuple(modes), fields.get("include_prompt", True) is not False


def _max_length(folder: Path, config: JsonObject) -> int:
    """The least of all limits that the files state."""
    limits = [
        read_optional_json(folder / "sentence_bert_config.json").get("max_seq_length"),
        read_optional_json(folder / "tokenizer_config.json").get("model_max_length"),
    ]
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int):
        lost = _pad_token_id(config) + 1 if config.get("model_type") in POSITIONS_AFTER_PADDING else 0
        limits.append(positions - lost)
    known = [int(limit) for limit in limits if isinstance(limit, (int, float)) and 0 < limit < UNSTATED]
    if not known:
        raise ExportError(f"{folder} states no largest length: add max_seq_length to sentence_bert_config.json")
    return min(known)


def _pad_token_id(config: JsonObject) -> int:
    value: Any = config.get("pad_token_id")
    return value if isinstance(value, int) and value >= 0 else 0
