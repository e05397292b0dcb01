"""A byte-level tokenizer of any size with a ChatML template, for checkpoints of random weights. Knows no weights.

Text is encoded byte by byte, so a prompt of n bytes has n tokens; the other ids decode to pronounceable words, so
that a random model's output looks like text and costs the detokenizer what text costs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ortserve.export.errors import ExportError

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NUM_BYTES = 256
SYLLABLES = tuple(consonant + vowel for consonant in "bcdfghjklmnpqrstvwxz" for vowel in "aeiou")
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\\n' -}}"
    "{%- if message.content is string -%}{{- message.content -}}"
    "{%- elif message.content -%}{%- for part in message.content -%}{{- part.text -}}{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def write_toy_tokenizer(folder: Path, *, num_tokens: int) -> tuple[int, int]:
    """Write tokenizer.json and tokenizer_config.json with ids 0 to `num_tokens - 1`; the ids of both end tokens.

    Raises `ExportError` when there is no room for the bytes and the special tokens.
    """
    num_words = num_tokens - NUM_BYTES - len(SPECIAL_TOKENS)
    if num_words < 0:
        raise ExportError(f"a tokenizer needs at least {NUM_BYTES + len(SPECIAL_TOKENS)} tokens, not {num_tokens}")
    words = [*byte_characters(), *(byte_characters()[ord(" ")] + _word(index) for index in range(num_words))]
    vocabulary = {word: index for index, word in enumerate(words)}
    first_special = len(words)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(first_special + index, text) for index, text in enumerate(SPECIAL_TOKENS)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return first_special, first_special + len(SPECIAL_TOKENS) - 1


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary.

    Source: `bytes_to_unicode` of GPT-2 (github.com/openai/gpt-2, src/encoder.py).
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, NUM_BYTES)}
    characters: list[str] = []
    num_unprintable = 0
    for byte in range(NUM_BYTES):
        characters.append(chr(byte if byte in printable else NUM_BYTES + num_unprintable))
        num_unprintable += byte not in printable
    return characters


def _word(index: int) -> str:
    """Three syllables, a different word for every index below a million."""
    base = len(SYLLABLES)
    return SYLLABLES[index // base**2 % base] + SYLLABLES[index // base % base] + SYLLABLES[index % base]


def _added(index: int, text: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": index, "content": text, **flags}
