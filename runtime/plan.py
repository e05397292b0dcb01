"""Resolves the user's options into the numbers an engine runs with, before KV memory is mapped. Allocates nothing."""

from __future__ import annotations

from dataclasses import dataclass

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.errors import MemoryBudgetError
from ortserve.runtime.manifest import KvLayout, KvType, Manifest, RotaryRegime
from ortserve.runtime.rotary import regimes_within
from ortserve.runtime.sizes import shown_bytes
from ortserve.runtime.slots.kv import block_size
from ortserve.runtime.step import EXACT_CUT

MAX_DEFAULT_CONTEXT = 131_072
KV_SHARE = 0.5  # of the memory that is free once the weights are loaded
PADDED_KV_SHARE = KV_SHARE / 5  # a padded group holds its rows' keys and values twice more, and as much padding
SWAP_SHARE = 0.25  # of the KV budget, beside it
MAX_ROWS = 16  # unless the user says more
MAX_CHUNK_TOKENS = 128
NO_CACHE = "none"
NO_DRAFTER = "none"
DRAFTER_SHARE = 0.02  # of the memory that is free once the weights are loaded, for what drafters keep of past requests
MAX_DRAFTER_KEEP = 32 * 2**20
DRAFTER_TOKEN_BYTES = 512  # what a drafter keeps of one token of a running request: half a kilobyte in `suffix`
CACHE_SHARE = 0.2  # of the memory that is free once the weights are loaded
MAX_DEFAULT_CACHE = 4 * 2**30
GIB = 2**30


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """Concrete sizes of one engine. A block is `block_size` tokens of all layers."""

    num_rows: int
    max_context: int  # tokens of one sequence
    capacity: int  # tokens a row has room for: the context and one chunk beyond it, padding included
    block_size: int
    bytes_per_block: int
    num_blocks: int  # resident blocks of all rows together
    num_host_blocks: int  # of preempted sequences and of the prompt cache, which gives way to them
    cache_bytes: int  # what the prompt cache may fill of the host blocks
    max_chunk_tokens: int
    max_logit_rows: int
    max_waiting: int
    max_waiting_tokens: int  # of prompts
    max_step_ms: float | None
    deterministic: bool
    drafter_keep_bytes: int = 0  # what the drafter may keep of past requests
    drafter_bytes: int = 0  # that, what it keeps of running requests, and the keys and values of its small model
    shares_blocks: bool = False  # layout "pages": blocks are addresses, and the prompt cache holds the rows' own
    rotary_regimes: tuple[RotaryRegime, ...] = ()  # within `max_context`, shortest first; at least one
    kv_dtype: KvType = "float32"  # what one key or value is stored as

    @property
    def resident_tokens(self) -> int:
        """Tokens that all rows together may hold."""
        return self.num_blocks * self.block_size

    @property
    def kv_bytes(self) -> int:
        """Budget of the rows' resident memory."""
        return self.num_blocks * self.bytes_per_block

    @property
    def swap_bytes(self) -> int:
        """Room of preempted sequences that the prompt cache never fills."""
        if self.shares_blocks:
            return self.num_host_blocks * self.bytes_per_block
        return self.num_host_blocks * self.bytes_per_block - self.cache_bytes

    @property
    def host_bytes(self) -> int:
        """Host memory that all of it may come to hold, weights aside."""
        host_blocks = self.num_host_blocks * self.bytes_per_block
        return host_blocks if self.shares_blocks else self.kv_bytes + host_blocks + self.drafter_bytes

    @property
    def virtual_bytes(self) -> int:
        """Address space of the rows; only what is used becomes resident."""
        return self.num_rows * self.capacity * self.bytes_per_block // self.block_size

    def __str__(self) -> str:
        """One line for the start-up log."""
        return self._sizes() + self._codes() + self._regimes()

    def _codes(self) -> str:
        if self.kv_dtype not in ("int8", "float8e4m3fn"):
            return ""
        return (
            f"; keys and values in {self.kv_dtype}: more tokens fit, long contexts decode no slower,"
            " attention of prompts is slower"
        )

    def _regimes(self) -> str:
        if len(self.rotary_regimes) < 2:
            return ""
        bounds = ", ".join(str(regime.max_tokens) for regime in self.rotary_regimes)
        return f"; positions rotate by the length of a request, prompt and max_tokens: up to {bounds} tokens"

    def _sizes(self) -> str:
        if self.shares_blocks:
            return (
                f"{self.num_rows} rows of {self.max_context} tokens; KV cache {shown_bytes(self.kv_bytes)}"
                f" ({self.num_blocks * self.block_size} tokens, of which the prompt cache may keep"
                f" {shown_bytes(self.cache_bytes)}), swap {shown_bytes(self.swap_bytes)}"
            )
        return (
            f"{self.num_rows} rows of {self.max_context} tokens; KV budget {shown_bytes(self.kv_bytes)}"
            f" ({self.num_blocks * self.block_size} tokens resident at once), swap {shown_bytes(self.swap_bytes)},"
            f" prompt cache {shown_bytes(self.cache_bytes)}, drafter {shown_bytes(self.drafter_bytes)},"
            f" address space {shown_bytes(self.virtual_bytes)}"
        )


def plan_engine(
    manifest: Manifest, config: EngineConfig, *, available_bytes: int, draft: KvLayout | None = None
) -> EnginePlan:
    """Fit rows and context into memory. `available_bytes`: free now, with the weights already loaded.

    `draft` is the layout of a drafter's small model, which may hold as many tokens as the rows.

    Raises `MemoryBudgetError` when one sequence of the wanted context does not fit; it names the largest that does.
    """
    size = block_size(manifest.kv)
    bytes_per_block = size * manifest.kv.bytes_per_token
    share = KV_SHARE if manifest.padded is None else PADDED_KV_SHARE
    budget = int(available_bytes * share) if config.kv_memory is None else config.kv_memory
    keep, token_bytes = _drafter_bytes(config, available_bytes, draft)
    if config.kv_memory is None:
        num_blocks = max(budget - keep, 0) // (bytes_per_block + size * token_bytes)
    else:  # of the rows alone
        num_blocks = budget // bytes_per_block
    wanted = fit_context(manifest, config, num_blocks * size, budget)
    max_rows = config.max_rows or MAX_ROWS
    # More blocks than all rows can use would only be a larger number.
    num_blocks = min(num_blocks, max_rows * -(-wanted // size))
    swap = int(num_blocks * bytes_per_block * SWAP_SHARE) if config.swap_memory is None else config.swap_memory
    cache_blocks = _cache_bytes(config, available_bytes) // bytes_per_block
    chunk = config.max_chunk_tokens or MAX_CHUNK_TOKENS
    if config.deterministic:
        chunk = max(chunk // EXACT_CUT, 1) * EXACT_CUT
    chunk = min(chunk, wanted)
    return EnginePlan(
        num_rows=max_rows,
        max_context=wanted,
        capacity=-(-(wanted + chunk) // size) * size,
        block_size=size,
        bytes_per_block=bytes_per_block,
        num_blocks=num_blocks,
        num_host_blocks=swap // bytes_per_block + cache_blocks,
        cache_bytes=cache_blocks * bytes_per_block,
        max_chunk_tokens=chunk,
        max_logit_rows=config.max_logit_rows,
        max_waiting=config.max_waiting,
        max_waiting_tokens=config.max_waiting_tokens,
        max_step_ms=config.max_step_ms,
        deterministic=config.deterministic,
        drafter_keep_bytes=keep,
        drafter_bytes=keep + num_blocks * size * token_bytes,
        rotary_regimes=regimes_within(manifest, wanted),
        kv_dtype=manifest.kv.dtype,
    )


def fit_context(manifest: Manifest, config: EngineConfig, fits: int, budget: int) -> int:
    """The context that is wanted, or the largest by default. `fits`: tokens that `budget` bytes hold.

    Raises `MemoryBudgetError` when it does not fit.
    """
    size = manifest.kv.page_size or block_size(manifest.kv)
    bytes_per_block = size * manifest.kv.bytes_per_token
    if fits == 0:
        raise MemoryBudgetError(
            f"{budget / 2**20:.1f} MiB for the KV cache hold not even its smallest part of {size} tokens, which is"
            f" {bytes_per_block / 2**20:.1f} MiB: free memory, or raise --kv-memory"
        )
    wanted = config.max_context or min(manifest.max_context, MAX_DEFAULT_CONTEXT, fits)
    if wanted > manifest.max_context:
        raise MemoryBudgetError(
            f"--max-context {wanted} is more than the {manifest.max_context} tokens the exported model covers:"
            " lower it, or export again with a larger --max-context"
        )
    if wanted > fits:
        raise MemoryBudgetError(
            f"a context of {wanted} tokens needs {shown_bytes(wanted * manifest.kv.bytes_per_token)} of KV cache and"
            f" {shown_bytes(budget)} are available: lower --max-context to at most {fits}, or raise --kv-memory"
        )
    return wanted


def _drafter_bytes(config: EngineConfig, available_bytes: int, draft: KvLayout | None) -> tuple[int, int]:
    """What a drafter may keep of past requests, and what it takes for each token of the running ones."""
    if config.drafter == NO_DRAFTER:
        return 0, 0
    keep = min(int(available_bytes * DRAFTER_SHARE), MAX_DRAFTER_KEEP)
    return keep, DRAFTER_TOKEN_BYTES + (0 if draft is None else draft.bytes_per_token)


def _cache_bytes(config: EngineConfig, available_bytes: int) -> int:
    if config.prompt_cache == NO_CACHE:
        return 0
    if config.prompt_cache_memory is not None:
        return config.prompt_cache_memory
    return min(int(available_bytes * CACHE_SHARE), MAX_DEFAULT_CACHE)
