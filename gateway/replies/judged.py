"""The log-probabilities of an echoed prompt as tokens to show, built as the engine finds them. Knows no wire format."""

from __future__ import annotations

from collections.abc import Sequence

from ortserve.gateway.prompts.tokenizer import TextTokenizer
from ortserve.gateway.replies.pieces import LOWEST_LOGPROB, ShownToken, finite
from ortserve.gateway.replies.text import Utf8Decoder
from ortserve.runtime.request import TokenLogprobs


class JudgedPrompt:
    """One entry per token, also for those that show nothing: clients count on the numbering.

    The first token comes after nothing, so nobody knows how likely it is: the wire formats say null.
    """

    __slots__ = ("_decoder", "_length", "_num_characters", "_strip", "_tokenizer", "tokens")

    def __init__(self, tokenizer: TextTokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._decoder = Utf8Decoder()
        self._strip = tokenizer.strips_first_space
        self._num_characters = 0
        self._length = len(prompt)
        self.tokens: list[ShownToken] = []
        self._add(prompt[0], LOWEST_LOGPROB, ())

    @property
    def is_complete(self) -> bool:
        """Every token of the prompt is there."""
        return len(self.tokens) == self._length

    def add(self, entries: Sequence[TokenLogprobs]) -> None:
        """The next tokens, in order."""
        name, data = self._tokenizer.token_name, self._tokenizer.token_bytes
        for entry in entries:
            top = tuple((name(token), data(token), finite(logprob)) for token, logprob in entry.top)
            self._add(entry.token_id, finite(entry.logprob), top)

    def _add(self, token: int, logprob: float, top: tuple[tuple[str, bytes, float], ...]) -> None:
        data = self._tokenizer.token_bytes(token)
        if self._strip and data:
            self._strip = False
            data = data.removeprefix(b" ")
            text = data.decode("utf-8", "replace")
        else:
            text = self._tokenizer.token_name(token)
        self.tokens.append(ShownToken(text, data, logprob, top, self._num_characters))
        self._num_characters += len(self._decoder.feed(data))
