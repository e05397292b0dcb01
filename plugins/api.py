"""The contracts between the engine and its plugins. Standard library only: an author needs nothing to type against.

A prompt cache keeps keys and values of token prefixes so that they are computed once. It owns the knowledge (which
block holds which tokens, for whom, for how long); the engine owns the bytes and moves them. A *block* is `block_size`
tokens of all layers; a *block id* is an address in the engine's arena. Who holds a block id has one reference to it.

The life of a request, as a cache sees it, all on the engine's thread:

    lookup   -> Hit            at admission; READY hits are copied into the request's row, then released
    announce -> Ticket         the request starts to compute what the hit did not cover; others may wait for it
    publish  -> refused ids    some blocks are computed: the cache takes the ids it wants, the engine frees the refused
    finish                     nothing more will come

What a cache has taken and does not want any more it gives back through `PluginContext.blocks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from typing import Protocol, TypeAlias

from ortserve.plugins.small_model import SmallModel

BlockId: TypeAlias = int


class CacheMode(StrEnum):
    """What a request lets the cache do."""

    AUTO = "auto"  # reuse any prefix, keep everything
    EXPLICIT = "explicit"  # reuse any prefix, keep only what lies before a breakpoint
    OFF = "off"  # neither


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """The first `num_tokens` tokens will be asked for again within `ttl_s` seconds: keep them at least that long."""

    num_tokens: int
    ttl_s: float


@dataclass(frozen=True, slots=True)
class CacheQuery:
    """One request's prefix. Nothing may ever be reused across different salts."""

    tokens: tuple[int, ...]
    limit: int  # at most so many tokens may be reused: the last ones are computed for their logits
    salt: bytes
    mode: CacheMode = CacheMode.AUTO
    breakpoints: tuple[Breakpoint, ...] = ()
    affinity: str | None = None  # the client's own word for requests that belong together
    durable: bool = True  # False: what it computes may be kept in memory, not where it outlives the process


class HitState(Enum):
    """Whether the blocks of a hit can be copied now."""

    READY = auto()
    LOADING = auto()  # being read from a slower tier
    COMPUTING = auto()  # another request computes them
    FAILED = auto()  # they will not come


@dataclass(frozen=True, slots=True)
class Hit:
    """What a lookup found. Its blocks are pinned until `release`.

    READY: `blocks` hold the first `num_tokens` tokens in order, the last block perhaps in part. LOADING and COMPUTING:
    more than is READY now is expected; look up again once `poll` says so.
    """

    id: int
    state: HitState
    blocks: tuple[BlockId, ...] = ()
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class HitChange:
    """A hit that was LOADING or COMPUTING is now READY or FAILED: release it and look up again."""

    hit_id: int
    state: HitState


@dataclass(frozen=True, slots=True)
class Ticket:
    """One request's promise to compute its tokens."""

    id: int


@dataclass(frozen=True, slots=True)
class Part:
    """Computed blocks of one request: `blocks[i]` holds the tokens from `start + i * block_size` on.

    `start` is a multiple of the block size. `tokens` are all tokens from 0 to the end of the part; the last block may
    be filled in part. `seconds` is what computing the part took, an estimate of what keeping it saves.
    """

    start: int
    tokens: tuple[int, ...]
    blocks: tuple[BlockId, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Entry:
    """One kept block, for people: `key` names it, hexadecimal."""

    key: str
    parent: str | None
    num_tokens: int  # in this block
    depth: int  # tokens before it
    tier: str  # memory, disk
    num_bytes: int
    num_hits: int
    idle_s: float
    pinned_s: float | None  # seconds left; None: not pinned


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counters since the start, and sizes now."""

    num_lookups: int = 0
    num_query_tokens: int = 0  # that could have been reused
    num_hit_tokens: int = 0  # of READY hits
    num_blocks: int = 0  # in memory
    num_bytes: int = 0  # in memory
    num_evicted_blocks: int = 0
    num_published_blocks: int = 0  # taken by `publish`
    num_refused_blocks: int = 0  # returned by `publish`
    seconds_saved: float = 0.0  # estimated from what computing the reused tokens took
    tiers: Mapping[str, TierStats] = field(default_factory=dict)  # slower tiers by name


@dataclass(frozen=True, slots=True)
class TierStats:
    """One slower tier."""

    num_blocks: int = 0
    num_bytes: int = 0
    num_reads: int = 0
    num_writes: int = 0
    num_evicted_blocks: int = 0
    num_ignored_files: int = 0  # damaged, foreign, or of another version
    num_failures: int = 0  # reads and writes that the system refused
    num_skipped_writes: int = 0  # for want of time: the tier was slower than what it was given


class PromptCache(Protocol):
    """Keeps prefixes. Every method is called on the engine's thread and must not block on disks or networks.

    An exception switches the cache off for good; requests go on uncached.
    """

    def lookup(self, query: CacheQuery) -> Hit:
        """The longest usable prefix. A miss is READY with no blocks. Never more than `query.limit` tokens."""

    def poll(self) -> Sequence[HitChange]:
        """Hits that changed since the last call. Called before every step; must be quick when nothing has."""

    def release(self, hit: Hit) -> None:
        """The hit's blocks have been copied, or are not wanted any more."""

    def announce(self, query: CacheQuery, start: int) -> Ticket:
        """This request now computes its tokens from `start` on."""

    def publish(self, ticket: Ticket, part: Part) -> Sequence[BlockId]:
        """Take the part's blocks. Returns the ids it does not keep, such as those of tokens it already holds.

        The others become the cache's when this returns: until then they can be refused, but not given back.
        """

    def finish(self, ticket: Ticket, ok: bool) -> None:
        """No more parts will come. Not `ok`: preempted, cancelled or failed; those who wait must not wait longer."""

    def evict(self, count: int) -> int:
        """Give up to `count` blocks back, the least valuable first; never one that is pinned by a hit or a lifetime.

        Returns how many have been given back, which is more if some were forgotten before and are free only now.
        """

    def held(self) -> Iterable[BlockId]:
        """Every block id it has a reference to, once per reference."""

    def entries(self) -> Iterable[Entry]:
        """What is kept, parents before children."""

    def pin(self, query: CacheQuery, ttl_s: float) -> int:
        """Keep what is stored of this prefix for `ttl_s` seconds (0 ends it). Returns the tokens it covers."""

    def clear(self, salt: bytes | None) -> int:
        """Forget everything of one salt, or all, in every tier; blocks of pinned hits are given back at their release.

        Returns how many blocks have been forgotten.
        """

    def stats(self) -> CacheStats:
        """A snapshot."""

    def close(self) -> None:
        """Stop threads and finish writing within a few seconds; no other method is called afterwards."""


class BlockIo(Protocol):
    """The bytes of arena blocks. May be called from the plugin's own threads."""

    def view(self, block: BlockId) -> AbstractContextManager[memoryview]:
        """The block's bytes, writable, to be used within a `with` statement: where the block lies on a device, what was
        written gets there at its end. Only of a block the plugin holds; a published block must never be written.
        """


class BlockSource(Protocol):
    """Free arena blocks. Engine's thread only."""

    def take(self, count: int) -> Sequence[BlockId]:
        """Up to `count` free blocks, each with a reference. Does not evict."""

    def give_back(self, blocks: Iterable[BlockId]) -> None:
        """Drop one reference of each."""


def _no_model() -> SmallModel:
    raise LookupError("no small model is loaded: name one with --draft-model")


def _no_words() -> Sequence[bytes]:
    return ()


@dataclass(frozen=True, slots=True)
class PluginContext:
    """What a plugin is made with. The numbers never change while it lives."""

    options: Mapping[str, str]
    block_size: int  # tokens
    bytes_per_block: int
    vocab_size: int
    max_context: int
    eos_token_ids: tuple[int, ...]
    digest: str  # of weights, tokenizer, KV layout and dtype: blocks of another digest mean nothing here
    byte_budget: int  # a prompt cache: of arena memory; a drafter: of what it keeps of past requests
    clock: Callable[[], float]  # monotonic, seconds
    wall_clock: Callable[[], float]  # seconds since 1970; may jump
    blocks: BlockSource
    io: BlockIo
    wake: Callable[[], None]  # any thread: `poll` has something to say
    warn: Callable[[str], None]  # any thread: one line for the operator
    load_model: Callable[[], SmallModel] = _no_model  # for a drafter's constructor, once; raises `LookupError`
    load_words: Callable[[], Sequence[bytes]] = _no_words  # the text of each token, by id; empty where nobody knows


PromptCacheFactory: TypeAlias = Callable[[PluginContext], PromptCache]
