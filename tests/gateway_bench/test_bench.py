"""The load generator against a small asyncio server: counts, calibration, failures, and the command as a whole."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ortserve.gateway.bench import cli
from ortserve.gateway.bench.calibrate import Calibration, Probe
from ortserve.gateway.bench.client import Client
from ortserve.gateway.bench.load import LevelRun, LoadGenerator
from ortserve.gateway.bench.prompts import TokenIds, Words
from ortserve.gateway.bench.workload import Api, BenchError, ClosedLoop, Level, OpenLoop, Workload, parse_target
from tests.gateway_bench.peer import Peer, running
from tests.waiting import PATIENCE_S


def workload(**changes: Any) -> Workload:
    values: dict[str, Any] = {
        "model": "peer",
        "api": Api.COMPLETIONS,
        "num_prompt_tokens": 40,
        "num_output_tokens": 6,
        "num_shared_tokens": 0,
        "temperature": 0.0,
        "seed": 1,
    }
    return Workload(**(values | changes))


async def calibrated(peer: Peer, work: Workload) -> Calibration:
    async with running(peer) as url:
        target = parse_target(url, None)
        with closing(Client(target, PATIENCE_S)) as client:
            return await Probe(client, target, work).calibrate()


async def loaded(peer: Peer, work: Workload, level: Level, timeout_s: float = PATIENCE_S) -> LevelRun:
    async with running(peer) as url:
        target = parse_target(url, None)
        with closing(Client(target, PATIENCE_S)) as client:
            calibration = await Probe(client, target, work).calibrate()
        peer.bodies.clear()
        return await LoadGenerator(target, calibration.source, timeout_s).run(level)


def test_token_ids_are_calibrated_to_what_the_server_accepts() -> None:
    calibration = asyncio.run(calibrated(Peer(vocab_size=500), workload()))
    assert calibration.source.vocabulary == TokenIds(64, 256, num_fixed=1)
    assert calibration.num_prompt_tokens == 40
    assert calibration.notes == ()
    assert calibration.headers["server"] == "peer/1"
    assert calibration.model["note"] == 7


@pytest.mark.parametrize("api", list(Api))
def test_words_are_calibrated_to_one_token_each(api: Api) -> None:
    peer = Peer(vocab_size=0, two_token_words=("q", "the", "z"))
    calibration = asyncio.run(calibrated(peer, workload(api=api)))
    vocabulary = calibration.source.vocabulary
    assert isinstance(vocabulary, Words)
    assert vocabulary.num_fixed == 3 + 2  # the first word costs one token more than elsewhere
    assert not {"q", "the", "z"} & set(vocabulary.words)
    assert len(vocabulary.words) == 39
    assert calibration.num_prompt_tokens == 40


def test_a_server_without_fixed_lengths_is_noted_and_short_replies_are_counted() -> None:
    async def both() -> tuple[Calibration, LevelRun]:
        peer = Peer(refuse_unknown=True, end_after=4)
        level = ClosedLoop(1, 0, 2, None)
        return await calibrated(peer, workload()), await loaded(peer, workload(), level)

    calibration, run = asyncio.run(both())
    assert "refuses ignore_eos" in calibration.notes[0]
    assert [sample.timeline.num_output_tokens for sample in run.samples] == [4, 4]


def test_a_server_without_usage_cannot_be_measured() -> None:
    with pytest.raises(BenchError, match="too short"):
        asyncio.run(calibrated(Peer(), workload(num_prompt_tokens=1)))


def test_prompts_share_exactly_their_prefix_and_repeat_for_a_seed() -> None:
    async def prompts(seed: int) -> list[list[int]]:
        peer = Peer()
        await loaded(peer, workload(num_shared_tokens=12, seed=seed), ClosedLoop(2, 0, 6, None))
        return sorted(body["prompt"] for body in peer.bodies)

    first, again, other = (asyncio.run(prompts(seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert {len(prompt) for prompt in first} == {39}
    assert len({tuple(prompt[:12]) for prompt in first}) == 1
    assert len({tuple(prompt[12:16]) for prompt in first}) == 6


def test_a_closed_loop_keeps_its_concurrency_and_counts_after_the_warm_up() -> None:
    peer = Peer(delay_s=0.002)
    run = asyncio.run(loaded(peer, workload(), ClosedLoop(4, 2, 12, None)))
    assert len(run.samples) == 12
    assert peer.num_streams >= 12 + 4 * 2
    assert {sample.worker for sample in run.samples} == {0, 1, 2, 3}
    for sample in run.samples:
        assert sample.timeline.failure is None
        assert len(sample.timeline.arrivals) == sample.timeline.num_output_tokens == 6
    assert all(body["ignore_eos"] and body["min_tokens"] == body["max_tokens"] == 6 for body in peer.bodies)


def test_a_closed_loop_ends_with_its_duration(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count(100.0)  # another one whenever the generator looks
    monkeypatch.setattr("ortserve.gateway.bench.load.perf_counter", lambda: next(seconds))
    run = asyncio.run(loaded(Peer(), workload(), ClosedLoop(2, 1, None, 20.0)))
    assert len(run.samples) == 20


def test_an_open_loop_does_not_wait_for_replies() -> None:
    peer = Peer(hold_until=2 + 30)
    run = asyncio.run(loaded(peer, workload(), OpenLoop(100.0, 2, 30, None)))
    assert len(run.samples) == 30
    assert all(sample.timeline.failure is None for sample in run.samples)
    assert all(sample.timeline.sent_s >= sample.timeline.start_s for sample in run.samples)


def test_failures_are_told_apart() -> None:
    async def kinds(peer: Peer, timeout_s: float = PATIENCE_S) -> list[str | None]:
        run = await loaded(peer, workload(), ClosedLoop(1, 0, 4, None), timeout_s)
        return [s.timeline.failure.kind if s.timeline.failure else None for s in run.samples]

    assert asyncio.run(kinds(Peer(fail_every=2))) == [None, "http_503", None, "http_503"]
    assert asyncio.run(kinds(Peer(cut_every=2))) == [None, "disconnect", None, "disconnect"]
    assert asyncio.run(kinds(Peer(send_usage=False))) == ["no_usage"] * 4
    assert asyncio.run(kinds(Peer(delay_s=0.2), timeout_s=0.1)) == ["timeout"] * 4


@contextmanager
def served(peer: Peer) -> Iterator[str]:
    """The peer on its own thread, for the command, which runs its own event loop."""
    ready: list[str] = []
    started, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        async with running(peer) as url:
            ready.append(url)
            started.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert started.wait(PATIENCE_S)
        yield ready[0]
    finally:
        stop.set()
        thread.join()


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.configure(parser)
    return parser.parse_args(words)


def test_the_command_writes_table_json_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, plot = tmp_path / "out.json", tmp_path / "out.png"
    with served(Peer(delay_s=0.001)) as url:
        words = ("--url", f"{url}/v1", "--concurrency", "1,3", "--requests", "3", "--output-tokens", "5", "--seed", "7")
        assert cli.run(parsed(*words, "--api", "chat", "--json", str(out), "--plot", str(plot))) == 0
    printed = capsys.readouterr()
    assert "TTFT ms" in printed.out
    assert "concurrency 3: 3 of 3 requests" in printed.err
    report = json.loads(out.read_bytes())
    assert report["schema_version"] == 1
    assert report["workload"]["seed"] == 7
    assert [(level["load"], level["num_completed"], level["num_output_tokens"]) for level in report["levels"]] == [
        (1, 3, 15),
        (3, 3, 15),
    ]
    assert report["server"]["headers"]["server"] == "peer/1"
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_model_may_be_named_by_the_path_it_is_served_from(capsys: pytest.CaptureFixture[str]) -> None:
    peer = Peer()
    with served(peer) as url:
        assert cli.run(parsed("--url", url, "--model", "./models/x", "--requests", "1", "--warmup", "0")) == 0
    assert {body["model"] for body in peer.bodies} == {"peer"}
    assert "the server calls its model peer" in capsys.readouterr().err


def test_failed_requests_are_exit_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    with served(Peer(fail_every=1)) as url:
        assert cli.run(parsed("--url", url, "--rate", "100", "--requests", "3", "--warmup", "0", "--json", "-")) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["levels"][0]["failures"] == [{"kind": "http_503", "count": 3, "example": "overloaded"}]


def test_short_replies_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    with served(Peer(refuse_unknown=True, end_after=2)) as url:
        assert cli.run(parsed("--url", url, "--requests", "2", "--output-tokens", "4")) == 0
    assert "2 of 2 replies are shorter than 4 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--url", "http://127.0.0.1:9", "--model", "m"), "cannot reach http://127.0.0.1:9"),
        (("--url", "ftp://host"), "give an address"),
        (("--url", "http://user:secret@host"), "must not carry"),
        (("--shared-prefix-tokens", "128"), "must be below"),
        (("--plot", "x.txt"), "must end in .png"),
    ],
)
def test_bad_usage_is_one_line(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(BenchError, match=message) as caught:
        cli.run(parsed(*words))
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "words", [("--concurrency", "0"), ("--rate", "x"), ("--requests", "1", "--duration", "2"), ("--temperature", "3")]
)
def test_bad_values_are_refused_by_the_parser(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(*words)
    assert "error" in capsys.readouterr().err
