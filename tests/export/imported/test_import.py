"""Folders of other exporters are imported beside their files and served; what cannot be is named, nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ortserve import runtime
from ortserve.export.errors import CheckFailedError, ExportError
from ortserve.export.imported.publish import import_folder
from ortserve.export.open_source import open_source
from ortserve.export.verifying import verify_folder
from ortserve.runtime.manifest import GenerationDefaults, read_manifest
from ortserve.runtime.report import find_doubts
from ortserve.runtime.testing import VOCAB_SIZE
from tests.export.checkpoints import write_json
from tests.export.command_line import run_verb
from tests.export.imported.foreign import GENAI_CONFIG, write_common, write_genai
from tests.runtime.synthetic import greedy_tokens


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("write", [write_common, write_genai])
def test_a_folder_is_imported_beside_its_files_and_served(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    folder = write(tmp_path / "model")
    (folder / "README.md").write_text("theirs")
    before = _files(folder)
    report = import_folder(folder)
    after = _files(folder)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"manifest.json", "report.json"}
    assert all(check.passed for check in report.checks)
    assert not report.verified
    assert "no checkpoint was named" in report.findings[0]
    prompts = [[5, 7, 11], [3], [(7 * place) % 100 for place in range(40)]]
    sampling = runtime.SamplingParams(temperature=0, max_tokens=9)
    with runtime.open(str(folder), runtime.EngineConfig(max_rows=3)) as model:
        streams = [model.stream(prompt, sampling) for prompt in prompts]
        replies = [[token for delta in stream for token in delta.token_ids] for stream in streams]
    assert replies == [greedy_tokens(tuple(prompt), sampling) for prompt in prompts]
    assert verify_folder(folder, None).findings == report.findings
    assert _files(folder)["README.md"] == b"theirs"


def test_what_its_files_say_is_in_the_manifest(tmp_path: Path) -> None:
    import_folder(write_genai(tmp_path / "model"), name="other")
    manifest = read_manifest(tmp_path / "model")
    assert (manifest.name, manifest.source, manifest.family) == ("other", "model", "synthetic")
    assert (manifest.graph, manifest.max_context, manifest.vocab_size) == ("decoder.onnx", 128, VOCAB_SIZE)
    assert (manifest.eos_token_ids, manifest.bos_token_id) == ((0, 2), 1)
    assert manifest.generation == GenerationDefaults(temperature=0.6, top_k=20)
    assert (manifest.kv.kind, manifest.kv.num_layers, manifest.kv.head_dim) == ("padded", 2, 8)
    assert manifest.padded is not None
    assert manifest.padded.attention == "grouped"
    assert manifest.exporter == "onnxruntime-genai"
    assert manifest.path.startswith("imported from onnxruntime-genai")


def test_a_graph_is_chosen_among_several(tmp_path: Path) -> None:
    folder = write_common(tmp_path / "model", graph="onnx/one.onnx")
    write_common(folder, graph="onnx/two.onnx")
    with pytest.raises(ExportError, match=r"several graphs: choose one with --graph: onnx/one.onnx, onnx/two.onnx"):
        import_folder(folder)
    assert import_folder(folder, graph="onnx/two.onnx").digest
    assert read_manifest(folder).graph == "onnx/two.onnx"
    with pytest.raises(ExportError, match=r"has a manifest\.json already"):
        import_folder(folder, graph="onnx/one.onnx")
    import_folder(folder, graph="onnx/one.onnx", force=True)
    assert read_manifest(folder).graph == "onnx/one.onnx"


def test_the_verb_prints_the_report_and_changes_to_the_graph_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_common(tmp_path / "model")
    assert run_verb("import", folder, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["report"]["parity"]["reference"].startswith("the graph itself")
    assert printed["report"]["verified"] is False
    model = onnx.load(str(folder / "model.onnx"))
    model.doc_string = "changed"
    onnx.save(model, str(folder / "model.onnx"))
    with pytest.raises(CheckFailedError, match=r"graph, weights or tokenizer\.json changed"):
        verify_folder(folder, None)
    assert any("model.onnx" in doubt for doubt in find_doubts(folder, digest=read_manifest(folder).digest))


Change = Callable[[onnx.ModelProto], None]


def _input(name: str, kind: int = TensorProto.INT64, shape: tuple[int | str, ...] = ("B",)) -> Change:
    return lambda model: model.graph.input.append(helper.make_tensor_value_info(name, kind, list(shape)))


def _drop(name: str) -> Change:
    def drop(model: onnx.ModelProto) -> None:
        for values in (model.graph.input, model.graph.output):
            for value in [value for value in values if value.name == name]:
                values.remove(value)

    return drop


def _fixed_rows(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def _last_token_only(model: onnx.ModelProto) -> None:
    """As a pruned head gives them."""
    for node in model.graph.node:
        node.output[:] = ["all_logits" if name == "logits" else name for name in node.output]
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "last"))
    model.graph.node.append(helper.make_node("Gather", ["all_logits", "last"], ["logits"], axis=1))


def _device_kernel(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "Neg":
            node.op_type, node.domain = "PagedAttention", "com.microsoft"


def _forgets_the_mask(model: onnx.ModelProto) -> None:
    """Padding is attended to: alone a row is computed rightly, beside longer ones it is not."""
    for node in model.graph.node:
        node.input[:] = ["causal" if name == "real_wide" else name for name in node.input]


CHANGES: dict[str, tuple[Change, str]] = {
    "pages": (_input("block_table"), "takes block_table: its keys lie in pages of a CUDA kernel"),
    "merged": (_input("use_cache_branch", TensorProto.BOOL), "takes use_cache_branch: it is two graphs in one"),
    "pipeline": (_input("inputs_embeds", TensorProto.FLOAT), "takes inputs_embeds: it is the middle part of a model"),
    "unknown": (_input("beam_width"), "takes beam_width, which is not known"),
    "no past": (_drop("past_key_values.0.key"), r"takes no past_key_values\.0\.key"),
    "no pair": (_drop("present.1.value"), r"has no present\.1\.value"),
    "no logits": (_drop("logits"), "gives no logits"),
    "fixed": (_fixed_rows, "has fixed numbers of rows or tokens"),
    "last token": (_last_token_only, r"logits of shape \[1, 1, 101\] for 3 tokens"),
    "kernel": (_device_kernel, "cannot load .*: it cannot be served on the CPU"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=list(CHANGES))
def test_graphs_that_cannot_be_served_are_named(tmp_path: Path, change: Change, message: str) -> None:
    folder = write_common(tmp_path / "model")
    model = onnx.load(str(folder / "model.onnx"))
    change(model)
    onnx.save(model, str(folder / "model.onnx"))
    before = _files(folder)
    with pytest.raises(ExportError, match=message):
        import_folder(folder)
    assert _files(folder) == before


def test_a_graph_that_depends_on_its_neighbours_fails_the_proof(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_common(tmp_path / "model")
    model = onnx.load(str(folder / "model.onnx"))
    _forgets_the_mask(model)
    onnx.save(model, str(folder / "model.onnx"))
    assert run_verb("import", folder) == 1
    assert "UNVERIFIED: mean KL at" in capsys.readouterr().out


def _genai(*path: str, value: Any) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(GENAI_CONFIG))
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "vision": (_genai("model", "vision", value={"filename": "v.onnx"}), "has a part called vision"),
    "pipeline": (_genai("model", "decoder", "pipeline", value=[{}]), "is a pipeline of several graphs"),
    "window": (_genai("model", "decoder", "sliding_window", value={"window_size": 4}), "keeps a window"),
    "no model": ({"search": {}}, "has no model: it is not onnxruntime-genai's"),
    "no graph": (_genai("model", "decoder", "filename", value="x.onnx"), "has no graph x.onnx: it has decoder.onnx"),
    "no context": (_genai("model", "context_length", value=None), "say it with --max-context N"),
    "names": (_genai("model", "decoder", "inputs", value=["x"]), "inputs and outputs of the decoder are no objects"),
}


@pytest.mark.parametrize(("config", "message"), CONFIGS.values(), ids=list(CONFIGS))
def test_configurations_that_cannot_be_served_are_named(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    folder = write_genai(tmp_path / "model")
    write_json(folder / "genai_config.json", config)
    with pytest.raises(ExportError, match=message):
        import_folder(folder)
    assert not (folder / "manifest.json").exists()


def test_other_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is no folder"):
        import_folder(tmp_path / "nothing")
    with pytest.raises(ExportError, match=r"neither genai_config\.json nor config\.json"):
        import_folder(tmp_path)
    write_json(tmp_path / "config.json", {})
    with pytest.raises(ExportError, match=r"has no \.onnx file"):
        import_folder(tmp_path)
    write_json(tmp_path / "config.json", {"is_encoder_decoder": True})
    with pytest.raises(ExportError, match="holds an encoder and a decoder"):
        import_folder(tmp_path)
    with pytest.raises(ExportError, match="ortserve import"), open_source(write_genai(tmp_path / "model")):
        pass
