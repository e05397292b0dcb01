"""Sides of a comparison as running processes: servers over HTTP, and workers over their own lines. Knows no figures."""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter, sleep
from typing import IO, Any, Protocol

from tokenizers import Tokenizer

from ortserve.gateway.bench.events import EventScanner
from ortserve.gateway.bench.http1 import ProtocolError
from tests.bench.loaded.client import Caller
from tests.bench.measurement import free_port, healthy
from tests.bench.peers.work import Ask, Timeline
from tests.bench.process_tree import memory_of

LIMIT_S = 180.0
WORKER = Path(__file__).with_name("worker.py")


class SideError(Exception):
    """A side that did not come up, or did not do what it was asked; the message says why."""


class Side(Protocol):
    """Something that answers requests."""

    def run(self, asks: Sequence[Ask]) -> list[Timeline]:
        """All of them at once, each when it is due. Raises `SideError`."""

    def memory(self) -> tuple[int, int]:
        """Proportional and anonymous bytes of its process."""

    def close(self) -> None:
        """End the process."""


class Child:
    """A process with a log, ended kindly."""

    def __init__(self, line: Sequence[str | Path], env: Mapping[str, str], *, talks: bool) -> None:
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        pipe = subprocess.PIPE if talks else subprocess.DEVNULL
        words = [str(word) for word in line]
        self.process = subprocess.Popen(words, env=dict(env), stdin=pipe, stdout=pipe, stderr=self.log)

    def said(self) -> str:
        self.log.seek(0)
        return " / ".join(self.log.read().decode(errors="replace").strip().splitlines()[-4:])[-600:]

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.log):
            if pipe is not None:
                pipe.close()


class Server:
    """A server of OpenAI's completions. Its line has `{port}` where that belongs."""

    def __init__(self, line: Sequence[str], env: Mapping[str, str], model: str) -> None:
        self._port, self._model = free_port(), model
        self._child = Child([word.format(port=self._port) for word in line], env, talks=False)
        begun = perf_counter()
        while not healthy(self._port):
            if self._child.process.poll() is not None or perf_counter() - begun > LIMIT_S:
                said = self._child.said()
                self._child.close()
                raise SideError(f"did not come up: {said}")
            sleep(0.05)

    def run(self, asks: Sequence[Ask]) -> list[Timeline]:
        return asyncio.run(self._all(asks))

    def memory(self) -> tuple[int, int]:
        found = memory_of(self._child.process.pid)
        if found is None:
            raise SideError(f"has ended: {self._child.said()}")
        return found

    def close(self) -> None:
        self._child.close()

    async def _all(self, asks: Sequence[Ask]) -> list[Timeline]:
        begun, first = asyncio.Event(), list[float]()
        async with asyncio.timeout(LIMIT_S):
            return await asyncio.gather(*(self._one(ask, first, begun, index) for index, ask in enumerate(asks)))

    async def _one(self, ask: Ask, first: list[float], moved: asyncio.Event, index: int) -> Timeline:
        """`first` has the deliveries of the first request; `moved` is set when there is another."""
        while len(first) < ask.after:
            moved.clear()
            await moved.wait()
        arrivals = first if index == 0 else list[float]()
        reading, scanner = _Reading(), EventScanner()

        def take(piece: bytes, now: float) -> None:
            for event in scanner.feed(piece):
                if reading.feed(event):
                    arrivals.append(now)
            if index == 0:
                moved.set()

        caller = Caller(self._port)
        sent = perf_counter()
        try:
            status = await caller.stream(self._body(ask), take)
        except (OSError, ProtocolError) as error:
            raise SideError(f"{type(error).__name__}: {error}") from error
        finally:
            caller.close()
        if status != 200 or not arrivals or reading.failure:
            raise SideError(f"answered {status}: {reading.failure or self._child.said()}")
        return Timeline(sent, tuple(arrivals), reading.num_tokens, reading.text)

    def _body(self, ask: Ask) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self._model, "prompt": list(ask.prompt), "max_tokens": ask.num_tokens}
        if ask.ignore_eos:
            body["ignore_eos"] = True
        return {**body, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}


class _Reading:
    """What the events of one reply said."""

    def __init__(self) -> None:
        self.text, self.num_tokens, self.failure = "", 0, ""

    def feed(self, event: bytes) -> bool:
        """Whether a token came with it, be its text empty: then its bytes are no whole character yet."""
        if event == b"[DONE]":
            return False
        frame = json.loads(event)
        if "error" in frame:
            self.failure = str(frame["error"])
            return False
        if frame.get("usage"):
            self.num_tokens = frame["usage"]["completion_tokens"]
        has_token = False
        for choice in frame["choices"]:
            self.text += choice["text"]
            has_token = has_token or bool(choice["text"]) or choice["finish_reason"] is None
        return has_token


class Worker:
    """A library in a process of its own (`worker.py`)."""

    def __init__(self, line: Sequence[str], env: Mapping[str, str], tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._child = Child([line[0], WORKER, *line[1:]], env, talks=True)
        self._read()

    def run(self, asks: Sequence[Ask]) -> list[Timeline]:
        answer = self._ask([ask.fields() for ask in asks])
        if "error" in answer:
            raise SideError(answer["error"])
        columns = zip(answer["sent"], answer["arrivals"], answer["tokens"], strict=True)
        return [
            Timeline(sent, tuple(arrivals), len(tokens), self._tokenizer.decode(tokens))
            for sent, arrivals, tokens in columns
        ]

    def memory(self) -> tuple[int, int]:
        answer = self._ask("memory")
        return answer["proportional"], answer["anonymous"]

    def close(self) -> None:
        self._child.close()

    def _ask(self, message: Any) -> dict[str, Any]:
        assert self._child.process.stdin is not None
        try:
            self._child.process.stdin.write(json.dumps(message).encode() + b"\n")
            self._child.process.stdin.flush()
        except BrokenPipeError as error:
            raise SideError(f"has ended: {self._child.said()}") from error
        return self._read()

    def _read(self) -> dict[str, Any]:
        """The next line that is an answer: libraries print lines of their own."""
        assert self._child.process.stdout is not None
        for line in self._child.process.stdout:
            if line.startswith(b"{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SideError(f"has ended: {self._child.said()}")
