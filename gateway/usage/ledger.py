"""The usage ledger: one JSON line per request that has used a model. Holds no key, no prompt and no reply."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import msgspec

from ortserve.gateway.logs import log
from ortserve.gateway.usage.prices import Price
from ortserve.runtime.errors import OrtserveError

if TYPE_CHECKING:
    from ortserve.gateway.exchange import Exchange

NUM_DIGITS = 16  # of a digest, enough to tell keys apart
CLOSE_S = 10.0


class LedgerError(OrtserveError):
    """The ledger cannot be written or read."""


class UsageLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request. `prompt` has `cached` in it, `completion` has `accepted` in it; times are seconds."""

    time: float  # since the epoch, when it ended
    request_id: str
    key: str  # its name
    key_digest: str
    tenant: str
    model: str
    prompt: int
    cached: int
    completion: int
    accepted: int  # tokens that a drafter had guessed
    seconds: float
    outcome: str
    cost: float | None = None  # None: the model has no price


class Ledger:
    """Appends to a file on a thread of its own: a slow disk delays no reply."""

    def __init__(self, path: Path, prices: Mapping[str, Price]) -> None:
        """Raises `LedgerError` when the file cannot be appended to."""
        self._prices = prices
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        try:
            self._file = path.open("ab")
        except OSError as error:
            raise LedgerError(f"{path} cannot be written ({error.strerror}): check --usage-ledger") from None
        self._thread = threading.Thread(target=self._write, name="ortserve-ledger", daemon=True)
        self._thread.start()

    def record(self, exchange: Exchange) -> None:
        """Take over what a request has used, if it has used anything."""
        if exchange.num_prompt_tokens is None:
            return
        price = self._prices.get(exchange.model)
        counts = exchange.num_prompt_tokens, exchange.num_cached_tokens or 0, exchange.num_output_tokens or 0
        line = UsageLine(
            time=round(time.time(), 3),
            request_id=exchange.request_id,
            key=exchange.grant.name,
            key_digest=exchange.grant.digest.hex()[:NUM_DIGITS],
            tenant=exchange.tenant.hex()[:NUM_DIGITS],
            model=exchange.model,
            prompt=counts[0],
            cached=counts[1],
            completion=counts[2],
            accepted=exchange.num_accepted_tokens,
            seconds=round(time.monotonic() - exchange.started, 4),
            outcome=exchange.outcome,
            cost=None
            if price is None
            else price.cost(num_prompt=counts[0], num_cached=counts[1], num_completion=counts[2]),
        )
        self._lines.put(msgspec.json.encode(line) + b"\n")

    def close(self) -> None:
        """Write what is left."""
        self._lines.put(None)
        self._thread.join(CLOSE_S)

    def _write(self) -> None:
        is_failing = False
        with self._file:
            while (line := self._lines.get()) is not None:
                try:
                    self._file.write(line)
                    if self._lines.empty():
                        self._file.flush()
                except OSError as error:
                    if not is_failing:
                        log().error("usage_not_written", error=str(error))
                    is_failing = True
                else:
                    is_failing = False


def read_ledger(path: Path) -> tuple[list[UsageLine], int]:
    """All lines, and how many were none: a torn last one, for example. Raises `LedgerError`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"{path} cannot be read ({error.strerror}): name the file of --usage-ledger") from None
    lines: list[UsageLine] = []
    num_broken = 0
    for line in data.splitlines():
        try:
            lines.append(msgspec.json.decode(line, type=UsageLine))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            num_broken += 1
    return lines, num_broken
