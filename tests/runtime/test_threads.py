"""Cores are divided: together never more threads than cores, and nobody gets none."""

from __future__ import annotations

import pytest

from ortserve.runtime.errors import ConfigurationError
from ortserve.runtime.host.threads import Threads, divide_threads, share_cores


@pytest.mark.parametrize("cores", range(2, 40))
@pytest.mark.parametrize("wishes", [(None, None), (1, None), (None, 1), (3, None), (None, 2)])
def test_together_never_more_than_the_cores(cores: int, wishes: tuple[int | None, int | None]) -> None:
    threads = divide_threads(cores, has_engine=True, has_encoders=True, engine=wishes[0], encoders=wishes[1])
    assert min(threads.engine, threads.encoders) >= 1
    assert threads.engine + threads.encoders <= max(cores, (wishes[0] or 1) + (wishes[1] or 1))


def test_alone_each_has_all_cores() -> None:
    assert divide_threads(8, has_engine=True, has_encoders=False).engine == 8
    assert divide_threads(8, has_engine=False, has_encoders=True).encoders == 8


def test_a_quarter_is_the_encoders() -> None:
    assert divide_threads(8, has_engine=True, has_encoders=True) == Threads(6, 2)
    assert divide_threads(1, has_engine=True, has_encoders=True) == Threads(1, 1)


def test_wishes_beyond_the_cores_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="--threads 6 and --encoder-threads 3 exceed the 8 cores"):
        divide_threads(8, has_engine=True, has_encoders=True, engine=6, encoders=3)


@pytest.mark.parametrize("cores", [1, 2, 3, 8])
@pytest.mark.parametrize("kinds", [(True, False), (False, True), (True, True)])
def test_what_may_run_at_once_has_no_more_threads_than_there_are_cores(cores: int, kinds: tuple[bool, bool]) -> None:
    shared = share_cores(cores, has_engine=kinds[0], has_encoders=kinds[1])
    threads = shared.threads
    at_once = [threads.engine, threads.encoders]
    is_one_turn = shared.engine_turn is shared.encoder_turn
    assert (max(at_once) if is_one_turn else sum(at_once)) <= cores
    assert is_one_turn or all(kinds)
