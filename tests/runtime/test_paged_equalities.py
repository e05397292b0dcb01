"""The equalities in layout "pages": the same state machine, blocks shared in place, tokens drawn by the head."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.request import Request, SamplingParams
from tests.runtime.paged_synthetic import PagedSyntheticModel, load_paged_synthetic_model
from tests.runtime.synthetic import greedy_tokens, run_to_end, whole
from tests.runtime.test_equalities import MAX_CONTEXT, Equalities, run, with_regimes


@pytest.fixture(scope="module")
def paged(tmp_path_factory: pytest.TempPathFactory) -> PagedSyntheticModel:
    return load_paged_synthetic_model(tmp_path_factory.mktemp("paged"), max_context=512)


class PagedEqualities(Equalities):
    """Blocks of the cache and of running sequences come from one pool."""

    def shrunk(self, plan: EnginePlan, num_spare_blocks: int, num_host_blocks: int) -> EnginePlan:
        self.num_kept_blocks = plan.capacity // plan.block_size + num_host_blocks
        return replace(
            plan,
            num_blocks=self.num_kept_blocks + 4 * num_spare_blocks,
            num_host_blocks=num_host_blocks,
            cache_bytes=num_host_blocks * plan.bytes_per_block,
        )

    def num_cached(self) -> int:
        return len(list(self.engine.reuse.held()))


def test_whatever_happens_beside_a_request_its_reply_stays_the_same(paged: PagedSyntheticModel) -> None:
    run(type("Machine", (PagedEqualities,), {"model": with_regimes(paged), "alone": {}, "num_reads": []}), 8)


def test_restarts_in_between_change_no_reply_either(paged: PagedSyntheticModel) -> None:
    num_reads: list[int] = []
    members = {"model": with_regimes(paged), "alone": {}, "num_reads": num_reads, "has_disk": True}
    run(type("Machine", (PagedEqualities,), members), 3)
    assert sum(num_reads) > 0, "no example has read anything from disk"


@pytest.mark.parametrize("chunk", [1, 5, 64, 128])
def test_greedy_replies_follow_the_models_rule(paged: PagedSyntheticModel, chunk: int) -> None:
    config = EngineConfig(max_rows=4, max_context=MAX_CONTEXT, max_chunk_tokens=chunk)
    engine = paged.engine(paged.plan(config))
    sampling = SamplingParams(temperature=0, max_tokens=30)
    requests = [
        Request(f"r{size}", tuple((size * 31 + place * 7) % 100 for place in range(size)), sampling)
        for size in (1, 2, 3, 17, 127, 128, 129, 200)
    ]
    replies = run_to_end(engine, requests)
    for request in requests:
        assert list(whole(replies[request.id]).token_ids) == greedy_tokens(request.prompt, sampling)
