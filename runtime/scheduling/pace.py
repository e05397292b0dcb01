"""Learns how long steps take and says how many prompt tokens the next one may carry. Knows no sequences and no clock.

A step's time is nearly linear in the tokens it feeds and the query-key pairs it attends to. On a device, where plain
decodes, short rows and chunks of prompts are launched in different ways and have different kernels, each of these kinds
has something of its own besides. Steps are remembered by shape, so that what a prompt chunk costs is still known after
an hour of plain decoding. That alone is slow to follow a machine that does other work: shapes which are seen no more go
on saying what was. So what the last steps took, over what was expected of them, scales every prediction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

AUTO_FACTOR = 3.5  # without a limit: a step that carries prompt tokens may take this many times a decode step
SMALLEST_CHUNK = 16  # prompts always advance
QUANTUM = 8  # chunks beyond the smallest are multiples of this
_FIRST_SEEN = 3  # steps of a shape, of which the fastest counts
_REMEMBER = 0.1  # weight of the newest step of a shape
_HALF_LIFE = 500  # observations after which a shape that is not seen any more counts half
_LEAST_WEIGHT = 1e-3  # it never counts nothing: it may be the only one that knows what a chunk costs
_SHORTEST_MS = 1e-3  # a clock may stand still
_FIT_EVERY = 8  # observations
_FEWEST_SHAPES = 3  # as many as there are terms of one kind of steps
_SLOWNESS_GAIN = 0.3  # weight of the newest steps in how much slower than remembered the machine is now
_PLAIN, _SHORT, _LONG = range(3)  # kinds: one token of each row; of some rows more; chunks


@dataclass(slots=True)
class _Shape:
    """Averages over the steps of one shape."""

    tokens: float
    attended: float
    milliseconds: float
    kind: int
    last_seen: int = 0  # number of the observation
    num_seen: int = 1

    def add(self, tokens: int, attended: int, milliseconds: float) -> None:
        self.num_seen += 1
        if self.num_seen <= _FIRST_SEEN:  # what comes first may have been waited for: memory, kernels, files
            if milliseconds < self.milliseconds:
                self.tokens, self.attended, self.milliseconds = float(tokens), float(attended), milliseconds
            return
        # One outlier (a page fault, another process) must not move the average far.
        milliseconds = min(milliseconds, 3 * self.milliseconds)
        self.tokens += _REMEMBER * (tokens - self.tokens)
        self.attended += _REMEMBER * (attended - self.attended)
        self.milliseconds += _REMEMBER * (milliseconds - self.milliseconds)


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of the engine that a token takes: one of a prompt, and one drawn in a full batch."""

    prompt_s: float
    output_s: float


class Pace:
    """Bounds the prompt tokens of steps in which sequences decode."""

    def __init__(self, *, max_step_ms: float | None, max_chunk_tokens: int, longest_short: int | None = None) -> None:
        """`longest_short`: tokens of the longest row up to which a step is no chunk; None: all steps are alike."""
        self._max_step_ms = max_step_ms
        self._max_chunk_tokens = max_chunk_tokens
        self._longest_short = longest_short
        self._shapes: dict[tuple[int, int, int], _Shape] = {}
        self._num_observed = 0
        self._terms: tuple[float, ...] | None = None  # of base, token, pair, short, long; None: too little seen
        self._is_due = True  # they are to be fitted again
        self._fits_at = 0  # observations
        self._slowness = 1.0  # of the machine now, over what the terms say
        self._last_step = 0, 0, _PLAIN  # its tokens, pairs and kind
        self._last_ratio = 1.0  # what the last step took over what the terms say of it

    def observe(self, tokens: int, attended: int, milliseconds: float, *, longest: int = 1) -> None:
        """A step fed `tokens`, at most `longest` to a row, and attended to `attended` query-key pairs."""
        milliseconds = max(milliseconds, _SHORTEST_MS)
        kind = self._kind(longest)
        self._note_slowness(tokens, attended, kind, milliseconds)
        key = (_bucket(tokens), _bucket(attended), kind)
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._shapes[key] = _Shape(float(tokens), float(attended), milliseconds, kind)
            self._fits_at = 0  # a new shape says more than all that follow
        else:
            shape.add(tokens, attended, milliseconds)
        self._num_observed += 1
        shape.last_seen = self._num_observed
        if self._num_observed >= self._fits_at:
            self._is_due = True

    def predict(self, tokens: int, attended: int, *, longest: int = 1) -> float | None:
        """Milliseconds of a step that feeds at most `longest` tokens to a row; None while too little has been seen."""
        if len(self._shapes) < _FEWEST_SHAPES:
            return None
        if self._is_due:
            self._learn()
        return self._slowness * self._expected(tokens, attended, self._kind(longest))

    def _learn(self) -> None:
        """Fit the terms again. Of the last step they then say, times the slowness, what they have said before."""
        before = 0.0 if self._terms is None else self._expected(*self._last_step)
        self._terms = tuple(map(float, self._fit()))
        after = self._expected(*self._last_step)
        if before > 0 and after > 0:
            self._slowness *= before / after
            self._last_ratio *= before / after
        self._is_due = False
        # Each observation moves an average by a tenth; a fit takes as long as a tenth of a small model's step.
        self._fits_at = self._num_observed + _FIT_EVERY

    def _expected(self, tokens: int, attended: int, kind: int) -> float:
        assert self._terms is not None
        base, token, pair, short, long = self._terms
        return base + token * tokens + pair * attended + (0.0, short, long)[kind]

    def _note_slowness(self, tokens: int, attended: int, kind: int, milliseconds: float) -> None:
        """The middle one of the two last steps and of what is believed moves it: never one outlier alone."""
        self._last_step = tokens, attended, kind
        expected = 0.0 if self._terms is None else self._expected(tokens, attended, kind)
        if expected > 0:
            ratio = milliseconds / expected
            middle = sorted((self._slowness, ratio, self._last_ratio))[1]
            self._slowness += _SLOWNESS_GAIN * (middle - self._slowness)
            self._last_ratio = ratio

    def costs(self, num_rows: int, depth: int) -> Costs | None:
        """Of tokens where `num_rows` sequences with `depth` tokens each decode; None while too little has been seen."""
        chunk, attended = self._max_chunk_tokens, num_rows * depth
        batch = self.predict(num_rows, attended)
        mixed = self.predict(num_rows + chunk, attended + chunk * (depth + chunk) // 2, longest=chunk)
        if batch is None or mixed is None:
            return None
        return Costs((mixed - batch) / chunk / 1000, batch / num_rows / 1000)

    def chunk_tokens(
        self,
        *,
        decode_tokens: int,
        decode_attended: int,
        start: int,
        held_tokens: int = 0,
        held_attended: int = 0,
    ) -> int:
        """Prompt tokens that a step with these decode rows may carry for a sequence with `start` tokens stored.

        `held_tokens` of them are not fed, but wait for this step: they bound its time like the others.
        """
        if decode_tokens == 0 and self._max_step_ms is None:
            return self._max_chunk_tokens
        plain = self.predict(decode_tokens, decode_attended)
        if plain is None:
            return min(4 * SMALLEST_CHUNK, self._max_chunk_tokens)
        limit = self._max_step_ms if self._max_step_ms is not None else AUTO_FACTOR * plain
        largest = self._max_chunk_tokens
        while largest > SMALLEST_CHUNK:
            attended = decode_attended - held_attended + largest * (start + largest)
            predicted = self.predict(decode_tokens - held_tokens + largest, attended, longest=largest)
            if predicted is None or predicted <= limit:
                break
            largest -= QUANTUM
        return max(largest, min(SMALLEST_CHUNK, self._max_chunk_tokens))

    def _fit(self) -> npt.NDArray[np.float64]:
        """Least squares of the relative error, without negative terms; where shapes disagree, the newer count more."""
        shapes = self._shapes.values()
        times = np.array([shape.milliseconds for shape in shapes])
        ages = np.array([self._num_observed - shape.last_seen for shape in shapes])
        weights = np.maximum(0.5 ** (ages / _HALF_LIFE), _LEAST_WEIGHT)
        rows = [
            [1.0, shape.tokens, shape.attended, float(shape.kind == _SHORT), float(shape.kind == _LONG)]
            for shape in shapes
        ]
        features = np.array(rows) * (weights / times)[:, None]
        terms = np.zeros(features.shape[1])
        active = np.flatnonzero(features.any(axis=0))
        while len(active):
            solution = np.linalg.lstsq(features[:, active], weights, rcond=None)[0]
            if np.all(solution >= 0):
                terms[active] = solution
                break
            active = active[solution >= 0]
        return terms

    def _kind(self, longest: int) -> int:
        if self._longest_short is None or longest <= 1:
            return _PLAIN
        return _SHORT if longest <= self._longest_short else _LONG


def _bucket(count: int) -> int:
    """Half octaves."""
    return round(2 * np.log2(count)) if count > 0 else -1
