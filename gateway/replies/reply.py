"""The text of one choice as its parts: reasoning, content, tool calls. Knows no wire format and no engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ortserve.gateway.prompts.reasoning import ReasoningFormat
from ortserve.gateway.replies.pieces import ShownToken
from ortserve.gateway.replies.sieve import TokenSieve
from ortserve.gateway.tools.custom import read_input
from ortserve.gateway.tools.events import CallArguments, CallBegun, CallEnded, Event, Said, Thought, ThoughtEnded
from ortserve.gateway.tools.format import ToolFormat, ToolShape, new_call_id
from ortserve.gateway.tools.prose import read_all_prose
from ortserve.gateway.tools.source import Reader, Source, Steps


@dataclass(frozen=True, slots=True)
class CallDelta:
    """Some of one call. The first of a call has its id and name and no arguments, later ones arguments only.

    `arguments` are JSON text, those of a custom tool its input itself.
    """

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None
    is_custom: bool = False


@dataclass(frozen=True, slots=True)
class ReplyPart:
    """What a piece of text amounts to: first reasoning, then content, then calls. `tokens` are the content's."""

    reasoning: str = ""
    text: str = ""
    tokens: tuple[ShownToken, ...] = ()
    calls: tuple[CallDelta, ...] = ()


@dataclass(frozen=True, slots=True)
class ReplyPlan:
    """How replies to one request are read. Without `format` no calls are looked for, without `reasoning` no channel."""

    reasoning: ReasoningFormat | None = None
    is_reasoning_open: bool = False  # the prompt has opened the channel
    format: ToolFormat | None = None
    tools: Mapping[str, ToolShape] = field(default_factory=dict)
    custom: frozenset[str] = frozenset()
    is_parallel: bool = True
    new_id: Callable[[], str] = new_call_id

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that must reach the reader even when they are special tokens."""
        channel = () if self.reasoning is None else (self.reasoning.opener, self.reasoning.closer)
        return (*channel, *(() if self.format is None else self.format.markers))

    def reader(self) -> ReplyReader | None:
        """A reader for one choice; None when text is all there can be."""
        if self.reasoning is None and self.format is None:
            return None
        return ReplyReader(self)

    def read(self, source: Source) -> Steps[None]:
        """The events of one reply."""
        if self.reasoning is not None:
            yield from self.reasoning.read(source, is_open=self.is_reasoning_open)
        if self.format is None:
            yield from read_all_prose(source)
        else:
            yield from self.format.read(source, self.tools)


PLAIN_TEXT = ReplyPlan()


class ReplyReader:
    """The parts of one reply so far. Feed pieces in order, then finish once."""

    __slots__ = (
        "_call", "_input", "_is_thinking", "_name", "_plan", "_reader", "_sieve", "is_done", "is_in_call", "num_calls",
        "thought_end",
    )  # fmt: skip

    def __init__(self, plan: ReplyPlan) -> None:
        self._plan = plan
        self._reader = Reader(plan.read)
        self._sieve = TokenSieve()
        self._input: Reader | None = None  # of the custom call that is open
        self._is_thinking = plan.is_reasoning_open
        self.num_calls = 0
        self.is_in_call = False
        self.is_done = False  # the only call there may be is complete: nothing more is read
        self.thought_end: int | None = None  # characters of the reply up to the answer, once there was a channel

    @property
    def is_thinking(self) -> bool:
        """All of the reply so far is reasoning."""
        return self._is_thinking and self.thought_end is None

    def feed(self, text: str, tokens: tuple[ShownToken, ...] = ()) -> list[ReplyPart]:
        """The parts that this piece makes final."""
        return self._parts(self._reader.feed(text), tokens, is_end=False)

    def finish(self) -> list[ReplyPart]:
        """What was held back. Unfinished calls stay as they are."""
        return self._parts(self._reader.finish(), (), is_end=True)

    def _parts(self, events: list[Event], tokens: tuple[ShownToken, ...], *, is_end: bool) -> list[ReplyPart]:
        draft = _Draft()
        for event in events:
            if self.is_done:
                break
            self._read(event, draft)
        parts = draft.parts()
        shown = self._sieve.sift(tokens, draft.said, None if is_end else self._reader.num_settled)
        if shown:
            place = next((index for index, part in enumerate(parts) if part.text), len(parts))
            content = parts[place] if place < len(parts) else ReplyPart()
            parts[place : place + 1] = [ReplyPart(content.reasoning, content.text, shown, content.calls)]
        return parts

    def _read(self, event: Event, draft: _Draft) -> None:
        if isinstance(event, Said):
            draft.add_text(event)
        elif isinstance(event, Thought):
            self._is_thinking = True
            draft.add_reasoning(event.text)
        elif isinstance(event, ThoughtEnded):
            self.thought_end = event.end
        elif isinstance(event, CallBegun):
            self._begin(event.name, draft)
        elif isinstance(event, CallArguments):
            self._add_arguments(event.text, draft)
        else:
            assert isinstance(event, CallEnded)
            if self._input is not None:
                self._add_input(self._input.finish(), draft)
                self._input = None
            self.is_in_call = False
            self.is_done = not self._plan.is_parallel

    def _begin(self, name: str, draft: _Draft) -> None:
        is_custom = name in self._plan.custom
        self._input = Reader(read_input) if is_custom else None
        draft.add_call(CallDelta(self.num_calls, id=self._plan.new_id(), name=name, is_custom=is_custom))
        self.num_calls += 1
        self.is_in_call = True

    def _add_arguments(self, text: str, draft: _Draft) -> None:
        if self._input is not None:
            self._add_input(self._input.feed(text), draft)
        elif text:
            draft.add_call(CallDelta(self.num_calls - 1, text))

    def _add_input(self, events: list[Event], draft: _Draft) -> None:
        text = "".join(event.text for event in events if isinstance(event, CallArguments))
        if text:
            draft.add_call(CallDelta(self.num_calls - 1, text, is_custom=True))


class _Draft:
    """Parts being put together: a new one is begun where the order within a part would be broken."""

    __slots__ = ("_calls", "_parts", "_reasoning", "_text", "said")

    def __init__(self) -> None:
        self._parts: list[ReplyPart] = []
        self._reasoning = ""
        self._text = ""
        self._calls: list[CallDelta] = []
        self.said: list[tuple[int, int]] = []  # intervals of the reply's characters

    def add_reasoning(self, text: str) -> None:
        if self._text or self._calls:
            self._close()
        self._reasoning += text

    def add_text(self, said: Said) -> None:
        if self._calls:
            self._close()
        self._text += said.text
        self.said.append((said.start, said.start + len(said.text)))

    def add_call(self, delta: CallDelta) -> None:
        last = self._calls[-1] if self._calls else None
        if last is not None and delta.name is None and last.name is None and last.index == delta.index:
            self._calls[-1] = CallDelta(last.index, last.arguments + delta.arguments, is_custom=last.is_custom)
        else:
            self._calls.append(delta)

    def parts(self) -> list[ReplyPart]:
        self._close()
        return self._parts

    def _close(self) -> None:
        if self._reasoning or self._text or self._calls:
            self._parts.append(ReplyPart(self._reasoning, self._text, (), tuple(self._calls)))
        self._reasoning, self._text, self._calls = "", "", []


@dataclass(frozen=True, slots=True)
class WholeCall:
    """A call as it stands when the reply has ended; cut replies may leave its arguments unfinished."""

    id: str
    name: str
    arguments: str
    is_custom: bool = False

    def parsed(self) -> object:
        """The arguments as a value; those that are no JSON as their text."""
        try:
            return json.loads(self.arguments)
        except ValueError:
            return self.arguments


def join_calls(deltas: list[CallDelta]) -> tuple[WholeCall, ...]:
    """The calls that the deltas of one reply amount to."""
    heads = [delta for delta in deltas if delta.name is not None]
    return tuple(
        WholeCall(
            head.id or "",
            head.name or "",
            "".join(delta.arguments for delta in deltas if delta.index == head.index),
            head.is_custom,
        )
        for head in heads
    )
