"""What a server shows the outside: its socket, TLS and outermost layers, and signals. Knows no model."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from ortserve.gateway.http.server import Limits
from ortserve.gateway.logs import log
from ortserve.gateway.options.edge import EdgeOptions, EdgeSettings, TlsSettings
from ortserve.gateway.options.server import ServerSettings
from ortserve.gateway.transport.handover import Handover, relieve, taken_over
from ortserve.gateway.transport.listener import Listener, adopted, inherited, listen, listen_at
from ortserve.gateway.transport.supervisor import Supervisor
from ortserve.gateway.transport.tls import Tls, TlsFiles
from ortserve.runtime.errors import ConfigurationError

ONE_FOLDER = "--state-dir belongs to one process at a time: restart this server, or run two behind a proxy"


@dataclass(frozen=True, slots=True)
class OpenedSocket:
    """The listening socket, and the process that has handed it over, if one has."""

    listener: Listener
    predecessor: int | None = None


@dataclass(frozen=True, slots=True)
class Front:
    """Everything before the application's routes."""

    opened: OpenedSocket
    tls: Tls | None
    edge: EdgeOptions
    limits: Limits
    supervisor: Supervisor

    @property
    def listener(self) -> Listener:
        """Where connections come in."""
        return self.opened.listener

    @property
    def unix(self) -> str | None:
        """The path that is listened on, if it is one."""
        return self.listener.unix

    @property
    def url(self) -> str:
        """As clients on this machine write it, with the base path."""
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://{self.listener.authority}{self.edge.base_path}"

    def address(self) -> Mapping[str, object]:
        """Fields of a log line."""
        if self.unix is not None:
            return {"unix": self.unix}
        host, port = self.listener.socket.getsockname()[:2]
        return {"host": host, "port": port}

    @asynccontextmanager
    async def living(self, *, can_hand_over: bool, is_alive: Callable[[], bool]) -> AsyncIterator[None]:
        """What goes on beside serving: SIGHUP reads certificates, SIGUSR2 starts a successor, systemd is told.

        `is_alive`: no restart is needed. Begin it once requests are answered: it relieves a predecessor.
        """
        loop = asyncio.get_running_loop()
        handover = Handover(self.listener, self.supervisor, refusal=None if can_hand_over else ONE_FOLDER)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        loop.add_signal_handler(signal.SIGUSR2, handover.begin)
        watching = [] if self.tls is None else [asyncio.create_task(self.tls.watch())]
        self.supervisor.ready()
        watching.append(asyncio.create_task(self.supervisor.keep_alive(is_alive)))
        if self.opened.predecessor is not None:
            relieve(self.opened.predecessor)
        try:
            yield
        finally:
            for number in (signal.SIGHUP, signal.SIGUSR2):
                loop.remove_signal_handler(number)
            for task in watching:
                task.cancel()

    def _reload(self) -> None:
        log().info("reloading")  # keys are looked after by themselves, each second
        if self.tls is not None:
            self.tls.reload()


def open_socket(server: ServerSettings, edge: EdgeSettings, limits: Limits) -> OpenedSocket:
    """The socket that was handed over to this process, or else a new one. Raises `AddressError`."""
    handed = taken_over(os.environ)
    if handed is not None:
        predecessor, socket_ = handed
        return OpenedSocket(adopted(socket_, stall_s=limits.stall_s, path=edge.unix), predecessor)
    given = inherited(os.environ, stall_s=limits.stall_s)
    if given is not None:
        return OpenedSocket(given)
    if edge.unix is not None:
        return OpenedSocket(listen_at(edge.unix, edge.unix_mode))
    return OpenedSocket(listen(server.host, server.port, stall_s=limits.stall_s))


def open_tls(settings: TlsSettings) -> Tls | None:
    """None without a certificate. Raises `TlsError`, and `ConfigurationError` for half of what it takes."""
    if settings.tls_cert is None or settings.tls_key is None:
        lone = next((name for name in ("tls_cert", "tls_key", "tls_client_ca") if getattr(settings, name)), None)
        if lone is not None:
            raise ConfigurationError(f"--{lone.replace('_', '-')} needs both --tls-cert and --tls-key")
        return None
    return Tls(TlsFiles(Path(settings.tls_cert), Path(settings.tls_key), settings.tls_client_ca))
