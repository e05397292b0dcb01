"""Caches that answer what they cannot, end the program, or never bring what they promise: they cost only themselves."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import cast

import pytest
from structlog.testing import capture_logs

from ortserve.plugins.api import CacheStats, Hit, HitState, PromptCache
from ortserve.plugins.none import NoCache
from ortserve.runtime.engine import Engine
from ortserve.runtime.request import Completion, Delta, Request
from ortserve.runtime.scheduling.audit import audit
from ortserve.runtime.scheduling.cache_answers import BrokenLawError
from ortserve.runtime.scheduling.reuse import LOAD_LIMIT_S, LOAD_PAUSE_S, new_reuse
from tests.runtime.synthetic import Clock, SyntheticModel, greedy_tokens, whole
from tests.runtime.test_reuse import PREFIX, SAMPLING, one, plan_of


class Answering(NoCache):
    """The null object but for one method."""

    def __init__(self, method: str, answer: Callable[..., object]) -> None:
        super().__init__()
        setattr(self, method, answer)


def advance(engine: Engine, clock: Clock, request: Request, seconds: float) -> Completion:
    """The reply to a request that waits for the cache for just so long."""
    engine.add(request)
    began, deltas = clock.now, list[Delta]()
    while engine.has_work:
        deltas += engine.step()
        if engine.is_stalled:
            assert clock.now < began + seconds, "it waits longer"
            clock.now = began + seconds if clock.now > began else began + seconds - 0.001
    assert clock.now == pytest.approx(began + seconds), "it has not waited"
    return whole(deltas)


def test_a_disk_that_hangs_is_not_waited_for_for_ever(synthetic: SyntheticModel, tmp_path: Path) -> None:
    plan, clock = plan_of(synthetic), Clock()
    former = synthetic.engine(plan, prompt_cache="prefix", cache_folder=tmp_path)
    one(former, Request("former", PREFIX, SAMPLING))
    former.close()
    paths = list(tmp_path.rglob("*.kv"))
    assert paths
    for path in paths:
        path.unlink()
        os.mkfifo(path)  # nobody will ever write into it
    engine = synthetic.engine(plan, clock, prompt_cache="prefix", cache_folder=tmp_path)
    with capture_logs() as logged:
        reply = advance(engine, clock, Request("r", PREFIX, SAMPLING), LOAD_LIMIT_S)
    assert list(reply.token_ids) == greedy_tokens(PREFIX, SAMPLING)
    assert [line["event"] for line in logged] == ["the prompt cache does not load"]
    again = advance(engine, clock, Request("again", PREFIX, SAMPLING), 0.0)
    assert again.usage.num_cached_tokens > 0, "what has been computed instead"
    for path in paths:  # lets the thread go
        with suppress(OSError):
            os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))


def test_after_a_load_that_never_came_nobody_waits_for_a_while(synthetic: SyntheticModel) -> None:
    plan, clock = plan_of(synthetic), Clock()
    hits = count(1)
    loading = Answering("lookup", lambda query: Hit(next(hits), HitState.LOADING))
    reuse = new_reuse(plan, lambda blocks: cast(PromptCache, loading))
    engine = Engine(
        synthetic.manifest, plan, synthetic.engine(plan)._runner, synthetic.sampler, reuse=reuse, clock=clock
    )
    for name, seconds in (("first", LOAD_LIMIT_S), ("second", 0.0), ("third", 0.0)):
        reply = advance(engine, clock, Request(name, PREFIX, SAMPLING), seconds)
        assert list(reply.token_ids) == greedy_tokens(PREFIX, SAMPLING)
    clock.now += LOAD_PAUSE_S
    advance(engine, clock, Request("fourth", PREFIX, SAMPLING), LOAD_LIMIT_S)
    assert audit(engine.scheduler, plan) == []


def raise_exit(*_: object) -> None:
    raise SystemExit("a plugin that ends the program")


@pytest.mark.parametrize(
    ("method", "answer", "reason"),
    [
        ("lookup", lambda query: None, "NoneType where Hit"),
        ("lookup", lambda query: Hit(cast(int, []), HitState.READY), "unhashable"),
        ("lookup", lambda query: Hit(1, HitState.READY, (0,), cast(int, "8")), "TypeError"),
        ("lookup", raise_exit, "SystemExit"),
        ("poll", lambda: None, "not iterable"),
        ("poll", lambda: [7], "int where HitChange"),
        ("announce", lambda query, start: None, "NoneType where Ticket"),
        ("publish", lambda ticket, part: None, "not iterable"),
        ("publish", lambda ticket, part: [*part.blocks, *part.blocks], "twice"),
        ("publish", lambda ticket, part: [99_999], "not offered"),
        ("publish", lambda ticket, part: [[]], "unhashable"),
    ],
)
def test_a_cache_that_inherits_the_null_object_is_asked_and_its_answers_are_checked(
    synthetic: SyntheticModel,
    method: str,
    answer: Callable[..., object],
    reason: str,
) -> None:
    plan = plan_of(synthetic)
    reuse = new_reuse(plan, lambda blocks: cast(PromptCache, Answering(method, answer)))
    reuse.name = "strange"
    engine = Engine(synthetic.manifest, plan, synthetic.engine(plan)._runner, synthetic.sampler, reuse=reuse)
    with capture_logs() as logged:
        reply = one(engine, Request("r", PREFIX, SAMPLING))
    assert list(reply.token_ids) == greedy_tokens(PREFIX, SAMPLING)
    assert type(engine.reuse.cache) is NoCache
    (said,) = (line for line in logged if line["event"] == "the prompt cache is switched off")
    assert said["cache"] == "strange"
    assert reason in said["reason"]
    assert engine.reuse.pool.num_free == plan.num_host_blocks
    assert audit(engine.scheduler, plan) == []


@pytest.mark.parametrize("method", ["clear", "pin", "entries", "stats"])
@pytest.mark.parametrize("answer", [raise_exit, lambda *_: None, lambda *_: ["no entry"]])
def test_what_an_operator_asks_of_a_broken_cache_ends_the_cache(
    synthetic: SyntheticModel, method: str, answer: Callable[..., object]
) -> None:
    reuse = new_reuse(plan_of(synthetic), lambda blocks: cast(PromptCache, Answering(method, answer)))
    ask: dict[str, Callable[[], object]] = {
        "clear": lambda: reuse.clear(None),
        "pin": lambda: reuse.pin(PREFIX, b"", 1.0),
        "entries": reuse.entries,
    }
    with capture_logs() as logged:
        if method == "stats":
            assert reuse.stats() == CacheStats(), "metrics go on"
        else:
            with pytest.raises(BrokenLawError):
                ask[method]()
    assert type(reuse.cache) is NoCache
    assert [line["event"] for line in logged] == ["the prompt cache is switched off"]
