"""What tokens stand for, read from the files of tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import ortserve.export.pocket
from ortserve.plugins.spelling import Spelling
from ortserve.runtime.speculation.words import read_words

POCKET = Path(ortserve.export.pocket.__path__[0])
TEXT = '{"name": "Ännchen", "city": "Oslo", "age": 31}\n\tcrème 漢字 🙂  <b>'


def test_the_bundled_tokenizers_words_and_merging_are_its_own() -> None:
    tokenizer = Tokenizer.from_file(str(POCKET / "tokenizer.json"))
    spelling = Spelling(read_words(POCKET, tokenizer.get_vocab_size()))
    ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    assert spelling.join(ids).decode() == TEXT
    for text in ("Ann from Paris, aged 31", ' "colour": "silver"}', "Tell me a short story about a green lamp."):
        assert list(spelling.spell(text.encode())) == tokenizer.encode(text, add_special_tokens=False).ids
    (end,) = tokenizer.encode("<|im_end|>", add_special_tokens=False).ids
    assert spelling.text(end) == b"\0"


def written(folder: Path, **fields: Any) -> list[bytes]:
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    return read_words(folder, 5)


def test_pieces_with_a_mark_for_the_space(tmp_path: Path) -> None:
    words = written(
        tmp_path,
        model={"type": "BPE", "vocab": {"<s>": 0, "<0xE2>": 1, "▁Ann": 2, "é": 3, "beyond": 9}},
        decoder={"type": "Sequence", "decoders": [{"type": "Replace"}, {"type": "ByteFallback"}]},
        added_tokens=[{"id": 0, "content": "<s>"}],
    )
    assert words == [b"", b"\xe2", b" Ann", "é".encode(), b""]


@pytest.mark.parametrize(
    ("model", "decoder"),
    [
        ({"type": "WordPiece", "vocab": {"a": 0}}, {"type": "ByteLevel"}),
        ({"type": "Unigram", "vocab": [["a", 0.0]]}, {"type": "Metaspace"}),
        ({"type": "BPE", "vocab": {"a": 0}}, None),
        ({"type": "BPE", "vocab": {"a": 0}}, {"type": "BPEDecoder"}),
    ],
)
def test_of_other_tokenizers_nothing_is_said(tmp_path: Path, model: dict[str, Any], decoder: Any) -> None:
    assert written(tmp_path, model=model, decoder=decoder) == []


def test_without_a_readable_file_nothing_is_said(tmp_path: Path) -> None:
    assert read_words(tmp_path, 5) == []
    (tmp_path / "tokenizer.json").write_text("{")
    assert read_words(tmp_path, 5) == []
