"""Cores are divided: together never more threads than cores, and nobody gets none."""

from __future__ import annotations

from functools import partial

import pytest

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.errors import ConfigurationError
from ortserve.runtime.host.threads import Threads, divide_threads, share_cores
from ortserve.runtime.workers.dividing import divide_config


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


@pytest.mark.parametrize(
    ("cores", "processes", "plan"),
    [
        (2, 1, (1, 1)),
        (4, 1, (3, 1)),
        (3, 2, (2, 1)),
        (4, 2, (3, 1)),
        (4, 3, (3, 1)),
        (8, 2, (6, 2)),
        (8, 6, (6, 2)),
        (8, 7, (7, 1)),
        (16, 2, (12, 4)),
    ],
)
def test_engine_processes_divide_what_encoders_leave(cores: int, processes: int, plan: tuple[int, int]) -> None:
    shared = share_cores(cores, has_engine=True, has_encoders=True, num_processes=processes)
    assert shared.threads == Threads(*plan)
    assert shared.engine_turn is not shared.encoder_turn, "processes take no turns with threads of the server"
    config = EngineConfig(num_threads=plan[0])
    divided = divide_config(config, ["cpu"] * processes, num_cores=cores, available_bytes=2**30, weight_bytes=0)
    threads = [one.num_threads or 0 for one in divided]
    assert min(threads) >= 1
    assert sum(threads) + plan[1] == cores


def test_wishes_hold_for_engine_processes_too() -> None:
    wished = partial(divide_threads, 8, has_engine=True, has_encoders=True, num_processes=2)
    assert wished(engine=2) == Threads(2, 6)
    assert wished(encoders=5) == Threads(3, 5)
    assert wished(engine=4, encoders=2) == Threads(4, 2)


@pytest.mark.parametrize(
    ("cores", "processes", "wishes"),
    [
        (1, 1, {}),
        (1, 2, {}),
        (2, 2, {}),
        (4, 4, {}),
        (3, 2, {"encoders": 2}),
        (8, 2, {"encoders": 7}),
        (4, 2, {"engine": 1}),
    ],
)
def test_engine_processes_without_a_core_each_are_refused_beside_encoders(
    cores: int, processes: int, wishes: dict[str, int]
) -> None:
    with pytest.raises(ConfigurationError, match=rf"--engines {processes} beside encoders needs a core for each"):
        divide_threads(cores, has_engine=True, has_encoders=True, num_processes=processes, **wishes)
    divide_threads(cores, has_engine=True, has_encoders=False, num_processes=processes)  # nobody is beside them


@pytest.mark.parametrize("cores", [1, 2, 3, 8])
@pytest.mark.parametrize("kinds", [(True, False), (False, True), (True, True)])
def test_what_may_run_at_once_has_no_more_threads_than_there_are_cores(cores: int, kinds: tuple[bool, bool]) -> None:
    shared = share_cores(cores, has_engine=kinds[0], has_encoders=kinds[1])
    threads = shared.threads
    at_once = [threads.engine, threads.encoders]
    is_one_turn = shared.engine_turn is shared.encoder_turn
    assert (max(at_once) if is_one_turn else sum(at_once)) <= cores
    assert is_one_turn or all(kinds)
