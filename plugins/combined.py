"""Asks several drafters in the order of what their drafts are worth to each request. Knows no way of guessing itself.

Every request begins with the same hope for every source. What a source's drafts bring moves its worth; while it is not
asked, its worth drifts back to the hope, so that it gets another chance when the text has changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from ortserve.plugins.api import PluginContext
from ortserve.plugins.drafting import Draft, Drafter, DraftRequest, Ended, SequenceView, Verified
from ortserve.plugins.registry import DRAFTERS, load

_SOURCES = "prediction,suffix"  # ngram finds nothing where suffix does not; measured, it only takes its turns
_HOPE = 4.0  # accepted tokens per draft: a source that brings less is compared with the others
_LEARNING = 0.1  # share of the way to what a draft brought
_DRIFT = 0.01  # share of the way back to the hope, per draft of another source


class _Live:
    """What each source is worth to one request, in accepted tokens per draft."""

    __slots__ = ("asked", "order", "worths")

    def __init__(self, num_sources: int) -> None:
        self.worths = [_HOPE] * num_sources
        self.order = list(range(num_sources))  # the most valuable first; of equals as they were named
        self.asked: int | None = None  # whose draft is being verified

    def learn(self, num_accepted: int) -> None:
        """What the last draft brought."""
        for source, worth in enumerate(self.worths):
            is_asked = source == self.asked
            self.worths[source] += _LEARNING * (num_accepted - worth) if is_asked else _DRIFT * (_HOPE - worth)
        self.order = sorted(range(len(self.worths)), key=lambda source: -self.worths[source])
        self.asked = None


class CombinedDrafter:
    """The sources see every request and every result; the first that has a draft for a request is used."""

    def __init__(self, context: PluginContext) -> None:
        names = [name.strip() for name in context.options.get("sources", _SOURCES).split(",")]
        self._check(names, context.options)
        self._sources: list[Drafter] = []
        for name in names:
            prefix = f"{name}."
            options = {key[len(prefix) :]: text for key, text in context.options.items() if key.startswith(prefix)}
            self._sources.append(cast(Drafter, load(DRAFTERS, name)(replace(context, options=options))))
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
        """In the first round every request asks the source worth most to it, in the next one those without a draft."""
        drafts: list[Draft] = []
        waiting = [(view, self._live[view.id].order) for view in views if view.id in self._live]
        for round_ in range(len(self._sources)):
            for number, source in enumerate(self._sources):
                asking = [view for view, order in waiting if order[round_] == number]
                if not asking:
                    continue
                for draft in source.propose(asking, deadline_s):
                    if draft.tokens and draft.id in self._live:
                        self._live[draft.id].asked = number
                        drafts.append(draft)
            drafted = {draft.id for draft in drafts}
            waiting = [(view, order) for view, order in waiting if view.id not in drafted]
        return drafts

    def observe(self, results: Sequence[Verified]) -> None:
        """Tell each source what its own drafts brought."""
        told: dict[int, list[Verified]] = {}
        for result in results:
            live = self._live.get(result.id)
            if live is not None and live.asked is not None:
                told.setdefault(live.asked, []).append(result)
                live.learn(result.num_accepted)
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
