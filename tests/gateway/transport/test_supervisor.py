"""What systemd is told, by whom, and when it is told nothing."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ortserve.gateway.transport.supervisor import Supervisor
from tests.waiting import PATIENCE_S

OWN = str(os.getpid())


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE_S)
        yield manager


def said(manager: socket.socket) -> list[str]:
    """Everything so far."""
    words = []
    manager.setblocking(False)
    while True:
        try:
            words.append(manager.recv(100).decode())
        except BlockingIOError:
            return words


def watch(supervisor: Supervisor, alive: list[bool]) -> None:
    """Be asked so often."""

    async def main() -> None:
        answers = iter(alive)
        is_over = asyncio.Event()

        def is_alive() -> bool:
            answer = next(answers, None)
            if answer is None:
                is_over.set()
            return bool(answer)

        task = asyncio.create_task(supervisor.keep_alive(is_alive))
        await asyncio.wait(
            {task, asyncio.create_task(is_over.wait())}, return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE_S
        )
        task.cancel()

    asyncio.run(main())


def test_it_is_told_that_the_server_is_ready_lives_and_stops(manager: socket.socket) -> None:
    address = str(manager.getsockname())
    supervisor = Supervisor({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "20000", "WATCHDOG_PID": OWN})
    supervisor.ready()
    watch(supervisor, [True, True, False, False, True])
    supervisor.stopping()
    assert said(manager) == [f"READY=1\nMAINPID={OWN}", *["WATCHDOG=1"] * 3, "STOPPING=1"]


def test_a_process_that_is_replaced_says_nothing_more(manager: socket.socket) -> None:
    supervisor = Supervisor({"NOTIFY_SOCKET": str(manager.getsockname()), "WATCHDOG_USEC": "20000"})
    supervisor.is_replaced = True
    watch(supervisor, [True, True])
    supervisor.stopping()
    assert said(manager) == []


@pytest.mark.parametrize(
    ("environment", "watchdog_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": OWN}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),  # meant for another process
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "4711"}, 30.0),  # whose place this one takes
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_who_is_watched(environment: dict[str, str], watchdog_s: float | None) -> None:
    assert Supervisor(environment, predecessor=4711).watchdog_s == watchdog_s


def test_a_manager_that_is_not_there_is_no_failure(tmp_path: Path) -> None:
    Supervisor({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready()
    Supervisor({}).ready()
    asyncio.run(Supervisor({}).keep_alive(lambda: True))  # which returns at once
