"""Draws samples from all families by seed and renders them as chat text; knows nothing of tokens or training."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator

from .family_chat import chat
from .family_dialogue import dialogue, is_practised
from .family_extract import extract
from .family_facts import fact
from .family_numbers import arithmetic, counting
from .family_stories import story
from .family_text import edit, repeat, retrieve, reverse
from .family_tools import call_tool, use_result
from .sample import Message, Sample, may_evaluate, may_train

Family = Callable[[random.Random], Sample]
# name: (family, share of the training samples)
FAMILIES: dict[str, tuple[Family, float]] = {
    "chat": (chat, 6.0),
    "arithmetic": (arithmetic, 16.0),
    "facts": (fact, 8.0),
    "repeat": (repeat, 13.0),
    "edit": (edit, 14.0),
    "reverse": (reverse, 8.0),
    "retrieve": (retrieve, 8.0),
    "extract": (extract, 8.0),
    "tool call": (call_tool, 11.0),
    "tool result": (use_result, 6.0),
    "counting": (counting, 7.0),
    "dialogue": (dialogue, 12.0),
    "story": (story, 3.0),
}
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are Pocket, a small and friendly model.",
    "You are a helpful, honest and concise assistant.",
    "Be brief.",
    "You are an assistant that answers questions.",
    "Answer the user's questions.",
    "You are a friendly chatbot.",
    "Follow the instructions of the user exactly.",
    "You are a helpful AI assistant. Answer as well as you can.",
    "You are an expert assistant. Think carefully and answer the user.",
    "Be polite and helpful.",
)
TOOLS_HEADING = "# Tools\n\nYou may call these functions:\n<tools>\n"
TOOLS_ENDING = (
    '\n</tools>\n\nTo call one, answer with:\n<tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call>'
)


def draw(family: str, rng: random.Random, wanted: Callable[[Sample], bool] = may_train) -> Sample:
    """A sample of the family on the wanted side of the split, with or without a system prompt."""
    make = FAMILIES[family][0]
    sample = make(rng)
    while not wanted(sample):
        sample = make(rng)
    return sample.with_system(rng.choice(SYSTEM_PROMPTS)) if not sample.system and rng.random() < 0.45 else sample


def training_samples(seed: int) -> Iterator[Sample]:
    """Endless training samples of all families in their shares."""
    rng = random.Random(seed)
    names, shares = list(FAMILIES), [share for _, share in FAMILIES.values()]
    while True:
        yield draw(rng.choices(names, shares)[0], rng)


def evaluation_samples(family: str, seed: int, num_samples: int) -> list[Sample]:
    """Samples whose last question is held out of training."""

    def wanted(sample: Sample) -> bool:
        # The follow-ups of dialogues add and subtract as well, and the split does not look at their numbers.
        return may_evaluate(sample) and not (family == "arithmetic" and is_practised(sample.answer))

    rng = random.Random(f"{family} {seed}")
    return [draw(family, rng, wanted) for _ in range(num_samples)]


def segments(sample: Sample) -> Iterator[tuple[str, bool]]:
    """The conversation as chat text in pieces, each with whether the model should learn to write it."""
    system = sample.system
    turns = sample.messages[1:] if system else sample.messages
    if sample.tools:
        heading = f"{system}\n\n" if system else ""
        yield (
            f"<|im_start|>system\n{heading}{TOOLS_HEADING}" + "\n".join(sample.tools) + f"{TOOLS_ENDING}<|im_end|>\n",
            False,
        )
    elif system:
        yield f"<|im_start|>system\n{system}<|im_end|>\n", False
    for turn in (*turns, Message("assistant", sample.answer)):
        if turn.role == "assistant":
            yield "<|im_start|>assistant\n", False
            yield f"{turn.content}<|im_end|>", True
            yield "\n", False
        elif turn.role == "tool":
            yield f"<|im_start|>user\n<tool_response>\n{turn.content}\n</tool_response><|im_end|>\n", False
        else:
            yield f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n", False


def prompt_text(sample: Sample) -> str:
    """The text a server would hand to the model, up to where its answer begins."""
    return "".join(text for text, _ in list(segments(sample))[:-2])


def main() -> None:
    """Print a few samples of each family as JSON lines: `python corpus.py [seed] [samples per family]`."""
    seed, count = int(sys.argv[1]) if len(sys.argv) > 1 else 0, int(sys.argv[2]) if len(sys.argv) > 2 else 2
    rng = random.Random(seed)
    for family in FAMILIES:
        for _ in range(count):
            sample = draw(family, rng)
            print(
                json.dumps(
                    {"family": family, "prompt": prompt_text(sample), "answer": sample.answer}, ensure_ascii=False
                )
            )


if __name__ == "__main__":
    main()
