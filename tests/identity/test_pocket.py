"""One request, many circumstances, one reply.

In deterministic mode tokens and log-probabilities are equal bit for bit. In default mode a one-token row takes another
attention kernel than a longer one (differences of about 1e-6, which 8-bit rounding can enlarge), so tokens must agree
up to the first position where the two most likely tokens of the reply alone are closer than EPSILON.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from time import monotonic, time
from typing import cast

import pytest
from tokenizers import Tokenizer

from ortserve.plugins.api import BlockIo, PluginContext
from ortserve.plugins.draft_model import ModelDrafter
from ortserve.plugins.suffix import SuffixDrafter
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.engine import Engine
from ortserve.runtime.errors import DeviceError
from ortserve.runtime.host.bell import Bell
from ortserve.runtime.opening import open_cache
from ortserve.runtime.opening import open_engine as open_composed
from ortserve.runtime.plan import plan_engine
from ortserve.runtime.request import Completion, Delta, FinishReason, Request, SamplingParams
from ortserve.runtime.scheduling.blocks import BlockPool
from ortserve.runtime.scheduling.cache_blocks import CacheBlocks
from ortserve.runtime.slots.kv import SlotKvStore
from ortserve.runtime.slots.runner import Runner
from ortserve.runtime.speculation.drafting import Drafting
from ortserve.runtime.speculation.small_model import LoadedDraft
from tests.identity.conftest import PocketModel
from tests.runtime.synthetic import run_to_end, whole
from tests.waiting import PATIENCE_S

OpenPocket = Callable[[str], PocketModel]
EPSILON = 0.05  # nats between the two most likely tokens: below it a default-mode reply may go another way
MAX_NEAR_TIES = 0.01  # of all positions compared
QUESTIONS = (
    "Hello!",
    "What is 23 + 58?",
    "What is the capital of France?",
    "Repeat after me: the quick brown fox jumps over the lazy dog.",
    "Reverse the order of these words: one two three four five",
    "Tell me a short story about a lighthouse.",
    "Extract name, city as JSON: Today we met Alice Smith from Paris.",
    "Count from 1 to 20.",
)


def ask(tokenizer: Tokenizer, question: str, system: str = "") -> tuple[int, ...]:
    opening = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    text = opening + _turn(question)
    return tuple(tokenizer.encode(text, add_special_tokens=False).ids)


def requests_for(model: PocketModel) -> list[Request]:
    """Short and long prompts, greedy and sampled, with and without penalties."""
    tokenizer = Tokenizer.from_file(str(model.folder / "tokenizer.json"))
    long_system = " ".join(f"Rule {number}: be kind and answer briefly." for number in range(30))
    found: list[Request] = []
    for number, question in enumerate(QUESTIONS):
        prompt = ask(tokenizer, question, long_system if number % 3 == 2 else "")
        for temperature in (0.0, 0.8):
            sampling = SamplingParams(
                temperature=temperature,
                top_k=20 if number % 2 else 0,
                repetition_penalty=1.1 if number % 4 == 3 else 1.0,
                seed=number,
                max_tokens=70,
                ignore_eos=temperature > 0,  # long replies: memory runs out, and near ties show
                num_logprobs=2,
            )
            found.append(Request(f"{number}-{temperature}", prompt, sampling))
    return found


def drafter_context() -> PluginContext:
    """What a drafter of text needs."""
    return PluginContext(
        options={},
        block_size=32,
        bytes_per_block=1,
        vocab_size=2048,
        max_context=512,
        eos_token_ids=(2,),
        digest="pocket",
        byte_budget=0,
        clock=monotonic,
        wall_clock=time,
        blocks=CacheBlocks(BlockPool(0)),
        io=cast(BlockIo, None),
        wake=lambda: None,
        warn=lambda line: None,
    )


def open_engine(model: PocketModel, config: EngineConfig, *, num_blocks: int | None = None) -> Engine:
    plan = plan_engine(model.manifest, config, available_bytes=2**30)
    if num_blocks is not None:
        plan = replace(plan, num_blocks=num_blocks)
    store = SlotKvStore(
        model.manifest.kv, num_rows=plan.num_rows, capacity=plan.capacity, num_host_blocks=plan.num_host_blocks
    )
    bell = Bell()
    reuse = open_cache(model.manifest, plan, config, store, bell)
    runner = Runner(model.manifest, model.session, store, max_logit_rows=64, deterministic=config.deterministic)
    return Engine(model.manifest, plan, runner, model.sampler, reuse=reuse, bell=bell)


@dataclass(frozen=True, slots=True)
class Circumstance:
    """How the same requests are run."""

    name: str
    config: EngineConfig
    num_blocks: int | None = None


CIRCUMSTANCES = (
    Circumstance("batched", EngineConfig(max_rows=16, max_context=1024)),
    Circumstance("three rows", EngineConfig(max_rows=3, max_context=1024)),
    Circumstance("preempted to host blocks", EngineConfig(max_rows=12, max_context=512, swap_memory=2**26), 16),
    Circumstance("preempted and recomputed", EngineConfig(max_rows=12, max_context=512, swap_memory=0), 16),
)


@cache
def alone(model: PocketModel, requests: tuple[Request, ...], *, deterministic: bool) -> dict[str, Completion]:
    config = EngineConfig(
        max_rows=1, max_context=1024, max_chunk_tokens=1024, deterministic=deterministic, prompt_cache="none"
    )
    replies = [run_to_end(open_engine(model, config), [request]) for request in requests]
    return {name: whole(deltas) for reply in replies for name, deltas in reply.items()}


@pytest.mark.parametrize("circumstance", CIRCUMSTANCES, ids=lambda circumstance: circumstance.name)
@pytest.mark.parametrize("precision", ["int8", "int4", "fp32"])
def test_deterministic_replies_are_equal_bit_for_bit(
    open_pocket: OpenPocket, precision: str, circumstance: Circumstance
) -> None:
    pocket = open_pocket(precision)
    requests = requests_for(pocket)
    expected = alone(pocket, tuple(requests), deterministic=True)
    random.Random(circumstance.name).shuffle(requests)
    engine = open_engine(pocket, replace(circumstance.config, deterministic=True), num_blocks=circumstance.num_blocks)
    replies = run_to_end(engine, requests)
    for request in requests:
        found = whole(replies[request.id])
        assert found.finish in (FinishReason.STOP, FinishReason.LENGTH)
        assert found.token_ids == expected[request.id].token_ids
        assert found.logprobs == expected[request.id].logprobs
    assert (engine.stats().num_preemptions > 0) == (circumstance.num_blocks is not None)


@pytest.mark.parametrize("circumstance", CIRCUMSTANCES, ids=lambda circumstance: circumstance.name)
@pytest.mark.parametrize(("precision", "chunk"), [("int8", 16), ("int8", 128), ("int4", 128)])
def test_default_replies_are_equal_up_to_near_ties(
    open_pocket: OpenPocket, precision: str, chunk: int, circumstance: Circumstance
) -> None:
    pocket = open_pocket(precision)
    requests = [request for request in requests_for(pocket) if request.sampling.temperature == 0]
    expected = alone(pocket, tuple(requests), deterministic=False)
    config = replace(circumstance.config, max_chunk_tokens=chunk)
    replies = run_to_end(open_engine(pocket, config, num_blocks=circumstance.num_blocks), requests)
    check_near_ties(replies, requests, expected)


def check_near_ties(replies: dict[str, list[Delta]], requests: list[Request], expected: dict[str, Completion]) -> None:
    """Another token only where the reply alone was nearly undecided, and seldom."""
    num_positions = num_near_ties = 0
    for request in requests:
        found, plain = whole(replies[request.id]), expected[request.id]
        for place, (token, entry) in enumerate(zip(found.token_ids, plain.logprobs, strict=False)):
            num_positions += 1
            if token != plain.token_ids[place]:
                gap = entry.top[0][1] - entry.top[1][1]
                assert gap < EPSILON, f"{request.id}: another token at {place} although the gap is {gap:.3f}"
                num_near_ties += 1
                break
        else:
            assert len(found.token_ids) == len(plain.token_ids)
    assert num_positions > 100
    assert num_near_ties <= MAX_NEAR_TIES * num_positions


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_cached_replies_are_equal_bit_for_bit(open_pocket: OpenPocket, precision: str) -> None:
    pocket = open_pocket(precision)
    requests = requests_for(pocket)
    expected = alone(pocket, tuple(requests), deterministic=True)
    config = EngineConfig(max_rows=6, max_context=512, deterministic=True, prompt_cache="prefix")
    engine = open_engine(pocket, config)
    for turn in range(2):
        again = [replace(request, id=f"{turn} {request.id}") for request in requests]
        replies = run_to_end(engine, again)
        for request in requests:
            found = whole(replies[f"{turn} {request.id}"])
            assert found.token_ids == expected[request.id].token_ids
            assert found.logprobs == expected[request.id].logprobs
            assert turn == 0 or found.usage.num_cached_tokens == len(request.prompt) - 2


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_replies_that_a_small_model_guesses_are_equal_bit_for_bit(open_pocket: OpenPocket, precision: str) -> None:
    pocket, small = open_pocket(precision), open_pocket("draft int8")
    requests = requests_for(pocket)
    expected = alone(pocket, tuple(requests), deterministic=True)
    config = EngineConfig(max_rows=6, max_context=512, deterministic=True, prompt_cache="prefix")
    engine = open_engine(pocket, config)
    plan = plan_engine(pocket.manifest, config, available_bytes=2**30)
    model = LoadedDraft(small.manifest, small.session, 1).open(plan)
    drafter = ModelDrafter(replace(drafter_context(), load_model=lambda: model))
    engine.drafting = Drafting(drafter, vocab_size=pocket.manifest.num_tokens, shortest_wait_s=PATIENCE_S)
    replies = run_to_end(engine, requests)
    num_accepted = 0
    for request in requests:
        found = whole(replies[request.id])
        assert found.token_ids == expected[request.id].token_ids
        assert found.logprobs == expected[request.id].logprobs
        num_accepted += found.usage.num_accepted_tokens
    engine.close()
    assert num_accepted > 0


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_drafted_replies_are_equal_bit_for_bit(open_pocket: OpenPocket, precision: str) -> None:
    pocket = open_pocket(precision)
    requests = requests_for(pocket)
    expected = alone(pocket, tuple(requests), deterministic=True)
    engine = open_engine(pocket, EngineConfig(max_rows=6, max_context=512, deterministic=True, prompt_cache="none"))
    drafter = SuffixDrafter(drafter_context())
    engine.drafting = Drafting(drafter, vocab_size=pocket.manifest.num_tokens, shortest_wait_s=PATIENCE_S)
    # By this clock guesses are cheap: however busy the machine is, many are verified.
    for tokens in (1, 8, 64):
        engine._pace.observe(tokens, 10 * tokens, 100.0 + tokens)
    engine._pace.observe = lambda *arguments, **options: None  # type: ignore[method-assign]
    num_accepted = 0
    for turn in range(2):  # the second time the drafter has seen the replies
        again = [replace(request, id=f"{turn} {request.id}") for request in requests]
        replies = run_to_end(engine, again)
        for request in requests:
            found = whole(replies[f"{turn} {request.id}"])
            assert found.token_ids == expected[request.id].token_ids
            assert found.logprobs == expected[request.id].logprobs
            num_accepted += found.usage.num_accepted_tokens
    engine.close()
    assert num_accepted > 100


def test_drafted_default_replies_are_equal_up_to_near_ties(open_pocket: OpenPocket) -> None:
    pocket = open_pocket("int8")
    requests = [request for request in requests_for(pocket) if request.sampling.temperature == 0]
    expected = alone(pocket, tuple(requests), deterministic=False)
    engine = open_engine(pocket, EngineConfig(max_rows=6, max_context=512, prompt_cache="none"))
    engine.drafting = Drafting(
        SuffixDrafter(drafter_context()), vocab_size=pocket.manifest.num_tokens, shortest_wait_s=PATIENCE_S
    )
    check_near_ties(run_to_end(engine, requests), requests, expected)
    engine.close()


def test_a_conversation_continues_from_what_was_generated(open_pocket: OpenPocket) -> None:
    pocket = open_pocket("int8")
    tokenizer = Tokenizer.from_file(str(pocket.folder / "tokenizer.json"))
    config = EngineConfig(max_rows=2, max_context=1024, deterministic=True, prompt_cache="prefix")
    engine = open_engine(pocket, config)
    conversation = ask(tokenizer, "My favourite colour is teal.")
    num_before = 0  # tokens that the engine has already computed of this conversation
    for turn, question in enumerate(("What is 3 + 4?", "What is my favourite colour?", "Repeat your last answer.")):
        request = Request(f"turn {turn}", conversation, SamplingParams(temperature=0, max_tokens=60, num_logprobs=0))
        found = whole(run_to_end(engine, [request])[request.id])
        expected = alone(pocket, (replace(request, id=f"alone {turn}"),), deterministic=True)[f"alone {turn}"]
        assert found.token_ids == expected.token_ids
        assert found.logprobs == expected.logprobs
        assert found.usage.num_cached_tokens >= num_before
        num_before = len(conversation) + len(found.token_ids) - 1
        following = tokenizer.encode(f"<|im_end|>\n{_turn(question)}", add_special_tokens=False).ids
        conversation = (*conversation, *found.token_ids, *following)


def _turn(question: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def test_choices_of_one_prompt_are_those_of_separate_requests(open_pocket: OpenPocket) -> None:
    pocket = open_pocket("int8")
    tokenizer = Tokenizer.from_file(str(pocket.folder / "tokenizer.json"))
    prompt = ask(tokenizer, "Tell me a short story about a lighthouse.")
    sampling = SamplingParams(temperature=1.0, seed=11, max_tokens=40, num_logprobs=0)
    requests = [Request(f"choice {number}", prompt, sampling, choice=number, group="call") for number in range(4)]
    expected = alone(pocket, tuple(replace(request, group=None) for request in requests), deterministic=True)
    engine = open_engine(pocket, EngineConfig(max_rows=4, max_context=1024, deterministic=True))
    replies = run_to_end(engine, requests)
    assert len({whole(replies[request.id]).token_ids for request in requests}) > 1
    for request in requests:
        assert whole(replies[request.id]).logprobs == expected[request.id].logprobs


def test_deterministic_mode_refuses_what_it_cannot_hold(
    open_pocket: OpenPocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    pocket = open_pocket("int4")
    half = replace(pocket.manifest, precision="fp16")
    with pytest.raises(DeviceError, match=r"--deterministic needs a model in int8, int4 or fp32, exported for the CPU"):
        open_composed(pocket.folder, half, EngineConfig(deterministic=True))
    monkeypatch.setattr("ortserve.runtime.slots.product_kernels._is_exact", lambda num_threads: False)
    with pytest.raises(DeviceError, match=r"--deterministic cannot be kept .* this CPU: products of its int4 matrices"):
        open_composed(pocket.folder, pocket.manifest, EngineConfig(deterministic=True))
    open_composed(pocket.folder, pocket.manifest, EngineConfig())[0].close()
