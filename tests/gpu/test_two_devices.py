"""Two GPUs serve nearly twice as much as one, and say the same. On a machine with both: `pytest -m gpu tests/gpu`.

Layers of an 8B model and few rows, so that the devices are what is measured and not the host, which prepares steps.
Random weights, greedy replies.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from ortserve.export.toys.shapes import SHAPES
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.devices.cuda_devices import cuda_devices
from ortserve.runtime.devices.cuda_library import has_driver
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.request import Completion, Delta, Request, SamplingParams
from ortserve.runtime.session import available_providers
from ortserve.runtime.workers.balancer import Balancer
from ortserve.runtime.workers.launch import WorkerSpec
from ortserve.runtime.workers.restarts import Restarts
from tests.bench.cuda_engine import make_model
from tests.gpu.test_cuda_engine import assert_same
from tests.runtime.synthetic import whole

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not has_driver() or "CUDAExecutionProvider" not in available_providers() or len(cuda_devices()) < 2,
        reason="needs two NVIDIA GPUs",
    ),
]
SHAPE, NUM_LAYERS, NUM_ROWS = "llama-3.1-8b", 8, 16
NUM_REQUESTS, PROMPT, REPLY = 2 * NUM_ROWS, 256, 256
LEAST_RATIO = 1.6
PATIENCE_S = 120.0
CONFIG = EngineConfig(
    max_rows=NUM_ROWS, max_context=1024, kv_memory=2 << 30, swap_memory=0, prompt_cache="none", max_waiting=NUM_REQUESTS
)


class Replies:
    """Keeps deltas by request, and knows when all of them have ended."""

    def __init__(self, num_requests: int) -> None:
        self.deltas: dict[str, list[Delta]] = {}
        self._left = num_requests
        self._lock = threading.Lock()  # each engine has a thread that delivers
        self._done = threading.Event()

    def deliver(self, deltas: Sequence[Delta]) -> None:
        with self._lock:
            for delta in deltas:
                self.deltas.setdefault(delta.request_id, []).append(delta)
                self._left -= delta.finish is not None
            if self._left == 0:
                self._done.set()

    def wait(self) -> None:
        assert self._done.wait(PATIENCE_S), f"{self._left} requests were not answered"


def requests(round_number: int, *, num_logprobs: int | None = None) -> list[Request]:
    sampling = SamplingParams(temperature=0, max_tokens=REPLY, ignore_eos=True, num_logprobs=num_logprobs)
    generator = np.random.default_rng(round_number)
    return [
        Request(f"{round_number}.{place}", tuple(generator.integers(5, 100_000, PROMPT).tolist()), sampling)
        for place in range(NUM_REQUESTS)
    ]


def answered(balancer: Balancer, wanted: list[Request]) -> tuple[float, dict[str, Completion]]:
    """Tokens per second of all of them together, and what they say."""
    outlet = Replies(len(wanted))
    begun = time.perf_counter()
    for request in wanted:
        balancer.submit(request, outlet)
    outlet.wait()
    seconds = time.perf_counter() - begun
    return len(wanted) * REPLY / seconds, {name: whole(own) for name, own in outlet.deltas.items()}


def served_by(names: Sequence[str], exported: tuple[Path, Manifest]) -> tuple[float, dict[str, Completion]]:
    """The best rate of three rounds, and replies with how likely their tokens were.

    Three rounds before them let every process record its steps: a width is recorded when it comes for the second time,
    and each of two processes sees every width half as often.
    """
    specs = [WorkerSpec(name, *exported, replace(CONFIG, device=name, num_threads=1)) for name in names]
    balancer = Balancer(specs, Restarts(delays_s=()))
    try:
        for number in (10, 11, 12):
            answered(balancer, requests(number))
        rates = [answered(balancer, requests(number))[0] for number in (1, 2, 3)]
        assert all(seat.driver.stats().num_finished for seat in balancer._seats)
        return max(rates), answered(balancer, requests(4, num_logprobs=2))[1]
    finally:
        balancer.close()


def test_two_serve_nearly_twice_as_much_and_say_the_same(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("models")
    name = f"{SHAPE}-of-{NUM_LAYERS}"
    with mock.patch.dict(SHAPES, {name: replace(SHAPES[SHAPE], num_layers=NUM_LAYERS)}):
        manifest, _ = make_model(folder, name, "fp16", 2048)
    exported = (folder / f"{name}-fp16", manifest)
    of_one, expected = served_by(["cuda:0"], exported)
    of_two, found = served_by(["cuda:0", "cuda:1"], exported)
    print(f"one GPU {of_one:,.0f} tokens/s, two {of_two:,.0f}: {of_two / of_one:.2f} times")
    assert_same(found, expected)
    assert of_two / of_one >= LEAST_RATIO
