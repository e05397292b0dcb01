"""Whole messages over a stream socket: sending never waits, one thread receives. Knows nothing of what they say."""

from __future__ import annotations

import socket
import struct
import threading
from collections import deque
from contextlib import suppress

_LENGTH = struct.Struct("<I")
_READ_BYTES = 1 << 18  # what is read at once at most, and kept for it; longer messages get room of their own
_BUFFER_BYTES = 1 << 20  # of the socket; the kernel may give less


class Channel:
    """One end. What the other end does not read yet is kept, and written by a thread that begins when it is needed."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(True)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        self._socket = end
        # Read into, again and again: `recv` makes room for as much as may come at each call, at the price of its pages.
        self._received = memoryview(bytearray(_READ_BYTES))
        self._begin = self._end = 0  # of what has been received and not been returned
        self._kept: deque[memoryview] = deque()
        self._changed = threading.Condition()
        self._writer: threading.Thread | None = None
        self._is_closed = False

    def send(self, message: bytes) -> None:
        """Any thread; messages arrive in the order they are sent in. One that nobody will ever read is dropped."""
        data = memoryview(_LENGTH.pack(len(message)) + message)
        with self._changed:
            if self._is_closed:
                return
            if not self._kept:
                data = self._write_now(data)
            if data:
                self._kept.append(data)
                if self._writer is None:
                    self._writer = threading.Thread(target=self._write, name="ortserve-channel", daemon=True)
                    self._writer.start()
                self._changed.notify_all()

    def receive(self) -> bytes | None:
        """Wait for the next message; None: there will be no more.

        Raises `BlockingIOError` when there is none within the time that `wait_at_most` has set.
        """
        while True:
            size = self._end - self._begin
            wanted = _LENGTH.size
            if size >= wanted:
                wanted += _LENGTH.unpack_from(self._received, self._begin)[0]
                if size >= wanted:
                    return self._taken(wanted)
            self._make_room(wanted)
            try:
                count = self._socket.recv_into(self._received[self._end :])
            except BlockingIOError:
                raise
            except OSError:  # reset, or closed by this side
                return None
            if not count:
                return None
            self._end += count

    def wait_at_most(self, seconds: float) -> None:
        """Let `receive` look up from time to time. Sending is as before, which a timeout of Python's would change."""
        whole = int(seconds)
        timeout = struct.pack("@ll", whole, int((seconds - whole) * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)

    def flush(self, timeout_s: float) -> None:
        """Wait until everything has been taken over by the system, or nobody will ever read it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._kept or self._is_closed, timeout_s)

    def hang_up(self) -> None:
        """No message comes any more, from either side; whoever waits in `receive` is told."""
        with self._changed:
            self._drop()
        with suppress(OSError):  # the other end has done it
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the socket back. Nobody may be in `receive`."""
        self.hang_up()
        if self._writer is not None:
            self._writer.join()
        self._socket.close()

    def _taken(self, size: int) -> bytes:
        """The message whose length and bytes are the next ones received."""
        begin, self._begin = self._begin, self._begin + size
        message = bytes(self._received[begin + _LENGTH.size : self._begin])
        if self._begin == self._end:
            self._begin = self._end = 0
            if len(self._received) > _READ_BYTES:  # a long one has gone through
                self._received = memoryview(bytearray(_READ_BYTES))
        return message

    def _make_room(self, wanted: int) -> None:
        """For so many bytes from the first that has not been returned."""
        if self._begin + wanted <= len(self._received):
            return
        rest = self._received[self._begin : self._end]
        room = self._received if wanted <= len(self._received) else memoryview(bytearray(wanted))
        room[: len(rest)] = rest
        self._received, self._begin, self._end = room, 0, len(rest)

    def _drop(self) -> None:
        self._is_closed = True
        self._kept.clear()
        self._changed.notify_all()

    def _write_now(self, data: memoryview) -> memoryview:
        """As much as there is room for; the rest."""
        try:
            return data[self._socket.send(data, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            return data
        except OSError:
            self._drop()
            return data[:0]

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._kept or self._is_closed)
                if self._is_closed:
                    return
                data = self._kept[0]
            try:
                self._socket.sendall(data)
            except OSError:
                with self._changed:
                    self._drop()
                return
            with self._changed:
                if self._kept:
                    self._kept.popleft()
                self._changed.notify_all()
