"""Tells systemd what it waits for: that the server is ready, lives, and stops (sd_notify(3)). Knows no HTTP.

Without systemd's variables in the environment nothing is said.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping

from ortserve.gateway.logs import log


class Supervisor:
    """Belongs to the event loop."""

    def __init__(self, environment: Mapping[str, str], *, predecessor: int | None = None) -> None:
        """`predecessor`: the process that was watched until now, if this one takes its place."""
        self._address = environment.get("NOTIFY_SOCKET", "")
        self.watchdog_s = _watchdog_s(environment, predecessor)
        self.is_replaced = False  # a successor speaks from now on

    def ready(self) -> None:
        """This process serves."""
        self._say("READY=1", f"MAINPID={os.getpid()}")

    def stopping(self) -> None:
        """It begins to end, unless a successor goes on."""
        if not self.is_replaced:
            self._say("STOPPING=1")

    async def keep_alive(self, is_alive: Callable[[], bool]) -> None:
        """Say that it lives, while that is so, twice in the time that the watchdog allows; until it is cancelled."""
        was_alive = True
        while self.watchdog_s is not None:
            lives = is_alive()
            if lives and not self.is_replaced:
                self._say("WATCHDOG=1")
            if was_alive and not lives:
                log().error("watchdog_not_told", reason="only a restart helps: /health/live says why")
            was_alive = lives
            await asyncio.sleep(self.watchdog_s / 2)

    def _say(self, *words: str) -> None:
        if not self._address:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as messenger:
            try:
                messenger.sendto("\n".join(words).encode(), address)
            except OSError as error:
                log().warning("notify_failed", error=str(error))


def _watchdog_s(environment: Mapping[str, str], predecessor: int | None) -> float | None:
    """As sd_watchdog_enabled(3): seconds, None when nobody watches this process."""
    duration, meant = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", str(os.getpid()))
    if not duration.isdecimal() or int(duration) == 0 or meant not in (str(os.getpid()), str(predecessor)):
        return None
    return int(duration) / 1e6
