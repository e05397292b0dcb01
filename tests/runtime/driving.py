"""Drivers on the synthetic model, and an outlet that waits. Knows what must be answered, not how."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.drivers.driver import Driver
from ortserve.runtime.request import Delta, Request, SamplingParams
from tests.runtime.synthetic import SyntheticModel
from tests.waiting import PATIENCE_S

ENDLESS = SamplingParams(temperature=0, ignore_eos=True)  # up to the context


def prompt_of(number: int) -> tuple[int, ...]:
    """Some prompt, other ones for other numbers, 1 to 40 tokens long."""
    return tuple((number * 31 + place * place * 7) % 100 for place in range(1 + number * 13 % 40))


def tokens_of(deltas: list[Delta]) -> list[int]:
    """All of them, in order."""
    return [token for delta in deltas for token in delta.token_ids]


class Collector:
    """Keeps the deltas of any number of requests, and the calls they came in."""

    def __init__(self) -> None:
        self.calls: list[tuple[Delta, ...]] = []
        self._changed = threading.Condition()

    def deliver(self, deltas: Sequence[Delta]) -> None:
        with self._changed:
            self.calls.append(tuple(deltas))
            self._changed.notify_all()

    def of(self, request_id: str) -> list[Delta]:
        """What has come for one request."""
        return [delta for call in list(self.calls) for delta in call if delta.request_id == request_id]

    def wait_for(self, request_id: str, *, num_deltas: int | None = None) -> list[Delta]:
        """Block until so many deltas of a request are there, or its last one."""

        def is_there() -> bool:
            deltas = self.of(request_id)
            return bool(deltas) and (deltas[-1].finish is not None or len(deltas) >= (num_deltas or 10**9))

        with self._changed:
            assert self._changed.wait_for(is_there, PATIENCE_S), f"{request_id} was not answered"
        return self.of(request_id)


@contextmanager
def driving(
    model: SyntheticModel, *, max_rows: int = 4, max_waiting: int = 64, max_context: int = 256
) -> Iterator[Driver]:
    """A driver that is closed in the end."""
    plan = model.plan(EngineConfig(max_rows=max_rows, max_waiting=max_waiting, max_context=max_context))
    driver = Driver(model.engine(plan), model.manifest, plan)
    try:
        yield driver
    finally:
        driver.close()
        assert not driver._thread.is_alive()


class Gate:
    """Holds a driver's engine at the beginning of its next step, or of the one after `num_free` others."""

    def __init__(self, driver: Driver, *, num_free: int = 0) -> None:
        self.num_entered = 0
        self._entered = threading.Semaphore(0)
        self._open = threading.Event()
        step = driver._engine.step

        def gated() -> list[Delta]:
            self.num_entered += 1
            if self.num_entered <= num_free:
                return step()
            self._entered.release()
            assert self._open.wait(PATIENCE_S)
            return step()

        driver._engine.step = gated  # type: ignore[method-assign]

    def wait_until_held(self) -> None:
        assert self._entered.acquire(timeout=PATIENCE_S)

    def open(self) -> None:
        self._open.set()


def greedy(request_id: str, number: int, max_tokens: int = 20) -> Request:
    """A request whose reply the model's rule predicts."""
    return Request(request_id, prompt_of(number), SamplingParams(temperature=0, max_tokens=max_tokens))
