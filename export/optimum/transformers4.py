"""Makes checkpoints that transformers 5 saved readable for transformers 4, in a copy. Knows configuration files only.

transformers 4.57 refuses tokenizer classes it does not know and silently takes default rotary settings when they are
written in the newer spelling: the second would be a wrong model, so it is translated and not left to chance.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ortserve.export.errors import ExportError
from ortserve.export.sources.json_fields import read_json

NEW_TOKENIZERS = {"TokenizersBackend": "PreTrainedTokenizerFast", "PythonBackend": "PreTrainedTokenizerFast"}
OWN_ROPE_NAMES = {"modernbert": {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}}


def readable_copy(checkpoint: Path, copy: Path) -> Path:
    """The checkpoint itself, or a folder of links to its files with translated configurations.

    Raises `ExportError` for settings that cannot be said in the older spelling.
    """
    changed: dict[str, Mapping[str, Any]] = {}
    for name, translate in (("config.json", translate_config), ("tokenizer_config.json", translate_tokenizer)):
        path = checkpoint / name
        if path.exists():
            before = read_json(path)
            after = translate(before)
            if after != before:
                changed[name] = after
    if not changed:
        return checkpoint
    copy.mkdir(parents=True)
    for path in checkpoint.iterdir():
        if path.name not in changed:
            (copy / path.name).symlink_to(path.resolve(), target_is_directory=path.is_dir())
    for name, fields in changed.items():
        (copy / name).write_text(json.dumps(fields, indent=2), encoding="utf-8")
    return copy


def translate_tokenizer(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """tokenizer_config.json with a class that transformers 4 has."""
    name = fields.get("tokenizer_class")
    if name not in NEW_TOKENIZERS:
        return fields
    kept = {key: value for key, value in fields.items() if key not in ("backend", "is_local")}
    return {**kept, "tokenizer_class": NEW_TOKENIZERS[name]}


def translate_config(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """config.json with rotary settings in the older spelling, and the type under its older name."""
    translated = dict(fields)
    if "dtype" in translated and "torch_dtype" not in translated:
        translated["torch_dtype"] = translated.pop("dtype")
    rope = translated.get("rope_parameters")
    if not isinstance(rope, dict):
        return translated if translated != fields else fields
    del translated["rope_parameters"]
    own = OWN_ROPE_NAMES.get(str(fields.get("model_type")))
    if own is not None:
        return translated | _rope_by_layer(rope, own)
    if any(isinstance(value, dict) for value in rope.values()):
        raise ExportError(
            "config.json has rotary settings by kind of layer, which optimum's transformers cannot read for"
            f" {fields.get('model_type')}: export it from a checkpoint saved by transformers 4"
        )
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    if "rope_theta" in rope:
        translated["rope_theta"] = rope["rope_theta"]
    if "partial_rotary_factor" in rope:
        translated["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if scaling.get("rope_type", "default") != "default":
        translated["rope_scaling"] = scaling
    return translated


def _rope_by_layer(rope: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    thetas = {}
    for kind, name in names.items():
        settings = rope.get(kind) or {}
        if settings.get("rope_type", "default") != "default":
            raise ExportError(f"config.json scales the rotary positions of {kind}, which optimum cannot export")
        if "rope_theta" in settings:
            thetas[name] = settings["rope_theta"]
    return thetas
