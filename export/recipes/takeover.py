"""Which products of a quantized checkpoint the graph takes over as they are, and in blocks of what form.

com.microsoft MatMulNBits multiplies by `(code - zero) * scale` per block of columns, which is what AWQ and GPTQ store:
the integers are repacked, and nothing is rounded. Knows no settings and no files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ortserve.export.architecture import Architecture, Experts, Linear
from ortserve.export.errors import ExportError
from ortserve.export.recipes.calibrate import head_linear
from ortserve.export.sources.checkpoint import Checkpoint
from ortserve.export.sources.packed_tensor import PackedTensor

LARGEST_BLOCK = 128  # columns; larger groups become several blocks of the same scale
REQUANTIZE = "export it with --requantize, which computes the matrices as floats and quantizes those"


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """How a matrix that was packed already is stored."""

    bits: int
    block_size: int
    has_zeros: bool  # False: every zero point is the middle code

    def num_bytes(self, num_rows: int, num_columns: int, scale_bytes: int) -> int:
        """Of codes, scales and zero points."""
        num_blocks = -(-num_columns // self.block_size)
        zeros = -(-num_blocks * self.bits // 8) if self.has_zeros else 0
        return num_rows * (num_blocks * (self.block_size * self.bits // 8 + scale_bytes) + zeros)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Rows of a matrix as MatMulNBits wants them."""

    codes: NDArray[np.uint8]  # [rows, blocks, block_size * bits / 8], the first of two 4-bit codes in the low half
    scales: NDArray[np.float32]  # [rows, blocks]
    zeros: NDArray[np.uint8]  # [rows, ceil(blocks * bits / 8)]


def find_block_formats(checkpoint: Checkpoint, architecture: Architecture) -> Mapping[Linear, BlockFormat]:
    """The products whose matrices are all packed; those of mixed matrices are left out, to be stored as floats.

    Raises `ExportError` for what cannot be taken over: columns in another order than their groups (`desc_act`),
    experts, a packed embedding, and biases that the architecture does not add.
    """
    if isinstance(checkpoint.tensors.get(architecture.embedding), PackedTensor):
        raise ExportError(f"{checkpoint.folder}: the embedding is quantized, which is not taken over: {REQUANTIZE}")
    formats: dict[Linear, BlockFormat] = {}
    for linear in _linears(architecture):
        found = [checkpoint.stored(name) for name in linear.weights]
        packed = [tensor for tensor in found if isinstance(tensor, PackedTensor)]
        if not packed:
            continue
        if any(isinstance(layer.mlp, Experts) for layer in architecture.layers):
            raise ExportError(f"{checkpoint.folder}: quantized experts are not taken over: {REQUANTIZE}")
        _check_biases(checkpoint, linear)
        for name, tensor in zip(linear.weights, found, strict=True):
            if isinstance(tensor, PackedTensor) and not tensor.is_ordered:
                raise ExportError(
                    f"{checkpoint.folder}: the columns of {name} are grouped in another order than they lie in"
                    f" (desc_act), which no kernel multiplies by: {REQUANTIZE}"
                )
        if len(packed) == len(found):
            formats[linear] = _format(packed)
    return formats


def choose_precision(checkpoint: Checkpoint, wanted: str | None, default: str, *, requantize: bool) -> str:
    """The wanted precision, or that of the integers that are taken over, or the default.

    Raises `ExportError` for another than theirs, and for `requantize` where there is nothing to requantize.
    """
    if checkpoint.packing is None:
        if requantize:
            raise ExportError(f"{checkpoint.folder} is not quantized: leave out --requantize")
        return wanted or default
    own = f"int{checkpoint.packing.bits}"
    if requantize:
        return wanted or default
    if wanted not in (None, own):
        raise ExportError(
            f"{checkpoint.folder} is quantized already, and its matrices are taken over as they are, in {own}: leave"
            f" out --precision, or to have them in {wanted}, {REQUANTIZE}"
        )
    return own


def read_blocks(checkpoint: Checkpoint, linear: Linear, form: BlockFormat, max_elements: int) -> Iterator[Blocks]:
    """The rows of a product's matrices one after another, in pieces of about `max_elements` columns in all."""
    for name in linear.weights:
        tensor = checkpoint.stored(name)
        assert isinstance(tensor, PackedTensor)
        first, end = linear.rows or (0, tensor.shape[0])
        step = max(1, max_elements // tensor.shape[1])
        for start in range(first, end, step):
            yield _blocks(tensor, form, start, min(start + step, end))


def _blocks(tensor: PackedTensor, form: BlockFormat, start: int, stop: int) -> Blocks:
    codes, zeros, scales = tensor.codes(start, stop), tensor.zeros(start, stop), tensor.scales(start, stop)
    if not np.isfinite(scales).all():
        raise ExportError(f"{tensor.path} holds scales that are not finite: download the checkpoint again")
    num_blocks = -(-tensor.shape[1] // form.block_size)
    group_of_block = np.minimum(np.arange(num_blocks) * form.block_size // tensor.group_size, tensor.num_groups - 1)
    zeros, scales = zeros[:, group_of_block], scales[:, group_of_block]
    missing = num_blocks * form.block_size - tensor.shape[1]
    if missing:  # columns that do not exist stand for zero
        codes = np.concatenate([codes, np.repeat(zeros[:, -1:], missing, axis=1)], axis=1)
    packed = _join(codes, form.bits).reshape(stop - start, num_blocks, -1)
    return Blocks(packed, scales.astype(np.float32), _join(zeros, form.bits))


def _join(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """`[rows, n]` codes in bytes."""
    if bits == 8:
        return np.ascontiguousarray(codes)
    if codes.shape[1] % 2:
        codes = np.concatenate([codes, np.zeros((len(codes), 1), np.uint8)], axis=1)
    joined: NDArray[np.uint8] = codes[:, 0::2] | (codes[:, 1::2] << np.uint8(4))
    return joined


def _format(packed: list[PackedTensor]) -> BlockFormat:
    first = packed[0]
    block_size = LARGEST_BLOCK if first.num_groups == 1 else math.gcd(first.group_size, LARGEST_BLOCK)
    middle = 1 << first.packing.bits - 1
    has_zeros = any((tensor.zeros() != middle).any() for tensor in packed)
    return BlockFormat(first.packing.bits, block_size, has_zeros)


def _linears(architecture: Architecture) -> Iterator[Linear]:
    for layer in architecture.layers:
        yield layer.attention.qkv
        yield layer.attention.output
        if isinstance(layer.mlp, Experts):
            yield layer.mlp.router
        for mlp in layer.mlps:
            yield from (mlp.gate, mlp.up, mlp.down)
    if not architecture.tied:
        yield head_linear(architecture)


def _check_biases(checkpoint: Checkpoint, linear: Linear) -> None:
    """Packing libraries write a bias beside every matrix, of zeros where the model has none."""
    for name in linear.weights:
        bias = name.removesuffix("weight") + "bias"
        if bias not in linear.biases and bias in checkpoint.tensors and checkpoint.read(bias).any():
            raise ExportError(
                f"{checkpoint.folder}: {bias} is not zero, and config.json describes no such bias:"
                " the files belong to different checkpoints"
            )
