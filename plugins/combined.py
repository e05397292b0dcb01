"""Asks several drafters and takes of each request's drafts the one that promises most. Knows no way of guessing itself.

A draft with chances promises what they say, as far as its source has kept its promises to this request; one without
promises what its source's drafts have brought so far. Sources that say chances have their guesses in memory, so all of
them are asked; the others, such as a small model, only where they bring more than the best of those. What a source has
lost in esteem drifts back while it is not used, so that it gets another chance when the text has changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from ortserve.plugins.api import PluginContext
from ortserve.plugins.drafting import Draft, Drafter, DraftRequest, Ended, SequenceView, Verified
from ortserve.plugins.registry import DRAFTERS, load

_SOURCES = "prediction,form,suffix"  # ngram finds nothing where suffix does not; measured, it only takes its turns
_HOPE = 4.0  # accepted tokens per draft of a source without chances, at first
_LEARNING = 0.1  # share of the way to what a draft brought
_DRIFT = 0.01  # share of the way back, per draft of another source
_FADE = 0.95  # of what was promised and kept, per draft of the same source
_TRUST = 4.0  # promised tokens that a source is believed without proof


@dataclass(slots=True)
class _Standing:
    """What one source is worth to one request."""

    worth: float = _HOPE  # accepted tokens per draft
    promised: float = 0.0
    kept: float = 0.0

    def value(self, draft: Draft) -> float:
        """Tokens of it that will probably hold."""
        if not draft.chances:
            return self.worth
        return draft.promise * min(1.0, (self.kept + _TRUST) / (self.promised + _TRUST))

    def learn(self, draft: Draft, result: Verified) -> None:
        """What became of it."""
        self.worth += _LEARNING * (result.num_accepted - self.worth)
        if draft.chances:
            fed = replace(draft, chances=draft.chances[: result.num_proposed])
            self.promised = _FADE * self.promised + fed.promise
            self.kept = _FADE * self.kept + result.num_accepted

    def drift(self) -> None:
        """Another source was used."""
        self.worth += _DRIFT * (_HOPE - self.worth)
        self.promised *= 1 - _DRIFT
        self.kept *= 1 - _DRIFT


class _Live:
    """The sources' standing with one request, and the draft that is being verified."""

    __slots__ = ("drafted", "standings")

    def __init__(self, num_sources: int) -> None:
        self.standings = [_Standing() for _ in range(num_sources)]
        self.drafted: tuple[int, Draft] | None = None

    def offer(self, source: int, draft: Draft) -> None:
        """Take it if it is the best so far."""
        if self.drafted is None or self.standings[source].value(draft) > self.value:
            self.drafted = source, draft

    @property
    def value(self) -> float:
        """Of the best draft so far."""
        return -1.0 if self.drafted is None else self.standings[self.drafted[0]].value(self.drafted[1])

    def learn(self, result: Verified) -> int | None:
        """What the draft brought; whose it was."""
        if self.drafted is None:
            return None
        source, draft = self.drafted
        for number, standing in enumerate(self.standings):
            if number == source:
                standing.learn(draft, result)
            else:
                standing.drift()
        self.drafted = None
        return source


class CombinedDrafter:
    """The sources see every request, and each what became of its own drafts."""

    def __init__(self, context: PluginContext) -> None:
        names = [name.strip() for name in context.options.get("sources", _SOURCES).split(",")]
        self._check(names, context.options)
        self._sources: list[Drafter] = []
        for name in names:
            prefix = f"{name}."
            options = {key[len(prefix) :]: text for key, text in context.options.items() if key.startswith(prefix)}
            budget = context.byte_budget // len(names)
            part = replace(context, options=options, byte_budget=budget)
            self._sources.append(cast(Drafter, load(DRAFTERS, name)(part)))
        self._is_sure: dict[
            int, bool
        ] = {}  # whether a source says chances; those that have not drafted yet are missing
        self._live: dict[str, _Live] = {}

    @staticmethod
    def _check(names: Sequence[str], options: Mapping[str, str]) -> None:
        if not all(names) or len(set(names)) < len(names) or "combined" in names:
            raise ValueError(f"sources of the drafter combined are {','.join(names)!r}: name other drafters, each once")
        for option in options:
            if option != "sources" and option.partition(".")[0] not in names:
                raise ValueError(
                    f"the drafter combined has no option {option}: it knows sources, and SOURCE.OPTION for each of them"
                )

    def start(self, request: DraftRequest) -> None:
        """Tell every source."""
        self._live[request.id] = _Live(len(self._sources))
        for source in self._sources:
            source.start(request)

    def propose(self, views: Sequence[SequenceView], deadline_s: float) -> Sequence[Draft]:
        """The best draft for each request."""
        asking = [(view, self._live[view.id]) for view in views if view.id in self._live]
        for _, live in asking:
            live.drafted = None
        for source in range(len(self._sources)):
            if self._is_sure.get(source, True):
                self._ask(source, [view for view, _ in asking], deadline_s)
        others = [source for source, is_sure in self._is_sure.items() if not is_sure]
        for place in range(len(others)):
            wanted: dict[int, list[SequenceView]] = {}
            for view, live in asking:
                source = sorted(others, key=lambda one: -live.standings[one].worth)[place]
                if live.standings[source].worth > live.value:
                    wanted.setdefault(source, []).append(view)
            for source, its_views in wanted.items():
                self._ask(source, its_views, deadline_s)
        return [live.drafted[1] for _, live in asking if live.drafted is not None]

    def observe(self, results: Sequence[Verified]) -> None:
        """Tell each source what its own drafts brought."""
        told: dict[int, list[Verified]] = {}
        for result in results:
            live = self._live.get(result.id)
            source = None if live is None else live.learn(result)
            if source is not None:
                told.setdefault(source, []).append(result)
        for number, its_results in told.items():
            self._sources[number].observe(its_results)

    def forget(self, ended: Sequence[Ended]) -> None:
        """Tell every source."""
        for request in ended:
            self._live.pop(request.id, None)
        for source in self._sources:
            source.forget(ended)

    def close(self) -> None:
        """Close every source."""
        for source in self._sources:
            source.close()

    def _ask(self, source: int, views: Sequence[SequenceView], deadline_s: float) -> None:
        if not views:
            return
        for draft in self._sources[source].propose(views, deadline_s):
            live = self._live.get(draft.id)
            if draft.tokens and live is not None:
                self._is_sure[source] = bool(draft.chances)
                live.offer(source, draft)
