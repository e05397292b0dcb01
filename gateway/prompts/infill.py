"""Filling in the middle: the prompt of a model that has been trained with special tokens for it. Knows no request.

Bavarian et al., arXiv 2207.14255: prefix, suffix, middle, in this order. A model without such tokens cannot do it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ortserve.gateway.prompts.tokenizer import TextTokenizer

# Before the prefix, before the suffix, before what is to be written.
MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite code, SmolLM
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),  # DeepSeek-Coder
    ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),  # Code Llama
)
# What comes after the middle, beside the end of the sequence.
ENDS = (
    "<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>", "<file_sep>",
    "\u2581<EOT>",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Infill:
    """The ids of one model's marks, and of those that end what it fills in."""

    before_prefix: int
    before_suffix: int
    before_middle: int
    ends: tuple[int, ...]

    def prompt(self, prefix: Sequence[int], suffix: Sequence[int]) -> tuple[int, ...]:
        """What the model goes on from with the text between the two."""
        return (self.before_prefix, *prefix, self.before_suffix, *suffix, self.before_middle)


def find_infill(tokenizer: TextTokenizer) -> Infill | None:
    """None when the vocabulary has no such tokens."""
    for marks in MARKS:
        ids = [tokenizer.id_of(mark) for mark in marks]
        prefix, suffix, middle = ids
        if prefix is not None and suffix is not None and middle is not None:
            ends = [tokenizer.id_of(end) for end in ENDS]
            return Infill(prefix, suffix, middle, tuple(sorted({end for end in ends if end is not None})))
    return None
