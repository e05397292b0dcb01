"""Every code block of the README runs as it stands, in order, in one folder, against a server that a test starts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parent.parent
ADDRESS = "http://127.0.0.1:8000"
EXPECTED = {
    "23 + 58": "23 + 58 = 81",
    "capital of France": "Paris",
    "good morning": "good morning",
    "Hello!": "Hello!",
    "get_weather": "The temperature is 21",
}


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    language: str
    text: str


def blocks() -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return [Block(language, text) for language, text in found]


@dataclass(frozen=True)
class Place:
    """A folder, a running server, and the environment a reader would have."""

    folder: Path
    address: str
    environment: dict[str, str]

    def run(self, words: list[str], text: str) -> str:
        done = subprocess.run(
            [*words, text.replace(ADDRESS, self.address)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("reader")
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment["XDG_CACHE_HOME"] = str(folder / "cache")
    server = subprocess.Popen(
        [sys.executable, "-m", "ortserve.gateway.cli", "serve", "--port", "0", "--drain", "1"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    greeting = server.stdout.readline()
    address = re.search(r"http://127\.0\.0\.1:\d+", greeting)
    assert address, f"the server said {greeting!r}"
    yield Place(folder, address.group(), environment)
    server.send_signal(signal.SIGTERM)
    server.stdout.close()
    assert server.wait(PATIENCE_S) == 0


@pytest.mark.timeout(600)
def test_every_block_runs_in_order(place: Place) -> None:
    found = blocks()
    assert {block.language for block in found} == {"bash", "python", "text"}
    for block in found:
        if block.language == "text":
            continue
        if block.text.startswith("make "):
            output = subprocess.run(["make", "-n", *block.text.split()[1:]], cwd=ROOT, capture_output=True, check=True)
            assert output.stdout
            continue
        words = [sys.executable, "-c"] if block.language == "python" else ["bash", "-euc"]
        shown = place.run(words, block.text)
        for question, answer in EXPECTED.items():
            if question in block.text:
                assert answer in shown


def test_the_picture_and_the_links_name_what_exists() -> None:
    text = (ROOT / "README.md").read_text()
    picture = next(block.text for block in blocks() if block.language == "text")
    for folder in re.findall(r"(\w+)/ ", picture):
        assert (ROOT / folder).is_dir()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / target).exists(), target


def test_the_pages_beside_the_code_name_every_file_of_the_runtime() -> None:
    page = (ROOT / "runtime" / "README.md").read_text()
    root = ROOT / "runtime"
    files = {path.relative_to(root).as_posix() for path in root.rglob("*.py") if path.name != "__init__.py"}
    named = {name for name in re.findall(r"`((?:\w+/)*\w+\.py)`", page) if not (ROOT / name).exists()}
    assert named == files - {"errors.py"}
