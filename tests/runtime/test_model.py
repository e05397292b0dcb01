"""The in-process API: generate, stream and cancel from any thread; leaving a stream in any way cancels it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ortserve import runtime
from ortserve.runtime.drivers.driver import Driver
from ortserve.runtime.errors import (
    ContextLengthError,
    DeviceError,
    EngineClosedError,
    EngineError,
    ManifestError,
    MemoryBudgetError,
    ModelError,
    RequestError,
)
from ortserve.runtime.manifest import manifest_json
from ortserve.runtime.request import FinishReason, SamplingParams
from ortserve.runtime.testing import write_synthetic_model
from tests.runtime.driving import ENDLESS, Gate, prompt_of
from tests.runtime.synthetic import SyntheticModel, greedy_tokens
from tests.waiting import PATIENCE_S

GREEDY = SamplingParams(temperature=0, max_tokens=20)
SMALL = runtime.EngineConfig(max_rows=2, num_threads=1)


@pytest.fixture
def model(synthetic: SyntheticModel) -> Iterator[runtime.Model]:
    with runtime.open(synthetic.folder, SMALL) as opened:
        yield opened


def held(model: runtime.Model, *, num_free: int = 0) -> Gate:
    driver = model._driver
    assert isinstance(driver, Driver)
    return Gate(driver, num_free=num_free)


def wait_until_idle(model: runtime.Model) -> int:
    """Tokens drawn so far, once nothing runs any more; the request asked here is not counted."""
    reply = model.generate((1,), replace(GREEDY, max_tokens=1))
    assert reply.finish in (FinishReason.LENGTH, FinishReason.STOP)
    assert model.stats().num_running == 0
    return model.stats().num_output_tokens - 1


def test_a_reply_is_what_the_model_predicts_and_says_what_it_cost(model: runtime.Model) -> None:
    prompt = prompt_of(3)
    reply = model.generate(prompt, replace(GREEDY, ignore_eos=True, num_logprobs=2))
    assert list(reply.token_ids) == greedy_tokens(prompt, replace(GREEDY, ignore_eos=True))
    assert reply.finish is FinishReason.LENGTH
    assert [entry.token_id for entry in reply.logprobs] == list(reply.token_ids)
    assert (reply.usage.num_prompt_tokens, reply.usage.num_output_tokens) == (len(prompt), 20)
    assert 0 <= reply.usage.queue_s <= reply.usage.time_to_first_token_s <= reply.usage.total_s


def test_a_list_will_do_as_a_prompt_and_defaults_as_parameters(model: runtime.Model) -> None:
    reply = model.generate([5, 6, 7])
    assert 1 <= reply.usage.num_output_tokens <= model.plan.max_context - 3


def test_a_stream_gives_the_same_tokens_one_by_one_and_then_ends(model: runtime.Model) -> None:
    stream = model.stream(prompt_of(4), GREEDY)
    assert iter(stream) is stream
    deltas = list(stream)
    assert [token for delta in deltas for token in delta.token_ids] == greedy_tokens(prompt_of(4), GREEDY)
    assert [delta.finish is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    assert list(stream) == []
    stream.close()


def test_threads_share_one_engine_and_get_their_own_replies(model: runtime.Model) -> None:
    replies: dict[int, tuple[int, ...]] = {}

    def ask(number: int) -> None:
        replies[number] = model.generate(prompt_of(number), GREEDY).token_ids

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert {number: list(reply) for number, reply in replies.items()} == {
        number: greedy_tokens(prompt_of(number), GREEDY) for number in range(12)
    }


@pytest.mark.parametrize("num_read", [0, 1, 5])
@pytest.mark.parametrize("way", ["close", "with", "drop", "break"])
def test_leaving_a_stream_in_any_way_cancels_its_request(model: runtime.Model, way: str, num_read: int) -> None:
    gate = held(model, num_free=num_read + 1)
    stream = model.stream(prompt_of(5), ENDLESS)
    for _ in range(num_read):
        next(stream)
    if way == "close":
        stream.close()
        assert list(stream) == []
    elif way == "with":
        with stream as same:
            assert same is stream
    elif way == "break":
        for _ in stream:
            break
    del stream
    if way == "with":
        del same
    gc.collect()
    gate.open()
    assert wait_until_idle(model) <= num_read + 2, "it went on after the step that was held"


def test_an_exception_inside_a_stream_cancels_its_request(model: runtime.Model) -> None:
    gate = held(model, num_free=1)

    def read() -> None:
        with model.stream(prompt_of(5), ENDLESS) as stream:
            next(stream)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read()
    gate.open()
    assert wait_until_idle(model) <= 2


def test_another_thread_can_cancel_by_id(model: runtime.Model) -> None:
    gate = held(model, num_free=1)
    stream = model.stream(prompt_of(6), ENDLESS, request_id="mine")
    assert stream.request_id == "mine"
    next(stream)
    thread = threading.Thread(target=model.cancel, args=("mine",))
    thread.start()
    thread.join(PATIENCE_S)
    gate.open()
    deltas = list(stream)
    assert deltas[-1].finish is FinishReason.CANCELLED
    model.cancel("mine")
    model.cancel("unknown")


def test_an_id_in_use_is_refused_and_free_again_afterwards(model: runtime.Model) -> None:
    gate = held(model)
    stream = model.stream((1,), ENDLESS, request_id="mine")
    with pytest.raises(RequestError, match="'mine' is in use"):
        model.generate((2,), GREEDY, request_id="mine")
    model.cancel("mine")
    gate.open()
    list(stream)
    model.generate((2,), GREEDY, request_id="mine")


def test_bad_requests_are_refused_at_once(model: runtime.Model) -> None:
    with pytest.raises(RequestError, match="no tokens"):
        model.stream(())
    with pytest.raises(ContextLengthError):
        model.generate((1,) * model.plan.max_context)
    with pytest.raises(RequestError, match=r"prompt\[0\] is 100"):
        model.stream((100,))


def test_a_request_that_fails_raises_and_the_engine_goes_on(model: runtime.Model) -> None:
    assert isinstance(model._driver, Driver)
    runner = model._driver._engine._runner
    run = runner.run

    def fail(step: object) -> object:
        runner.run = run  # type: ignore[method-assign]
        raise MemoryError("out of memory")

    runner.run = fail  # type: ignore[method-assign]
    stream = model.stream(prompt_of(1), GREEDY)
    with pytest.raises(EngineError, match="out of memory"):
        next(stream)
    assert list(stream) == []
    assert list(model.generate(prompt_of(1), GREEDY).token_ids) == greedy_tokens(prompt_of(1), GREEDY)


def test_closing_ends_what_runs_and_refuses_what_comes(synthetic: SyntheticModel) -> None:
    model = runtime.open(synthetic.folder, SMALL)
    replies: list[runtime.Completion] = []
    begun = threading.Event()

    def ask() -> None:
        begun.set()
        replies.append(model.generate((1, 2), replace(ENDLESS, max_tokens=None)))

    stream = model.stream((1,), ENDLESS)
    thread = threading.Thread(target=ask)
    thread.start()
    begun.wait(PATIENCE_S)
    next(stream)
    model.close()
    thread.join(PATIENCE_S)
    # whichever way the race went, the reply is whole
    assert list(stream)[-1].finish is not None
    assert [reply.usage.num_prompt_tokens for reply in replies] in ([], [2])
    with pytest.raises(EngineClosedError):
        model.generate((1,))
    model.close()


def test_a_request_that_is_running_when_the_model_closes_ends_as_a_whole_reply(synthetic: SyntheticModel) -> None:
    model = runtime.open(synthetic.folder, SMALL)
    stream = model.stream((1, 2), ENDLESS)
    deltas = [next(stream)]
    model.close()
    deltas += stream
    assert deltas[-1].finish in (FinishReason.CANCELLED, FinishReason.LENGTH)
    assert deltas[-1].usage is not None


def test_a_folder_that_cannot_be_served_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="has no manifest"):
        runtime.open(tmp_path)
    manifest = write_synthetic_model(tmp_path)
    for config, error, words in (
        (runtime.EngineConfig(device="tpu"), DeviceError, "--device tpu is unknown"),
        (runtime.EngineConfig(max_context=10**6), MemoryBudgetError, "more than the 256 tokens"),
        (runtime.EngineConfig(kv_memory=1), MemoryBudgetError, "not even"),
    ):
        with pytest.raises(error, match=words):
            runtime.open(tmp_path, config)
    (tmp_path / "manifest.json").write_bytes(manifest_json(replace(manifest, min_onnxruntime="99.0")))
    with pytest.raises(DeviceError, match=r"needs ONNX Runtime 99\.0"):
        runtime.open(tmp_path)
    (tmp_path / "manifest.json").write_bytes(manifest_json(manifest))
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(ModelError, match=r"cannot load .*model\.onnx"):
        runtime.open(tmp_path)


def test_everything_public_is_there_and_nothing_else() -> None:
    for name in runtime.__all__:
        assert getattr(runtime, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'unknown'"):
        runtime.unknown  # noqa: B018
