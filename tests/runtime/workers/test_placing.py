"""Requests stay with their prefixes until another engine would be quicker."""

from __future__ import annotations

from collections import Counter

import pytest

from ortserve.plugins.api import CacheMode
from ortserve.runtime.request import CacheHints, Request
from ortserve.runtime.workers import placing as module
from ortserve.runtime.workers.placing import ROW_TOKENS, Placing, Work

BLOCK = 16
IDLE = Work(4, 0, 0)


def ask(prompt: range, salt: bytes = b"", **fields: object) -> Request:
    return Request("r", tuple(prompt), cache=CacheHints(salt), **fields)  # type: ignore[arg-type]


def test_what_is_new_goes_to_whoever_was_idle_longest() -> None:
    placing = Placing(BLOCK)
    chosen = Counter[int]()
    for number in range(9):
        request = ask(range(1000 * number, 1000 * number + 40))
        first = placing.order(request, dict.fromkeys(range(3), IDLE))[0]
        placing.place(request, first)
        chosen[first] += 1
    assert chosen == {0: 3, 1: 3, 2: 3}


def test_the_longest_known_prefix_decides() -> None:
    placing = Placing(BLOCK)
    placing.place(ask(range(64)), 0)
    placing.place(ask(range(200)), 1)
    engines = dict.fromkeys(range(3), IDLE)
    assert placing.order(ask(range(300)), engines)[0] == 1  # 128 tokens of it, after 64 at the other
    assert placing.order(ask(range(70)), engines)[0] in (0, 1)
    assert placing.order(ask(range(500, 600)), engines)[0] == 2  # unknown: to whoever has had nothing yet


def test_salts_and_requests_without_a_cache_share_nothing() -> None:
    placing = Placing(BLOCK)
    placing.place(ask(range(64), b"one"), 0)
    placing.place(ask(range(500, 501)), 1)
    engines = dict.fromkeys(range(3), IDLE)
    assert placing.order(ask(range(64), b"one"), engines)[0] == 0
    assert placing.order(ask(range(64), b"two"), engines)[0] == 2
    assert placing.order(ask(range(64)), engines)[0] == 2
    off = Request("r", tuple(range(64)), cache=CacheHints(b"one", CacheMode.OFF))
    assert placing.order(off, engines)[0] == 2


def test_a_prefix_is_left_when_computing_it_again_is_quicker() -> None:
    placing = Placing(BLOCK)
    placing.place(ask(range(64)), 0)
    behind = Work(4, 1, 64 - ROW_TOKENS)
    assert placing.order(ask(range(64)), {0: Work(4, 1, 64 - ROW_TOKENS - 1), 1: IDLE})[0] == 0
    assert placing.order(ask(range(64)), {0: behind, 1: IDLE})[0] == 1
    placing.place(ask(range(64)), 1)  # now both have it
    assert placing.order(ask(range(64)), {0: behind, 1: IDLE})[0] == 1
    assert placing.order(ask(range(64)), {0: IDLE, 1: behind})[0] == 0


def test_a_free_row_goes_before_a_prefix() -> None:
    placing = Placing(BLOCK)
    placing.place(ask(range(1600)), 0)
    full, one_left = Work(4, 4, 0), Work(4, 3, 900)
    assert placing.order(ask(range(1600)), {0: full, 1: one_left}) == [1, 0]
    assert placing.order(ask(range(1600)), {0: full, 1: full}) == [0, 1]


def test_without_a_cache_load_alone_decides() -> None:
    placing = Placing(BLOCK, has_cache=False)
    placing.place(ask(range(64)), 0)
    assert placing.order(ask(range(64)), {0: IDLE, 1: IDLE})[0] == 1


def test_choices_follow_the_first_wherever_it_is() -> None:
    placing = Placing(BLOCK)
    first = ask(range(40), group="call")
    placing.place(first, 1)
    assert placing.order(ask(range(40), group="call", choice=1), {0: IDLE, 1: Work(4, 50, 9999)}) == [1]
    assert placing.order(ask(range(40), group="other"), {0: IDLE, 1: Work(4, 50, 9999)})[0] == 0
    placing.forget(1)
    assert placing.order(ask(range(40), group="call", choice=2), {0: IDLE, 1: IDLE})[0] == 0


def test_a_client_s_word_brings_requests_together() -> None:
    placing = Placing(BLOCK)
    engines = {0: IDLE, 1: IDLE}

    def said(prompt: range, word: str, salt: bytes = b"") -> Request:
        return Request("r", tuple(prompt), cache=CacheHints(salt, affinity=word))

    placing.place(said(range(5), "me"), 0)
    placing.place(ask(range(90, 95)), 1)
    placing.place(ask(range(90, 95)), 0)  # so that the other would have its turn
    assert placing.order(said(range(50, 80), "me"), engines)[0] == 0
    assert placing.order(said(range(50, 80), "you"), engines)[0] == 1
    assert placing.order(said(range(50, 80), "me", b"salt"), engines)[0] == 1


def test_what_has_been_lost_is_forgotten() -> None:
    placing = Placing(BLOCK)
    for engine in (0, 1, 0):
        placing.place(ask(range(64)), engine)
    placing.forget(0)
    assert placing.order(ask(range(64)), {0: IDLE, 1: Work(4, 1, 10)})[0] == 1
    placing.clear()
    assert placing.order(ask(range(64)), {0: IDLE, 1: Work(4, 1, 10)})[0] == 0


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KEYS", 100)
    placing = Placing(1)
    for number in range(50):
        placing.place(Request("r", (number, number, number)), 0)
    placing.place(Request("r", (0, 0, 0)), 0)  # used again
    for number in range(5):
        placing.place(Request("r", (10**6 + number,)), 0)
    assert len(placing._holders) == 100
    placing.place(Request("r", (10**7,)), 1)
    engines = {0: Work(4, 0, 1), 1: IDLE}
    assert placing.order(Request("r", (0, 0, 0)), engines)[0] == 0
    assert placing.order(Request("r", (1, 1, 1)), engines)[0] == 1  # the oldest is gone
