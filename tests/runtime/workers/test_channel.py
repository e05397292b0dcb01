"""Messages over a socket: whole, in order, and never waited for by whoever sends."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from ortserve.runtime.workers.channel import _LENGTH, _READ_BYTES, Channel
from tests.waiting import PATIENCE_S


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    first, second = map(Channel, socket.socketpair())
    yield first, second
    first.close()
    second.close()


def test_messages_arrive_whole_and_in_order(ends: tuple[Channel, Channel]) -> None:
    first, second = ends
    messages = [bytes([number]) * size for number, size in enumerate((0, 1, 3, 4, 5, 70_000, 2, 300_000))]
    for message in messages:
        first.send(message)
    assert [second.receive() for _ in messages] == messages
    second.send(b"back")
    assert first.receive() == b"back"


def test_the_end_of_the_room_may_cut_a_message_anywhere(ends: tuple[Channel, Channel]) -> None:
    first, second = ends
    for rest in range(7):  # bytes of the next message's length, and then of the message, that are read with this one
        messages = [bytes(_READ_BYTES - _LENGTH.size - rest), b"next", b"last"]
        for message in messages:
            first.send(message)
        assert [second.receive() for _ in messages] == messages


def test_a_sender_does_not_wait_for_a_slow_reader(ends: tuple[Channel, Channel]) -> None:
    first, second = ends
    messages = [number.to_bytes(4, "little") * 25_000 for number in range(200)]  # 20 MB, more than any socket holds
    for message in messages:
        first.send(message)  # nobody reads yet: a send that waited would never return
    first.flush(0.0)
    received: list[bytes | None] = []
    reader = threading.Thread(target=lambda: received.extend(second.receive() for _ in messages))
    reader.start()
    reader.join(PATIENCE_S)
    assert received == messages
    first.send(b"after")  # at once again
    assert second.receive() == b"after"


def test_whoever_waits_is_told_of_the_end(ends: tuple[Channel, Channel]) -> None:
    first, second = ends
    first.send(b"last")
    received: list[bytes | None] = []
    reader = threading.Thread(target=lambda: received.extend((second.receive(), second.receive())))
    reader.start()
    first.hang_up()
    reader.join(PATIENCE_S)
    assert received == [b"last", None]
    assert first.receive() is None
    for end in ends:
        end.send(b"x" * 10_000_000)  # dropped: nobody will read it
        end.flush(30)


def test_a_reader_may_look_up_from_time_to_time(ends: tuple[Channel, Channel]) -> None:
    first, second = ends
    second.wait_at_most(0.01)
    with pytest.raises(BlockingIOError):
        second.receive()
    first.send(b"word")
    assert second.receive() == b"word"


def test_half_a_message_is_none(ends: tuple[Channel, Channel]) -> None:
    first, second = ends
    first._socket.sendall(b"\x05\x00\x00\x00ab")
    first.hang_up()
    assert second.receive() is None
