"""A graph that averages rows of a table over the mask: a Python function predicts every row, padded or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from ortserve.runtime.encoders.manifest import EncoderManifest
from ortserve.runtime.encoders.queue import EncoderInput
from ortserve.runtime.manifest import FORMAT_VERSION, MANIFEST_NAME, manifest_json

VOCAB_SIZE = 300
NUM_OUTPUTS = 8
MAX_LENGTH = 64


def table() -> npt.NDArray[np.float32]:
    return np.random.default_rng(7).standard_normal((VOCAB_SIZE, NUM_OUTPUTS)).astype(np.float32)


def expected(one: EncoderInput) -> npt.NDArray[np.float32]:
    """The mean of the ids' rows; those of the second text of a pair count negative."""
    start = len(one) if one.second_start is None else one.second_start
    signs = np.where(np.arange(len(one)) < start, 1.0, -1.0)
    mean: npt.NDArray[np.float32] = (table()[list(one.ids)] * signs[:, None]).mean(axis=0).astype(np.float32)
    return mean


def make_manifest(**changes: object) -> EncoderManifest:
    values: dict[str, object] = {
        "format_version": FORMAT_VERSION,
        "kind": "encoder",
        "task": "embeddings",
        "name": "averages",
        "family": "synthetic",
        "precision": "fp32",
        "digest": "0",
        "graph": "model.onnx",
        "min_onnxruntime": "1.20",
        "inputs": ("input_ids", "attention_mask", "token_type_ids"),
        "output_name": "embeddings",
        "num_outputs": NUM_OUTPUTS,
        "vocab_size": VOCAB_SIZE,
        "max_length": MAX_LENGTH,
        "pad_token_id": 3,
        "pooling": "mean",
        "normalized": False,
        "dimensions": (),
        "prompts": {},
        "default_prompt": None,
        "num_parameters": VOCAB_SIZE * NUM_OUTPUTS,
        "weight_bytes": VOCAB_SIZE * NUM_OUTPUTS * 4,
        "via": "test",
        **changes,
    }
    return EncoderManifest(**values)  # type: ignore[arg-type]


def write_synthetic_encoder(folder: Path, manifest: EncoderManifest | None = None) -> EncoderManifest:
    """Graph and manifest; for scores (one output) the first number alone."""
    manifest = manifest or make_manifest()
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Mul", ["token_type_ids", "two"], ["doubled"]),
        helper.make_node("Sub", ["attention_mask", "doubled"], ["signs"]),
        helper.make_node("Cast", ["signs"], ["weights"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["attention_mask"], ["ones"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["weights", "last"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["signed"]),
        helper.make_node("ReduceSum", ["signed", "middle"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["ones", "middle"], ["count"], keepdims=1),
        helper.make_node("Div", ["sum", "count"], [manifest.output_name]),
    ]
    names = ("input_ids", "attention_mask", "token_type_ids")
    graph = helper.make_graph(
        nodes,
        "averages",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"]) for name in names],
        [helper.make_tensor_value_info(manifest.output_name, TensorProto.FLOAT, ["b", manifest.num_outputs])],
        [
            numpy_helper.from_array(table()[:, : manifest.num_outputs], "table"),
            numpy_helper.from_array(np.array(2), "two"),
            numpy_helper.from_array(np.array([-1]), "last"),
            numpy_helper.from_array(np.array([1]), "middle"),
        ],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(folder / manifest.graph))
    (folder / MANIFEST_NAME).write_bytes(manifest_json(manifest))
    return manifest


def random_inputs(seed: int, lengths: Sequence[int]) -> list[EncoderInput]:
    generator = np.random.default_rng(seed)
    inputs = []
    for length in lengths:
        ids = tuple(int(number) for number in generator.integers(0, VOCAB_SIZE, length))
        second = int(generator.integers(0, length)) if generator.random() < 0.3 else None
        inputs.append(EncoderInput(ids, second))
    return inputs
