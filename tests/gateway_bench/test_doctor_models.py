"""What the doctor says of a configuration's models: fit, too large, damaged, not exported yet."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from ortserve.gateway.doctor import cli
from ortserve.gateway.doctor.findings import Finding, Verdict
from ortserve.gateway.doctor.models import check_models, settings_of
from ortserve.runtime.errors import ConfigurationError
from ortserve.runtime.host.machine import MemoryFacts
from tests.gateway.synthetic import write_synthetic_text_model

MEMORY = MemoryFacts(total=2**33, available=2**30, cgroup_limit=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_text_model(tmp_path_factory.mktemp("models") / "synthetic")


def findings_of(tmp_path: Path, text: str) -> dict[str, Finding]:
    file = tmp_path / "c.toml"
    file.write_text(text)
    return {one.name: one for one in check_models(settings_of(file), MEMORY)}


def test_models_that_fit(tmp_path: Path, folder: Path) -> None:
    text = f'[[models]]\nmodel = "{folder}"\nname = "one"\n[[models]]\nmodel = "org/model"\n'
    found = findings_of(tmp_path, f'[engine]\nkv_memory = "4MiB"\n[cache]\nprompt_cache_memory = "1MiB"\n{text}')
    assert found["model one"].verdict is Verdict.FINE
    assert "generates, 256 tokens; 32.0 MiB of weights" in found["model one"].detail
    assert found["model model"].verdict is Verdict.NOTE
    assert "it is exported when the server starts" in found["model model"].detail
    assert found["memory for models"].verdict is Verdict.FINE
    assert "1.00 GiB (what is free now), of which the 1 that" in found["memory for models"].detail


def test_models_that_do_not_fit(tmp_path: Path, folder: Path) -> None:
    alone = findings_of(tmp_path, f'[fleet]\nmodel_memory = "16MiB"\n[[models]]\nmodel = "{folder}"\n')
    assert alone["model synthetic"].verdict is Verdict.BROKEN
    assert "for its weights" in alone["model synthetic"].detail
    assert alone["memory for models"].verdict is Verdict.BROKEN
    assert "(--model-memory)" in alone["memory for models"].detail
    text = '[fleet]\nmodel_memory = "50MiB"\n[engine]\nkv_memory = "8MiB"\n[cache]\nprompt_cache = "none"\n'
    text += "".join(f'[[models]]\nmodel = "{folder}"\nname = "{name}"\n' for name in ("one", "two"))
    assert findings_of(tmp_path, text)["memory for models"].verdict is Verdict.BROKEN
    in_turns = findings_of(tmp_path, text + "preload = false\n")
    assert in_turns["memory for models"].verdict is Verdict.FINE
    assert "1 are loaded when they are asked for" in in_turns["memory for models"].detail


def test_a_damaged_folder_and_a_file_that_serve_would_refuse(tmp_path: Path, folder: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "manifest.json").write_text("{}")
    found = findings_of(tmp_path, f'[[models]]\nmodel = "{damaged}"\n')
    assert next(iter(found.values())).verdict is Verdict.BROKEN
    with pytest.raises(ConfigurationError, match="modle"):
        findings_of(tmp_path, f'[[models]]\nmodle = "{folder}"\n')


def test_the_command_reads_a_configuration(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_measure", lambda **_: ((), ()))
    file = tmp_path / "c.toml"
    file.write_text(f'[[models]]\nmodel = "{folder}"\n')
    parser = argparse.ArgumentParser()
    cli.configure(parser)
    assert cli.run(parser.parse_args(["--quick", "--json", "--config", str(file)])) == 0
    names = [one["name"] for one in json.loads(capsys.readouterr().out)["findings"]]
    assert {"model synthetic", "memory for models"} <= set(names)
