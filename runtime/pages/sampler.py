"""Draws on the device behind the model: enqueues the sampling head and brings back a few numbers per row, in one wait.

What the head cannot decide (`sampling_head.UNDECIDED`, a top-k beyond its candidates) is drawn on the host from that
row's logits by the ordinary sampler. Knows no sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ortserve.runtime.devices.device import Bytes, Device
from ortserve.runtime.devices.recordings import Recordings
from ortserve.runtime.devices.session import DeviceBinding, DeviceSession
from ortserve.runtime.pages.runner import DeviceLogits
from ortserve.runtime.pages.sampling_head import (
    NOT_FINITE,
    NUM_CANDIDATES,
    NUM_LOGPROBS,
    UNDECIDED,
    HeadKind,
    Pick,
    sampling_head,
)
from ortserve.runtime.pages.staging import Staging, staged_bytes
from ortserve.runtime.request import TokenLogprobs
from ortserve.runtime.sampling.draw import Draw
from ortserve.runtime.sampling.sampler import Drawn, Ready, Sampler

_FEWEST_RULES = 64  # ids with a rule are padded to powers of two from here on
_ROW_BYTES = 256  # of one row's parameters without rules, generously
_RULE_BYTES = 8 + 3 * 4

Arrays = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class _Shape:
    """What one recording of a head is good for."""

    kind: HeadKind
    num_rows: int
    num_rules: int  # ids per row that rules are padded to, 0 without rules
    num_masks: int  # 0 without masks


@dataclass(frozen=True, slots=True)
class _Results:
    """Where a head writes, on the device and, once downloaded, on the host."""

    address: int
    host: Bytes
    tokens: npt.NDArray[np.int64]
    top_ids: npt.NDArray[np.int64]
    chosen: npt.NDArray[np.float32]
    top_values: npt.NDArray[np.float32]


class DeviceDrawing:
    """Draws that a device works on. Part of `Drawing`."""

    def __init__(self, address: int | None, wait: Callable[[], None], read: Callable[[], list[Drawn]]) -> None:
        self.address = address
        self._wait: Callable[[], None] | None = wait
        self._read = read

    def wait(self) -> None:
        """Wait for the device, once."""
        if self._wait is not None:
            self._wait()
            self._wait = None

    def result(self) -> list[Drawn]:
        """Wait, then read what it has drawn."""
        self.wait()
        return self._read()


class DeviceSampler:
    """Draws for up to `max_rows` rows of logits that lie at one address on the device."""

    def __init__(self, device: Device, *, vocab_size: int, num_tokens: int, max_rows: int) -> None:
        self._device = device
        self._vocab_size = vocab_size
        self._num_tokens = num_tokens
        self._max_rows = max_rows
        self._host_sampler = Sampler(num_tokens)
        self._num_top = min(NUM_LOGPROBS, num_tokens)
        self._staging = Staging(device, staged_bytes(*[_ROW_BYTES * max_rows] * 2))
        self._rules = _FEWEST_RULES  # ids per row that the staging buffer of rules has room for
        self._rule_staging = self._new_rule_staging()
        self._mask_staging: Staging | None = None  # for the first grammar: it is large
        self._results = self._new_results()
        self._row = device.host_array(vocab_size * 4).view(np.float32)
        self._heads: dict[HeadKind, DeviceBinding] = {}
        self.recordings: Recordings[_Shape] = Recordings(device)

    def draw(self, logits: DeviceLogits, draws: Sequence[Draw]) -> list[Drawn]:
        """One token for each row that counts. Waits for the device, once."""
        return self.begin(logits, draws).result()

    def begin(self, logits: DeviceLogits, draws: Sequence[Draw]) -> Ready | DeviceDrawing:
        """Enqueue a draw for each row that counts, and the copy of what it draws. Part of `TokenSampler`."""
        if logits.chosen is not None:  # beside rows that judge prompts: too rare for a head of their own
            return Ready(self._host_sampler.draw(self._on_host(logits.address, logits.chosen), draws))
        assert len(draws) == logits.num_rows
        kind = _kind(draws)
        shape = self._enqueue_inputs(kind, logits, draws)
        results = self._results
        used = results.host if kind.has_logprobs else results.host[: results.tokens.nbytes]
        if not self.recordings.launch(shape):
            self.recordings.run(shape, self._heads[kind].run)
        self._device.download(used, results.address)
        return DeviceDrawing(
            results.address if all(map(_is_decided, draws)) else None,
            self._device.mark(),
            lambda: [self._drawn(place, draw, logits) for place, draw in enumerate(draws)],
        )

    def score(self, logits: DeviceLogits, tokens: Sequence[int], num_top: Sequence[int]) -> list[TokenLogprobs | None]:
        """As `Sampler.score`, on the host."""
        rows = tuple(range(logits.num_rows)) if logits.chosen is None else logits.chosen
        return self._host_sampler.score(self._on_host(logits.address, rows), tokens, num_top)

    def _on_host(self, address: int, rows: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """These rows of the logits at `address`. Waits for them."""
        found = np.empty((len(rows), self._vocab_size), np.float32)
        for place, row in enumerate(rows):
            self._device.download(self._row.view(np.uint8), address + row * self._vocab_size * 4)
            self._device.synchronize()
            found[place] = self._row
        return found

    def _enqueue_inputs(self, kind: HeadKind, logits: DeviceLogits, draws: Sequence[Draw]) -> _Shape:
        """Send the rows' parameters."""
        binding = self._heads.get(kind)
        if binding is None:
            graph = sampling_head(kind, vocab_size=self._vocab_size, num_tokens=self._num_tokens)
            binding = self._heads[kind] = DeviceSession(graph, self._device).binding()
        self._bind_outputs(binding, kind, logits)
        num_rules = 0
        if kind.pick is not Pick.GREEDY:
            self._bind(binding, self._staging, _parameters(kind.pick, draws, logits.num_padded_rows))
        if kind.has_rules:
            entries = [_rules(draw) for draw in draws]
            most = max(len(entry) for entry in entries)
            num_rules = max(_FEWEST_RULES, 1 << (most - 1).bit_length())
            if num_rules > self._rules:
                self._rules = num_rules
                self._rule_staging = self._new_rule_staging()
                self.recordings.drop(lambda shape: shape.kind.has_rules)
            arrays = _rule_arrays(draws, entries, num_rules, logits.num_padded_rows)
            self._bind(binding, self._rule_staging, arrays)
        num_masks = 0
        if kind.has_masks:
            if self._mask_staging is None:
                largest = [(_mask_bucket(self._max_rows) * self._num_tokens), 8 * self._max_rows]
                self._mask_staging = Staging(self._device, staged_bytes(*largest))
            arrays = _mask_arrays(draws, self._num_tokens, logits.num_padded_rows)
            self._bind(binding, self._mask_staging, arrays)
            num_masks = len(arrays["masks"])
        return _Shape(kind, logits.num_padded_rows, num_rules, num_masks)

    def _bind(self, binding: DeviceBinding, staging: Staging, arrays: Arrays) -> None:
        for name, address in staging.send(arrays).items():
            binding.bind_input(name, address, str(arrays[name].dtype), arrays[name].shape)

    def _bind_outputs(self, binding: DeviceBinding, kind: HeadKind, logits: DeviceLogits) -> None:
        rows, results = logits.num_padded_rows, self._results
        binding.bind_input("logits", logits.address, "float32", (rows, self._vocab_size))
        binding.bind_output("tokens", results.address, "int64", (rows,))
        if kind.has_logprobs:
            for name, array in (
                ("top_ids", results.top_ids),
                ("chosen", results.chosen),
                ("top_values", results.top_values),
            ):
                address = results.address + array.ctypes.data - results.host.ctypes.data
                binding.bind_output(name, address, str(array.dtype), (rows, *array.shape[1:]))

    def _drawn(self, place: int, draw: Draw, logits: DeviceLogits) -> Drawn:
        token = int(self._results.tokens[place])
        if token == NOT_FINITE:
            return Drawn(None)
        if token == UNDECIDED or draw.sampling.top_k > NUM_CANDIDATES:
            return self._host_sampler.draw(self._on_host(logits.address, (place,)), [draw])[0]
        num_top = draw.sampling.num_logprobs
        if num_top is None:
            return Drawn(token)
        ids, values = self._results.top_ids[place, :num_top], self._results.top_values[place, :num_top]
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return Drawn(token, TokenLogprobs(token, float(self._results.chosen[place, 0]), top))

    def _new_rule_staging(self) -> Staging:
        return Staging(self._device, self._max_rows * (self._rules * _RULE_BYTES + _ROW_BYTES))

    def _new_results(self) -> _Results:
        rows, top = self._max_rows, self._num_top
        sizes = np.cumsum([0, 8 * rows, 8 * rows * top, 4 * rows, 4 * rows * top])
        host = self._device.host_array(int(sizes[-1]))
        tokens, top_ids, chosen, top_values = (host[begin:end] for begin, end in pairwise(sizes.tolist()))
        return _Results(
            self._device.allocate(int(sizes[-1])),
            host,
            tokens.view(np.int64),
            top_ids.view(np.int64).reshape(rows, top),
            chosen.view(np.float32).reshape(rows, 1),
            top_values.view(np.float32).reshape(rows, top),
        )


def _is_decided(draw: Draw) -> bool:
    """The head draws it, whatever the logits are: nobody will look at them again."""
    sampling = draw.sampling
    return draw.is_greedy or 0 < sampling.top_k <= NUM_CANDIDATES or (sampling.top_k == 0 and sampling.top_p >= 1.0)


def _kind(draws: Sequence[Draw]) -> HeadKind:
    pick = Pick.GREEDY
    if any(not draw.is_greedy for draw in draws):
        pick = Pick.DRAWN
    if any(not draw.is_greedy and (draw.sampling.top_k > 0 or draw.sampling.top_p < 1.0) for draw in draws):
        pick = Pick.NARROWED
    return HeadKind(
        pick,
        any(draw.history is not None or draw.sampling.logit_bias or draw.banned for draw in draws),
        any(draw.sampling.num_logprobs is not None for draw in draws),
        any(draw.allowed is not None for draw in draws),
    )


def _parameters(pick: Pick, draws: Sequence[Draw], num_rows: int) -> Arrays:
    """`[num_rows]` of each; rows beyond the draws are greedy."""
    count = len(draws)
    greedy = np.ones(num_rows, np.bool_)
    inverse = np.ones((num_rows, 1), np.float32)
    smallest = np.zeros((num_rows, 1), np.float32)
    uniform = np.zeros((num_rows, 1), np.float64)
    greedy[:count] = [draw.is_greedy for draw in draws]
    inverse[:count, 0] = [1.0 if draw.is_greedy else 1.0 / draw.sampling.temperature for draw in draws]
    smallest[:count, 0] = [draw.sampling.min_p for draw in draws]
    uniform[:count, 0] = [draw.uniform for draw in draws]
    found: Arrays = {"greedy": greedy, "inverse_temperature": inverse, "min_p": smallest, "uniform": uniform}
    if pick is Pick.NARROWED:
        top_k = np.zeros((num_rows, 1), np.int64)
        top_p = np.ones((num_rows, 1), np.float64)
        top_k[:count, 0] = [min(draw.sampling.top_k, NUM_CANDIDATES) for draw in draws]
        top_p[:count, 0] = [draw.sampling.top_p for draw in draws]
        found |= {"top_k": top_k, "top_p": top_p}
    return found


@dataclass(frozen=True, slots=True)
class _Entries:
    """Ids of one row that have a rule; each of the others belongs to the id at its place."""

    ids: npt.NDArray[np.int64]
    seen: npt.NDArray[np.float32]
    counts: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)


def _rules(draw: Draw) -> _Entries:
    """History first, then the biased and banned ids; an id that is in several lists has one entry."""
    history = draw.history
    ids = [] if history is None else history.ids.tolist()
    bias: dict[int, float] = {}
    for token, value in draw.sampling.logit_bias:
        bias[token] = bias.get(token, 0.0) + value
    bias.update(dict.fromkeys(draw.banned, -np.inf))
    others = [token for token in bias if token not in set(ids)] if bias else []
    every = np.array([*ids, *others] or [0], np.int64)
    seen, counts = np.zeros(len(every), np.float32), np.zeros(len(every), np.float32)
    if history is not None:
        seen[: len(ids)] = 1
        counts[: len(ids)] = history.counts
    biases = np.array([bias.get(token, 0.0) for token in every.tolist()], np.float32)
    return _Entries(every, seen, counts, biases)


def _rule_arrays(draws: Sequence[Draw], entries: Sequence[_Entries], width: int, num_rows: int) -> Arrays:
    """Unused places repeat the first entry of their row: writing the same value twice changes nothing."""
    ids = np.zeros((num_rows, width), np.int64)
    seen, counts, bias = (np.zeros((num_rows, width), np.float32) for _ in range(3))
    penalties = np.ones((3, num_rows, 1), np.float32)
    penalties[1:] = 0
    for place, (draw, entry) in enumerate(zip(draws, entries, strict=True)):
        for target, source in ((ids, entry.ids), (seen, entry.seen), (counts, entry.counts), (bias, entry.bias)):
            target[place] = source[0]
            target[place, : len(entry)] = source
        sampling = draw.sampling
        penalties[:, place, 0] = (
            sampling.repetition_penalty,
            sampling.frequency_penalty,
            sampling.presence_penalty,
        )
    return {
        "rule_ids": ids,
        "rule_seen": seen,
        "rule_counts": counts,
        "rule_bias": bias,
        "repetition": penalties[0],
        "frequency": penalties[1],
        "presence": penalties[2],
    }


def _mask_bucket(num_masked: int) -> int:
    """Masks that are sent for so many rows with a grammar: the one that allows everything, padded to a power of two."""
    return 1 << num_masked.bit_length()


def _mask_arrays(draws: Sequence[Draw], num_tokens: int, num_rows: int) -> Arrays:
    """`masks` bool [M, tokens], of which the first and the unused ones allow everything; `mask_index` int64 [rows]."""
    masked = [(place, draw.allowed) for place, draw in enumerate(draws) if draw.allowed is not None]
    masks = np.ones((_mask_bucket(len(masked)), num_tokens), np.bool_)
    index = np.zeros(num_rows, np.int64)
    for number, (place, allowed) in enumerate(masked, 1):
        masks[number] = np.unpackbits(allowed, count=num_tokens, bitorder="little").view(np.bool_)
        index[place] = number
    return {"masks": masks, "mask_index": index}
