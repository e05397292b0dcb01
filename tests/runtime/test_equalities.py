"""The equalities, by a state machine: whatever is batched, chunked, cached, preempted or cancelled beside a request,
and whatever a cache has kept on disk across a restart, its tokens and the bits of its log-probabilities are those it
has alone. The laws of `audit` hold after every step. Requests beyond `REGIME` tokens rotate otherwise than others.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ortserve.plugins.api import Breakpoint, CacheMode
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.engine import Engine
from ortserve.runtime.manifest import RotaryRegime
from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.request import CacheHints, Completion, Delta, FinishReason, Grammar, Request, SamplingParams
from ortserve.runtime.scheduling.audit import audit
from ortserve.runtime.testing import REGIME_ROWS
from tests.runtime.constraints import CountingGrammars, counting
from tests.runtime.paged_synthetic import PagedSyntheticModel
from tests.runtime.synthetic import LAST_ID, Clock, SyntheticModel, greedy_tokens, run_to_end, whole

MAX_CONTEXT = 384
REGIME = 135  # prompts of about its length are on either side of it by their max_tokens
Model = TypeVar("Model", "SyntheticModel", "PagedSyntheticModel")
samplings = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.0, 0.7, 1.0]),
    top_k=st.sampled_from([0, 0, 5]),
    top_p=st.sampled_from([1.0, 0.8]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 3),
    max_tokens=st.sampled_from([0, 1, 5, 20, 30, 40]),
    min_tokens=st.sampled_from([0, 3]),
    ignore_eos=st.booleans(),
    num_logprobs=st.sampled_from([None, 0, 2]),
    num_prompt_logprobs=st.sampled_from([None, None, 0, 2]),
)
hints = st.builds(
    CacheHints,
    salt=st.sampled_from([b"", b"", b"another tenant"]),
    mode=st.sampled_from([CacheMode.AUTO, CacheMode.AUTO, CacheMode.EXPLICIT, CacheMode.OFF]),
    breakpoints=st.lists(
        st.builds(Breakpoint, st.sampled_from([50, 128, 256]), st.sampled_from([10.0, 100.0])), max_size=1
    ).map(tuple),
)


@dataclass
class Submitted:
    request: Request
    deltas: list[Delta] = field(default_factory=list)


class Equalities(RuleBasedStateMachine):
    """Drives one engine with little memory and compares every reply with a run alone."""

    model: SyntheticModel | PagedSyntheticModel
    alone: dict[tuple[bool, Request], Completion]
    num_reads: list[int]  # blocks that came from disk, by engine
    has_disk = False

    def __init__(self) -> None:
        super().__init__()
        self.submitted: dict[str, Submitted] = {}
        self.reserved: list[int] = []
        self.clock = Clock()
        self.count = 0
        self.folder: TemporaryDirectory[str] | None = None

    @initialize(
        deterministic=st.booleans(),
        num_rows=st.integers(1, 6),
        num_spare_blocks=st.integers(0, 4),
        num_host_blocks=st.sampled_from([0, 1, 20]),
        chunk=st.sampled_from([7, 16, 128]),
        max_logit_rows=st.sampled_from([1, 2, 64]),
        crowd=st.lists(st.integers(112, 127), max_size=6),
        prompt_cache=st.sampled_from(["none", "prefix", "prefix"]),
    )
    def start(
        self,
        deterministic: bool,
        num_rows: int,
        num_spare_blocks: int,
        num_host_blocks: int,
        chunk: int,
        max_logit_rows: int,
        crowd: list[int],
        prompt_cache: str,
    ) -> None:
        if self.has_disk:
            prompt_cache, num_host_blocks = "prefix", 20
        config = EngineConfig(
            max_rows=num_rows,
            max_context=MAX_CONTEXT,
            max_chunk_tokens=chunk,
            max_logit_rows=max_logit_rows,
            deterministic=deterministic,
        )
        plan = self.model.plan(config)
        self.plan: EnginePlan = self.shrunk(plan, num_spare_blocks, num_host_blocks)
        self.prompt_cache = prompt_cache
        if self.has_disk:
            self.folder = TemporaryDirectory()
        self.open()
        if self.has_disk:
            self.add(Request("long", tuple(range(LAST_ID + 1)) * 3, SamplingParams(seed=1, max_tokens=5)))
        for place, length in enumerate(crowd):  # all of which outgrow their first block at about the same time
            prompt = tuple((place + number) % (LAST_ID + 1) for number in range(length))
            sampling = SamplingParams(seed=place, max_tokens=40, ignore_eos=True, num_logprobs=0)
            self.add(Request(f"crowd{place}", prompt, sampling, priority=place % 2))

    def shrunk(self, plan: EnginePlan, num_spare_blocks: int, num_host_blocks: int) -> EnginePlan:
        """Little memory: one sequence of the full context, a few blocks more, and these on the host."""
        self.num_kept_blocks = -(-MAX_CONTEXT // plan.block_size)  # never taken away
        return replace(
            plan,
            num_blocks=self.num_kept_blocks + num_spare_blocks,
            num_host_blocks=num_host_blocks,
            cache_bytes=num_host_blocks * plan.bytes_per_block,
        )

    def num_cached(self) -> int:
        """Resident blocks that a cache holds when nobody runs."""
        return 0

    def open(self) -> None:
        folder = None if self.folder is None else Path(self.folder.name)
        self.engine: Engine = self.model.engine(
            self.plan,
            self.clock,
            prompt_cache=self.prompt_cache,
            cache_folder=folder,
            grammars=CountingGrammars(),
        )

    @precondition(lambda self: self.has_disk and len(self.submitted) < 15)
    @rule()
    def restart(self) -> None:
        """The server stops when all is answered, starts again on what the disk has, and is asked the longest again."""
        while self.engine.has_work:
            self.step(1)
        self.close()
        self.reserved = []
        self.open()
        asked = sorted((one.request for one in self.submitted.values()), key=lambda one: len(one.prompt))
        for request in asked[-3:]:
            self.add(replace(request, id=f"r{self.count}", group=None))
            self.count += 1

    def close(self) -> None:
        self.num_reads += [tier.num_reads for tier in self.engine.reuse.stats().tiers.values()]
        self.engine.close()

    @precondition(lambda self: len(self.submitted) < 12)
    @rule(
        length=st.one_of(st.integers(1, 12), st.integers(112, 127), st.integers(140, 200), st.integers(255, 300)),
        tail=st.integers(0, 5),
        stride=st.integers(1, 2),
        hints=hints,
        sampling=samplings,
        priority=st.sampled_from([0, 0, 1, 2, -1]),
        choices=st.sampled_from([1, 1, 3]),
        calls=st.integers(1, 2),
        grammar=st.sampled_from([None, None, counting(0, 25), counting(9, 9), counting(60, 90)]),
    )
    def submit(
        self,
        length: int,
        tail: int,
        stride: int,
        hints: CacheHints,
        sampling: SamplingParams,
        priority: int,
        choices: int,
        calls: int,
        grammar: Grammar | None,
    ) -> None:
        for _ in range(calls):
            shared = tuple(stride * place * place % (LAST_ID + 1) for place in range(max(length - tail, 1)))
            prompt = (*shared, *((7 + self.count + place) % (LAST_ID + 1) for place in range(tail)))
            group = f"call-{self.count}" if choices > 1 else None
            for choice in range(choices):
                tenant = bytes((self.count % 3,))  # whose turn it is changes nothing that is said
                request = Request(
                    f"r{self.count}", prompt, sampling, priority, choice, group, hints, grammar=grammar, tenant=tenant
                )
                self.count += 1
                self.add(request)

    def add(self, request: Request) -> None:
        self.submitted[request.id] = Submitted(request)
        self.engine.add(request)

    @rule(count=st.sampled_from([1, 5, 40]))
    def step(self, count: int) -> None:
        for _ in range(count):
            for delta in self.engine.step():
                self.submitted[delta.request_id].deltas.append(delta)
            assert audit(self.engine.scheduler, self.plan, outside=self.reserved) == []

    @rule(data=st.data())
    def disturb(self, data: st.DataObject) -> None:
        """Cancel one, let time pass, or take blocks away and give them back, as a prompt cache would."""
        kind = data.draw(st.sampled_from(["cancel", "wait", "shrink", "restore"]))
        blocks = self.engine.scheduler.placement.blocks
        if kind == "cancel" and self.submitted:
            delta = self.engine.cancel(data.draw(st.sampled_from(sorted(self.submitted))))
            if delta is not None:
                self.submitted[delta.request_id].deltas.append(delta)
        elif kind == "wait":
            self.clock.now += data.draw(st.sampled_from([1.0, 40.0]))
        elif kind == "shrink":
            spare = blocks.num_blocks - len(self.reserved) - self.num_kept_blocks
            self.reserved += blocks.allocate(max(0, min(spare, blocks.num_free)))
        elif kind == "restore":
            blocks.release(self.reserved)
            self.reserved = []

    @invariant()
    def laws_hold(self) -> None:
        if hasattr(self, "engine"):
            assert audit(self.engine.scheduler, self.plan, outside=self.reserved) == []

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        if self.has_disk:
            self.restart()
        while self.engine.has_work:
            self.step(1)
        for submitted in self.submitted.values():
            self.check(submitted)
        blocks = self.engine.scheduler.placement.blocks
        assert blocks.num_free == blocks.num_blocks - len(self.reserved) - self.num_cached()
        self.close()
        if self.folder is not None:
            self.folder.cleanup()

    def check(self, submitted: Submitted) -> None:
        request = submitted.request
        assert submitted.deltas, f"{request.id} was never answered"
        assert [delta.finish is not None for delta in submitted.deltas] == [False] * (len(submitted.deltas) - 1) + [
            True
        ]
        found = whole(submitted.deltas)
        expected = self.expected(request)
        assert found.finish is not FinishReason.ERROR
        if found.finish is FinishReason.CANCELLED:
            assert found.token_ids == expected.token_ids[: len(found.token_ids)]
            return
        assert found.finish == expected.finish
        assert found.token_ids == expected.token_ids
        assert [entry.token_id for entry in found.prompt_logprobs] == judged(request)
        if self.plan.deterministic:
            assert found.logprobs == expected.logprobs  # floats: bit for bit
            assert found.prompt_logprobs == expected.prompt_logprobs

    def expected(self, request: Request) -> Completion:
        """The reply of an engine that runs this request alone, in one chunk, and draws what a grammar forces."""
        alone = replace(request, priority=0, group=None, cache=CacheHints())
        key = (self.plan.deterministic, alone)
        if key not in self.alone:
            config = EngineConfig(max_rows=1, max_context=MAX_CONTEXT, deterministic=self.plan.deterministic)
            engine = self.model.engine(self.model.plan(config), grammars=CountingGrammars(tells_forced=False))
            self.alone[key] = whole(run_to_end(engine, [alone])[alone.id])
        return self.alone[key]


def judged(request: Request) -> list[int]:
    """The prompt tokens whose log-probabilities are wanted."""
    return [] if request.sampling.num_prompt_logprobs is None else list(request.prompt[1:])


def with_regimes(model: Model) -> Model:
    """The same model, of which longer requests rotate otherwise."""
    regimes = (RotaryRegime(REGIME, 0), RotaryRegime(model.manifest.max_context, REGIME_ROWS))
    return replace(model, manifest=replace(model.manifest, rotary_regimes=regimes))


def run(machine: type[Equalities], num_examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=num_examples, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_whatever_happens_beside_a_request_its_reply_stays_the_same(synthetic: SyntheticModel) -> None:
    run(type("Machine", (Equalities,), {"model": with_regimes(synthetic), "alone": {}, "num_reads": []}), 25)


def test_restarts_in_between_change_no_reply_either(synthetic: SyntheticModel) -> None:
    num_reads: list[int] = []
    members = {"model": with_regimes(synthetic), "alone": {}, "num_reads": num_reads, "has_disk": True}
    run(type("Machine", (Equalities,), members), 8)
    assert sum(num_reads) > 0, "no example has read anything from disk"


@pytest.mark.parametrize("chunk", [1, 5, 64, 128])
@pytest.mark.parametrize("deterministic", [False, True])
def test_greedy_replies_follow_the_models_rule(synthetic: SyntheticModel, chunk: int, deterministic: bool) -> None:
    config = EngineConfig(max_rows=4, max_context=MAX_CONTEXT, max_chunk_tokens=chunk, deterministic=deterministic)
    engine = synthetic.engine(synthetic.plan(config))
    sampling = SamplingParams(temperature=0, max_tokens=30)
    requests = [
        Request(f"r{size}", tuple((size * 31 + place * 7) % 100 for place in range(size)), sampling)
        for size in (1, 2, 3, 17, 127, 128, 129, 200)
    ]
    replies = run_to_end(engine, requests)
    for request in requests:
        assert list(whole(replies[request.id]).token_ids) == greedy_tokens(request.prompt, sampling)
