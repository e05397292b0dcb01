"""Server-sent events as a push parser over bytes. Knows nothing of HTTP, JSON or what an event means."""

from __future__ import annotations


class EventScanner:
    """Splits a byte stream into the data of its events (WHATWG HTML, section 9.2.6).

    Lines may end in LF, CRLF or CR and arrive in any pieces; comments and fields other than `data` are skipped; several
    data lines of one event are joined by LF.
    """

    def __init__(self) -> None:
        self._tail = b""  # an unfinished line
        self._data: list[bytes] = []  # data lines of the unfinished event
        self._after_return = False  # the last byte was a CR, whose LF may still come

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the data of every event that `piece` completes, in order."""
        if self._after_return and piece:
            piece = piece.removeprefix(b"\n")
            self._after_return = False
        if b"\r" in piece:
            self._after_return = piece.endswith(b"\r")
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = (self._tail + piece).split(b"\n")
        self._tail = lines.pop()
        events: list[bytes] = []
        for line in lines:
            if not line:
                if self._data:
                    events.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                    self._data = []
            elif line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
        return events
