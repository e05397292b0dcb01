"""The channel in which models reason before they answer, recognised in the chat template. Knows no wire format."""

from __future__ import annotations

from dataclasses import dataclass

from ortserve.gateway.tools.events import Thought, ThoughtEnded
from ortserve.gateway.tools.source import Source, Steps, num_held

BLANKS = " \t\r\n"


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """What opens and closes the channel. Both are read although they may be special tokens, which replies hide."""

    opener: str
    closer: str

    def is_open_after(self, prompt: str, unfinished: str = "") -> bool:
        """Whether a reply that follows `prompt` begins inside the channel.

        `unfinished` is the text of a message that the reply goes on from, itself the end of the prompt.
        """
        if unfinished:
            return unfinished.rfind(self.opener) > unfinished.rfind(self.closer)
        return prompt.rstrip().endswith(self.opener)

    def read(self, source: Source, *, is_open: bool) -> Steps[None]:
        """Thoughts up to the answer, of which nothing is read. Without a channel at the beginning there are none.

        Blanks at the channel's borders belong to the format.
        """
        if not is_open:
            source.mark(source.at)
            yield from source.skip(BLANKS)
            if not (yield from source.accept(self.opener)):
                said = source.shown()
                if said.text:
                    yield said
                return
            source.forget()
        yield from source.skip(BLANKS)
        while True:
            rest = source.rest
            end = rest.find(self.closer)
            thought = (rest[:end] if end >= 0 else rest[: len(rest) - num_held(rest, (self.closer,))]).rstrip()
            if thought:
                yield Thought(thought)
                source.at += len(thought)
            if end >= 0:
                source.at += end - len(thought) + len(self.closer)
                yield ThoughtEnded(source.position)
                yield from source.skip(BLANKS)
                return
            if not (yield from source.more()):
                if source.rest.strip():
                    yield Thought(source.rest.rstrip())
                source.at = len(source.text)
                return


FORMATS = (
    ReasoningFormat("<think>", "</think>"),  # Qwen 3, SmolLM3, Granite 3.3, DeepSeek-R1 and its distillations
    ReasoningFormat("[THINK]", "[/THINK]"),  # Magistral
    ReasoningFormat("<seed:think>", "</seed:think>"),
    ReasoningFormat("<|channel>thought", "<channel|>"),  # Gemma 4
    ReasoningFormat("Here is my thought process:", "Here is my response:"),  # Granite 3.2
)


def detect_reasoning(template: str) -> ReasoningFormat | None:
    """The channel whose markers the template names; None when it names none."""
    for format_ in FORMATS:
        if format_.closer in template:
            return format_
    return None
