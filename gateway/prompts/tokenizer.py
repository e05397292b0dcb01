"""A model's tokenizer: text to ids, and the exact bytes of each id. Knows no chat template and no sampling."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import tokenizers

from ortserve.runtime.errors import ModelError

TOKENIZER_NAME = "tokenizer.json"
MAX_UNCOVERED = 64  # characters in a row that a normalizer has removed: each is a search
METASPACE = "\u2581"  # SentencePiece writes a space as this block
SUPPORTED_DECODERS = "ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip and Sequence of these"


class TextTokenizer:
    """Wraps `tokenizer.json`. Encoding is thread-safe; the byte table fills as ids are seen."""

    def __init__(self, definition: bytes, *, bos_token_id: int | None, add_bos: bool) -> None:
        """Raise `ModelError` when the definition cannot be used for generation."""
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(definition)
            decoder = json.loads(definition).get("decoder")
        except Exception as error:  # the library raises bare Exception for every defect of the file
            raise ModelError(f"{TOKENIZER_NAME} cannot be read ({error}): export the model again") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._bos_token_id = bos_token_id
        self._add_bos = add_bos
        self._rules = ByteRules(decoder)
        self._added = self._tokenizer.get_added_tokens_decoder()
        self._bytes: dict[int, bytes] = {}
        self.num_tokens = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.longest_token = max((len(token.encode()) for token in self._tokenizer.get_vocab()), default=1)

    @property
    def strips_first_space(self) -> bool:
        """SentencePiece writes a space before the first word of a text; it is not part of the text."""
        return self._rules.strips_first_space

    def encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        """Token ids. With special tokens the beginning-of-sequence id comes first if the model expects it, once."""
        # The batch form lets other threads run meanwhile; `encode` would stop every stream for a second per megabyte.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        bos = self._bos_token_id
        if not add_special_tokens or bos is None:
            return tuple(ids)
        if self._add_bos and ids[:1] != [bos]:
            ids = [bos, *ids]
        while ids[:2] == [bos, bos]:
            ids = ids[1:]
        return tuple(ids)

    def id_of(self, token: str) -> int | None:
        """The id of a vocabulary entry by its exact name."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def encode_measured(self, text: str) -> MeasuredTokens:
        """Ids without special tokens that also know where in `text` they are."""
        (encoding,) = self._tokenizer.encode_batch([text], add_special_tokens=False)
        return MeasuredTokens(encoding, len(text))

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to the text; empty for special tokens and for ids without a token."""
        data = self._bytes.get(token_id)
        if data is None:
            data = self._bytes[token_id] = self._compute_bytes(token_id)
        return data

    def hidden_bytes(self, texts: Iterable[str]) -> dict[int, bytes]:
        """Those of `texts` that are special tokens, by id: `token_bytes` leaves them out of the text."""
        special = {token.content: token_id for token_id, token in self._added.items() if token.special}
        return {special[text]: text.encode() for text in texts if text in special}

    def token_name(self, token_id: int) -> str:
        """How a token is shown in log-probabilities: its text, or its name when it is special."""
        data = self.token_bytes(token_id)
        if data:
            return data.decode("utf-8", "replace")
        return self._tokenizer.id_to_token(token_id) or ""

    def whole_bytes(self, token_id: int) -> bytes:
        """What a token stands for in a text that is to be tokenized again: special tokens by their names."""
        added = self._added.get(token_id)
        return self.token_bytes(token_id) if added is None else added.content.encode()

    def decode_whole(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included; bytes that are no UTF-8 become U+FFFD."""
        data = b"".join(map(self.whole_bytes, ids))
        if self.strips_first_space and ids and ids[0] not in self._added:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", "replace")

    def spelling(self, token_id: int) -> str:
        """The vocabulary's own entry."""
        return self._tokenizer.id_to_token(token_id) or ""

    def _compute_bytes(self, token_id: int) -> bytes:
        added = self._added.get(token_id)
        if added is not None:
            return b"" if added.special else added.content.encode()
        piece = self._tokenizer.id_to_token(token_id)
        return b"" if piece is None else self._rules.bytes_of(piece)


class MeasuredTokens:
    """The tokens of one text and their places. Asking for few places is much cheaper than listing all offsets."""

    __slots__ = ("_encoding", "_length", "ids")

    def __init__(self, encoding: tokenizers.Encoding, length: int) -> None:
        self._encoding = encoding
        self._length = length
        self.ids: tuple[int, ...] = tuple(encoding.ids)

    def num_before(self, position: int) -> int:
        """Tokens that end at or before a character; 0 when too many characters there belong to no token."""
        for place in range(position, min(position + MAX_UNCOVERED, self._length)):
            token: int | None = self._encoding.char_to_token(place)
            if token is not None:
                return token
        return len(self.ids) if position + MAX_UNCOVERED >= self._length else 0

    def end_of(self, token: int) -> int:
        """The character after a token's last one."""
        span = self._encoding.token_to_chars(token)
        return 0 if span is None else int(span[1])


class ByteRules:
    """How a vocabulary entry becomes bytes, read from the tokenizer's decoder instead of guessed."""

    def __init__(self, decoder: Mapping[str, object] | None) -> None:
        """Raise `ModelError` for a decoder that does not work token by token."""
        self.strips_first_space = False
        self._byte_level = False
        self._byte_fallback = False
        self._replacements: list[tuple[str, str]] = []
        for step in _steps(decoder):
            self._add(step)
        self._alphabet = _byte_level_alphabet() if self._byte_level else {}

    def bytes_of(self, piece: str) -> bytes:
        """The bytes of one vocabulary entry."""
        if self._byte_level:
            alphabet = self._alphabet
            if all(character in alphabet for character in piece):
                return bytes(alphabet[character] for character in piece)
            return piece.encode()
        if self._byte_fallback and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        for old, new in self._replacements:
            piece = piece.replace(old, new)
        return piece.encode()

    def _add(self, step: Mapping[str, object]) -> None:
        match step.get("type"):
            case "ByteLevel":
                self._byte_level = True
            case "ByteFallback":
                self._byte_fallback = True
            case "Fuse":
                pass
            case "Replace":
                pattern = step.get("pattern")
                old = pattern.get("String") if isinstance(pattern, dict) else None
                if not isinstance(old, str):
                    raise _unsupported("Replace with a regular expression")
                self._replacements.append((old, str(step.get("content", ""))))
            case "Strip":
                if step.get("content") != " " or step.get("stop"):
                    raise _unsupported("Strip of anything but one leading space")
                self.strips_first_space = bool(step.get("start"))
            case "Metaspace":
                self._replacements.append((str(step.get("replacement", METASPACE)), " "))
                scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
                self.strips_first_space = scheme != "never"
            case other:
                raise _unsupported(str(other))


def load_tokenizer(folder: Path, *, bos_token_id: int | None, add_bos: bool) -> TextTokenizer:
    """Read `folder/tokenizer.json`; raises `ModelError` when it is missing or unusable."""
    path = folder / TOKENIZER_NAME
    try:
        definition = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}): export the model again") from None
    return TextTokenizer(definition, bos_token_id=bos_token_id, add_bos=add_bos)


def _steps(decoder: Mapping[str, object] | None) -> Iterator[Mapping[str, object]]:
    if decoder is None:
        raise _unsupported("none")
    if decoder.get("type") != "Sequence":
        yield decoder
        return
    inner = decoder.get("decoders")
    for step in inner if isinstance(inner, list) else ():
        yield from _steps(step)


def _unsupported(name: str) -> ModelError:
    return ModelError(f"{TOKENIZER_NAME} has the decoder {name}, which is not supported: use {SUPPORTED_DECODERS}")


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: character to byte (openai/gpt-2, encoder.py, bytes_to_unicode)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet.update({chr(256 + place): byte for place, byte in enumerate(others)})
    return alphabet
