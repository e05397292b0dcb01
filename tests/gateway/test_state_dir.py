"""`ortserve serve --state-dir`: what outlives the process, killed or stopped, and who may use the folder."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

import httpx
import pytest

from tests.gateway.synthetic import write_synthetic_text_model
from tests.gateway.test_serve import process, read_greeting
from tests.waiting import PATIENCE_S

PATH = "/v1/responses"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Replies without an end have thousands of tokens: they still run when a signal comes, and after `--drain`."""
    return write_synthetic_text_model(tmp_path_factory.mktemp("synthetic"), max_context=8192)


@contextmanager
def served(model: Path, *arguments: str) -> Iterator[tuple[Popen[str], httpx.Client]]:
    with process("serve", str(model), "--threads", "1", "--port", "0", "--drain", "0.2", *arguments) as child:
        match = re.search(r"http://127\.0\.0\.1:\d+", read_greeting(child))
        assert match is not None
        with httpx.Client(base_url=match.group()) as http:
            yield child, http


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_outlives_the_process(model: Path, tmp_path: Path, number: signal.Signals) -> None:
    folder = str(tmp_path / "state")
    endless = {"input": "go", "background": True, "ignore_eos": True, "temperature": 0}
    with served(model, "--state-dir", folder) as (child, http):
        done = http.post(PATH, json={"input": "abc", "max_output_tokens": 4}).json()
        ids = [http.post(PATH, json=endless).json()["id"] for _ in range(12)]
        child.send_signal(number)
        child.wait(PATIENCE_S)
    with served(model, "--state-dir", folder) as (_, http):
        assert http.get(f"{PATH}/{done['id']}").json() == done
        replies = [http.get(f"{PATH}/{id}").json() for id in ids]
        assert {reply["status"] for reply in replies} <= {"failed", "incomplete", "completed"}
        failed = [reply for reply in replies if reply["status"] == "failed"]
        assert failed, "the engine was faster than the signal"
        assert {reply["error"]["code"] for reply in failed} == {"server_error"}
        assert "Send it again" in failed[0]["error"]["message"] or "shutting down" in failed[0]["error"]["message"]
        following = http.post(PATH, json={"input": "d", "previous_response_id": done["id"], "max_output_tokens": 1})
        assert following.status_code == 200


def test_without_a_folder_nothing_outlives_it(model: Path) -> None:
    with served(model) as (_, http):
        id = http.post(PATH, json={"input": "abc", "max_output_tokens": 1}).json()["id"]
        assert http.get(f"{PATH}/{id}").status_code == 200
    with served(model) as (_, http):
        assert http.get(f"{PATH}/{id}").status_code == 404


def test_a_folder_in_use_is_refused_at_once(model: Path, tmp_path: Path) -> None:
    with (
        served(model, "--state-dir", str(tmp_path)),
        process("serve", str(model), "--port", "0", ORTSERVE_STATE_DIR=str(tmp_path)) as second,
    ):
        _, shown = second.communicate(timeout=PATIENCE_S)
        assert second.returncode != 0
        assert "in use by another server" in shown


def test_bounds_are_options(model: Path) -> None:
    with served(model, "--state-size", "20kB", "--state-ttl", "1000") as (_, http):
        ids = [http.post(PATH, json={"input": "a" * 200, "max_output_tokens": 1}).json()["id"] for _ in range(12)]
        found = [http.get(f"{PATH}/{id}").status_code == 200 for id in ids]
        assert found[-1]
        assert not found[0]
        assert found == sorted(found)
