"""The push parsers: any split of the bytes gives the same result."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ortserve.gateway.bench.events import EventScanner
from ortserve.gateway.bench.frames import StreamReading, error_message
from ortserve.gateway.bench.http1 import DisconnectedError, ProtocolError, ReplyParser


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[begin:end] for begin, end in itertools.pairwise(places)]


cuts = st.lists(st.integers(0, 10_000), max_size=40)
EVENTS = (
    b": hello\n\ndata: one\n\nevent: x\r\ndata:two\r\ndata: more\r\n\r\ndata: \n\n"
    b"data\xc3\xa9: no\ndata: last\r\rdata: open"
)


@given(cuts)
def test_events_do_not_depend_on_how_the_bytes_are_cut(places: list[int]) -> None:
    scanner = EventScanner()
    found = [event for piece in pieces(EVENTS, places) for event in scanner.feed(piece)]
    assert found == [b"one", b"two\nmore", b"", b"last"]


def test_every_single_cut_of_a_carriage_return_pair() -> None:
    data = b"data: a\r\n\r\ndata: b\r\n\r\n"
    for place in range(len(data)):
        scanner = EventScanner()
        assert scanner.feed(data[:place]) + scanner.feed(data[place:]) == [b"a", b"b"], place


CHUNKED = (
    b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\n\r\n"
    b"5\r\nhello\r\nA;ext=1\r\n0123456789\r\n0\r\ntrailer: 1\r\n\r\n"
)
FIXED = b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbody"
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"


@given(
    cuts,
    st.sampled_from([(CHUNKED, 200, b"hello0123456789", True), (FIXED, 404, b"body", False), (EMPTY, 204, b"", True)]),
)
def test_replies_do_not_depend_on_how_the_bytes_are_cut(
    places: list[int], case: tuple[bytes, int, bytes, bool]
) -> None:
    data, status, body, reusable = case
    parser = ReplyParser()
    assert b"".join(parser.feed(piece) for piece in pieces(data, places)) == body
    assert (parser.status, parser.complete, parser.can_reuse) == (status, True, reusable)
    parser.end_of_file()


def test_a_reply_without_length_lasts_until_the_connection_closes() -> None:
    parser = ReplyParser()
    assert parser.feed(b"HTTP/1.1 200 OK\r\n\r\nabc") == b"abc"
    assert not parser.complete
    parser.end_of_file()
    assert parser.complete


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"1" * 9000,
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000,
    ],
)
def test_malformed_replies_are_protocol_errors(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        ReplyParser().feed(data)


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200", CHUNKED[:-4], FIXED[:-1]])
def test_a_reply_cut_short_is_a_disconnect(data: bytes) -> None:
    parser = ReplyParser()
    parser.feed(data)
    with pytest.raises(DisconnectedError):
        parser.end_of_file()


STREAM = (
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}],"usage":null}\n\n'
    b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    b'data: {"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}\n\n'
    b'data: {"choices":[{"delta":{},"finish_reason":"length"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,'
    b'"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
    b"data: [DONE]\n\n"
)


@given(cuts)
def test_a_stream_is_read_alike_however_it_is_cut(places: list[int]) -> None:
    reading = StreamReading()
    for moment, piece in enumerate(pieces(STREAM, places)):
        reading.feed(piece, float(moment))
    timeline = reading.timeline(start_s=0.0, sent_s=0.0, end_s=9.0, failure=None)
    assert timeline.failure is None
    assert len(timeline.arrivals) == 2
    assert (timeline.num_prompt_tokens, timeline.num_cached_tokens, timeline.num_output_tokens) == (7, 4, 2)
    assert timeline.finish == "length"


@pytest.mark.parametrize(
    ("stream", "kind"),
    [
        (b'data: {"choices":[{"text":"a"}]}\n\n', "disconnect"),
        (b'data: {"choices":[{"text":"a","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n', "no_usage"),
        (b'data: {"error":{"message":"boom"}}\n\n', "stream"),
        (b"data: hello\n\n", "protocol"),
    ],
)
def test_incomplete_streams_say_what_is_missing(stream: bytes, kind: str) -> None:
    reading = StreamReading()
    reading.feed(stream, 0.0)
    failure = reading.timeline(start_s=0.0, sent_s=0.0, end_s=1.0, failure=None).failure
    assert failure is not None
    assert failure.kind == kind


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"too\\nlong","type":"x"}}', "too long"),
        (b'{"error":"plain"}', "plain"),
        (b'{"message":"flat"}', "flat"),
        (b"<html>502</html>", "<html>502</html>"),
        (b"", "(empty body)"),
    ],
)
def test_error_messages_of_any_shape(body: bytes, message: str) -> None:
    assert error_message(body) == message
