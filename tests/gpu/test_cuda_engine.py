"""The paged engine on a GPU: the bundled model's replies equal its emulation's, and stay equal in every circumstance.

Two 16-bit runs may part where the two most likely tokens are as good as equal; anywhere else they must not. On a GPU:
`python -m pytest -m gpu tests/gpu`.
"""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ortserve.export.bundled import resolve_source
from ortserve.export.publish import export_checkpoint
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.devices.cuda import CudaDevice
from ortserve.runtime.devices.cuda_devices import cuda_devices
from ortserve.runtime.devices.cuda_library import has_driver
from ortserve.runtime.devices.device import Device, HostDevice
from ortserve.runtime.engine import Engine
from ortserve.runtime.errors import EngineClosedError
from ortserve.runtime.grammar.guidance import open_grammars
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.opening import open_paged_engine
from ortserve.runtime.pages.runner import DeviceLogits
from ortserve.runtime.pages.sampler import DeviceSampler
from ortserve.runtime.request import Completion, Delta, FinishReason, Grammar, GrammarKind, Request, SamplingParams
from ortserve.runtime.sampling.draw import Draw
from ortserve.runtime.sampling.sampler import Sampler
from ortserve.runtime.session import available_providers
from ortserve.runtime.workers.balancer import Balancer
from ortserve.runtime.workers.launch import WorkerSpec
from ortserve.runtime.workers.restarts import Restarts
from tests.runtime.driving import Collector
from tests.runtime.synthetic import run_to_end, whole

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not has_driver() or "CUDAExecutionProvider" not in available_providers(), reason="needs an NVIDIA GPU"
    ),
]
GAP = 0.06  # nats between the two most likely tokens, below which 16-bit runs may choose differently
MAX_PARTED = 0.01  # of all positions
CONFIG = EngineConfig(max_rows=8, max_context=512, kv_memory=2**26, swap_memory=2**24, prompt_cache="none")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("pocket") / "fp16"
    return folder, export_checkpoint(
        resolve_source("pocket"), folder, precision="fp16", device="cuda", progress=False, verify=False
    )


@pytest.fixture(scope="module", params=["bf16", "int4"])
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("pocket") / str(request.param)
    return folder, export_checkpoint(
        resolve_source("pocket"), folder, precision=str(request.param), device="cuda", progress=False, verify=False
    )


@pytest.fixture(scope="module")
def device() -> CudaDevice:
    return CudaDevice(0)


def engine(exported: tuple[Path, Manifest], device: Device, config: EngineConfig = CONFIG) -> Engine:
    return open_paged_engine(*exported, config, device)[0]


def requests(count: int = 8, *, length: int = 60, sampling: SamplingParams | None = None) -> list[Request]:
    generator = np.random.default_rng(5)
    shared = tuple(generator.integers(5, 400, length).tolist())
    sampling = sampling or SamplingParams(temperature=0)
    sampling = replace(sampling, max_tokens=40, ignore_eos=True, num_logprobs=2)
    return [
        Request(f"r{place}", (*shared[: length - place], place + 5), replace(sampling, seed=place))
        for place in range(count)
    ]


def replies(engine: Engine, wanted: list[Request]) -> dict[str, Completion]:
    found = run_to_end(engine, wanted)
    engine.close()
    return {name: whole(deltas) for name, deltas in found.items()}


def assert_same(
    found: dict[str, Completion], plain: dict[str, Completion], *, gap: float = GAP, max_parted: float = MAX_PARTED
) -> None:
    num_parted = 0
    for name, expected in plain.items():
        got = found[name]
        for place, (one, other) in enumerate(zip(got.token_ids, expected.token_ids, strict=False)):
            if one != other:
                (_, first), (_, second) = expected.logprobs[place].top
                assert first - second < gap, f"{name} parts at {place} with a gap of {first - second:.3f}"
                num_parted += 1
                break
        else:
            assert len(got.token_ids) == len(expected.token_ids)
    assert num_parted <= max(1, max_parted * sum(len(reply.token_ids) for reply in plain.values()))


def test_replies_are_those_of_the_emulation(exported: tuple[Path, Manifest], device: Device) -> None:
    found = replies(engine(exported, device), requests())
    expected = replies(engine(exported, HostDevice()), requests())
    assert_same(found, expected)
    logprobs = [
        (one.logprob, other.logprob)
        for name in expected
        for one, other in zip(found[name].logprobs[:8], expected[name].logprobs[:8], strict=True)
    ]
    assert np.abs(np.subtract(*np.array(logprobs).T)).max() < 0.05


def test_other_precisions_say_nearly_what_their_emulation_says(other: tuple[Path, Manifest], device: Device) -> None:
    gap = 0.06 if other[1].kv.dtype == "float16" else 0.5  # bfloat16 has three bits less
    found = replies(engine(other, device), requests())
    expected = replies(engine(other, HostDevice()), requests())
    assert_same(found, expected, gap=gap, max_parted=0.02)
    assert_same(replies(engine(other, device), requests()), found, gap=gap)


def test_grammars_are_followed_on_the_device(exported: tuple[Path, Manifest], device: Device) -> None:
    """Beside rows without one. How likely the allowed tokens are beside each other, log-probabilities do not say."""
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "n": {"type": "integer"}},
        "required": ["name", "n"],
        "additionalProperties": False,
    }
    grammar = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema))
    wanted = [
        replace(request, grammar=grammar, sampling=replace(request.sampling, ignore_eos=False))
        if place % 2
        else request
        for place, request in enumerate(requests())
    ]
    found, expected = replies(engine(exported, device), wanted), replies(engine(exported, HostDevice()), wanted)
    assert_same(*({name: every[name] for name in ("r0", "r2", "r4", "r6")} for every in (found, expected)))
    grammars = open_grammars(*exported, num_threads=1)
    for name in ("r1", "r3", "r5", "r7"):
        assert found[name].token_ids[0] == expected[name].token_ids[0]
        constraint = grammars.compile(grammar)
        assert all(constraint.accept(token) for token in found[name].token_ids)
        assert constraint.is_complete == (found[name].finish is FinishReason.STOP)


def test_blocks_come_back_from_disk(exported: tuple[Path, Manifest], device: Device, tmp_path: Path) -> None:
    config = replace(CONFIG, prompt_cache="prefix", prompt_cache_options=(("path", str(tmp_path)),))
    wanted = requests(length=400)
    cold = replies(engine(exported, device), wanted)
    replies(engine(exported, device, config), [replace(request, id=f"first-{request.id}") for request in wanted])
    restarted = engine(exported, device, config)
    found = replies(restarted, wanted)
    assert all(reply.usage.num_cached_tokens > 0 for reply in found.values())
    assert_same(found, cold)


def test_batched_equals_alone(exported: tuple[Path, Manifest], device: Device) -> None:
    wanted = requests()
    alone: dict[str, Completion] = {}
    for request in wanted:
        alone |= replies(engine(exported, device), [request])
    assert_same(replies(engine(exported, device), wanted), alone)


def test_cached_equals_cold(exported: tuple[Path, Manifest], device: Device) -> None:
    config = replace(CONFIG, prompt_cache="prefix")
    wanted = requests(length=400)
    cold = replies(engine(exported, device), wanted)
    warm = engine(exported, device, config)
    run_to_end(warm, [replace(request, id=f"first-{request.id}") for request in wanted])
    found = replies(warm, wanted)
    assert all(reply.usage.num_cached_tokens > 0 for reply in found.values())
    assert_same(found, cold)


def test_drafted_equals_plain(exported: tuple[Path, Manifest], device: Device) -> None:
    wanted = requests()
    drafted = replies(engine(exported, device, replace(CONFIG, drafter="ngram")), wanted)
    assert sum(reply.usage.num_accepted_tokens + reply.usage.num_rejected_tokens for reply in drafted.values()) > 0
    assert_same(drafted, replies(engine(exported, device), wanted))


def test_preempted_equals_undisturbed(exported: tuple[Path, Manifest], device: Device) -> None:
    wanted = requests(length=250)
    page_bytes = exported[1].kv.bytes_per_token * (exported[1].kv.page_size or 0)
    tight = engine(exported, device, replace(CONFIG, kv_memory=5 * page_bytes))
    found = replies(tight, wanted)
    assert sum(reply.usage.num_preemptions for reply in found.values()) > 0
    assert_same(found, replies(engine(exported, device), wanted))


def test_recorded_steps_compute_what_eager_ones_do(exported: tuple[Path, Manifest], device: CudaDevice) -> None:
    recorded = engine(exported, device)
    found = replies(recorded, requests())
    assert recorded._runner.recordings  # type: ignore[attr-defined]
    eager_device = CudaDevice(0)
    eager_device._can_record = False
    eager = engine(exported, eager_device)
    assert_same(found, replies(eager, requests()))
    assert not eager._runner.recordings  # type: ignore[attr-defined]


@pytest.mark.parametrize("vocab_size", [512, 128256, 151936])
def test_the_head_draws_what_the_sampler_draws(device: Device, vocab_size: int) -> None:
    generator = np.random.default_rng(1)
    num_tokens, rows = vocab_size - 11, 16
    logits = (generator.standard_normal((rows, vocab_size)) * 3).astype(np.float32)
    address = device.allocate(logits.nbytes)
    device.upload(address, logits.reshape(-1).view(np.uint8))
    head = DeviceSampler(device, vocab_size=vocab_size, num_tokens=num_tokens, max_rows=rows)
    sampler = Sampler(num_tokens)
    num_different = num = 0
    for sampling in (
        SamplingParams(temperature=0),
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.7, min_p=0.05),
        SamplingParams(temperature=0.9, top_k=40),
        SamplingParams(temperature=0.9, top_k=1000),
        SamplingParams(temperature=1.5, top_p=0.9),
        SamplingParams(temperature=0.5, top_p=0.5, logit_bias=((7, 5.0), (9, -50.0)), num_logprobs=3),
    ):
        for position in range(4):
            allowed = np.packbits(generator.random(num_tokens) < 0.02, bitorder="little")
            draws = [
                Draw(sampling, row, 0, position, banned=(3, 4), allowed=allowed if row % 4 == 1 else None)
                for row in range(rows)
            ]
            found = head.draw(DeviceLogits(address, rows, rows), draws)
            expected = sampler.draw(logits.copy(), draws)
            num += rows
            num_different += sum(one.token_id != other.token_id for one, other in zip(found, expected, strict=True))
            for one, other in zip(found, expected, strict=True):
                if one.logprobs is not None and other.logprobs is not None and one.token_id == other.token_id:
                    assert abs(one.logprobs.logprob - other.logprobs.logprob) < 1e-3
                    assert [id for id, _ in one.logprobs.top] == [id for id, _ in other.logprobs.top]
    assert num_different <= num // 100  # rounding at the edge of two tokens' shares


def test_logits_that_are_no_numbers_draw_nothing(device: Device) -> None:
    logits = np.zeros((2, 512), np.float32)
    logits[1, 100] = np.nan
    address = device.allocate(logits.nbytes)
    device.upload(address, logits.reshape(-1).view(np.uint8))
    head = DeviceSampler(device, vocab_size=512, num_tokens=512, max_rows=2)
    for sampling in (SamplingParams(temperature=0), SamplingParams(), SamplingParams(top_p=0.5)):
        found = head.draw(DeviceLogits(address, 2, 2), [Draw(sampling, 0, 0, 0)] * 2)
        assert found[0].token_id is not None
        assert found[1].token_id is None


def test_the_driver_names_this_gpu(device: CudaDevice) -> None:
    facts = cuda_devices()
    assert facts[device.index].index == device.index
    assert facts[device.index].total_bytes >= device.free_bytes()
    assert facts[device.index].capability >= (7, 5)


def test_engines_in_processes_of_their_own(exported: tuple[Path, Manifest], device: CudaDevice) -> None:
    """One on each of two GPUs; where there is one GPU, both share it."""
    names = [f"cuda:{min(number, len(cuda_devices()) - 1)}" for number in range(2)]
    config = replace(CONFIG, num_threads=1)
    specs = [
        WorkerSpec(f"{name} #{place}", *exported, replace(config, device=name)) for place, name in enumerate(names)
    ]
    plain = replies(engine(exported, device), requests())
    balancer = Balancer(specs, Restarts(delays_s=()))
    try:
        assert_same(_told(balancer, requests()), plain)
        assert all(worker.pid is not None for worker in balancer.workers())
        assert all(seat.driver.stats().num_finished for seat in balancer._seats)
        victim = balancer.workers()[0].pid
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(EngineClosedError, match="was killed by SIGKILL"):
            balancer._seats[0].driver.ended.result(30)
        assert_same(_told(balancer, requests()), plain)
    finally:
        balancer.close()


def _told(balancer: Balancer, wanted: list[Request]) -> dict[str, Completion]:
    collector = Collector()
    for request in wanted:
        balancer.submit(request, collector)
    deltas: dict[str, list[Delta]] = {request.id: collector.wait_for(request.id) for request in wanted}
    return {name: whole(own) for name, own in deltas.items()}
