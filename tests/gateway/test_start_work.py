"""What a start does, counted: modules imported, files of the model opened, processes and connections begun.

Seconds would say more about the machine than about us; each of these counts is the same on all of them.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.gateway.synthetic import write_synthetic_text_model
from tests.gateway.test_serve import MAIN, read_greeting
from tests.waiting import PATIENCE_S

NOTING = """
import atexit, json, sys
events = []
WANTED = ("open", "subprocess.Popen", "os.posix_spawn", "os.fork", "socket.connect")
def note(event, arguments):
    if event in WANTED:
        events.append((event, str(arguments[0])))
def tell():
    noted, modules = list(events), sorted(sys.modules)
    with open(TOLD, "w") as file:
        json.dump({"events": noted, "modules": modules}, file)
sys.addaudithook(note)
atexit.register(tell)
"""
# What a server of a model that generates needs on the CPU. Each one that is added is paid for at every start.
LIBRARIES = {
    "numpy", "onnxruntime", "tokenizers", "llguidance", "jinja2", "msgspec", "starlette", "hypercorn",
    "prometheus_client", "structlog",
}  # fmt: skip
NEVER = {
    "torch",
    "transformers",
    "optimum",
    "huggingface_hub",
    "matplotlib",
    "openai",
    "httpx",
    "opentelemetry",
    "pytest",
}
MAX_OWN_MODULES = 440
MAX_MODULES = 1_300
MAX_OPENS = 24  # of files of the model's folder

Started = tuple[Path, Counter[str], list[str], set[str]]  # folder, opened files, other events, modules


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Started:
    """A server that starts and stops."""
    folder = write_synthetic_text_model(tmp_path_factory.mktemp("synthetic"))
    told = tmp_path_factory.mktemp("told") / "counts.json"
    words = ("serve", str(folder), "--port", "0", "--threads", "1", "--log-level", "error")
    program = f"TOLD = {str(told)!r}{NOTING}{MAIN}"
    with subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        read_greeting(child)
        child.send_signal(signal.SIGTERM)
        _, stderr = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 0, stderr
    noted = json.loads(told.read_text())
    opened = Counter(name for event, name in noted["events"] if event == "open" and Path(name).parent == folder)
    others = [f"{event} {name}" for event, name in noted["events"] if event != "open"]
    return folder, opened, others, set(noted["modules"])


def test_a_start_imports_what_it_needs_and_no_more(started: Started) -> None:
    modules = started[3]
    top = {name.partition(".")[0] for name in modules}
    assert top >= LIBRARIES, "the list is out of date"
    assert not top & NEVER
    assert not {name for name in modules if name.startswith(("ortserve.export.", "ortserve.gateway.bench."))}
    own = [name for name in modules if name.startswith("ortserve.")]
    assert 100 < len(own) <= MAX_OWN_MODULES
    assert len(modules) <= MAX_MODULES


def test_a_start_opens_the_model_s_files_a_few_times_and_begins_no_process_or_connection(started: Started) -> None:
    folder, opened, others, _ = started
    assert opened[str(folder / "manifest.json")] >= 1, "it has been counted"
    assert sum(opened.values()) <= MAX_OPENS
    assert others == []
