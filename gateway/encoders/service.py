"""One served encoder: texts become vectors or scores. Knows no HTTP and no wire format."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ortserve.gateway.encoders.tokenizer import EncoderTokenizer
from ortserve.gateway.errors import ApiError, bad_request, context_overflow, from_runtime
from ortserve.gateway.pool import WorkPool
from ortserve.runtime.encoders.encoder import Rows
from ortserve.runtime.encoders.queue import EncoderInput
from ortserve.runtime.errors import OrtserveError

if TYPE_CHECKING:
    from ortserve.runtime.encoders.driver import EncoderDriver

INLINE_CHARACTERS = 1024  # tokenizing that much stays below 1 ms
QUERY_PROMPTS = ("query",)
DOCUMENT_PROMPTS = ("document", "passage", "corpus")

Result = TypeVar("Result")
Text = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Rows `[inputs, numbers]` in the order of the inputs, and the tokens they took."""

    rows: Rows
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Truncation:
    """What may be cut off: None is nothing, and what is too long is refused."""

    longest: int | None = None  # tokens of an input
    longest_document: int | None = None  # tokens of a document to be scored


class EncoderService:
    """Everything routes need of one encoder. Belongs to the event loop it was made in."""

    def __init__(
        self,
        driver: EncoderDriver,
        tokenizer: EncoderTokenizer,
        pool: WorkPool,
        *,
        name: str,
        created: int,
        accepts_token_ids: bool = False,
    ) -> None:
        """`name` is the one that replies carry."""
        self.driver = driver
        self.manifest = driver.manifest
        self.name = name
        self.created = created
        self.pool = pool
        self.accepts_token_ids = accepts_token_ids
        self._tokenizer = tokenizer

    @property
    def max_length(self) -> int:
        """Tokens of one input, special ones included."""
        return self.driver.max_length

    def check_dimensions(self, dimensions: int | None) -> None:
        """Raise `ApiError` (400) unless embeddings of that size can be given."""
        size = self.manifest.num_outputs
        allowed = {*self.manifest.dimensions, size}
        if dimensions is not None and dimensions not in allowed:
            words = ", ".join(map(str, sorted(allowed)))
            message = f"Invalid 'dimensions': this model's embeddings can have {words} dimensions, not {dimensions}."
            raise bad_request(message, param="dimensions", code="invalid_value")

    async def embed(
        self,
        texts: Sequence[Text],
        *,
        prompt_name: str | None,
        truncation: Truncation,
        max_wait_s: float | None = None,
    ) -> Encoded:
        """Embeddings of texts or of token ids.

        Raises `ApiError` for what cannot be encoded, or would wait for longer than `max_wait_s`.
        """
        prefix = self._prompt(prompt_name)
        inputs = await self._run(lambda: self._tokenize(texts, prefix, truncation), _size(texts))
        self._check_lengths(inputs, "input", many=len(texts) > 1)
        return await self._encode(inputs, "input", max_wait_s)

    async def score(
        self,
        firsts: Sequence[str],
        seconds: Sequence[str],
        truncation: Truncation,
        max_wait_s: float | None = None,
    ) -> Encoded:
        """Scores `[pairs, 1]` of firsts[i] with seconds[i]: a cross-encoder's, or the cosine of two embeddings."""
        if self.manifest.task == "rerank":
            pairs = list(zip(firsts, seconds, strict=True))
            inputs = await self._run(
                lambda: self._tokenizer.encode_pairs(
                    pairs, longest=self._longest(truncation), longest_second=truncation.longest_document
                ),
                _size(firsts) + _size(seconds),
            )
            self._check_lengths(inputs, "documents", many=len(pairs) > 1)
            return await self._encode(inputs, "documents", max_wait_s)
        return await self._cosines(firsts, seconds, truncation, max_wait_s)

    async def _cosines(
        self, firsts: Sequence[str], seconds: Sequence[str], truncation: Truncation, max_wait_s: float | None
    ) -> Encoded:
        query, document = self._prompt_among(QUERY_PROMPTS), self._prompt_among(DOCUMENT_PROMPTS)
        queries = list(dict.fromkeys(firsts))  # a query asked of many documents is encoded once
        place = {text: index for index, text in enumerate(queries)}
        longest = self._longest(truncation)

        def tokenize() -> list[EncoderInput]:
            limit = longest
            if truncation.longest_document is not None:
                (nothing,) = self._tokenizer.encode_texts([document])  # what comes beside a document's own tokens
                limit = _least(longest, truncation.longest_document + len(nothing))
            return [
                *self._tokenizer.encode_texts([query + text for text in queries], longest=longest),
                *self._tokenizer.encode_texts([document + text for text in seconds], longest=limit),
            ]

        inputs = await self._run(tokenize, _size(firsts) + _size(seconds))
        self._check_lengths(inputs, "documents", many=True)
        encoded = await self._encode(inputs, "documents", max_wait_s)
        unit = normalized(encoded.rows)
        left = unit[[place[text] for text in firsts]]
        right = unit[len(queries) :]
        cosines = np.clip((left * right).sum(axis=1, keepdims=True), -1.0, 1.0).astype(np.float32)
        return Encoded(cosines, encoded.num_tokens)

    async def _encode(self, inputs: Sequence[EncoderInput], param: str, max_wait_s: float | None) -> Encoded:
        try:
            rows = await asyncio.wrap_future(self.driver.submit(inputs, max_wait_s=max_wait_s))
        except OrtserveError as error:
            raise ApiError(from_runtime(error, prompt_param=param)) from error
        return Encoded(rows, sum(map(len, inputs)))

    async def _run(self, work: Callable[[], Result], num_characters: int) -> Result:
        return work() if num_characters <= INLINE_CHARACTERS else await self.pool.run(work)

    def _tokenize(self, texts: Sequence[Text], prefix: str, truncation: Truncation) -> list[EncoderInput]:
        longest = self._longest(truncation)
        strings = [prefix + text for text in texts if isinstance(text, str)]
        encoded = iter(self._tokenizer.encode_texts(strings, longest=longest))
        return [next(encoded) if isinstance(text, str) else EncoderInput(text[:longest]) for text in texts]

    def _longest(self, truncation: Truncation) -> int | None:
        return _least(truncation.longest, self.max_length) if truncation.longest is not None else None

    def _check_lengths(self, inputs: Sequence[EncoderInput], param: str, *, many: bool) -> None:
        for place, one in enumerate(inputs):
            if len(one) > self.max_length:
                shown = f"{param}[{place}]" if many else param
                raise ApiError(context_overflow(len(one), self.max_length, param=shown))

    def _prompt(self, name: str | None) -> str:
        """The text put before every input. Raises `ApiError` (400) for a name the model does not have."""
        prompts = self.manifest.prompts
        name = name if name is not None else self.manifest.default_prompt
        if name is None:
            return ""
        if name not in prompts:
            known = ", ".join(f"'{one}'" for one in sorted(prompts)) or "none"
            message = f"Invalid 'prompt_name': this model has no prompt '{name}'; it has {known}."
            raise bad_request(message, param="prompt_name", code="invalid_value")
        return prompts[name]

    def _prompt_among(self, names: Sequence[str]) -> str:
        return next((self.manifest.prompts[name] for name in names if name in self.manifest.prompts), "")


def normalized(rows: Rows) -> Rows:
    """Rows of length 1; a row of zeros stays."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Rows = rows / np.maximum(lengths, np.float32(1e-12))
    return unit


def _least(one: int | None, other: int | None) -> int | None:
    return min((value for value in (one, other) if value is not None), default=None)


def _size(texts: Sequence[Text]) -> int:
    return sum(map(len, texts)) + 16 * len(texts)
