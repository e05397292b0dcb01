"""Graphs for CUDA compute the reference's function, through the CPU emulation of their paged attention."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from ortserve.export.errors import ExportError, UnprovenError
from ortserve.export.families import read_architecture
from ortserve.export.proof.graph_run import RowInput
from ortserve.export.proof.integrity import check_integrity
from ortserve.export.proof.paged_run import PagedGraphRun
from ortserve.export.proof.verify import check_parity
from ortserve.export.publish import export_checkpoint
from ortserve.export.recipes.plan import plan_export
from ortserve.export.recipes.precisions import CUDA_FORMS
from ortserve.export.sources.checkpoint import open_checkpoint
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.report import is_verified
from tests.export.checkpoints import Tiny, random_sequences, write_checkpoint
from tests.export.family_checkpoints import MAX_CONTEXT, NAMES, copy_family
from tests.export.oracle import oracle_logits
from tests.export.proofs import proof_of
from tests.export.test_parity import VARIATIONS

EXPERTS = ("qwen3_moe", "mixtral")  # for the CPU only: refused by name, see test_experts.py

variations = pytest.mark.parametrize("tiny", VARIATIONS.values(), ids=list(VARIATIONS))


def export(tmp_path: Path, tiny: Tiny, precision: str, *, verify: bool = True) -> Manifest:
    source = write_checkpoint(tmp_path / "source", tiny)
    return export_checkpoint(
        source, tmp_path / "out", precision=precision, device="cuda", progress=False, verify=verify
    )


@variations
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int4"])
def test_every_precision_passes_its_proof(tmp_path: Path, tiny: Tiny, precision: str) -> None:
    export(tmp_path, tiny, precision)
    parity = proof_of(tmp_path / "out")
    assert parity.passed
    assert check_integrity(tmp_path / "out").kv.kind == "pages"


@variations
def test_a_float16_graph_equals_the_second_oracle_on_rounded_weights(tmp_path: Path, tiny: Tiny) -> None:
    manifest = export(tmp_path, tiny, "fp16", verify=False)
    first, second = random_sequences(tiny.vocab_size, (13, 7))
    run = PagedGraphRun(tmp_path / "out", manifest, num_rows=2, capacity=16)
    pieces = [run.run([RowInput(first[:6], 0), RowInput(second[:3], 0)])]
    pieces.append(run.run([RowInput(first[6:7], 6), RowInput(second[3:], 3)]))
    pieces.append(run.run([RowInput(first[7:], 7), RowInput([], 7)]))
    rounded = {name: value.astype(np.float16).astype(np.float32) for name, value in tiny.tensors().items()}
    for index, tokens in enumerate((first, second)):
        found = np.concatenate([piece[index] for piece in pieces])
        expected = oracle_logits(tiny.config_json(), rounded, tokens)
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-3 * np.abs(expected).max())  # rotary tables round


@pytest.fixture(scope="module")
def in_fp16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source and what it was exported to, which passes its proof."""
    folder = tmp_path_factory.mktemp("fp16")
    export(folder, Tiny(), "fp16")
    return folder


@pytest.mark.parametrize(
    ("option", "value"), [("do_rotary", 0), ("scale", 0.9), ("local_window_size", 3), ("softcap", 2.0)]
)
def test_the_proof_catches_an_operator_with_a_wrong_option(
    tmp_path: Path, in_fp16: Path, option: str, value: float
) -> None:
    shutil.copytree(in_fp16 / "out", tmp_path / "out")
    manifest = check_integrity(tmp_path / "out")
    path = tmp_path / "out" / manifest.graph
    model = onnx.load(str(path), load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "PagedAttention":
            kept = [attribute for attribute in node.attribute if attribute.name != option]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute(option, value)])
    path.write_bytes(model.SerializeToString())
    checkpoint = open_checkpoint(in_fp16 / "source")
    assert not check_parity(tmp_path / "out", manifest, read_architecture(checkpoint), checkpoint).passed


def test_an_export_that_differs_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ortserve.export.graph.attention.rotary_tables", lambda rope, count: [np.ones((count, 8))] * 2)
    with pytest.raises(UnprovenError, match="fp16 differs from the reference"):
        export(tmp_path, Tiny(), "fp16")
    assert not is_verified(tmp_path / "out")


@pytest.mark.parametrize(("head_dim", "page"), [(16, 256), (64, 256), (128, 128)])
def test_the_contract_of_the_graph(tmp_path: Path, head_dim: int, page: int) -> None:
    manifest = export(tmp_path, Tiny(head_dim=head_dim), "bf16", verify=False)
    assert (manifest.kv.kind, manifest.kv.page_size, manifest.kv.dtype) == ("pages", page, "bfloat16")
    assert manifest.min_onnxruntime == "1.31.1"
    graph = onnx.load(str(tmp_path / "out" / manifest.graph), load_external_data=False).graph
    inputs = {value.name: _described(value) for value in graph.input}
    kind = onnx.TensorProto
    cache = (kind.BFLOAT16, ["N", page, manifest.kv.num_kv_heads, head_dim])
    assert inputs == {
        "input_ids": (kind.INT64, ["T"]),
        "position_ids": (kind.INT64, ["T"]),
        "cumulative_lengths": (kind.INT32, ["B_plus_1"]),
        "past_lengths": (kind.INT32, ["B"]),
        "page_table": (kind.INT32, ["B", "M"]),
        "slot_mapping": (kind.INT32, ["T"]),
        "attention_bounds": (kind.INT32, [3]),
        "logit_index": (kind.INT64, ["L"]),
        **{f"past.{layer}.{part}": cache for layer in range(2) for part in ("key", "value")},
    }
    outputs = {value.name: _described(value) for value in graph.output}
    assert outputs == {
        "logits": (kind.FLOAT, ["L", manifest.vocab_size]),
        **{f"present.{layer}.{part}": cache for layer in range(2) for part in ("key", "value")},
    }


def test_only_rows_with_wanted_logits_reach_the_vocabulary(tmp_path: Path) -> None:
    manifest = export(tmp_path, Tiny(), "fp16", verify=False)
    graph = onnx.load(str(tmp_path / "out" / manifest.graph), load_external_data=False).graph
    gathers = [list(node.input) for node in graph.node if node.op_type == "Gather" and "logit_index" in node.input]
    assert len(gathers) == 2  # the residual stream and the attention of the last layer


def test_int4_is_what_the_mixed_type_kernels_take(tmp_path: Path) -> None:
    manifest = export(tmp_path, Tiny(), "int4", verify=False)
    graph = onnx.load(str(tmp_path / "out" / manifest.graph), load_external_data=False).graph
    products = {node.output[0]: node for node in graph.node if node.op_type == "MatMulNBits"}
    inner = [f"layers.{layer}.{name}" for layer in (0, 1) for name in ("qkv", "attention_output", "gate_up", "down")]
    assert list(products) == [*inner, "lm_head"]
    for name, node in products.items():
        options = {attribute.name: attribute.i for attribute in node.attribute}
        bits = 8 if name == "lm_head" else 4
        assert (options["block_size"], options["bits"], len(node.input)) == (32, bits, 3)  # no zero points: symmetric
    assert [(matrix.name, matrix.precision) for matrix in manifest.matrices] == [
        *((name, "int4") for name in inner),
        ("lm_head", "int8"),
    ]
    assert manifest.kv.dtype == "float16"
    assert _initializers(graph)["embedding.weight"] == (onnx.TensorProto.FLOAT16, [Tiny().vocab_size, 32])


FORMS = {
    "two nodes": replace(CUDA_FORMS, gate="two"),
    "apart": replace(CUDA_FORMS, gate_up="apart"),
}


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int4"])
def test_every_form_computes_the_same(tmp_path: Path, precision: str) -> None:
    source = write_checkpoint(tmp_path / "source", Tiny())
    tokens = random_sequences(Tiny().vocab_size, (9,))[0]
    found: dict[str, NDArray[np.float32]] = {}
    for name, forms in {"chosen": CUDA_FORMS, **FORMS}.items():
        folder = tmp_path / name
        manifest = export_checkpoint(
            source, folder, precision=precision, device="cuda", progress=False, verify=False, forms=forms
        )
        found[name] = PagedGraphRun(folder, manifest, num_rows=1, capacity=16).run([RowInput(tokens, 0)])[0]
    largest = np.abs(found["chosen"]).max()
    for name in FORMS:
        np.testing.assert_allclose(found[name], found["chosen"], rtol=0, atol=1e-5 * largest, err_msg=name)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_a_graph_for_the_cpu_has_none_of_them(tmp_path: Path, precision: str) -> None:
    source = write_checkpoint(tmp_path / "source", Tiny())
    export_checkpoint(source, tmp_path / "out", precision=precision, progress=False, verify=False)
    graph = onnx.load(str(tmp_path / "out" / "model.onnx"), load_external_data=False).graph
    assert {"GatedRMSNorm", "PagedAttention"}.isdisjoint(node.op_type for node in graph.node)
    assert not any("gate_up" in output for node in graph.node for output in node.output)


def _initializers(graph: onnx.GraphProto) -> dict[str, tuple[int, list[int]]]:
    return {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in graph.initializer}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8", "device": "cuda"}, "precision int8 is not for cuda: choose bf16, fp16, int4"),
        ({"precision": "fp16", "device": "cpu"}, "precision fp16 is not for cpu: choose int8, int4, fp32"),
        ({"precision": "int4", "device": "cuda", "block_size": 128}, "block size 128: the fast int4 kernels"),
    ],
)
def test_a_recipe_of_the_other_device_is_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    architecture = read_architecture(open_checkpoint(write_checkpoint(tmp_path / "source", Tiny())))
    with pytest.raises(ExportError, match=message):
        plan_export(architecture, **options)  # type: ignore[arg-type]


def _described(value: onnx.ValueInfoProto) -> tuple[int, list[str | int]]:
    tensor = value.type.tensor_type
    return tensor.elem_type, [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]


@pytest.mark.parametrize("family", [name for name in NAMES if name not in EXPERTS])
@pytest.mark.parametrize("precision", ["bf16", "int4"])
def test_every_family_passes_its_proof(tmp_path: Path, family: str, precision: str) -> None:
    source = copy_family(family, tmp_path / "source")
    export_checkpoint(
        source, tmp_path / "out", precision=precision, device="cuda", max_context=MAX_CONTEXT, progress=False
    )
    parity = proof_of(tmp_path / "out")
    assert parity.passed
