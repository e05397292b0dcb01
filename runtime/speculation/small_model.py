"""A second, small model with rows of its own, for drafters. Knows tokens and rows; no request, no guess, no engine.

It shares the runner, the KV layout and the sampler's rules with the served model. Its session takes turns with the
served model's, so that the two never want more threads than there are cores.
"""

from __future__ import annotations

from collections.abc import Sequence as Values
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ortserve.plugins.small_model import Feed
from ortserve.runtime.manifest import Manifest, RotaryRegime, read_manifest
from ortserve.runtime.new_runner import new_runner
from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.request import SamplingParams
from ortserve.runtime.rotary import choose_regime, regimes_within
from ortserve.runtime.sampling.draw import Draw
from ortserve.runtime.sampling.sampler import Sampler
from ortserve.runtime.session import Session
from ortserve.runtime.slots.kv import SlotKvStore, block_size
from ortserve.runtime.slots.runner import load_session
from ortserve.runtime.speculation.pairing import check_same_tokens
from ortserve.runtime.step import ReleaseRow, Row, Step

_FEW_PARAMETERS = 30_000_000  # below this a second thread costs more than it brings; measured with 0.6 million
MAX_FEED = 128  # tokens of one row in one call
_MOST_LIKELY = Draw(SamplingParams(temperature=0), 0, 0, 0)


class DraftModel:
    """`SmallModel` on the CPU. One thread uses it."""

    def __init__(
        self,
        manifest: Manifest,
        session: Session,
        *,
        num_rows: int,
        max_context: int,
        max_tokens: int,
        num_threads: int | None = None,
    ) -> None:
        """Map rows of `max_context` tokens; only what is used becomes resident, `max_tokens` in all."""
        size = block_size(manifest.kv)
        capacity = -(-(max_context + MAX_FEED) // size) * size  # the padded end of a row must stay inside
        self._store = SlotKvStore(manifest.kv, num_rows=num_rows, capacity=capacity, num_host_blocks=0)
        self._runner = new_runner(manifest, session, self._store, max_logit_rows=num_rows)
        self._sampler = Sampler(manifest.num_tokens, num_threads=num_threads)
        self._lengths = [0] * num_rows
        self._regimes = regimes_within(manifest, max_context)
        self._chosen = [self._regimes[0]] * num_rows  # of the rows that are not empty
        self._max_context = max_context
        self._max_tokens = max_tokens
        self._num_runs = 0

    @property
    def num_rows(self) -> int:
        """Part of `SmallModel`."""
        return len(self._lengths)

    @property
    def max_context(self) -> int:
        """Part of `SmallModel`."""
        return self._max_context

    @property
    def max_tokens(self) -> int:
        """Part of `SmallModel`."""
        return self._max_tokens

    @property
    def max_feed(self) -> int:
        """Part of `SmallModel`."""
        return MAX_FEED

    def extend(self, feeds: Values[Feed]) -> list[int | None]:
        """Part of `SmallModel`. Raises `ValueError` when a bound would be exceeded."""
        self._check(feeds)
        if not feeds:
            return []
        rows = tuple(self._row(feed) for feed in feeds)
        logits = self._runner.run(Step(self._num_runs, (), rows))
        self._num_runs += 1
        for row in rows:
            self._lengths[row.slot] = row.end
        # Whatever the engine hands out as a `NextDraw` is a `Draw`: it made both.
        draws = [_MOST_LIKELY if feed.draw is None else cast(Draw, feed.draw) for feed in feeds if feed.is_wanted]
        chosen = iter(self._sampler.draw(logits, draws) if draws else ())
        return [next(chosen).token_id if feed.is_wanted else None for feed in feeds]

    def _row(self, feed: Feed) -> Row:
        regime = self._chosen[feed.row] = self._regime(feed)
        return Row(
            str(feed.row),
            feed.row,
            self._lengths[feed.row],
            feed.tokens,
            int(feed.is_wanted),
            first_rotary_row=regime.first_row,
        )

    def _regime(self, feed: Feed) -> RotaryRegime:
        """An empty row's is chosen by how long it may become, as the served model's is; then it stays."""
        if self._lengths[feed.row]:
            return self._chosen[feed.row]
        wanted = self._max_context if feed.max_length is None else feed.max_length
        return choose_regime(self._regimes, min(wanted, self._max_context))

    def truncate(self, row: int, length: int) -> None:
        """Part of `SmallModel`."""
        if not 0 <= length <= self._lengths[row]:
            raise ValueError(f"row {row} has {self._lengths[row]} tokens: it cannot be cut to {length}")
        if length == 0 and self._lengths[row]:
            self._store.apply((ReleaseRow(row),))
        self._lengths[row] = length

    def close(self) -> None:
        """Part of `SmallModel`."""
        for row in range(self.num_rows):
            self.truncate(row, 0)

    def _check(self, feeds: Values[Feed]) -> None:
        if len({feed.row for feed in feeds}) < len(feeds):
            raise ValueError("a row is fed twice in one call")
        for feed in feeds:
            if not 0 <= feed.row < self.num_rows:
                raise ValueError(f"there is no row {feed.row}: there are {self.num_rows}")
            if not 0 < len(feed.tokens) <= MAX_FEED:
                raise ValueError(f"row {feed.row} is fed {len(feed.tokens)} tokens: from 1 to {MAX_FEED} are possible")
            most = self._regime(feed).max_tokens
            if self._lengths[feed.row] + len(feed.tokens) > most:
                raise ValueError(f"row {feed.row} would exceed its {most} tokens: truncate it first")
        if sum(self._lengths) + sum(len(feed.tokens) for feed in feeds) > self._max_tokens:
            raise ValueError(f"the rows would exceed {self._max_tokens} tokens together: truncate one first")


@dataclass(frozen=True, slots=True)
class LoadedDraft:
    """A small model whose weights are loaded, before the memory plan says how much it may hold."""

    manifest: Manifest
    session: Session
    num_threads: int | None

    def open(self, plan: EnginePlan) -> DraftModel:
        """With a row for each of the engine's."""
        max_context = min(self.manifest.max_context, plan.max_context + 1)
        return DraftModel(
            self.manifest,
            self.session,
            num_rows=plan.num_rows,
            max_context=max_context,
            max_tokens=max(min(plan.resident_tokens, plan.num_rows * max_context), max_context),
            num_threads=self.num_threads,
        )


def load_draft(
    folder: Path,
    served_folder: Path,
    served: Manifest,
    *,
    num_threads: int | None,
    turn: AbstractContextManager[object],
) -> LoadedDraft:
    """Load the small model in `folder`, which is to guess for the served one; they share a `turn`.

    Raises `ManifestError` or `ModelError` for an unusable folder, `DraftModelError` when it speaks other tokens.
    """
    manifest = read_manifest(folder)
    check_same_tokens(served_folder, served, folder, manifest)
    threads = 1 if manifest.num_parameters < _FEW_PARAMETERS else num_threads
    return LoadedDraft(manifest, load_session(folder, manifest, num_threads=threads, turn=turn), threads)
