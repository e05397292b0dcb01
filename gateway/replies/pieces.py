"""Tokens of one choice to pieces of text, each with the log-probabilities of exactly the tokens it shows.

Knows no request and no wire format. A token's entry waits until its text is final: it may still become part of a stop
string, or of a character whose last bytes have not come.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from ortserve.gateway.prompts.tokenizer import TextTokenizer
from ortserve.gateway.replies.text import StopScanner, Utf8Decoder
from ortserve.runtime.request import TokenLogprobs

NO_MARKERS: Mapping[int, bytes] = MappingProxyType({})
LOWEST_LOGPROB = -9999.0  # the API's word for "impossible"; JSON has no infinities


@dataclass(frozen=True, slots=True)
class ShownToken:
    """One emitted token: its exact bytes, and the most likely tokens at its place."""

    text: str
    data: bytes
    logprob: float
    top: tuple[tuple[str, bytes, float], ...]
    offset: int  # characters of the choice's text before it


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that can be shown now. `stop` is the stop string that has ended the choice."""

    text: str
    tokens: tuple[ShownToken, ...] = ()
    stop: str | None = None

    @property
    def stopped(self) -> bool:
        """A stop string has ended the choice."""
        return self.stop is not None


@dataclass(frozen=True, slots=True)
class _Waiting:
    token: ShownToken
    piece: str  # the characters this token completed
    num_leading: int  # bytes of an unfinished character before this token
    end: int  # it is shown whole once that many characters are


class TextAssembler:
    """The text of one choice so far. Feed tokens in order, then finish once."""

    __slots__ = (
        "_decoder", "_markers", "_num_decoded", "_num_shown", "_scanner", "_starts", "_stops", "_strip", "_tokenizer",
        "_waiting", "_with_logprobs", "num_tokens", "stop",
    )  # fmt: skip

    def __init__(
        self,
        tokenizer: TextTokenizer,
        stops: Sequence[str],
        *,
        strip_first_space: bool,
        with_logprobs: bool,
        markers: Mapping[int, bytes] = NO_MARKERS,
        counts_tokens: bool = False,
    ) -> None:
        """`markers` are special tokens that are text all the same; `counts_tokens` allows `num_tokens_before`."""
        self._tokenizer = tokenizer
        self._markers = markers
        self._starts: list[int] | None = [] if counts_tokens else None  # characters before each token
        self._decoder = Utf8Decoder()
        self._scanner = StopScanner(stops)
        self._stops = bool(stops)
        self._strip = strip_first_space
        self._with_logprobs = with_logprobs
        self._waiting: deque[_Waiting] = deque()
        self._num_decoded = 0  # characters
        self._num_shown = 0
        self.num_tokens = 0  # fed, up to and including the one that completed a stop string
        self.stop: str | None = None  # the one that has ended the text

    def feed(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs] = ()) -> Piece:
        """The text that these tokens make final. Not to be called again once stopped."""
        if self._stops or self._with_logprobs or self._starts is not None:
            return self._feed_one_by_one(token_ids, logprobs)
        self.num_tokens += len(token_ids)
        token_bytes = self._marked_bytes if self._markers else self._tokenizer.token_bytes
        data = token_bytes(token_ids[0]) if len(token_ids) == 1 else b"".join(map(token_bytes, token_ids))
        return Piece(self._decoder.feed(self._stripped(data) if self._strip else data))

    def finish(self) -> Piece:
        """The held suffix; an unfinished character is dropped, and with it what only it showed."""
        text = self._scanner.flush() if self.stop is None else ""
        self._num_shown += len(text)
        return Piece(text, (*self._release(), *self._cut()), self.stop)

    def _feed_one_by_one(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> Piece:
        texts: list[str] = []
        for place, token_id in enumerate(token_ids):
            num_leading = self._decoder.num_pending
            data = self._marked_bytes(token_id)
            if self._strip:
                data = self._stripped(data)
            if self._starts is not None:
                self._starts.append(self._num_decoded)
            piece = self._decoder.feed(data)
            if self._with_logprobs:
                self._wait(self._shown(logprobs[place], data), piece, num_leading)
            self._num_decoded += len(piece)
            self.num_tokens += 1
            scan = self._scanner.feed(piece)
            texts.append(scan.text)
            self._num_shown += len(scan.text)
            if scan.stopped:
                self.stop = scan.stop
                break
        tokens = self._release()
        if self.stop is not None:
            tokens = (*tokens, *self._cut())
        return Piece("".join(texts), tokens, self.stop)

    def num_tokens_before(self, position: int) -> int:
        """Tokens that begin before a character of the text; the count ends here, so that it takes no more memory."""
        assert self._starts is not None
        count = bisect_left(self._starts, position)
        self._starts = None
        return count

    def _marked_bytes(self, token_id: int) -> bytes:
        return self._markers.get(token_id) or self._tokenizer.token_bytes(token_id)

    def _stripped(self, data: bytes) -> bytes:
        if data:
            self._strip = False
        return data[1:] if data.startswith(b" ") else data

    def _wait(self, token: ShownToken, piece: str, num_leading: int) -> None:
        end = self._num_decoded + len(piece)
        if self._decoder.num_pending:
            end += 1  # its last bytes belong to the next character
        self._waiting.append(_Waiting(token, piece, num_leading, end))

    def _release(self) -> tuple[ShownToken, ...]:
        if not self._waiting or self._waiting[0].end > self._num_shown:
            return ()
        released = []
        while self._waiting and self._waiting[0].end <= self._num_shown:
            released.append(self._waiting.popleft().token)
        return tuple(released)

    def _cut(self) -> tuple[ShownToken, ...]:
        """Tokens shown in part when the text ends, cut to what was shown; later ones are dropped."""
        cut = []
        while self._waiting:
            waiting = self._waiting.popleft()
            shown = waiting.piece[: max(self._num_shown - waiting.token.offset, 0)]
            num_bytes = len(shown.encode()) - waiting.num_leading
            if num_bytes > 0:
                data = waiting.token.data[:num_bytes]
                cut.append(replace(waiting.token, text=data.decode("utf-8", "replace"), data=data))
        return tuple(cut)

    def _shown(self, entry: TokenLogprobs, data: bytes) -> ShownToken:
        tokenizer = self._tokenizer
        text = data.decode("utf-8", "replace") if data else tokenizer.token_name(entry.token_id)
        top = tuple(
            (tokenizer.token_name(token_id), tokenizer.token_bytes(token_id), finite(logprob))
            for token_id, logprob in entry.top
        )
        return ShownToken(text, data, finite(entry.logprob), top, self._num_decoded)


def finite(logprob: float) -> float:
    """JSON has no infinities."""
    return logprob if logprob > LOWEST_LOGPROB else LOWEST_LOGPROB  # also catches NaN
