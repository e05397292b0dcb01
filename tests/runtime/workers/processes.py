"""Engine processes of a synthetic model, and what is asked of them."""

from __future__ import annotations

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.drivers.engine_driver import EngineDriver
from ortserve.runtime.request import Delta, DraftHints, Request
from ortserve.runtime.workers.balancer import Balancer
from tests.runtime.driving import ENDLESS, Collector, prompt_of

CONFIG = EngineConfig(
    max_rows=3, num_threads=1, kv_memory=2**22, swap_memory=2**20, prompt_cache_memory=2**20, max_waiting=4,
    deterministic=True, drafter="ngram",
)  # fmt: skip
PLAIN = DraftHints(max_draft=0)


def endless(name: str, number: int) -> Request:
    return Request(name, prompt_of(number), ENDLESS, draft=PLAIN)


def tokens_of(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


def run(driver: EngineDriver, request: Request) -> list[Delta]:
    collector = Collector()
    driver.submit(request, collector)
    return collector.wait_for(request.id)


def is_down(balancer: Balancer, number: int) -> bool:
    return pids(balancer)[number] is None


def pids(balancer: Balancer) -> list[int | None]:
    return [worker.pid for worker in balancer.workers()]
