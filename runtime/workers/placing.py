"""Which of several engines a request goes to: where it will have the least to wait for. Knows no process.

An engine that has computed the beginning of a prompt has less to do for it, so requests stay where their prefixes are
until that engine is so far behind that computing them again elsewhere is quicker. What has been computed where is
remembered by digests of prefixes of 1, 2, 4, 8, ... blocks, so that a long prompt has few of them; an engine may have
evicted it meanwhile, which costs time and nothing else.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from ortserve.plugins.api import CacheMode
from ortserve.runtime.request import Request

ROW_TOKENS = 32  # prompt tokens that an engine could compute in the time that one more running sequence takes from it
MAX_KEYS = 32_768
MAX_GROUPS = 1024
_KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class Work:
    """What an engine has to do."""

    num_rows: int
    num_requests: int  # that have not ended
    num_tokens: int  # of their prompts, as far as they have said nothing yet


@dataclass(frozen=True, slots=True)
class _Prefix:
    key: bytes
    num_tokens: int


class Placing:
    """Engines are numbers. Not thread-safe."""

    def __init__(self, block_size: int, *, has_cache: bool = True) -> None:
        """Without a cache nothing is known of prefixes, and load alone decides."""
        self._block_size = block_size
        self._has_cache = has_cache
        self._holders: OrderedDict[bytes, int] = OrderedDict()  # by key: a bit for each engine; the latest last
        self._groups: OrderedDict[str, int] = OrderedDict()
        self._turns: dict[int, int] = {}  # when each engine was last chosen
        self._num_placed = 0

    def order(self, request: Request, engines: Mapping[int, Work]) -> list[int]:
        """The engines, the best one first. Those that have a free row come before those that have none.

        Choices of one call go where the first has gone, and only there: their prompt is computed once.
        """
        group = self._groups.get(request.group or "")
        if group is not None and group in engines:
            return [group]
        prefixes = self._prefixes(request)

        def cost(engine: int) -> tuple[bool, int, int]:
            work = engines[engine]
            cached = max((one.num_tokens for one in prefixes if self._has(engine, one.key)), default=0)
            ahead = work.num_tokens + work.num_requests * ROW_TOKENS
            return work.num_requests >= work.num_rows, ahead + len(request.prompt) - cached, self._turns.get(engine, 0)

        return sorted(engines, key=cost)

    def place(self, request: Request, engine: int) -> None:
        """It has gone there."""
        self._num_placed += 1
        self._turns[engine] = self._num_placed
        if request.group is not None:
            self._groups[request.group] = engine
            if len(self._groups) > MAX_GROUPS:
                self._groups.popitem(last=False)
        for prefix in self._prefixes(request):
            self._holders[prefix.key] = self._holders.get(prefix.key, 0) | 1 << engine
            self._holders.move_to_end(prefix.key)
        while len(self._holders) > MAX_KEYS:
            self._holders.popitem(last=False)

    def forget(self, engine: int) -> None:
        """It has lost what it had computed."""
        self._holders = OrderedDict(
            (key, left) for key, holders in self._holders.items() if (left := holders & ~(1 << engine))
        )
        self._groups = OrderedDict(one for one in self._groups.items() if one[1] != engine)

    def clear(self) -> None:
        """All of them have."""
        self._holders.clear()

    def _has(self, engine: int, key: bytes) -> bool:
        return bool(self._holders.get(key, 0) >> engine & 1)

    def _prefixes(self, request: Request) -> Sequence[_Prefix]:
        """Nothing of a request that reads and writes no cache. Never the same for two salts."""
        hints = request.cache
        if hints.mode is CacheMode.OFF or not self._has_cache:
            return ()
        found: list[_Prefix] = []
        if hints.affinity is not None:  # the client's word for it, worth a block until the prompts say more
            digest = blake2b(hints.affinity.encode("utf-8", "surrogatepass"), digest_size=_KEY_BYTES, key=b"affinity")
            digest.update(hints.salt)
            found.append(_Prefix(digest.digest(), min(self._block_size, len(request.prompt))))
        digest = blake2b(len(hints.salt).to_bytes(4, "little") + hints.salt, digest_size=_KEY_BYTES)
        tokens = array("q", request.prompt)
        begin, end = 0, self._block_size
        while end <= len(tokens):
            digest.update(tokens[begin:end])
            found.append(_Prefix(digest.digest(), end))
            begin, end = end, 2 * end
        return found
