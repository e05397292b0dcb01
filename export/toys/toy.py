"""Writes checkpoints of random weights in the shape of well-known models, to measure speed at real size.

Knows shapes and files; the text such a model writes means nothing.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ortserve.export.folder.new_folder import new_folder
from ortserve.export.progress import show_progress
from ortserve.export.sources.checkpoint import RANDOM_WEIGHTS, WEIGHTS
from ortserve.export.sources.safetensors_file import write_tensors
from ortserve.export.toys.llama_tensors import LlamaTensor, llama_tensors
from ortserve.export.toys.shapes import Shape, llama_config
from ortserve.export.toys.toy_tokenizer import write_toy_tokenizer

CHUNK_ELEMENTS = 1 << 21  # float32 values drawn at a time
LOGIT_DEVIATION = 3.0  # roughly that of trained models: neither flat nor certain
GATED_DEVIATION = 0.6  # of silu(x) * y for standard normal x and y
FIRST_LAYER_VARIANCE = 0.5  # that each branch of layer 0 adds to the residual stream
REFINING_VARIANCE = 0.25  # that the branches of all other layers add together


def write_toy_checkpoint(
    shape: Shape, destination: Path, *, seed: int = 0, force: bool = False, progress: bool = False
) -> None:
    """A tied bf16 Llama checkpoint with tokenizer and chat template, the same bytes for the same shape and seed.

    At most one chunk of weights is in memory. Raises `ExportError` as `new_folder` does.
    """
    with new_folder(destination, force=force, marker="config.json") as folder:
        end_of_text, end_of_turn = write_toy_tokenizer(folder, num_tokens=shape.num_tokens)
        config = {**llama_config(shape, eos_token_id=end_of_text), RANDOM_WEIGHTS: True}
        generation = {"eos_token_id": [end_of_turn, end_of_text]}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (folder / "generation_config.json").write_text(json.dumps(generation) + "\n", encoding="utf-8")
        tensors = {tensor.stored: tensor for tensor in llama_tensors(shape, matrix_dtype="BF16", norm_dtype="BF16")}
        num_bytes = sum(stored.num_bytes for stored in tensors)
        with show_progress(f"write {destination.name}", num_bytes, wanted=progress) as advance:
            write_tensors(
                folder / WEIGHTS,
                tensors,
                lambda stored: random_chunks(shape, tensors[stored], seed=seed),
                progress=advance,
            )


def random_chunks(shape: Shape, tensor: LlamaTensor, *, seed: int) -> Iterator[NDArray[np.float32]]:
    """Normal values in pieces, drawn by seed and tensor name alone, scaled by what the tensor does.

    Every product keeps the size of its input. As in trained models the first layer adds most to the residual stream
    and the others refine it: with equal shares depth would amplify every rounding, and no quantization of the
    checkpoint could be proved.
    """
    stored = tensor.stored
    generator = np.random.default_rng([seed, zlib.crc32(stored.name.encode())])
    if tensor.role == "norm":
        yield (1 + 0.1 * generator.standard_normal(stored.shape, np.float32)).astype(np.float32)
        return
    deviation = np.float32(_deviation(shape, tensor))
    num_rows, num_columns = stored.shape
    num_chunk_rows = max(1, CHUNK_ELEMENTS // num_columns)
    for start in range(0, num_rows, num_chunk_rows):
        size = (min(num_chunk_rows, num_rows - start), num_columns)
        chunk = generator.standard_normal(size, np.float32)
        chunk *= deviation
        yield chunk


def _deviation(shape: Shape, tensor: LlamaTensor) -> float:
    role = tensor.role
    num_refining = 2 * max(1, shape.num_layers - 1)  # every layer adds two branches
    branch = math.sqrt(FIRST_LAYER_VARIANCE if tensor.layer == 0 else REFINING_VARIANCE / num_refining)
    if role == "embedding":
        return LOGIT_DEVIATION / math.sqrt(shape.hidden_size)
    if role == "attention_output":
        return branch / math.sqrt(shape.num_heads * shape.head_dim)
    if role == "down":
        return branch / GATED_DEVIATION / math.sqrt(shape.intermediate_size)
    return 1 / math.sqrt(shape.hidden_size)
