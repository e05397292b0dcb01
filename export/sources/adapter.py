"""Merges a LoRA adapter as PEFT saves it into a checkpoint's tensors, while they are read. Knows no architecture.

LoRA (https://arxiv.org/abs/2106.09685) adds `scale * B @ A` to a matrix; rank-stabilized LoRA (2312.03732) divides by
the root of the rank. The proof's reference does not use what is computed here: see `reference_adapter`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortserve.export.errors import ExportError
from ortserve.export.sources.checkpoint import Checkpoint, StoredTensor
from ortserve.export.sources.json_fields import JsonObject, flag, integer, number, read_json
from ortserve.export.sources.safetensors_file import read_header
from ortserve.runtime.manifest import AdapterFacts

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
OUTER = ("model.embed_tokens.weight", "lm_head.weight")
# settings under which the update is another function, or touches more than the matrices it names
REFUSED = (
    "use_dora",
    "modules_to_save",
    "fan_in_fan_out",
    "lora_bias",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)


@dataclass(frozen=True, slots=True)
class MergedTensor:
    """A matrix and what an adapter adds to it."""

    base: StoredTensor
    down: StoredTensor  # A, `[rank, columns]`
    up: StoredTensor  # B, `[rows, rank]`
    scale: float

    @property
    def path(self) -> Path:
        """The file of the matrix."""
        return self.base.path

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the matrix."""
        return self.base.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix."""
        return self.base.shape

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows `[start, stop)` of the sum, as float32."""
        update = (self.up.read(start, stop).astype(np.float64) * self.scale) @ self.down.read()
        merged: NDArray[np.float32] = (self.base.read(start, stop) + update).astype(np.float32)
        return merged


def merge_adapter(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The checkpoint with merged tensors. Raises `ExportError` for adapters that a sum of matrices does not hold."""
    if not (folder / CONFIG).exists():
        raise ExportError(f"{folder} has no {CONFIG}: name the folder of a PEFT adapter")
    config = read_json(folder / CONFIG)
    _check_supported(folder, config)
    if not (folder / WEIGHTS).exists():
        raise ExportError(f"{folder} has no {WEIGHTS}: save the adapter as safetensors")
    pairs = _pairs(folder, read_header(folder / WEIGHTS))
    merged = {name: _merge(checkpoint, folder, config, name, pair) for name, pair in pairs.items()}
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    facts = AdapterFacts(
        name=folder.resolve().name,
        rank=integer(config, "r"),
        alpha=number(config, "lora_alpha"),
        rank_stabilized=flag(config, "use_rslora", False),
        num_matrices=len(merged),
        digest=digest.hexdigest(),
    )
    return replace(
        checkpoint,
        name=f"{checkpoint.name}-{facts.name}",
        tensors={**checkpoint.tensors, **merged},
        base_tensors=checkpoint.tensors,
        adapter_folder=folder,
        adapter=facts,
    )


def _check_supported(folder: Path, config: JsonObject) -> None:
    if config.get("peft_type") != "LORA":
        raise ExportError(f"{folder}: adapters of type {config.get('peft_type')!r} are not merged: export knows LORA")
    if config.get("bias", "none") != "none":
        raise ExportError(f"{folder}: bias {config['bias']!r} is not merged: export knows adapters of matrices alone")
    for key in REFUSED:
        if config.get(key):
            raise ExportError(
                f"{folder}: {key} is set, which export does not merge: merge it with PEFT and export that"
            )


def _pairs(folder: Path, stored: Mapping[str, StoredTensor]) -> dict[str, tuple[StoredTensor, StoredTensor]]:
    """A and B by the name of the matrix they belong to."""
    halves: dict[str, dict[str, StoredTensor]] = {}
    for key, tensor in stored.items():
        parts = KEY.fullmatch(key)
        if parts is None:
            raise ExportError(f"{folder}: the tensor {key} is no lora_A or lora_B of a matrix: export cannot merge it")
        halves.setdefault(f"{parts[1]}.weight", {})[parts[2]] = tensor
    if not halves:
        raise ExportError(f"{folder}: {WEIGHTS} holds no tensors")
    for name, found in halves.items():
        if len(found) != 2:
            raise ExportError(f"{folder}: {name} has only one of lora_A and lora_B: save the adapter again")
    return {name: (found["A"], found["B"]) for name, found in halves.items()}


def _merge(
    checkpoint: Checkpoint, folder: Path, config: JsonObject, name: str, pair: tuple[StoredTensor, StoredTensor]
) -> MergedTensor:
    down, up = pair
    if name in OUTER:
        raise ExportError(f"{folder}: {name} is adapted, which export does not merge: merge it with PEFT")
    if name not in checkpoint.tensors:
        raise ExportError(
            f"{folder}: the adapter is for {name}, which {checkpoint.name} lacks: name its own base model"
        )
    base = checkpoint.tensors[name]
    module = name.removesuffix(".weight")
    rank = integer({"r": _by_pattern(folder, config, "rank_pattern", module, config.get("r"))}, "r")
    alpha = number({"a": _by_pattern(folder, config, "alpha_pattern", module, config.get("lora_alpha"))}, "a")
    if down.shape != (rank, *base.shape[1:]) or up.shape != (base.shape[0], rank) or len(base.shape) != 2:
        raise ExportError(
            f"{folder}: A {list(down.shape)} and B {list(up.shape)} of rank {rank} do not fit"
            f" {name} {list(base.shape)}: name the adapter's own base model"
        )
    if not all(np.isfinite(half.read()).all() for half in (down, up)):
        raise ExportError(f"{folder}: the adapter of {name} holds values that are not finite: download it again")
    scale = alpha / (math.sqrt(rank) if flag(config, "use_rslora", False) else rank)
    return MergedTensor(base, down, up, scale)


def _by_pattern(folder: Path, config: JsonObject, key: str, module: str, default: Any) -> Any:
    """PEFT's rule: the first key that is the end of the module's name, or a regular expression of it."""
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        raise ExportError(f"{folder}: {key} is no object of names and numbers")
    for pattern, value in patterns.items():
        # plain names only: a hostile expression could take forever
        if not re.fullmatch(r"\^?[\w.]+\$?", pattern):
            raise ExportError(f"{folder}: {key} {pattern[:80]!r} is not a plain name of modules, which export reads")
        plain = pattern.strip("^$")
        if module == plain or module.endswith(f".{plain}"):
            return value
    return default
