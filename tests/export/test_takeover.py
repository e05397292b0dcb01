"""AWQ and GPTQ checkpoints: their integers become the graph's, value for value; what cannot is a named error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from safetensors.numpy import load_file, save_file

from ortserve import runtime
from ortserve.export.errors import ExportError, UnprovenError
from ortserve.export.first_use import ensure_exported, source_identity
from ortserve.export.publish import export_checkpoint
from ortserve.export.recipes.takeover import find_block_formats
from ortserve.export.sources.checkpoint import open_checkpoint
from ortserve.runtime.manifest import TakenFacts, read_manifest
from tests.export.checkpoints import Tiny, write_checkpoint, write_json
from tests.export.command_line import run_verb
from tests.export.oracle import oracle_logits
from tests.export.quantized_writer import Form, write_quantized

TINY = Tiny(hidden_size=128, intermediate_size=256, head_dim=32, num_layers=1, tied=False)
FORMS = {
    "awq 32": Form(group_size=32),
    "awq 64": Form(),
    "awq 128": Form(group_size=128),
    "awq rows": Form(group_size=-1),
    "awq gemv 32": Form(version="gemv", group_size=32),
    "awq gemv 128": Form(version="gemv", group_size=128),
    "gptq 32": Form("gptq", "gptq", group_size=32),
    "gptq 128 symmetric": Form("gptq", "gptq", group_size=128, symmetric=True),
    "gptq rows, second format": Form("gptq", "gptq_v2", group_size=-1),
    "gptq 8 bits": Form("gptq", "gptq", bits=8),
    "gptq 8 bits, rows, symmetric": Form("gptq", "gptq_v2", bits=8, group_size=-1, symmetric=True),
}
PROVED = (FORMS["awq 64"], FORMS["gptq 8 bits"])  # those of the others differ in nothing that is not compared here
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))


@every_form
def test_the_graph_multiplies_by_the_values_of_the_source_s_own_formula(tmp_path: Path, form: Form) -> None:
    meant = write_quantized(tmp_path / "source", TINY, form)
    checkpoint = open_checkpoint(tmp_path / "source")
    for name, values in meant.items():
        np.testing.assert_array_equal(checkpoint.read(name), values)
        np.testing.assert_array_equal(checkpoint.read_rows(name, 3, 21), values[3:21])
    manifest = export_checkpoint(tmp_path / "source", tmp_path / "out", verify=form in PROVED)
    assert manifest.precision == f"int{form.bits}"
    size = None if form.group_size == -1 else form.group_size
    assert manifest.taken == TakenFacts(form.method, form.bits, size, 5 * TINY.num_layers)
    products = _products(tmp_path / "out")
    for layer in range(TINY.num_layers):
        prefix = f"model.layers.{layer}."
        stacked = [meant[f"{prefix}self_attn.{part}_proj.weight"] for part in "qkv"]
        np.testing.assert_array_equal(products[f"layers.{layer}.qkv"], np.concatenate(stacked))
        np.testing.assert_array_equal(
            products[f"layers.{layer}.attention_output"], meant[f"{prefix}self_attn.o_proj.weight"]
        )
        for part in ("gate", "up", "down"):
            np.testing.assert_array_equal(products[f"layers.{layer}.{part}"], meant[f"{prefix}mlp.{part}_proj.weight"])


def _products(folder: Path) -> dict[str, NDArray[np.float32]]:
    """What ONNX Runtime's own kernel multiplies by: each product with the unit matrix, without rounding the input."""
    model = onnx.load(str(folder / "model.onnx"))
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        sizes = {attribute.name: attribute.i for attribute in node.attribute}
        attributes = {name: sizes[name] for name in ("K", "N", "bits", "block_size")}
        plain = helper.make_node(node.op_type, ["x", *node.input[1:]], ["y"], domain=node.domain, **attributes)
        graph = helper.make_graph(
            [plain],
            "product",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["T", sizes["K"]])],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["T", sizes["N"]])],
            [numpy_helper.from_array(numpy_helper.to_array(stored[name]), name) for name in node.input[1:]],
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        session = ort.InferenceSession(
            helper.make_model(graph, ir_version=10, opset_imports=opsets).SerializeToString()
        )
        (value,) = session.run(None, {"x": np.eye(sizes["K"], dtype=np.float32)})
        found[node.output[0].removesuffix(".unbiased")] = value.T
    return found


def test_replies_are_those_of_the_meant_values(tmp_path: Path) -> None:
    """By the second oracle, where its best token is not nearly another: outer matrices and inputs have 8 bits."""
    tiny = Tiny(hidden_size=128, intermediate_size=256, head_dim=32, biases=True)
    meant = write_quantized(tmp_path / "source", tiny, Form(group_size=32))
    folder = ensure_exported(tmp_path / "source", tmp_path / "cache", precision=None, progress=False)
    assert read_manifest(folder).precision == "int4"
    prompt = [5, 17, 40, 3, 66]
    with runtime.open(str(folder), runtime.EngineConfig(max_rows=2)) as model:
        reply = model.generate(prompt, runtime.SamplingParams(temperature=0, max_tokens=8)).token_ids
    rows = oracle_logits(tiny.config_json(), meant, [*prompt, *reply])[len(prompt) - 1 : -1]
    assert len(reply) == 8
    for token, row in zip(reply, rows, strict=True):
        assert row.max() - row[token] <= 0.05 * np.ptp(row)


def test_a_stored_zero_point_of_fifteen_stands_for_zero(tmp_path: Path) -> None:
    """In GPTQ's first format, where one less is stored: the sum has 4 bits."""
    meant = write_quantized(tmp_path / "source", TINY, Form("gptq", "gptq"))
    tensors = load_file(tmp_path / "source" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    tensors[f"{name}.qzeros"] = tensors[f"{name}.qzeros"] | np.int32(15)  # of the first row of eight
    save_file(tensors, tmp_path / "source" / "model.safetensors")
    found = open_checkpoint(tmp_path / "source").read(f"{name}.weight")
    np.testing.assert_array_equal(found[1:8], meant[f"{name}.weight"][1:8])
    assert found[0].min() >= 0
    assert (found[0] > 0).any()


def test_what_the_author_left_as_floats_stays_exact(tmp_path: Path) -> None:
    meant = write_quantized(tmp_path / "source", TINY, Form(left_out=("k_proj", "mlp.down")))
    manifest = export_checkpoint(tmp_path / "source", tmp_path / "out")
    precisions = {matrix.name: matrix.precision for matrix in manifest.matrices}
    assert precisions["layers.0.qkv"] == precisions["layers.0.down"] == "fp32"
    assert precisions["layers.0.up"] == "int4"
    model = onnx.load(str(tmp_path / "out" / "model.onnx"))
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    qkv = numpy_helper.to_array(stored["layers.0.qkv.weight"])
    expected = [meant[f"model.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"]
    np.testing.assert_array_equal(qkv, np.concatenate(expected))


def test_columns_in_another_order_are_requantized_by_wish(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    form = Form("gptq", "gptq", shuffled=True)
    meant = write_quantized(tmp_path / "source", TINY, form)
    checkpoint = open_checkpoint(tmp_path / "source")
    name = "model.layers.0.mlp.down_proj.weight"
    np.testing.assert_array_equal(checkpoint.read(name), meant[name])
    with pytest.raises(ExportError, match=r"q_proj\.weight are grouped in another order.*--requantize"):
        export_checkpoint(tmp_path / "source", tmp_path / "out")
    words = ("--requantize", "--activations", "token", "--json")
    assert run_verb("export", tmp_path / "source", tmp_path / "out", *words) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["manifest"]["precision"] == "int8"
    assert printed["manifest"]["taken"] is None
    assert printed["report"]["verified"] is True


def test_a_wrong_zero_point_fails_the_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One column of blocks off by one code: the reference computes with the checkpoint's own."""
    write_quantized(tmp_path / "source", TINY, Form(group_size=32))

    def without_zeros(*arguments: Any) -> Any:
        return {
            linear: type(form)(form.bits, form.block_size, False)
            for linear, form in find_block_formats(*arguments).items()
        }

    monkeypatch.setattr("ortserve.export.recipes.planned.find_block_formats", without_zeros)
    with pytest.raises(UnprovenError, match="differs from the reference"):
        export_checkpoint(tmp_path / "source", tmp_path / "out")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"quant_method": "fp8"}, "quantized by 'fp8'; awq and gptq are taken over"),
    "awq version": ({"version": "gemv_fast"}, "AWQ version 'gemv_fast' is not read: export takes gemm and gemv"),
    "awq bits": ({"bits": 3}, "AWQ with 3 bits is not read: export takes 4"),
    "no zero points": ({"zero_point": False}, "AWQ without zero points"),
    "gptq format": ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "GPTQ format 'marlin' is not read"),
    "gptq bits": ({"quant_method": "gptq", "bits": 2}, "GPTQ with 2 bits is not read: export takes 4 and 8"),
    "words": ({"quant_method": "gptq", "pack_dtype": "int16"}, "GPTQ in words of int16"),
    "group size": ({"group_size": 48}, "group size 48 is not read"),
    "other groups": ({"group_size": 32}, "scales is float16.* do not imply"),
    "no object": ({}, "quantization_config is no object"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=list(REFUSED))
def test_settings_that_are_not_read_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_quantized(tmp_path / "source", TINY, Form())
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    config["quantization_config"] = {**config["quantization_config"], **changes} if changes else ["awq"]
    write_json(tmp_path / "source" / "config.json", config)
    with pytest.raises(ExportError, match=message):
        export_checkpoint(tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_settings_of_older_libraries_lie_in_files_of_their_own(tmp_path: Path) -> None:
    meant = write_quantized(tmp_path / "source", TINY, Form("gptq", "gptq"))
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    settings = config.pop("quantization_config")
    del settings["quant_method"], settings["checkpoint_format"]
    write_json(tmp_path / "source" / "config.json", config)
    write_json(tmp_path / "source" / "quantize_config.json", settings)
    name = "model.layers.0.mlp.up_proj.weight"
    np.testing.assert_array_equal(open_checkpoint(tmp_path / "source").read(name), meant[name])
    before = source_identity(open_checkpoint(tmp_path / "source"))
    write_json(tmp_path / "source" / "quantize_config.json", {**settings, "sym": True})
    assert source_identity(open_checkpoint(tmp_path / "source")) != before  # it would be exported anew


def test_options_that_do_not_fit_are_named(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_quantized(source, TINY, Form())
    plain = write_checkpoint(tmp_path / "plain")
    text = tmp_path / "text"
    text.write_text("words")
    for place, options, message in (
        (source, {"precision": "int8"}, "taken over as they are, in int4: leave out --precision"),
        (source, {"block_size": 32}, "blocks are the quantized checkpoint's own"),
        (source, {"calibration_text": text}, "--calibration: quantized matrices"),
        (plain, {"requantize": True}, "is not quantized: leave out --requantize"),
    ):
        with pytest.raises(ExportError, match=message):
            export_checkpoint(place, tmp_path / "out", **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "has no tensor model.layers.0.mlp.up_proj.scales"),
        ("integers", "extra holds integers that belong to no packed matrix"),
        ("none packed", "says it is quantized, and no tensor is"),
        ("groups", "g_idx is int32"),
        ("bias", "up_proj.bias is not zero, and config.json describes no such bias"),
        ("damaged", "scales that are not finite"),
    ],
)
def test_damaged_checkpoints_are_named(tmp_path: Path, change: str, message: str) -> None:
    write_quantized(tmp_path / "source", TINY, Form("gptq", "gptq"))
    path, name = tmp_path / "source" / "model.safetensors", "model.layers.0.mlp.up_proj"
    tensors = load_file(path)
    if change == "missing":
        del tensors[f"{name}.scales"]
    elif change == "integers":
        tensors["extra"] = np.zeros(3, np.int32)
    elif change == "none packed":
        tensors = {key: value for key, value in tensors.items() if "_proj" not in key}
    elif change == "groups":
        tensors[f"{name}.g_idx"] = tensors[f"{name}.g_idx"] + np.int32(2)
    elif change == "bias":
        tensors[f"{name}.bias"] = np.full(256, 0.5, np.float16)
    else:
        tensors[f"{name}.scales"] = np.full_like(tensors[f"{name}.scales"], np.inf)
    save_file(tensors, path)
    with pytest.raises(ExportError, match=message):
        export_checkpoint(tmp_path / "source", tmp_path / "out", verify=False)


def test_biases_of_zeros_beside_every_matrix_are_what_libraries_write(tmp_path: Path) -> None:
    write_quantized(tmp_path / "source", TINY, Form("gptq", "gptq"))
    path = tmp_path / "source" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.bias"] = np.zeros(256, np.float16)
    save_file(tensors, path)
    assert export_checkpoint(tmp_path / "source", tmp_path / "out", verify=False).taken is not None
