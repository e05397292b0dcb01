"""`--dry-run` tells what would be written, to the byte where it can, and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ortserve.export.bundled import bundled_model
from ortserve.export.errors import ExportError
from ortserve.export.forecast import Speed, forecast
from ortserve.export.recipes.planned import ExportOptions
from ortserve.export.sources.checkpoint import open_checkpoint
from tests.export.checkpoints import Tiny, write_checkpoint
from tests.export.command_line import run_verb


def _everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_sizes_are_those_of_the_export(tmp_path: Path, precision: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_checkpoint(tmp_path / "source", Tiny(hidden_size=64, intermediate_size=256, vocab_size=800))
    words = (source, tmp_path / "out", "--precision", precision, "--activations", "token", "--no-verify")
    before = _everything(tmp_path)
    assert run_verb("export", *words, "--dry-run", "--json") == 0
    assert _everything(tmp_path) == before
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert run_verb("export", *words) == 0
    data = (tmp_path / "out" / "model.onnx.data").stat().st_size
    around = 4096 * 20  # tensors begin on pages, zero points lie beside weights, and the smallest are in the graph
    assert abs(data - found["file_bytes"]["model.onnx.data"]) < around < data
    assert found["num_layers"] == 2
    assert {group["kind"]: group["count"] for group in found["matrices"]} == {
        "embedding": 1, "qkv": 2, "attention_output": 2, "gate": 2, "up": 2, "down": 2
    }  # fmt: skip


def test_the_plan_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb("export", bundled_model(), tmp_path / "out", "--dry-run") == 0
    shown = capsys.readouterr().out
    for words in ("4,951,296 parameters in 6 layers", "6 x qkv", "peak memory  about", "nothing was written"):
        assert words in shown
    assert list(tmp_path.iterdir()) == []


def test_memory_and_time_grow_with_what_is_done() -> None:
    checkpoint = open_checkpoint(bundled_model())
    speed = Speed(quantized=1e8, read=1e9, multiplied=1e10)
    whole = forecast(checkpoint, ExportOptions(), speed=speed)
    plain = forecast(checkpoint, ExportOptions(activations="token"), speed=speed, verify=False)
    assert plain.seconds < whole.seconds
    assert plain.peak_bytes <= whole.peak_bytes < 1_000_000_000
    assert forecast(checkpoint, ExportOptions(), speed=Speed(1e7, 1e8, 1e9)).seconds > 3 * whole.seconds


def test_what_an_export_refuses_a_plan_refuses(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    with pytest.raises(ExportError, match="max context 97 is outside 1 to 96"):
        run_verb("export", source, tmp_path / "out", "--max-context", "97", "--dry-run")


def test_a_hub_id_is_planned_from_its_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    hub = write_checkpoint(tmp_path / "hub", Tiny(num_shards=2))
    fetched: list[str] = []

    class Api:
        def model_info(self, hub_id: str, *, files_metadata: bool) -> Any:
            assert (hub_id, files_metadata) == ("org/tiny", True)
            files = [SimpleNamespace(rfilename=path.name, size=path.stat().st_size) for path in hub.iterdir()]
            return SimpleNamespace(siblings=[*files, SimpleNamespace(rfilename="pytorch_model.bin", size=1 << 40)])

        def get_safetensors_metadata(self, hub_id: str) -> Any:
            headers = {}
            for path in hub.glob("*.safetensors"):
                length = int.from_bytes(path.read_bytes()[:8], "little")
                header = json.loads(path.read_bytes()[8 : 8 + length])
                tensors = {name: SimpleNamespace(**one) for name, one in header.items() if name != "__metadata__"}
                headers[path.name] = SimpleNamespace(tensors=tensors)
            return SimpleNamespace(files_metadata=headers)

    def download(hub_id: str, name: str, *, local_dir: str) -> str:
        fetched.append(name)
        (Path(local_dir) / name).write_bytes((hub / name).read_bytes())
        return name

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert run_verb("export", "org/tiny", tmp_path / "out", "--dry-run", "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert fetched == ["config.json"]
    assert found["download_bytes"] == sum(path.stat().st_size for path in hub.iterdir())
    assert (found["name"], found["source"]) == ("tiny", "org/tiny")
    here = forecast(open_checkpoint(hub), ExportOptions())
    assert found["disk_bytes"] == here.disk_bytes


def test_a_hub_that_is_not_reached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    class Api:
        def model_info(self, hub_id: str, *, files_metadata: bool) -> Any:
            raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with pytest.raises(ExportError, match=r"could not be downloaded \(no route to host\)"):
        run_verb("export", "org/tiny", tmp_path / "out", "--dry-run")
