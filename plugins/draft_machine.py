"""Random requests in every legal order, and what must hold for the drafts of them. Knows no drafter and no engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Protocol

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from ortserve.plugins.api import PluginContext
from ortserve.plugins.drafting import Draft, Drafter, DraftRequest, Ended, SequenceView, Verified

_MOST_AT_ONCE = 5
_SALTS = (b"", b"one", b"two")
_NUM_SHARED = 3  # words that all tenants use
_NUM_OWN = 2  # words of each tenant, which nobody else may ever see
_PHRASES = ((0, 1, 2), (0, 1, 2, 3), (0, 1, 2, 4, 3), (2, 0), (1,))  # what begins alike ends in one's own words
_WORDS = st.lists(st.sampled_from(_PHRASES), min_size=1, max_size=4).map(lambda phrases: sum(phrases, ()))
_WHICH = st.integers(0, _MOST_AT_ONCE - 1)
_ROWS = st.lists(_WHICH, min_size=1, max_size=_MOST_AT_ONCE, unique=True)


class Contract(Protocol):
    """What is tested. `DrafterContract` is one."""

    def new_context(self) -> PluginContext:
        """What a new drafter is made with."""

    def make(self, context: PluginContext) -> Drafter:
        """A new drafter."""


@dataclass(slots=True, eq=False)
class Running:
    """One request that has been started."""

    request: DraftRequest
    tokens: list[int]

    def view(self, max_draft: int) -> SequenceView:
        """As it stands. Some engines have lists, some tuples; some weigh chances, and have room for more then."""
        tokens = list(self.tokens) if len(self.tokens) % 2 else tuple(self.tokens)
        room = max_draft + 3 if len(self.tokens) % 3 else None
        return SequenceView(self.request.id, tokens, len(self.request.prompt), max_draft, room=room)

    def ended(self) -> Ended:
        """As the engine reports its end."""
        return Ended(self.request.id, tuple(self.tokens[len(self.request.prompt) :]))


@dataclass(slots=True)
class Tenant:
    """One salt, and all that was ever said to the drafter about it."""

    salt: bytes
    own: range  # its words
    calls: list[Callable[[Drafter], object]] = field(default_factory=list)

    def said(self, words: Sequence[int]) -> tuple[int, ...]:
        """Tokens for drawn words: the same for all tenants where the word is shared."""
        return tuple(word if word < _NUM_SHARED else self.own[word - _NUM_SHARED] for word in words)


class DrafterMachine(RuleBasedStateMachine):
    """The requests of one engine."""

    def __init__(self, contract: Contract) -> None:
        super().__init__()
        self._contract = contract
        self._context = contract.new_context()
        self._drafter = contract.make(self._context)
        firsts = range(_NUM_SHARED, _NUM_SHARED + _NUM_OWN * len(_SALTS), _NUM_OWN)
        self._tenants = {
            salt: Tenant(salt, range(first, first + _NUM_OWN)) for salt, first in zip(_SALTS, firsts, strict=True)
        }
        self._running: list[Running] = []
        self._names = [f"request {number}" for number in range(_MOST_AT_ONCE)]  # those that are free, to be used again

    @rule(
        salt=st.sampled_from(_SALTS), prompt=_WORDS, said=_WORDS, prediction=st.none() | _WORDS, is_late=st.booleans()
    )
    def start(
        self,
        salt: bytes,
        prompt: tuple[int, ...],
        said: tuple[int, ...],
        prediction: tuple[int, ...] | None,
        is_late: bool,
    ) -> None:
        """A request starts; the drafter may hear of it when it has got some tokens already."""
        if self._names:
            tenant = self._tenants[salt]
            predicted = None if prediction is None else tenant.said(prediction)
            request = DraftRequest(self._names.pop(0), salt, tenant.said(prompt), predicted)
            self._running.append(Running(request, [*request.prompt, *(tenant.said(said) if is_late else ())]))
            self._call([salt], lambda drafter, _: drafter.start(request))

    @rule(
        rows=_ROWS,
        limits=st.lists(st.integers(1, 9), min_size=5, max_size=5),
        luck=st.lists(st.integers(0, 9), min_size=5, max_size=5),
        next_=_WORDS,
        is_committed=st.integers(0, 5),
    )
    def step(
        self, rows: list[int], limits: list[int], luck: list[int], next_: tuple[int, ...], is_committed: int
    ) -> None:
        """Some requests ask for drafts. A step that fails commits nothing and is repeated."""
        asking = self._chosen(rows)
        if not asking:
            return
        views = [one.view(limit) for one, limit in zip(asking, limits, strict=False)]
        drafts = self._propose(asking, views)
        if is_committed == 0:
            return
        results: list[tuple[bytes, Verified]] = []
        for number, (one, view) in enumerate(zip(asking, views, strict=True)):
            draft = drafts.get(view.id)
            guesses = draft.tokens[: max(1, luck[number])] if draft else ()  # the engine may feed fewer than it got
            accepted = guesses[: luck[-number - 1]]
            word = self._tenants[one.request.salt].said(next_[number % len(next_) :][:1])
            one.tokens.extend((*accepted, *word))
            if draft and guesses:
                verified = Verified(view.id, draft.source, len(guesses), len(accepted), (*accepted, *word))
                results.append((one.request.salt, verified))
        if results:
            self._call(
                [salt for salt, _ in results],
                lambda drafter, salt: drafter.observe([result for its, result in results if salt in (its, None)]),
            )

    @rule(salt=st.sampled_from(_SALTS), prompt=_WORDS, said=_WORDS)
    def serve(self, salt: bytes, prompt: tuple[int, ...], said: tuple[int, ...]) -> None:
        """A request comes and goes before the next one: without this most examples would learn little."""
        if self._names:
            self.start(salt, prompt, said, None, True)
            one = self._running[-1]
            self._propose([one], [one.view(4)])
            self.forget([len(self._running) - 1])

    @rule(which=_WHICH, said=_WORDS)
    def grow(self, which: int, said: tuple[int, ...]) -> None:
        """A request goes on undrafted, which nobody tells the drafter."""
        for one in self._chosen([which]):
            one.tokens.extend(self._tenants[one.request.salt].said(said))

    @rule(rows=_ROWS)
    def forget(self, rows: list[int]) -> None:
        """Requests end; their names may come again, for another tenant."""
        ended = self._chosen(rows)
        if ended:
            told = [(one.request.salt, one.ended()) for one in ended]
            self._running = [one for one in self._running if one not in ended]
            self._names.extend(one.request.id for one in ended)
            self._call(
                [salt for salt, _ in told],
                lambda drafter, salt: drafter.forget([one for its, one in told if salt in (its, None)]),
            )

    def teardown(self) -> None:
        """Every example ends as a server does, with requests still running."""
        self._drafter.close()

    def _chosen(self, rows: Sequence[int]) -> list[Running]:
        return [self._running[row] for row in rows if row < len(self._running)]

    def _propose(self, asking: Sequence[Running], views: Sequence[SequenceView]) -> dict[str, Draft]:
        copies = [tuple(view.tokens) for view in views]
        drafts = self._drafter.propose(views, inf)
        assert [tuple(view.tokens) for view in views] == copies, "the drafter has changed the tokens of a view"
        by_id = {view.id: view for view in views}
        running = {one.request.id: one for one in asking}
        for draft in drafts:
            assert draft.id in by_id, f"a draft for {draft.id}, which has not asked"
            self._check(draft, by_id[draft.id])
            self._check_secrets(draft, by_id[draft.id], self._tenants[running[draft.id].request.salt])
        found = {draft.id: draft for draft in drafts}
        assert len(found) == len(drafts), "two drafts for one request"
        for salt in {one.request.salt for one in asking}:
            its_views = [view for view in views if running[view.id].request.salt == salt]
            self._tenants[salt].calls.append(partial(_ask, its_views))
        return found

    def _check(self, draft: Draft, view: SequenceView) -> None:
        assert draft.length == len(view.tokens), f"a draft after {draft.length} tokens of {len(view.tokens)}"
        most = view.most if draft.chances else view.max_draft
        assert len(draft.tokens) <= most, f"{len(draft.tokens)} guesses where {most} are allowed"
        assert isinstance(draft.tokens, tuple), "the guesses of a draft are a tuple"
        for token in draft.tokens:
            is_token = isinstance(token, int) and 0 <= token < self._context.vocab_size
            assert is_token, f"{token!r} is no token of {self._context.vocab_size}"
        assert len(draft.chances) in (0, len(draft.tokens)), (
            f"{len(draft.chances)} chances of {len(draft.tokens)} guesses"
        )
        assert all(0 <= chance <= 1 for chance in draft.chances), f"chances beyond 0 to 1: {draft.chances}"
        assert draft.source, "a draft without the name of its source"

    def _check_secrets(self, draft: Draft, view: SequenceView, tenant: Tenant) -> None:
        """A tenant's own words may be guessed for others by chance only: then one that never saw them does it too."""
        secrets = {word for other in self._tenants.values() if other is not tenant for word in other.own}
        if not secrets.intersection(draft.tokens):
            return
        innocent = self._contract.make(self._contract.new_context())
        for call in tenant.calls:
            call(innocent)
        repeated = [again.tokens for again in innocent.propose([view], inf)]
        innocent.close()
        assert draft.tokens in repeated, f"words of another tenant are guessed for {tenant.salt!r}: {draft.tokens}"

    def _call(self, salts: Sequence[bytes], action: Callable[[Drafter, bytes | None], object]) -> None:
        """Do it now for all, and remember it for each salt it is about."""
        action(self._drafter, None)
        for salt in set(salts):
            self._tenants[salt].calls.append(partial(_tell, action, salt))


def _ask(views: Sequence[SequenceView], drafter: Drafter) -> None:
    drafter.propose(views, inf)


def _tell(action: Callable[[Drafter, bytes | None], object], salt: bytes, drafter: Drafter) -> None:
    action(drafter, salt)
