"""The verbs as a user types them: exit statuses, text, JSON, help with an example."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ortserve.export import cli
from ortserve.export.bundled import resolve_source
from ortserve.export.errors import ExportError
from tests.export.checkpoints import Tiny, write_checkpoint
from tests.export.command_line import run_verb, verb_parser

VERBS = ("export", "verify", "inspect", "toy", "widen")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "source")


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example_that_parses(verb: str) -> None:
    text = verb_parser(verb).format_help()
    example = text.split("example:\n")[1].strip().split(" && ")[0]
    words = example.split()
    assert words[:2] == ["ortserve", verb]
    verb_parser(verb).parse_args(words[2:])


def test_export_verify_and_inspect(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run_verb("export", source, out, "--precision", "int4", "--block-size", "16", "--max-context", "64") == 0
    assert "source in int4" in capsys.readouterr().out
    assert run_verb("verify", out) == 0
    assert "is whole" in capsys.readouterr().out
    assert run_verb("verify", out, "--against", source, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verified"] is True
    assert report["parity"]["passed"] is True
    assert run_verb("inspect", out) == 0
    assert "context      64 tokens" in capsys.readouterr().out
    assert run_verb("inspect", out, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["manifest"]["precision"] == "int4"
    assert {value["name"] for value in facts["graph"]["inputs"]} >= {"input_ids", "query_lengths", "past.1.value"}


def test_export_as_json_prints_both_files(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb("export", source, tmp_path / "out", "--json", "--no-verify") == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    for name in ("manifest", "report"):
        assert printed[name] == json.loads((tmp_path / "out" / f"{name}.json").read_text())
    assert printed["report"]["parity"] is None
    assert printed["report"]["verified"] is False
    assert run_verb("inspect", tmp_path / "out") == 0
    shown = capsys.readouterr().out
    assert "proof        none" in shown
    assert "UNVERIFIED: it was exported without verification" in shown
    assert run_verb("verify", tmp_path / "out") == 1
    assert run_verb("verify", tmp_path / "out", "--against", source) == 0  # proved now, and marked so
    assert run_verb("verify", tmp_path / "out") == 0


def test_a_failed_check_is_status_1_and_one_line(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ortserve.export.proof import limits

    assert run_verb("export", source, tmp_path / "out") == 0
    other = write_checkpoint(tmp_path / "other", Tiny(seed=1))
    assert run_verb("verify", tmp_path / "out", "--against", other) == 1
    assert "FAILED" in capsys.readouterr().out
    (tmp_path / "out" / "model.onnx.data").write_bytes(b"")
    assert run_verb("verify", tmp_path / "out") == 1
    assert run_verb("inspect", tmp_path / "out") == 0  # reads no weights
    (tmp_path / "out" / "model.onnx").unlink()
    assert run_verb("inspect", tmp_path / "out") == 1
    capsys.readouterr()
    monkeypatch.setattr(limits, "RANDOM_LIMITS", {"int8": limits.Limits(0.0, 1.0, 1.0)})
    assert run_verb("export", source, tmp_path / "out", "--force") == 1
    error = capsys.readouterr().err
    assert error.startswith("ortserve: source in int8 differs from the reference")
    assert error.count("\n") == 1


def test_bad_input_is_raised_for_the_console_script(tmp_path: Path, source: Path) -> None:
    with pytest.raises(ExportError, match="is neither a checkpoint folder nor a hub id"):
        run_verb("export", tmp_path / "nowhere", tmp_path / "out")
    assert run_verb("export", source, tmp_path / "out") == 0
    other = write_checkpoint(tmp_path / "other", Tiny(num_layers=1))
    with pytest.raises(ExportError, match="was not exported from this checkpoint: their sizes differ"):
        run_verb("verify", tmp_path / "out", "--against", other)
    with pytest.raises(ExportError, match="--force"):
        run_verb("export", source, tmp_path / "out")


def test_toy_and_widen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb("toy", "tiny", tmp_path / "toy", "--seed", "3") == 0
    assert "106,816 random parameters" in capsys.readouterr().out
    assert run_verb("widen", tmp_path / "toy", tmp_path / "wide", "--like", "tiny", "--max-context", "900") == 0
    assert "at the cost of tiny" in capsys.readouterr().out
    assert run_verb("export", tmp_path / "wide", tmp_path / "out") == 0


def test_pocket_names_the_bundled_model_unless_a_folder_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_source("pocket") == cli.bundled_model()
    assert resolve_source("pocket-draft") == cli.bundled_draft()
    assert resolve_source("org/model") == "org/model"
    (tmp_path / "pocket").mkdir()
    assert resolve_source("pocket") == "pocket"


def test_a_missing_bundled_model_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ortserve.export import bundled

    monkeypatch.setattr(bundled, "__file__", str(tmp_path / "bundled.py"))
    with pytest.raises(ExportError, match="is missing: reinstall ortserve, or name a model"):
        cli.bundled_model()


def test_describing_the_verbs_loads_no_heavy_library() -> None:
    heavy = "{'numpy', 'onnx', 'onnxruntime', 'tokenizers', 'huggingface_hub'}"
    program = f"import sys, ortserve.export.cli; sys.exit(', '.join({heavy} & set(sys.modules)) or None)"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr.strip()) == (0, "")
