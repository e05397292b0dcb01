"""The numbers of an engine whose keys and values lie in pages on a device. Allocates nothing."""

from __future__ import annotations

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.pages.batch import ROOM_FOR_PADDING
from ortserve.runtime.plan import (
    GIB,
    MAX_DRAFTER_KEEP,
    NO_CACHE,
    NO_DRAFTER,
    SWAP_SHARE,
    EnginePlan,
    fit_context,
)
from ortserve.runtime.rotary import regimes_within

MAX_ROWS = 64  # unless the user says more
MAX_CHUNK_TOKENS = 2048  # enough for the matrix units
GUESSED_ROWS = 2  # logits of each sequence that a step has room for when all decode: its token, and a guess
KV_SHARE = 0.92  # of what the weights, the activations and the sampling head leave free
MAX_DEFAULT_SWAP = 4 * GIB  # it is locked in host memory
HOST_SHARE = 0.25  # of the host's free memory, at most, for it
_KERNEL_BYTES = GIB // 4  # scratch of matrix products
_LIVE_ACTIVATIONS = 40  # values per token and hidden channel, at most, that a step holds at once
_ACTIVATION_BYTES = 2  # of one value: 16-bit floats
_LIVE_LOGITS = 12  # arrays of the logits' size that the sampling head holds at once


def plan_paged_engine(manifest: Manifest, config: EngineConfig, *, device_bytes: int, host_bytes: int) -> EnginePlan:
    """Fit pages into the device's free memory, measured with the weights already loaded.

    Raises `MemoryBudgetError` when one sequence of the wanted context does not fit; it names the largest that does.
    """
    size = manifest.kv.page_size
    assert size is not None, "layout pages says the size of its pages"
    bytes_per_block = size * manifest.kv.bytes_per_token
    max_rows = config.max_rows or MAX_ROWS
    max_logit_rows = max(config.max_logit_rows, GUESSED_ROWS * max_rows)
    chunk = config.max_chunk_tokens or MAX_CHUNK_TOKENS
    workspace = (
        _KERNEL_BYTES
        + _LIVE_ACTIVATIONS * chunk * manifest.hidden_size * max(manifest.kv.item_bytes, _ACTIVATION_BYTES)
        + _LIVE_LOGITS * (max_logit_rows + ROOM_FOR_PADDING) * manifest.vocab_size * 4
    )
    budget = max(0, int((device_bytes - workspace) * KV_SHARE)) if config.kv_memory is None else config.kv_memory
    num_blocks = budget // bytes_per_block
    wanted = fit_context(manifest, config, num_blocks * size, budget)
    width = -(-wanted // size)
    # One sequence of the full context always fits beside what the cache may not give back.
    cache_blocks = 0 if config.prompt_cache == NO_CACHE else num_blocks - width
    if config.prompt_cache_memory is not None:
        cache_blocks = min(cache_blocks, config.prompt_cache_memory // bytes_per_block)
    swap = config.swap_memory
    if swap is None:
        swap = min(int(num_blocks * bytes_per_block * SWAP_SHARE), MAX_DEFAULT_SWAP, int(host_bytes * HOST_SHARE))
    return EnginePlan(
        num_rows=max_rows,
        max_context=wanted,
        capacity=width * size,
        block_size=size,
        bytes_per_block=bytes_per_block,
        num_blocks=num_blocks,
        num_host_blocks=swap // bytes_per_block,
        cache_bytes=cache_blocks * bytes_per_block,
        max_chunk_tokens=min(chunk, wanted),
        max_logit_rows=max_logit_rows,
        max_waiting=config.max_waiting,
        max_waiting_tokens=config.max_waiting_tokens,
        max_step_ms=config.max_step_ms,
        deterministic=False,
        drafter_keep_bytes=0 if config.drafter == NO_DRAFTER else MAX_DRAFTER_KEEP,
        shares_blocks=True,
        rotary_regimes=regimes_within(manifest, wanted),
        kv_dtype=manifest.kv.dtype,
    )
