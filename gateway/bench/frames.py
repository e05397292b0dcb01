"""What the frames of one streamed reply say, and when they came. Knows no sockets, no load and no statistics.

Every frame is decoded (1 us with msgspec), so that frames which carry text are told from role, finish and usage frames.
The number of tokens always comes from the server's `usage`: a frame may carry several tokens, or part of one.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import msgspec

from ortserve.gateway.bench.events import EventScanner


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request failed. Kinds: connect, timeout, disconnect, protocol, stream, no_usage, http_<status>."""

    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """One request as the client saw it; times are `time.perf_counter` seconds.

    `arrivals` has one entry per frame that carried text; frames that came in one read share their time.
    """

    start_s: float  # when the request was due; latencies count from here
    sent_s: float  # when this client got round to it
    end_s: float
    arrivals: tuple[float, ...] = ()
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    finish: str | None = None
    failure: Failure | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: Any = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None

    def has_text(self) -> bool:
        if self.text:
            return True
        delta = self.delta
        return delta is not None and bool(
            delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls
        )


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class _Frame(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class StreamReading:
    """What the frames of one streamed reply have said so far."""

    def __init__(self) -> None:
        self._scanner = EventScanner()
        self._decoder = msgspec.json.Decoder(_Frame)
        self._raw: list[bytes] = []  # of a reply that has no events: an error body
        self._arrivals: list[float] = []
        self._usage: _Usage | None = None
        self._finish: str | None = None
        self._failure: Failure | None = None
        self._done = False

    def feed(self, piece: bytes, now: float) -> None:
        """Take the next bytes of the body, which arrived at `now`."""
        events = self._scanner.feed(piece)
        if not events and not self._arrivals:
            self._raw.append(piece)
        for data in events:
            if data == b"[DONE]":
                self._done = True
            else:
                self._frame(data, now)

    def _frame(self, data: bytes, now: float) -> None:
        try:
            frame = self._decoder.decode(data)
        except msgspec.MsgspecError as error:
            self._failure = Failure("protocol", one_line(f"a frame is not a completion chunk: {error}"))
            return
        if frame.error is not None:
            self._failure = Failure("stream", error_message(data))
            return
        has_text = False
        for choice in frame.choices:
            has_text = has_text or choice.has_text()
            self._finish = choice.finish_reason or self._finish
        if has_text:
            self._arrivals.append(now)
        if frame.usage is not None:
            self._usage = frame.usage

    def raw_body(self) -> bytes:
        """The body of a reply without events: an error."""
        return b"".join(self._raw)

    def timeline(self, *, start_s: float, sent_s: float, end_s: float, failure: Failure | None) -> Timeline:
        """The whole request; `failure` is what the connection or the status said, if anything."""
        usage = self._usage or _Usage()
        details = usage.prompt_tokens_details
        return Timeline(
            start_s=start_s,
            sent_s=sent_s,
            end_s=end_s,
            arrivals=tuple(self._arrivals),
            num_prompt_tokens=usage.prompt_tokens,
            num_cached_tokens=(details.cached_tokens or 0) if details else 0,
            num_output_tokens=usage.completion_tokens,
            finish=self._finish,
            failure=self._failure or failure or self._incomplete(),
        )

    def _incomplete(self) -> Failure | None:
        """What a reply that arrived whole may still lack."""
        if self._usage is not None:
            return None
        if self._done or self._finish is not None:
            return Failure("no_usage", "the server sends no usage although stream_options.include_usage asks for it")
        return Failure("disconnect", "the stream ended without a finish reason or [DONE]")


class _ErrorText(msgspec.Struct):
    message: str = ""


class _ErrorBody(msgspec.Struct):
    error: _ErrorText | str | None = None
    message: str = ""


def error_message(body: bytes) -> str:
    """The message of an OpenAI error envelope, or the beginning of whatever else came; one line."""
    with contextlib.suppress(msgspec.MsgspecError):
        decoded = msgspec.json.decode(body, type=_ErrorBody)
        text = decoded.error.message if isinstance(decoded.error, _ErrorText) else decoded.error
        if text or decoded.message:
            return one_line(text or decoded.message)
    return one_line(body.decode("utf-8", "replace")) or "(empty body)"


def one_line(text: str) -> str:
    """`text` without line breaks, bounded, fit for a report."""
    return " ".join(text.split())[:300]
