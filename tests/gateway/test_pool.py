"""The worker pool: results, failures, bounds."""

from __future__ import annotations

import asyncio
import threading

import pytest

from ortserve.gateway.errors import ApiError, bad_request
from ortserve.gateway.pool import WorkPool


def test_results_and_failures_come_back() -> None:
    async def main() -> None:
        pool = WorkPool()
        assert await pool.run(threading.current_thread) is not threading.current_thread()
        with pytest.raises(ApiError, match="wrong"):
            await pool.run(fail)
        with pytest.raises(TimeoutError, match="own"):
            await pool.run(time_out)
        pool.close()

    def fail() -> None:
        raise bad_request("wrong")

    def time_out() -> None:
        raise TimeoutError("own")

    asyncio.run(main())


def test_a_full_pool_refuses_and_recovers() -> None:
    async def main() -> None:
        pool = WorkPool(max_pending=2)
        release = threading.Event()
        tasks = [asyncio.create_task(pool.run(release.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as caught:
            await pool.run(release.wait)
        assert caught.value.problem.status == 503
        assert caught.value.problem.headers["retry-after"]
        release.set()
        assert await asyncio.gather(*tasks) == [True, True]
        assert await pool.run(lambda: 7) == 7
        pool.close()

    asyncio.run(main())


def test_runaway_work_ends_the_request_and_keeps_its_place() -> None:
    async def main() -> None:
        pool = WorkPool(max_pending=1, limit_s=0.05)
        release = threading.Event()
        with pytest.raises(ApiError) as caught:
            await pool.run(release.wait)
        assert caught.value.problem.status == 408
        with pytest.raises(ApiError) as caught:
            await pool.run(release.wait)
        assert caught.value.problem.status == 503
        release.set()
        pool.close()

    asyncio.run(main())
