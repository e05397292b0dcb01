"""The one socket that a server listens on: a TCP address, a path of the file system, or one it was handed over.

Knows no HTTP.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

from ortserve.runtime.errors import OrtserveError

BACKLOG = 2048
FIRST_INHERITED = 3  # of systemd's protocol for handing over sockets: sd_listen_fds(3)


class AddressError(OrtserveError):
    """The address cannot be listened on."""


@dataclass(slots=True)
class Listener:
    """A socket that listens. `path` is where it is in the file system, to be removed at the end."""

    socket: socket.socket
    path: Path | None = None
    inode: int | None = None

    def close(self) -> None:
        """Listen no more. The path is left alone if it has become another server's."""
        self.socket.close()
        if self.path is not None:
            with contextlib.suppress(OSError):
                if self.path.lstat().st_ino == self.inode:
                    self.path.unlink()

    @property
    def unix(self) -> str | None:
        """The path of a Unix socket."""
        if self.socket.family != socket.AF_UNIX:
            return None
        return str(self.path or self.socket.getsockname())

    @property
    def authority(self) -> str:
        """Host and port as clients on this machine write them in a URL; for a Unix socket, any name will do."""
        if self.socket.family == socket.AF_UNIX:
            return "localhost"
        host, port = self.socket.getsockname()[:2]
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
        return f"{shown}:{port}"


def listen(host: str, port: int, *, stall_s: float) -> Listener:
    """Bind and listen at once. Raises `AddressError`.

    Called before anything is loaded: a taken port shows within milliseconds, and clients that come that early wait in
    the kernel's queue for a moment instead of being refused. A peer that takes nothing for `stall_s` is dropped.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise AddressError(f"cannot resolve {host}: {error.strerror}; choose another --host") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _drop_stalled(listener, stall_s)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressError(f"port {port} on {host} is in use: stop the other server or choose --port") from None
        raise AddressError(f"cannot listen on {host} port {port}: {error.strerror}; choose --host or --port") from None
    return Listener(listener)


def listen_at(path: Path, mode: int) -> Listener:
    """Listen on a Unix socket that never has another mode than `mode`. Raises `AddressError`.

    A socket nobody listens on any more, as a killed server leaves it, is replaced; anything else there is not touched.
    """
    _check_free(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
        listener.bind(str(beside))
        beside.chmod(mode)
        listener.listen(BACKLOG)
        inode = beside.stat().st_ino
        beside.replace(path)
    except OSError as error:
        listener.close()
        with contextlib.suppress(OSError):
            beside.unlink()
        said = error.strerror or str(error)  # a path that is too long has no number
        raise AddressError(f"cannot listen on {path}: {said}; choose another --unix") from None
    return Listener(listener, path, inode)


def inherited(environment: MutableMapping[str, str], *, stall_s: float) -> Listener | None:
    """The socket that systemd, or a predecessor, has handed over; None if none has. Raises `AddressError`.

    Takes the variables out of the environment: they are not for what this process starts.
    """
    meant, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if meant != str(os.getpid()):
        return None
    if count != "1":
        raise AddressError(f"LISTEN_FDS is {count}: one listening socket can be handed over")
    try:
        listener = socket.socket(fileno=FIRST_INHERITED)
        is_listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise AddressError(f"LISTEN_FDS promises a socket, and there is none ({error.strerror})") from None
    if not is_listening:
        raise AddressError("LISTEN_FDS hands over a socket that does not listen: use a stream socket with Accept=no")
    os.set_inheritable(listener.fileno(), False)
    return adopted(listener, stall_s=stall_s)


def adopted(listener: socket.socket, *, stall_s: float, path: Path | None = None) -> Listener:
    """A socket that another process listens on too; at the end, a Unix socket's `path` is removed."""
    _drop_stalled(listener, stall_s)
    if path is None or listener.family != socket.AF_UNIX:
        return Listener(listener)
    try:
        return Listener(listener, path, path.lstat().st_ino)
    except OSError:
        return Listener(listener)


def _drop_stalled(listener: socket.socket, stall_s: float) -> None:
    """Accepted sockets inherit it: the kernel drops peers that acknowledge nothing, or read nothing, that long."""
    if listener.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(stall_s * 1000))


def _check_free(path: Path) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise AddressError(f"cannot listen on {path}: {error.strerror}; choose another --unix") from None
    if not stat.S_ISSOCK(status.st_mode):
        raise AddressError(f"{path} exists and is not a socket: choose another --unix")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return  # nobody listens any more
        except OSError as error:
            raise AddressError(f"{path} cannot be asked whether it is in use: {error.strerror}") from None
    raise AddressError(f"{path} is in use: stop the other server or choose another --unix")
