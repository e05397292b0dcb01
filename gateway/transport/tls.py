"""TLS of a listening socket from files that are read again when they change. Knows no HTTP.

Every handshake takes the newest certificate and authorities; connections go on with those they began with.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from pathlib import Path

from ortserve.gateway.changes import Seen, look
from ortserve.gateway.logs import log
from ortserve.runtime.errors import OrtserveError

LOOK_S = 1.0
PROTOCOLS = ("h2", "http/1.1")


class TlsError(OrtserveError):
    """Certificate, key or authorities cannot be used; names the file."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: a chain that begins with the server's certificate, its key, and those who may sign clients'."""

    certificate: Path
    key: Path
    client_authorities: Path | None = None  # None: clients need no certificate

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of them."""
        return (self.certificate, self.key, *([self.client_authorities] if self.client_authorities else []))


class _Handshake(ssl.SSLObject):
    """Says why a handshake fails: asyncio keeps it to itself."""

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            log().info("tls_refused", reason=(error.reason or "unknown").lower().replace("_", " "))
            raise


class Tls:
    """Belongs to the event loop. `context` is for the listening socket and stays the same."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises `TlsError`."""
        self._files = files
        self._seen = self._look()
        self._newest = make_context(files)
        self.context = make_context(files)
        self.context.sslobject_class = _Handshake
        self.context.sni_callback = self._choose

    def reload(self) -> bool:
        """Read the files. False, and once an error in the log, when they cannot be used: the ones before stay."""
        self._seen = self._look()
        try:
            self._newest = make_context(self._files)
        except TlsError as error:
            log().error("certificates_refused", error=str(error), kept="the ones read before")
            return False
        log().info("certificates_loaded", file=str(self._files.certificate))
        return True

    async def watch(self, *, every_s: float = LOOK_S) -> None:
        """Read the files whenever they have changed; runs until it is cancelled."""
        while True:
            await asyncio.sleep(every_s)
            if await asyncio.to_thread(self._look) != self._seen:
                self.reload()

    def _look(self) -> tuple[Seen, ...]:
        return tuple(look(path) for path in self._files.paths)

    def _choose(self, handshake: ssl.SSLObject | ssl.SSLSocket, _: str | None, __: ssl.SSLContext) -> None:
        """OpenSSL asks this in every handshake, whether or not the client names a host."""
        handshake.context = self._newest


def make_context(files: TlsFiles) -> ssl.SSLContext:
    """TLS 1.2 and 1.3 for HTTP/2 and HTTP/1.1. Raises `TlsError`."""
    for flag, path in zip(("--tls-cert", "--tls-key", "--tls-client-ca"), files.paths, strict=False):
        try:
            path.open("rb").close()
        except OSError as error:
            raise TlsError(f"{path} cannot be read ({error.strerror}): check {flag}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(list(PROTOCOLS))
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
    except ssl.SSLError as error:
        said = (error.reason or "not PEM").lower().replace("_", " ")
        raise TlsError(f"{files.certificate} with the key {files.key} cannot be used: {said}") from None
    except _EncryptedKeyError:
        raise TlsError(f"{files.key} is encrypted, and nobody is here to ask: decrypt it") from None
    if files.client_authorities is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        # A session that was resumed would not be checked against authorities that have changed.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        try:
            context.load_verify_locations(files.client_authorities)
        except ssl.SSLError as error:
            said = (error.reason or "not PEM").lower().replace("_", " ")
            raise TlsError(f"{files.client_authorities} has no certificates that can be used: {said}") from None
    return context


class _EncryptedKeyError(Exception):
    pass


def _no_password() -> str:
    raise _EncryptedKeyError
