"""An encoder's tokenizer: texts and pairs of texts to inputs with the special tokens. Knows no model and no limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from ortserve.gateway.prompts.tokenizer import TOKENIZER_NAME
from ortserve.runtime.encoders.queue import EncoderInput
from ortserve.runtime.errors import ModelError


class EncoderTokenizer:
    """Wraps `tokenizer.json`. Thread-safe; the batch calls let other threads run meanwhile."""

    def __init__(self, definition: bytes) -> None:
        """Raise `ModelError` when the definition cannot be used."""
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(definition)
        except Exception as error:  # the library raises bare Exception for every defect of the file
            raise ModelError(f"{TOKENIZER_NAME} cannot be read ({error}): export the model again") from None
        # Texts for a bi-encoder are often cut or filled up to a fixed length by the file's own settings.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode_texts(self, texts: Sequence[str], *, longest: int | None = None) -> list[EncoderInput]:
        """One input a text; `longest` cuts the text's end so that the input has at most so many tokens."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=True)
        return [
            self._cut(text, longest) if longest is not None and len(encoding.ids) > longest else _input(encoding)
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def encode_pairs(
        self, pairs: Sequence[tuple[str, str]], *, longest: int | None = None, longest_second: int | None = None
    ) -> list[EncoderInput]:
        """One input a pair. `longest` cuts the end of the second text, and then of the first.

        `longest_second` bounds the second text's own tokens.
        """
        if longest is None and longest_second is None:
            return [_input(encoding) for encoding in self._tokenizer.encode_batch_fast(list(pairs))]
        firsts = self._plain([first for first, _ in pairs])
        seconds = self._plain([second for _, second in pairs])
        num_special = self._tokenizer.num_special_tokens_to_add(is_pair=True)
        inputs = []
        for first, second in zip(firsts, seconds, strict=True):
            if longest_second is not None:
                second.truncate(longest_second)
            if longest is not None:
                first.truncate(max(longest - num_special, 0))
                second.truncate(max(longest - num_special - len(first.ids), 0))
            inputs.append(_input(self._tokenizer.post_process(first, second, True)))
        return inputs

    def _cut(self, text: str, longest: int) -> EncoderInput:
        (encoding,) = self._plain([text])
        encoding.truncate(max(longest - self._tokenizer.num_special_tokens_to_add(is_pair=False), 0))
        return _input(self._tokenizer.post_process(encoding, None, True))

    def _plain(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        encodings: list[tokenizers.Encoding] = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return encodings


def load_encoder_tokenizer(folder: Path) -> EncoderTokenizer:
    """Read `folder/tokenizer.json`; raises `ModelError` when it is missing or unusable."""
    path = folder / TOKENIZER_NAME
    try:
        definition = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}): export the model again") from None
    return EncoderTokenizer(definition)


def _input(encoding: tokenizers.Encoding) -> EncoderInput:
    types = encoding.type_ids
    return EncoderInput(tuple(encoding.ids), types.index(1) if 1 in types else None)
