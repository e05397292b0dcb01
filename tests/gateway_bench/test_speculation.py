"""`ortserve bench speculation` against the bundled model behind a real server: true counts, both sides, reports."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from ortserve.export.bundled import bundled_model
from ortserve.export.publish import export_checkpoint
from ortserve.gateway import cli
from ortserve.gateway.bench import speculation_cli
from ortserve.gateway.bench.speculation import Case, CaseReport, SpeculationRun
from ortserve.gateway.bench.speculation_plot import write_speedups
from ortserve.gateway.bench.speculation_work import KINDS, works
from ortserve.gateway.bench.workload import BenchError, parse_target
from tests.gateway.pocket import serving_pocket


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pocket") / "int8"
    export_checkpoint(bundled_model(), folder, precision="int8", verify=False, progress=False)
    return folder


def arguments_of(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    speculation_cli.configure(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize("kind", KINDS)
def test_work_depends_on_its_number_alone(kind: str) -> None:
    first = works(kind, 5, 8)
    assert first == works(kind, 5, 8)
    assert len(set(first)) == 8
    assert not set(first) & set(works(kind, 6, 8))


def test_the_whole_command(pocket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, plot = tmp_path / "out.json", tmp_path / "out.png"
    words = ["--work", "editing,random", "--streams", "1,2", "--temperatures", "0", "--rounds", "2", "--output-tokens"]
    with serving_pocket(pocket, drafter="prediction", deterministic=True) as url:
        options = ["--url", url, *words, "40", "--json", str(report), "--plot", str(plot)]
        assert speculation_cli.run(arguments_of(*options)) == 0
        assert speculation_cli.run(arguments_of(*options, "--at-least", "1000")) == 1
    found = json.loads(report.read_text())
    cases: list[dict[str, Any]] = found["cases"]
    assert [(case["case"]["kind"], case["case"]["num_streams"]) for case in cases] == [
        ("editing", 1), ("random", 1), ("editing", 2), ("random", 2),
    ]  # fmt: skip
    for case in cases:
        assert case["num_different"] == 0  # drafted replies are plain ones
        assert case["num_replies"] == 2 * case["case"]["num_streams"]
        assert len(case["speedups"]) == len(case["plain_tokens_per_s"]) == len(case["drafted_tokens_per_s"]) == 2
        for fast, base, ratio in zip(
            case["drafted_tokens_per_s"], case["plain_tokens_per_s"], case["speedups"], strict=True
        ):
            assert ratio == pytest.approx(fast / base)
        # Nobody predicts random text, so `prediction` has no guess for it.
        assert (case["accepted"] is None) == (case["case"]["kind"] == "random")
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "editing" in capsys.readouterr().out


def test_a_server_without_the_field_is_named(pocket: Path) -> None:
    with serving_pocket(pocket) as url:
        run = SpeculationRun(parse_target(url, None), "nobody", num_output_tokens=4, seed=0, timeout_s=30)
        with pytest.raises(BenchError, match="refuses a request: 404"):
            asyncio.run(run.measure(Case("chat", 1, 0.0), 1))
    run = SpeculationRun(parse_target("http://127.0.0.1:9", None), "m", num_output_tokens=4, seed=0, timeout_s=5)
    with pytest.raises(BenchError, match="does not answer"):
        asyncio.run(run.measure(Case("chat", 1, 0.0), 1))


def test_wrong_options_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments_of("--work", "chat,sleeping")
    assert "'sleeping' is none of chat" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        arguments_of("--temperatures", "0,3")


def test_the_verb_has_two_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", "speculation", "--help"])
    assert caught.value.code == 0
    assert "usage: ortserve bench speculation" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    assert "--prompt-tokens" in capsys.readouterr().out


def test_a_plot_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    report = CaseReport(Case("chat", 1, 0.0), (1.0,), (2.0,), (2.0,), 0.5, None, 1, 0)
    with pytest.raises(BenchError, match="--plot"):
        write_speedups([report], "title", tmp_path / "nowhere" / "plot.png")
