"""Widens a trained Llama checkpoint to the cost of a larger shape without changing its function in exact arithmetic.

Channels, heads, feed-forward units and ids that are added hold zeros where they would be read; layers that are added
have zero output projections. Knows tensors and files, no graph. With d of D hidden channels live, the mean square
over D is d / D of that over d, so epsilon times d / D and norm weights times sqrt(d / D) give the same normed values.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortserve.export.architecture import Architecture
from ortserve.export.errors import ExportError
from ortserve.export.families import read_architecture
from ortserve.export.folder.new_folder import new_folder
from ortserve.export.progress import show_progress
from ortserve.export.sources.checkpoint import GENERATION, WEIGHTS, Checkpoint, open_checkpoint
from ortserve.export.sources.safetensors_file import DTYPE_NAMES, write_tensors
from ortserve.export.toys.llama_tensors import LlamaTensor, llama_tensors
from ortserve.export.toys.shapes import Shape
from ortserve.export.toys.toy import random_chunks

CHUNK_ELEMENTS = 1 << 21  # float32 values placed at a time
FAMILIES = ("llama", "mistral")  # whose tensors `llama_tensors` names
SEED = 0  # of the added layers, whose results are multiplied by zero
Places = NDArray[np.int64]  # for each new row or column the old one it holds, or -1


def widen_checkpoint(
    source: str | Path,
    destination: Path,
    shape: Shape,
    *,
    max_context: int | None = None,
    force: bool = False,
    progress: bool = False,
) -> None:
    """Write a checkpoint of `shape`'s sizes that computes what `source` computes.

    Positions, norm constants and tokenizer stay the source's; `max_context` lets it run beyond the positions it was
    trained on, where it computes at full cost and means nothing. Raises `ExportError` when the source does not fit.
    """
    checkpoint = open_checkpoint(source)
    architecture = read_architecture(checkpoint)
    _check_supported(checkpoint, architecture, shape)
    widening = Widening(checkpoint, architecture, shape)
    dtype = DTYPE_NAMES[checkpoint.stored(architecture.embedding).dtype]
    tensors = {tensor.stored: tensor for tensor in llama_tensors(shape, matrix_dtype=dtype, norm_dtype="F32")}
    config = _widened_config(checkpoint, architecture, shape, max_context or architecture.max_context)
    with new_folder(destination, force=force, marker="config.json") as folder:
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if (checkpoint.folder / GENERATION).exists():
            shutil.copyfile(checkpoint.folder / GENERATION, folder / GENERATION)
        checkpoint.copy_tokenizer(folder)
        num_bytes = sum(stored.num_bytes for stored in tensors)
        with show_progress(f"widen {checkpoint.name}", num_bytes, wanted=progress) as advance:
            write_tensors(folder / WEIGHTS, tensors, lambda stored: widening.chunks(tensors[stored]), progress=advance)


@dataclass(frozen=True, slots=True)
class Widening:
    """Where everything of the source goes in the larger shape."""

    checkpoint: Checkpoint
    architecture: Architecture
    shape: Shape

    def chunks(self, tensor: LlamaTensor) -> Iterator[NDArray[np.float32]]:
        """The values of one new tensor, in pieces of whole rows."""
        name = tensor.stored.name
        is_added = tensor.layer is not None and tensor.layer >= len(self.architecture.layers)
        if is_added and tensor.role not in ("attention_output", "down"):
            return random_chunks(self.shape, tensor, seed=SEED)
        if tensor.role == "norm":
            return iter([self._norm(name)])
        rows, columns = self._places(tensor)
        if is_added:
            rows = np.full_like(rows, -1)
        return _place(self.checkpoint, name, rows, columns)

    def _norm(self, name: str) -> NDArray[np.float32]:
        weight = np.ones(self.shape.hidden_size, np.float32)  # of added channels: multiplied by zero
        live = self.architecture.hidden_size
        weight[:live] = self.checkpoint.read(name) * np.sqrt(live / self.shape.hidden_size)
        return weight

    def _places(self, tensor: LlamaTensor) -> tuple[Places, Places]:
        old, new = self.architecture, self.shape
        hidden = _leading(old.hidden_size, new.hidden_size)
        if tensor.role == "embedding":
            return _leading(old.vocab_size, new.vocab_size), hidden
        if tensor.role in ("gate", "up"):
            return _leading(old.intermediate_size, new.intermediate_size), hidden
        if tensor.role == "down":
            return hidden, _leading(old.intermediate_size, new.intermediate_size)
        query_heads, key_value_heads = head_places(old, new)
        if tensor.role in ("key", "value"):
            return _components(key_value_heads, old.head_dim), hidden
        if tensor.role == "query":
            return _components(_with_doubles(query_heads, new), old.head_dim), hidden
        return hidden, _components(query_heads, old.head_dim)


def head_places(old: Architecture, new: Shape) -> tuple[Places, Places]:
    """Which old query head, and which old key-value head, each new one holds; -1: none.

    Every old query head must find its own keys among the new groups. Where new groups are smaller, a key-value head
    is repeated for as many groups as its query heads fill. Raises `ExportError` when there are too few groups.
    """
    old_group, new_group = old.num_heads // old.num_kv_heads, new.num_heads // new.num_kv_heads
    num_copies = -(-old_group // new_group)
    if old.num_kv_heads * num_copies > new.num_kv_heads:
        raise ExportError(
            f"{old.num_heads} heads over {old.num_kv_heads} key-value heads do not fit into"
            f" {new.num_heads} over {new.num_kv_heads}: choose a larger shape"
        )
    query = np.full(new.num_heads, -1, np.int64)
    key_value = np.full(new.num_kv_heads, -1, np.int64)
    for head in range(old.num_heads):
        source, place = divmod(head, old_group)
        group = source * num_copies + place // new_group
        key_value[group] = source
        query[group * new_group + place % new_group] = head
    return query, key_value


def _with_doubles(query_heads: Places, new: Shape) -> Places:
    """Added heads of a group double its first head: nobody reads what they attend, and it stays within the range of
    what is read. A mean over all values, which empty queries would attend, could coarsen the row's int8 scale.
    """
    groups = query_heads.reshape(new.num_kv_heads, -1)
    doubled: Places = np.where(groups >= 0, groups, groups[:, :1]).reshape(-1)
    return doubled


def _leading(num_old: int, num_new: int) -> Places:
    places = np.full(num_new, -1, np.int64)
    places[:num_old] = np.arange(num_old)
    return places


def _components(heads: Places, head_dim: int) -> Places:
    """The rows of whole heads."""
    rows = heads[:, None] * head_dim + np.arange(head_dim)
    rows[heads < 0] = -1
    places: Places = rows.reshape(-1)
    return places


def _place(checkpoint: Checkpoint, name: str, rows: Places, columns: Places) -> Iterator[NDArray[np.float32]]:
    num_chunk_rows = max(1, CHUNK_ELEMENTS // len(columns))
    live_columns = columns >= 0
    for start in range(0, len(rows), num_chunk_rows):
        wanted = rows[start : start + num_chunk_rows]
        chunk = np.zeros((len(wanted), len(columns)), np.float32)
        live = wanted >= 0
        if live.any():
            first, last = int(wanted[live].min()), int(wanted[live].max())
            old = checkpoint.read_rows(name, first, last + 1)
            chunk[np.ix_(live, live_columns)] = old[wanted[live] - first][:, columns[live_columns]]
        yield chunk


def _check_supported(checkpoint: Checkpoint, old: Architecture, new: Shape) -> None:
    if old.family not in FAMILIES:
        raise ExportError(f"{checkpoint.folder}: widen knows {' and '.join(FAMILIES)} checkpoints, not {old.family}")
    products = [linear for layer in old.layers for linear in (layer.attention.qkv, *(mlp.gate for mlp in layer.mlps))]
    if not old.tied or any(linear.biases for linear in products):
        raise ExportError(f"{checkpoint.folder}: widen knows tied embeddings without biases, as the shapes have them")
    sizes = {
        "hidden size": (old.hidden_size, new.hidden_size),
        "intermediate size": (old.intermediate_size, new.intermediate_size),
        "layers": (len(old.layers), new.num_layers),
        "vocabulary": (old.vocab_size, new.vocab_size),
    }
    for what, (old_size, new_size) in sizes.items():
        if old_size > new_size:
            raise ExportError(f"{checkpoint.folder}: {what} {old_size} exceeds the shape's {new_size}: choose a larger")
    if old.head_dim != new.head_dim:
        raise ExportError(f"{checkpoint.folder}: heads of {old.head_dim} do not become heads of {new.head_dim}")
    if old.vocab_size < new.vocab_size and not (checkpoint.folder / "tokenizer.json").exists():
        raise ExportError(
            f"{checkpoint.folder} has no tokenizer.json: nothing would keep the added ids from being drawn"
        )
    head_places(old, new)


def _widened_config(checkpoint: Checkpoint, old: Architecture, new: Shape, max_context: int) -> dict[str, Any]:
    return {
        **checkpoint.config,
        "hidden_size": new.hidden_size,
        "intermediate_size": new.intermediate_size,
        "num_hidden_layers": new.num_layers,
        "num_attention_heads": new.num_heads,
        "num_key_value_heads": new.num_kv_heads,
        "head_dim": new.head_dim,
        "vocab_size": new.vocab_size,
        "max_position_embeddings": max_context,
        "rms_norm_eps": old.final_norm.epsilon * old.hidden_size / new.hidden_size,
    }
