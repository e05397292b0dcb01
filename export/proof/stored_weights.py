"""What an exported graph multiplies by, read back from its folder, for the reference to compute with.

The reference then rounds exactly what the graph rounds, so the two differ by float32 noise alone, and a wrong
constant, position or bias shows that rounding would hide. Knows names of stored values and kinds of nodes, and
nothing of how they were chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from ortserve.export.architecture import Architecture, Attention, Experts, Linear, Norm
from ortserve.export.errors import CheckFailedError
from ortserve.export.float_reference.forward import HEAD_ROWS, CheckpointWeights, Floats
from ortserve.export.proof.integrity import read_graph
from ortserve.export.recipes.product import block_values, round_by_scale, round_per_block, round_per_token
from ortserve.export.sources.checkpoint import Checkpoint
from ortserve.runtime.manifest import Manifest

HEAD = "lm_head"
EMBEDDING = "embedding"
NUM_COMPARED_ROWS = 1024  # of a matrix: a wrong factor is wrong everywhere


class StoredWeights(CheckpointWeights):
    """Matrices, scales and biases as stored; norms as the checkpoint has them, divided by what was folded in.

    Divisors are powers of two: whatever else a stored norm differs by stays a difference. Raises `CheckFailedError`
    for a graph without the values it should store.
    """

    def __init__(self, folder: Path, manifest: Manifest, architecture: Architecture, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        graph = read_graph(folder, manifest).graph
        self._folder = folder
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._nodes = {output: node for node in graph.node for output in node.output if output}
        self._matrices = dict(_matrix_names(architecture))
        self._norms = dict(_norm_names(architecture))
        self._final_scale = architecture.final_scale

    def embed(self, architecture: Architecture, tokens: NDArray[np.int64]) -> Floats:
        """See `CheckpointWeights.embed`; without the divisors that a shared matrix holds for the last norm."""
        rows = self._read(f"{EMBEDDING}.weight")[tokens].astype(np.float32)
        if f"{EMBEDDING}.scale" in self._stored:
            rows = rows * self._read(f"{EMBEDDING}.scale")[tokens][:, None]
        if f"{HEAD}.weight" not in self._stored:
            rows = rows / self._divisor(architecture.final_norm)
        return rows

    def norm_factor(self, norm: Norm) -> Floats:
        """See `CheckpointWeights.norm_factor`."""
        return super().norm_factor(norm) / self._divisor(norm)

    def multiply(self, linear: Linear, value: Floats) -> Floats:
        """See `CheckpointWeights.multiply`."""
        name = self._matrices[linear]
        product = self._rounded(name, name, value) @ self._values(name, 0, None).T
        if not linear.biases:
            return product
        if f"{name}.bias" in self._stored:
            return product + self._bias(name)
        start, stop = linear.rows or (0, None)
        biases = [self.checkpoint.stored(bias).read(start, stop) for bias in linear.biases]
        return product + np.concatenate(biases) * np.float32(linear.scale)

    def head(self, architecture: Architecture, value: Floats) -> Floats:
        """See `CheckpointWeights.head`."""
        stored = HEAD if f"{HEAD}.weight" in self._stored else EMBEDDING
        # the graph's last norm holds the scale of the logits, the reference applies it afterwards
        rounded = self._rounded(HEAD, stored, value * np.float32(self._final_scale)) / np.float32(self._final_scale)
        logits = np.empty((len(value), architecture.vocab_size), np.float32)
        for start in range(0, architecture.vocab_size, HEAD_ROWS):
            rows = self._values(stored, start, start + HEAD_ROWS)
            logits[:, start : start + len(rows)] = rounded @ rows.T
        return logits

    def cached(self, attention: Attention, key: Floats, value: Floats) -> tuple[Floats, Floats]:
        """See `CheckpointWeights.cached`; through the codes of a cache that has some."""
        prefix = self._matrices[attention.qkv].removesuffix(".qkv")
        if f"{prefix}.key_scale" not in self._stored:
            return key, value
        through = [
            np.clip(np.rint(part / scale), -128, 127).astype(np.float32) * scale
            for part, name in ((key, "key"), (value, "value"))
            for scale in (self._read(f"{prefix}.{name}_scale")[0, :, 0],)
        ]
        return through[0], through[1]

    def factor_error(self, architecture: Architecture) -> float:
        """How far the worst matrix is from the checkpoint's, as a factor beside powers of two: 0.01 is one percent.

        What is folded into a matrix are powers of two along its rows or its columns, so any other factor is an error
        that the reference would take over with the stored values. The median over rows or columns bears rounding.
        """
        worst = 0.0
        for layer in architecture.layers:
            of_norms = (
                (layer.attention.qkv, layer.attention_norm),
                *((linear, layer.mlp_norm) for mlp in layer.mlps for linear in (mlp.gate, mlp.up)),
            )
            for linear, norm in of_norms:
                divisor = np.float32(1) if norm is None else self._divisor(norm)
                worst = max(worst, self._factor_error(linear, divisor, axis=1))
            for linear in (layer.attention.output, *(mlp.down for mlp in layer.mlps)):
                worst = max(worst, self._factor_error(linear, np.float32(1), axis=0))
        return worst

    def _factor_error(self, linear: Linear, divisor: Floats | np.float32, *, axis: int) -> float:
        start, stop = linear.rows or (0, None)
        right = np.concatenate([self.checkpoint.stored(name).read(start, stop) for name in linear.weights])
        right = right[:NUM_COMPARED_ROWS] * np.float32(linear.scale)
        found = self._values(self._matrices[linear], 0, NUM_COMPARED_ROWS) / divisor
        fitted, size = np.sum(found * right, axis=axis), np.sum(np.square(right), axis=axis)
        usable = (fitted > 0) & (size > 0)
        if not usable.any():
            return 1.0 if size.any() else 0.0
        logarithm = np.log2(fitted[usable] / size[usable])
        return float(np.exp2(np.abs(np.median(logarithm - np.rint(logarithm)))) - 1)

    def _rounded(self, name: str, stored: str, value: Floats) -> Floats:
        """The input as the node behind the value `name` rounds it."""
        weight = self._tensor(f"{stored}.weight")
        if weight.data_type == onnx.TensorProto.FLOAT:
            return value
        if weight.data_type == onnx.TensorProto.UINT8:
            return round_per_block(value, self._block_attributes(name)["block_size"])
        scale = self._static_scale(name)
        return round_per_token(value) if scale is None else round_by_scale(value, scale)

    def _static_scale(self, name: str) -> float | None:
        """Of a product whose scale is known before; None: each row has its own."""
        node = self._nodes.get(name, self._nodes.get(f"{name}.unscaled"))
        if node is None:
            raise CheckFailedError(f"{self._folder}: the graph computes no {name}: export the checkpoint again")
        if node.op_type != "QGemm" or name not in node.output:
            return None
        return float(self._read(node.input[1]))

    def _values(self, name: str, start: int, stop: int | None) -> Floats:
        """Rows of a matrix, dequantized."""
        weight = self._read(f"{name}.weight")[start:stop]
        if weight.dtype == np.float32:
            return weight
        scale = self._read(f"{name}.scale")[start:stop]
        if weight.dtype == np.uint8:
            attributes = self._block_attributes(name)
            zeros = self._read(f"{name}.zero")[start:stop] if f"{name}.zero" in self._stored else None
            return block_values(weight, scale, zeros, bits=attributes["bits"], num_columns=attributes["K"])
        values: Floats = weight.astype(np.float32) * scale[:, None]
        return values

    def _block_attributes(self, name: str) -> dict[str, int]:
        """Of the MatMulNBits behind the value `name`."""
        node = self._nodes.get(name)
        if node is None or node.op_type != "MatMulNBits":
            node = self._nodes[f"{name}.unbiased"]
        return {attribute.name: attribute.i for attribute in node.attribute}

    def _bias(self, name: str) -> Floats:
        bias = self._read(f"{name}.bias")
        scale = self._static_scale(name)
        if bias.dtype == np.float32 or scale is None:
            return bias.astype(np.float32)
        values: Floats = (bias * np.float64(np.float32(scale)) * self._read(f"{name}.scale")).astype(np.float32)
        return values

    def _divisor(self, norm: Norm) -> Floats:
        """The nearest power of two to what the stored norm was divided by, `[width]`."""
        name = self._norms[norm]
        scale = self._final_scale if name == "final_norm" else 1.0
        expected = super().norm_factor(norm).astype(np.float64) * scale
        stored = self._read(f"{name}.weight").astype(np.float64)
        usable = (expected != 0) & (stored != 0)
        ratio = np.divide(np.abs(expected), np.abs(stored), out=np.ones_like(expected), where=usable)
        divisor: Floats = np.exp2(np.rint(np.log2(ratio))).astype(np.float32)
        return divisor

    def _tensor(self, name: str) -> onnx.TensorProto:
        if name not in self._stored:
            raise CheckFailedError(f"{self._folder}: the graph stores no {name}: export the checkpoint again")
        tensor: onnx.TensorProto = self._stored[name]
        return tensor

    def _read(self, name: str) -> NDArray[Any]:
        """A stored value; large ones stay mapped to their file."""
        tensor = self._tensor(name)
        fields = {entry.key: entry.value for entry in tensor.external_data}
        if not fields:
            inline: NDArray[Any] = numpy_helper.to_array(tensor)
            return inline
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        path = self._folder / Path(fields["location"]).name
        return np.memmap(path, dtype, "r", int(fields["offset"]), tuple(tensor.dims))


def _matrix_names(architecture: Architecture) -> Iterator[tuple[Linear, str]]:
    for index, layer in enumerate(architecture.layers):
        yield layer.attention.qkv, f"layers.{index}.qkv"
        yield layer.attention.output, f"layers.{index}.attention_output"
        prefixes = [f"layers.{index}"]
        if isinstance(layer.mlp, Experts):
            yield layer.mlp.router, f"layers.{index}.router"
            prefixes = [f"layers.{index}.experts.{number}" for number in range(len(layer.mlp.experts))]
        for prefix, mlp in zip(prefixes, layer.mlps, strict=True):
            yield mlp.gate, f"{prefix}.gate"
            yield mlp.up, f"{prefix}.up"
            yield mlp.down, f"{prefix}.down"


def _norm_names(architecture: Architecture) -> Iterator[tuple[Norm, str]]:
    for index, layer in enumerate(architecture.layers):
        of_heads = layer.attention.norm
        named = (
            (layer.attention_norm, "attention_norm"),
            (of_heads.query if of_heads is not None else None, "query_norm"),
            (of_heads.key if of_heads is not None else None, "key_norm"),
            (layer.attention_post_norm, "attention_post_norm"),
            (layer.mlp_norm, "mlp_norm"),
            (layer.mlp_post_norm, "mlp_post_norm"),
        )
        for norm, name in named:
            if norm is not None:
                yield norm, f"layers.{index}.{name}"
    yield architecture.final_norm, "final_norm"
