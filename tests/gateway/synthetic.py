"""The runtime's synthetic model with a tokenizer, and what it says. Knows no server."""

from __future__ import annotations

import json
from pathlib import Path

from ortserve.runtime.testing import VOCAB_SIZE, predict_next, write_synthetic_model
from tests.verified import write_test_report


def write_synthetic_text_model(folder: Path, *, max_context: int = 256) -> Path:
    """One token per byte below 100, and a template that adds no text."""
    manifest = write_synthetic_model(folder, max_context=max_context, eos_token_ids=(0,))
    vocabulary = {f"<0x{index:02X}>": index for index in range(manifest.num_tokens)}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [], "byte_fallback": True, "unk_token": None},
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    write_test_report(folder)
    return folder


def expected(prompt: bytes, length: int) -> str:
    """What greedy decoding says: every token is an ASCII character, 0 ends, and so does the id without a token."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + length:
        token = predict_next(tokens)
        if token in (0, VOCAB_SIZE - 1):
            break
        tokens.append(token)
    return bytes(tokens[len(prompt) :]).decode()
