"""Memory arithmetic of an engine, and errors that name what would fit."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.errors import ConfigurationError, MemoryBudgetError
from ortserve.runtime.manifest import KvLayout, Manifest
from ortserve.runtime.plan import GIB, plan_engine
from ortserve.runtime.sizes import shown_bytes
from ortserve.runtime.slots.kv import PAGE_BYTES, block_size
from ortserve.runtime.step import EXACT_CUT
from tests.runtime.synthetic import SyntheticModel

MIB = 2**20
LAYOUT = KvLayout(kind="slots", num_layers=24, num_kv_heads=2, head_dim=64, dtype="float32")
MANIFEST = Manifest(
    format_version=1,
    name="planned",
    family="llama",
    precision="int8",
    digest="",
    graph="model.onnx",
    min_onnxruntime="1.32.0",
    kv=LAYOUT,
    hidden_size=896,
    num_heads=14,
    vocab_size=1_000,
    num_tokens=1_000,
    max_context=100_000,
    eos_token_ids=(0,),
    bos_token_id=None,
    add_bos=False,
    num_parameters=0,
    weight_bytes=0,
)


@given(st.integers(1, 512))
def test_a_block_fills_whole_pages_and_is_the_smallest_that_does(head_dim: int) -> None:
    size = block_size(replace(LAYOUT, head_dim=head_dim))
    assert size >= 32
    assert size * head_dim * 4 % PAGE_BYTES == 0
    assert not any(count * head_dim * 4 % PAGE_BYTES == 0 for count in range(32, size))


def test_bytes_per_token_count_keys_and_values_of_all_layers() -> None:
    assert LAYOUT.bytes_per_token == 2 * 24 * 2 * 64 * 4


def test_sizes_follow_from_the_budget(synthetic: SyntheticModel) -> None:
    manifest = replace(synthetic.manifest, kv=LAYOUT, max_context=4_096)
    plan = plan_engine(manifest, EngineConfig(max_rows=8, prompt_cache="none"), available_bytes=128 * MIB)
    assert plan.block_size == 32
    assert plan.bytes_per_block == 32 * LAYOUT.bytes_per_token
    assert plan.num_blocks == 64 * MIB // plan.bytes_per_block
    assert plan.kv_bytes == plan.num_blocks * plan.bytes_per_block <= 64 * MIB
    assert plan.max_context == plan.num_blocks * 32  # all that fits, below the model's 4,096
    assert plan.num_host_blocks == plan.num_blocks // 4
    assert plan.capacity % 32 == 0
    assert plan.virtual_bytes == 8 * plan.capacity * LAYOUT.bytes_per_token
    assert f"KV budget {shown_bytes(plan.kv_bytes)} " in str(plan)


def test_no_more_blocks_are_planned_than_all_rows_can_fill(synthetic: SyntheticModel) -> None:
    plan = plan_engine(synthetic.manifest, EngineConfig(max_rows=3, max_context=200), available_bytes=64 * GIB)
    assert plan.num_blocks == 3 * -(-200 // plan.block_size)
    assert plan.max_context == 200


def test_a_default_context_is_the_models_up_to_a_bound(synthetic: SyntheticModel) -> None:
    huge = replace(synthetic.manifest, max_context=10**6)
    assert plan_engine(huge, EngineConfig(), available_bytes=64 * GIB).max_context == 131_072
    assert plan_engine(synthetic.manifest, EngineConfig(), available_bytes=GIB).max_context == 512


def test_budgets_in_bytes_replace_the_shares(synthetic: SyntheticModel) -> None:
    config = EngineConfig(max_context=400, kv_memory=10 * MIB, swap_memory=3 * MIB, prompt_cache="none")
    plan = plan_engine(replace(synthetic.manifest, kv=LAYOUT), config, available_bytes=0)
    assert plan.num_blocks == 10 * MIB // plan.bytes_per_block
    assert plan.num_host_blocks == 3 * MIB // plan.bytes_per_block
    assert plan.swap_bytes <= 3 * MIB
    assert plan_engine(synthetic.manifest, replace(config, swap_memory=0), available_bytes=0).num_host_blocks == 0


def test_a_prompt_cache_gets_host_blocks_beside_those_of_swapping(synthetic: SyntheticModel) -> None:
    manifest = replace(synthetic.manifest, kv=LAYOUT)
    config = EngineConfig(max_context=400, kv_memory=10 * MIB, swap_memory=3 * MIB, prompt_cache="prefix")
    without = plan_engine(manifest, replace(config, prompt_cache="none"), available_bytes=GIB)
    plan = plan_engine(manifest, replace(config, prompt_cache_memory=5 * MIB), available_bytes=GIB)
    assert without.cache_bytes == 0
    assert 4 * MIB < plan.cache_bytes <= 5 * MIB
    assert plan.num_host_blocks == without.num_host_blocks + plan.cache_bytes // plan.bytes_per_block
    assert plan.swap_bytes == without.swap_bytes
    assert 0 < plan_engine(manifest, config, available_bytes=GIB).cache_bytes < GIB // 2


@given(st.integers(1, 40), st.integers(33, 100_000))
def test_an_error_names_the_largest_context_that_fits(num_blocks: int, max_context: int) -> None:
    size = block_size(LAYOUT)
    budget = num_blocks * size * LAYOUT.bytes_per_token + 17
    config = EngineConfig(max_context=max_context, kv_memory=budget)
    if max_context <= num_blocks * size:
        assert plan_engine(MANIFEST, config, available_bytes=0).max_context == max_context
        return
    with pytest.raises(MemoryBudgetError, match=r"^a context of \d+ tokens needs .* lower --max-context") as error:
        plan_engine(MANIFEST, config, available_bytes=0)
    assert "\n" not in str(error.value)
    match = re.search(r"at most (\d+)", str(error.value))
    assert match is not None
    largest = int(match[1])
    assert plan_engine(MANIFEST, replace(config, max_context=largest), available_bytes=0).max_context == largest
    with pytest.raises(MemoryBudgetError):
        plan_engine(MANIFEST, replace(config, max_context=largest + 1), available_bytes=0)


@pytest.mark.parametrize("max_context", [None, 1, 100])
def test_memory_for_no_block_at_all_is_an_error_that_names_no_context(max_context: int | None) -> None:
    config = EngineConfig(max_context=max_context)
    with pytest.raises(MemoryBudgetError, match=r"not even .* raise --kv-memory") as error:
        plan_engine(MANIFEST, config, available_bytes=100_000)
    assert "at most 0" not in str(error.value)


def test_a_context_beyond_the_rotary_tables_is_refused(synthetic: SyntheticModel) -> None:
    with pytest.raises(MemoryBudgetError, match="513 is more than the 512 tokens the exported model covers"):
        plan_engine(synthetic.manifest, EngineConfig(max_context=513), available_bytes=GIB)


@given(st.integers(1, 1_000), st.integers(1, 2_000), st.booleans())
def test_rows_have_room_for_the_context_and_a_chunk(chunk: int, context: int, deterministic: bool) -> None:
    config = EngineConfig(max_chunk_tokens=chunk, max_context=context, deterministic=deterministic)
    plan = plan_engine(MANIFEST, config, available_bytes=64 * GIB)
    assert plan.capacity >= plan.max_context + plan.max_chunk_tokens
    assert plan.capacity - plan.block_size < plan.max_context + plan.max_chunk_tokens
    assert plan.max_chunk_tokens <= context
    if deterministic:
        assert plan.max_chunk_tokens % EXACT_CUT == 0 or plan.max_chunk_tokens == context
        assert plan.max_chunk_tokens in (context, max(EXACT_CUT, chunk - chunk % EXACT_CUT))
    else:
        assert plan.max_chunk_tokens == min(chunk, context)


def test_options_are_handed_on(synthetic: SyntheticModel) -> None:
    config = EngineConfig(max_rows=5, max_waiting=7, max_step_ms=12.5, max_logit_rows=9, deterministic=True)
    plan = plan_engine(synthetic.manifest, config, available_bytes=GIB)
    assert (plan.num_rows, plan.max_waiting, plan.max_step_ms, plan.max_logit_rows) == (5, 7, 12.5, 9)
    assert plan.deterministic


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_rows": 0}, "max_rows must be above 0, not 0"),
        ({"max_context": -5}, "max_context must be above 0, not -5"),
        ({"max_step_ms": float("nan")}, "max_step_ms must be above 0"),
        ({"kv_memory": -1}, "kv_memory must be at least 0, not -1"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        EngineConfig(**options)


def test_a_small_budget_is_not_shown_as_none() -> None:
    assert [shown_bytes(size) for size in (0, 2**19, 6 * MIB, GIB - MIB, GIB, 3 * GIB // 2)] == [
        "0.0 MiB", "0.5 MiB", "6.0 MiB", "1023.0 MiB", "1.00 GiB", "1.50 GiB",
    ]  # fmt: skip
