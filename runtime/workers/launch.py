"""Starts an engine process and gets it going, up to the first word that its engine runs. Knows no request."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.drivers.watchdog import Watchdog
from ortserve.runtime.errors import EngineError, OrtserveError
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.workers.channel import Channel
from ortserve.runtime.workers.crossing import arrived
from ortserve.runtime.workers.log import show
from ortserve.runtime.workers.messages import HELLO, Logged, NotStarted, Ready, Start, decode_report, encode

OPENER = "ortserve.runtime.opening:open_driver"
_MODULE = "ortserve.runtime.workers.process"
_END_S = 10.0  # a process that has nothing left to do


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What one engine process is to run."""

    name: str  # cuda:0, cpu-1
    folder: Path
    manifest: Manifest
    config: EngineConfig
    opener: str = OPENER  # module:function of folder and configuration, which returns a `Driver`


class WorkerProcess:
    """A process whose end is waited for. It dies with the thread that has made it."""

    def __init__(self, spec: WorkerSpec) -> None:
        """Start it. Raises `EngineError` when the system cannot."""
        self._name = spec.name
        own, other = socket.socketpair()
        with other:
            # Not -m alone, which would look for modules in the working folder first.
            command = [sys.executable, "-P", "-m", _MODULE, str(other.fileno()), str(os.getpid())]
            try:
                self._process = subprocess.Popen(  # noqa: S603  # this interpreter and this package
                    command, stdin=subprocess.DEVNULL, pass_fds=[other.fileno()], start_new_session=True
                )
            except OSError as error:
                own.close()
                raise EngineError(f"the engine process {spec.name} cannot be started ({error})") from None
        self.channel = Channel(own)
        self.silence = ""  # why `listen` has killed it

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def open(self, spec: WorkerSpec) -> EnginePlan:
        """Wait until its engine runs. Raises what opening it has raised there, or `EngineError` when it dies."""
        hello = self.channel.receive()
        if hello is not None and hello != HELLO:
            raise EngineError(
                f"the engine process {spec.name} is of another version ({hello.decode(errors='replace')}, here"
                f" {HELLO.decode()}): restart the server"
            )
        self.channel.send(
            encode(Start(str(spec.folder), spec.config, spec.manifest.digest, spec.opener, tuple(sys.path)))
        )
        while (message := self.channel.receive()) is not None:
            match decode_report(message):
                case Ready(plan):
                    return plan
                case NotStarted(error):
                    raise _named(arrived(error), spec.name)
                case Logged() as line:
                    show(spec.name, line)
                case unexpected:
                    raise AssertionError(unexpected)
        raise EngineError(f"the engine process {spec.name} {self.end()} while it was opening the model")

    def listen(self, limit_s: float) -> Iterator[bytes]:
        """All that it says once its engine runs, until it says no more.

        One that says nothing for `limit_s` seconds has been stopped, or computes without letting its other threads run:
        it is killed, and `silence` says so.
        """

        def give_up(seconds: float) -> None:
            self.silence = f"has said nothing for {seconds:.0f} s"
            self.kill()
            self.channel.hang_up()  # a process that the system cannot end yet keeps its socket

        watchdog = Watchdog(limit_s, give_up)
        watchdog.begin()
        try:
            while (message := self.channel.receive()) is not None:
                watchdog.renew()
                yield message
        finally:
            watchdog.close()

    def kill(self) -> None:
        """End it now."""
        self._process.kill()

    def end(self) -> str:
        """Wait for its end, which has been seen to come, and say how it was."""
        try:
            status = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self.channel.close()
        if status < 0:
            return f"was killed by {_signal_name(-status)}"
        return f"has ended with status {status}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _named(error: OrtserveError, name: str) -> OrtserveError:
    """Its text says which of the processes it is about."""
    error.args = (f"{name}: {error}",)
    return error
