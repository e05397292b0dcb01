"""Hands the listening socket on to a successor, which loads while this process serves and ends it once it is ready.

Both accept from one queue of the kernel, so no connection is refused or lost between them. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import MutableMapping

from ortserve.gateway.logs import log
from ortserve.gateway.transport.listener import Listener
from ortserve.gateway.transport.supervisor import Supervisor

VARIABLE = "ORTSERVE_LISTENER"  # PID:FD, of who hands over and of the socket


class Handover:
    """Belongs to the event loop of the process that hands over."""

    def __init__(self, listener: Listener, supervisor: Supervisor, *, refusal: str | None = None) -> None:
        """`refusal`: why this server cannot hand over."""
        self._listener = listener
        self._supervisor = supervisor
        self._refusal = refusal
        self._loop = asyncio.get_running_loop()
        self._is_begun = False

    def begin(self) -> None:
        """Start the successor, unless one is starting; failures are logged, and this process goes on."""
        if self._refusal is not None:
            log().error("handover_refused", error=self._refusal)
            return
        if self._is_begun:
            return
        number = self._listener.socket.fileno()
        environment = {**os.environ, VARIABLE: f"{os.getpid()}:{number}"}
        try:
            process = subprocess.Popen(  # noqa: S603  # the words this process was started with
                [sys.executable, *sys.orig_argv[1:]], env=environment, pass_fds=(number,), stdin=subprocess.DEVNULL
            )
        except OSError as error:
            log().error("handover_failed", error=str(error))
            return
        log().info("handover_begun", successor=process.pid)
        self._is_begun = self._supervisor.is_replaced = True
        path, self._listener.path = self._listener.path, None  # the successor's to remove from now on

        def wait() -> None:
            status = process.wait()
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it this process
                self._loop.call_soon_threadsafe(failed, status)

        def failed(status: int) -> None:
            log().error("handover_failed", error=f"the successor ended with status {status}: its log says why")
            self._listener.path = path
            self._is_begun = self._supervisor.is_replaced = False

        # A daemon: it must not keep this process from ending while the successor lives.
        threading.Thread(target=wait, name="ortserve-successor", daemon=True).start()


def taken_over(environment: MutableMapping[str, str]) -> tuple[int, socket.socket] | None:
    """Who has handed over to this process, and its socket; None when nobody has. Takes it out of the environment."""
    predecessor, _, number = environment.pop(VARIABLE, "").partition(":")
    if predecessor != str(os.getppid()) or not number.isdecimal():
        return None
    os.set_inheritable(int(number), False)
    return int(predecessor), socket.socket(fileno=int(number))


def relieve(predecessor: int) -> None:
    """Tell the process that has handed over to drain and end."""
    if os.getppid() == predecessor:  # else it has ended by itself, and its number may be another's
        log().info("handover_done", predecessor=predecessor)
        with contextlib.suppress(ProcessLookupError):
            os.kill(predecessor, signal.SIGTERM)
