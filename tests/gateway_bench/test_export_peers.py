"""What the comparison of exporters measures and judges by; the exporters themselves are not run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.bench import process_tree
from tests.bench.export_peers import Comparison, Run
from tests.bench.exporters import WAYS, environment, find_interpreters
from tests.bench.process_tree import run_measured
from tests.waiting import PATIENCE_S

HELD = 48_000_000


def test_memory_of_all_processes_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both hold it until it has been looked at."""
    held, seen, look, num_looks = tmp_path / "held", tmp_path / "seen", process_tree.memory_of, 0

    def watched(pid: int) -> tuple[int, int] | None:
        nonlocal num_looks
        num_looks += held.exists()
        if num_looks > 2 * 2:  # a whole look at both of them lies behind this one
            seen.touch()
        return look(pid)

    monkeypatch.setattr(process_tree, "memory_of", watched)
    hold = f"import sys; held = b'x' * {HELD}; open(sys.argv[1], 'w').close(); sys.stdin.read()"
    code = (
        "import subprocess, sys, time, pathlib\n"
        f"held = b'x' * {HELD}\n"
        f"child = subprocess.Popen([sys.executable, '-c', {hold!r}, sys.argv[1]], stdin=subprocess.PIPE)\n"
        "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)\n"
        "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.01)\n"
        "child.communicate()\n"
        "print('done'); sys.exit(3)\n"
    )
    log = tmp_path / "log"
    cost = run_measured([sys.executable, "-c", code, held, seen], env=os.environ, log=log, limit_s=PATIENCE_S)
    assert cost.status == 3
    assert log.read_text() == "done\n"
    assert cost.peak_bytes >= cost.peak_anonymous_bytes >= 2 * HELD
    assert cost.largest_process_bytes >= HELD
    assert cost.seconds > 0


def test_what_runs_too_long_is_killed(tmp_path: Path) -> None:
    cost = run_measured(["sleep", "1000"], env=os.environ, log=tmp_path / "log", limit_s=0.05)
    assert cost.status == -9
    assert cost.seconds >= 0.05


def _run(way: str, number: int, *, seconds: float, peak: int) -> Run:
    return Run(way, number, seconds, seconds, peak, peak, peak, 9, 1, (seconds,))


def test_goals_compare_like_with_like_round_by_round() -> None:
    runs = [
        _run("ours-int8", 0, seconds=100, peak=1_000_000_000),
        _run("ours-int8", 1, seconds=200, peak=2_000_000_000),
    ]
    runs += [_run("optimum-int8", 1, seconds=9, peak=5_000_000_000), _run("genai-int4", 0, seconds=9, peak=1)]
    found = Comparison(runs, {"genai-fp32": "no environment"})
    assert {goal.name: goal.measured.median for goal in found.goals(is_rated=True)} == {
        "ours-int8, seconds": 150,
        "ours-int8, peak MB": 1500,
        "peak memory of optimum-int8 over ours-int8": 2.5,
    }
    assert [goal.name for goal in found.goals(is_rated=False)] == ["peak memory of optimum-int8 over ours-int8"]
    assert any("genai-fp32" in line and "not run" in line for line in found.table())


def test_a_peer_without_an_environment_is_named(tmp_path: Path) -> None:
    found = find_interpreters(None, tmp_path / "nothing", make=False)
    assert set(found.found) == {"ours"}
    assert set(found.missing) == {"optimum", "genai"}
    assert "PYTHONPATH" not in environment("genai")
    quantize = WAYS["optimum-int8"].steps(Path("source"), tmp_path, Path("python"))
    assert [line[-1] for line in quantize] == [tmp_path / "floats", tmp_path / "out"]
