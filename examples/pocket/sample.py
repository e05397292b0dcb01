"""The shape of one corpus sample, its split and its checker; knows nothing of what the families ask or of tokens."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace

HELD_OUT_ONE_IN = 12
MIN_STORY_WORDS = 90


@dataclass(frozen=True, slots=True)
class Message:
    """One finished turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation whose last user turn waits for `answer`.

    `keys` name the content that decides the split, one per question asked; the last one belongs to the last turn.
    `tools` are the signatures offered, each as JSON text. `check` is how a reply is judged: exact, calls or story.
    """

    family: str
    messages: tuple[Message, ...]
    answer: str
    keys: tuple[str, ...]
    tools: tuple[str, ...] = ()
    check: str = "exact"
    topic: str = ""

    @property
    def system(self) -> str:
        """The system prompt, or nothing."""
        return self.messages[0].content if self.messages and self.messages[0].role == "system" else ""

    def with_system(self, text: str) -> Sample:
        """The same sample opened by a system prompt."""
        return replace(self, messages=(Message("system", text), *self.messages))


def ask(family: str, question: str, answer: str, key: str = "", check: str = "exact", topic: str = "") -> Sample:
    """A sample of one user turn; the question itself decides the split unless a key is given."""
    return Sample(family, (Message("user", question),), answer, (f"{family}|{key or question}",), (), check, topic)


def is_held_out(key: str) -> bool:
    """Whether content with this key is kept away from training; a pure function, so every process agrees."""
    digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % HELD_OUT_ONE_IN == 0


def may_train(sample: Sample) -> bool:
    """Nothing in the conversation is held out."""
    return not any(is_held_out(key) for key in sample.keys)


def may_evaluate(sample: Sample) -> bool:
    """The question to be answered is held out (earlier turns may be familiar)."""
    return is_held_out(sample.keys[-1])


def parse_calls(reply: str) -> list[object] | None:
    """The tool calls a reply consists of, or nothing when it is not made of well-formed calls."""
    bodies = re.findall(r"<tool_call>\n(.*?)\n</tool_call>", reply, re.DOTALL)
    rebuilt = "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)
    if not bodies or rebuilt != reply.strip():
        return None
    try:
        return [json.loads(body) for body in bodies]
    except json.JSONDecodeError:
        return None


def is_right(sample: Sample, reply: str) -> bool:
    """Judge a reply: calls by their parsed JSON, stories by their form, all else by the exact text."""
    if sample.check == "calls":
        expected = parse_calls(sample.answer)
        return expected is not None and parse_calls(reply) == expected
    if sample.check == "story":
        sentences = re.findall(r"[^.!?]+[.!?]", reply)
        repeats = len(sentences) - len(set(sentences))
        on_topic = sample.topic.lower() in reply.lower()
        return on_topic and len(reply.split()) >= MIN_STORY_WORDS and repeats <= 1 and reply.rstrip()[-1] in '.!?"'
    return reply.strip() == sample.answer.strip()
