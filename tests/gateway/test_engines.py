"""One model in several engine processes behind one server: what clients get, what operators see, how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from ortserve.gateway import cli
from ortserve.gateway.doctor import wheels
from ortserve.gateway.doctor.findings import Verdict
from ortserve.runtime.devices import cuda_devices
from ortserve.runtime.devices.cuda_devices import CudaFacts
from ortserve.runtime.errors import DeviceError
from ortserve.runtime.testing import write_paged_synthetic_model
from tests.gateway.synthetic import expected, write_synthetic_text_model
from tests.gateway.test_serve import process, read_greeting
from tests.waiting import PATIENCE_S, wait_for

NUM_CORES = len(os.sched_getaffinity(0))


def ask(url: str, text: str, length: int = 12) -> Any:
    body = {"model": "synthetic", "messages": [{"role": "user", "content": text}], "temperature": 0}
    return httpx.post(f"{url}/v1/chat/completions", json={**body, "max_tokens": length, "n": 2}).json()


def workers_of(url: str) -> list[dict[str, Any]]:
    """None of them while no engine runs: the server is unavailable then."""
    workers: list[dict[str, Any]] = httpx.get(f"{url}/health").json().get("workers", [])
    return workers


def processes_of(server: int) -> list[int]:
    threads = Path(f"/proc/{server}/task").iterdir()  # each process has a parent among them
    return [int(word) for thread in threads for word in (thread / "children").read_text().split()]


@pytest.mark.skipif(NUM_CORES < 2, reason="two engines need two cores")
def test_a_server_of_two_engines(tmp_path: Path) -> None:
    folder = write_synthetic_text_model(tmp_path)
    with process("serve", str(folder), "--port", "0", "--engines", "2", "--threads", "2") as child:
        match = re.search(r"served on (http://127\.0\.0\.1:\d+)/v1", read_greeting(child))
        assert match is not None
        url = match[1]
        for text in ("abc", "ABC", "abc"):
            reply = ask(url, text)
            told = [choice["message"]["content"] for choice in reply["choices"]]
            assert told == [expected(text.encode(), 12)] * 2
        assert [(one["worker"], one["status"], one["restarts"]) for one in workers_of(url)] == [
            ("cpu-0", "ok", 0), ("cpu-1", "ok", 0),
        ]  # fmt: skip
        pids = processes_of(child.pid)
        assert len(pids) == 2
        os.kill(pids[0], signal.SIGKILL)
        wait_for(lambda: sum(one["restarts"] for one in workers_of(url)))
        assert httpx.get(f"{url}/health/ready").status_code == 200
        assert ask(url, "abc")["choices"][0]["message"]["content"] == expected(b"abc", 12)
        metrics = httpx.get(f"{url}/metrics").text
        assert len(re.findall(r'^ortserve_worker_up\{.*worker="cpu-[01]"\} [01]\.0$', metrics, re.M)) == 2
        assert 'ortserve_worker_requests{model="synthetic",worker="cpu-1"} 0.0' in metrics
        assert sum(map(float, re.findall(r"^ortserve_worker_restarts_total\{.*\} (.*)$", metrics, re.M))) == 1
        child.send_signal(signal.SIGTERM)
        _, stderr = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 0, stderr
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    lines = [json.loads(line) for line in stderr.splitlines()]
    plans = [line for line in lines if line["event"] == "memory_plan"]
    assert [line["worker"] for line in plans] == ["cpu-0", "cpu-1"]
    assert all("16 rows of 256 tokens" in line["plan"] for line in plans)
    (restart,) = (line for line in lines if line["event"] == "worker_restarting")
    assert "was killed by SIGKILL" in restart["reason"]


def test_one_engine_process_beside_the_server(tmp_path: Path) -> None:
    """It answers as an engine in the server's process; its end is no end of the server."""
    folder = write_synthetic_text_model(tmp_path)
    with process("serve", str(folder), "--port", "0", "--engines", "1", "--threads", "1") as child:
        match = re.search(r"served on (http://127\.0\.0\.1:\d+)/v1", read_greeting(child))
        assert match is not None
        url = match[1]
        (worker,) = workers_of(url)
        assert (worker["worker"], worker["status"], worker["restarts"]) == ("cpu-0", "ok", 0)
        (pid,) = processes_of(child.pid)
        told = [choice["message"]["content"] for choice in ask(url, "abc")["choices"]]
        assert told == [expected(b"abc", 12)] * 2
        os.kill(pid, signal.SIGSTOP)  # or the reply may be whole before its end
        with ThreadPoolExecutor(1) as asking:
            reply = asking.submit(ask, url, "abc")
            wait_for(lambda: workers_of(url)[0]["requests"])
            os.kill(pid, signal.SIGKILL)
            assert "engine process cpu-0 was killed by SIGKILL" in reply.result(PATIENCE_S)["error"]["message"]
        wait_for(lambda: [(one["status"], one["restarts"]) for one in workers_of(url)] == [("ok", 1)])
        assert httpx.get(f"{url}/health/ready").status_code == 200
        (again,) = processes_of(child.pid)
        assert ask(url, "abc")["choices"][0]["message"]["content"] == expected(b"abc", 12)
        child.send_signal(signal.SIGTERM)
        _, stderr = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 0, stderr
    assert not Path(f"/proc/{again}").exists()
    events = [json.loads(line)["event"] for line in stderr.splitlines()]
    assert events.count("worker_restarted") == 1
    assert "model_restarting" not in events


@pytest.mark.parametrize("words", [(), ("--engines", "0")])
def test_on_the_cpu_the_engine_is_a_thread(tmp_path: Path, words: tuple[str, ...]) -> None:
    folder = write_synthetic_text_model(tmp_path)
    with process("serve", str(folder), "--port", "0", "--threads", "1", *words) as child:
        match = re.search(r"served on (http://127\.0\.0\.1:\d+)/v1", read_greeting(child))
        assert match is not None
        assert ask(match[1], "abc")["choices"][0]["message"]["content"] == expected(b"abc", 12)
        assert processes_of(child.pid) == []


def test_on_a_gpu_the_engine_is_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of the runtime, since there is no GPU here."""
    write_paged_synthetic_model(tmp_path)
    asked: list[object] = []

    def opened(folder: Path, config: object, *, num_engines: int | None, turn: object) -> None:
        asked.append(num_engines)
        raise DeviceError("no GPU is here")

    monkeypatch.setattr("ortserve.runtime.workers.opening.open_engines", opened)
    monkeypatch.setattr("ortserve.gateway.fleet.opening.load_model_text", lambda *_: None)  # the model has no text
    for words in ((), ("--engines", "0"), ("--device", "cuda:0,cuda:1")):
        assert cli.main(["serve", str(tmp_path), "--allow-unverified", "--port", "0", *words]) == 2
    assert asked == [1, None, None]


def test_more_engines_than_cores_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_synthetic_text_model(tmp_path)
    words = ("--engines", str(NUM_CORES + 1), "--port", "0", "--log-level", "error")
    assert cli.main(["serve", str(folder), *words]) == 2
    assert f"{NUM_CORES + 1} engines need a thread each, and there are" in capsys.readouterr().err


def test_the_doctor_lists_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = [CudaFacts(index, "A GPU", 80 * 2**30, (9, 0)) for index in range(2)]
    monkeypatch.setattr(cuda_devices, "cuda_devices", lambda: tuple(facts))
    found = wheels.check_gpus()
    assert found is not None
    assert found.detail == (
        "cuda:0 A GPU, 80 GiB, compute capability 9.0; cuda:1 A GPU, 80 GiB, compute capability 9.0"
    )
    facts.clear()
    assert wheels.check_gpus() is None

    def fail() -> None:
        raise DeviceError("the NVIDIA driver cannot start (CUDA error 999): see nvidia-smi")

    monkeypatch.setattr(cuda_devices, "cuda_devices", fail)
    found = wheels.check_gpus()
    assert found is not None
    assert found.verdict is Verdict.BROKEN
