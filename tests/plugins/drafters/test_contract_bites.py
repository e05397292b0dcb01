"""The contract catches drafters that are broken in the ways that matter, by the name of the law."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import pytest

from ortserve.plugins.api import PluginContext
from ortserve.plugins.draft_contract import DrafterContract
from ortserve.plugins.drafting import Draft, Drafter, DraftRequest, Ended, SequenceView, Verified
from ortserve.plugins.ngram import NgramDrafter
from ortserve.plugins.suffix import SuffixDrafter


class IgnoresSalt(SuffixDrafter):
    def start(self, request: DraftRequest) -> None:
        super().start(replace(request, salt=b""))


class SharesWithTheNameless(SuffixDrafter):
    """Learns for each salt, but tells the requests without one about all."""

    def forget(self, ended: Sequence[Ended]) -> None:
        for request in ended:
            if request.id in self._live:
                self._tenants.learn(b"", request.output)
        super().forget(ended)


class IgnoresTheLimit(NgramDrafter):
    def propose(self, views: Sequence[SequenceView], deadline_s: float) -> Sequence[Draft]:
        return super().propose([replace(view, max_draft=16) for view in views], deadline_s)


class IsOneBehind(NgramDrafter):
    def propose(self, views: Sequence[SequenceView], deadline_s: float) -> Sequence[Draft]:
        return [replace(draft, length=draft.length - 1) for draft in super().propose(views, deadline_s)]


class RepeatsItself(NgramDrafter):
    """Answers for everyone it has ever answered for."""

    _drafts: dict[str, Draft]

    def propose(self, views: Sequence[SequenceView], deadline_s: float) -> Sequence[Draft]:
        self._drafts = getattr(self, "_drafts", {})
        self._drafts.update({draft.id: draft for draft in super().propose(views, deadline_s)})
        return list(self._drafts.values())


class AnswersTwice(NgramDrafter):
    def propose(self, views: Sequence[SequenceView], deadline_s: float) -> Sequence[Draft]:
        return [*super().propose(views, deadline_s)] * 2


class InventsTokens(NgramDrafter):
    def propose(self, views: Sequence[SequenceView], deadline_s: float) -> Sequence[Draft]:
        return [Draft(view.id, len(view.tokens), (32,), "ngram") for view in views]


class HidesItsSource(NgramDrafter):
    def propose(self, views: Sequence[SequenceView], deadline_s: float) -> Sequence[Draft]:
        return [replace(draft, source="") for draft in super().propose(views, deadline_s)]


class ChangesTheView(NgramDrafter):
    def propose(self, views: Sequence[SequenceView], deadline_s: float) -> Sequence[Draft]:
        for view in views:
            if isinstance(view.tokens, list):
                view.tokens.append(0)
        return ()


class ExpectsEveryStep(NgramDrafter):
    """Relies on being asked before each token."""

    def __init__(self, context: PluginContext) -> None:
        super().__init__(context)
        self._lengths: dict[str, int] = {}

    def start(self, request: DraftRequest) -> None:
        super().start(request)
        self._lengths[request.id] = len(request.prompt)

    def propose(self, views: Sequence[SequenceView], deadline_s: float) -> Sequence[Draft]:
        for view in views:
            assert len(view.tokens) - self._lengths[view.id] <= 10, "tokens have come that were never seen"
            self._lengths[view.id] = len(view.tokens)
        return super().propose(views, deadline_s)


class ForgetsNothing(NgramDrafter):
    def forget(self, ended: Sequence[Ended]) -> None:
        pass


class KeepsEveryResult(NgramDrafter):
    results: ClassVar[list[Verified]] = []

    def observe(self, results: Sequence[Verified]) -> None:
        self.results.extend(replace(result, tokens=tuple(range(500))) for result in results)


class LearnsForever(SuffixDrafter):
    def __init__(self, context: PluginContext) -> None:
        super().__init__(replace(context, options={}, byte_budget=1 << 30))


LAWS = DrafterContract.test_the_laws_of_drafters
SECRETS = DrafterContract.test_what_one_tenant_got_is_no_guess_for_another
MEMORY = DrafterContract.test_memory_is_bounded_after_many_requests
FREES = DrafterContract.test_forget_frees_what_a_request_took


@pytest.mark.parametrize(
    ("broken", "law", "words"),
    [
        (IgnoresSalt, LAWS, "words of another tenant"),
        (IgnoresSalt, SECRETS, "is guessed for"),
        (SharesWithTheNameless, LAWS, "words of another tenant"),
        (SharesWithTheNameless, SECRETS, "is guessed for b''"),
        (IgnoresTheLimit, LAWS, "guesses where"),
        (IsOneBehind, LAWS, "a draft after"),
        (RepeatsItself, LAWS, "which has not asked"),
        (AnswersTwice, LAWS, "two drafts"),
        (InventsTokens, LAWS, "32 is no token"),
        (HidesItsSource, LAWS, "without the name"),
        (ChangesTheView, LAWS, "changed the tokens"),
        (ExpectsEveryStep, LAWS, "never seen"),
        (ForgetsNothing, MEMORY, "more requests left"),
        (ForgetsNothing, FREES, "are left"),
        (KeepsEveryResult, MEMORY, "more requests left"),
        (LearnsForever, MEMORY, "more requests left"),
    ],
)
def test_a_broken_drafter_is_caught(
    broken: Callable[[PluginContext], Drafter], law: Callable[[DrafterContract], None], words: str
) -> None:
    class Contract(DrafterContract):
        shrinks = False
        max_examples = 100  # it stops at the first that fails
        options: ClassVar[Mapping[str, str]] = {}

        def make(self, context: PluginContext) -> Drafter:
            return broken(context)

    with pytest.raises(AssertionError, match=words):
        law(Contract())
