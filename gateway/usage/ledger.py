"""The usage ledger: one JSON line per request that has used a model. Holds no key, no prompt and no reply."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from os import SEEK_END
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from ortserve.gateway.logs import log
from ortserve.gateway.usage.line import UsageLine
from ortserve.gateway.usage.prices import Price
from ortserve.gateway.usage.spending import NUM_DIGITS, Spending, key_name
from ortserve.runtime.errors import OrtserveError

if TYPE_CHECKING:
    from ortserve.gateway.exchange import Exchange

CLOSE_S = 10.0
LOOK_BYTES = 64 * 1024  # a search among lines ends where reading is as fast
SLACK_S = 3600.0  # lines are in order of time but where a clock was set back


class LedgerError(OrtserveError):
    """The ledger cannot be written or read."""


class Ledger:
    """Appends to a file on a thread of its own: a slow disk delays no reply."""

    def __init__(self, path: Path, prices: Mapping[str, Price], spending: Spending | None = None) -> None:
        """`spending` is what the file says has been used. Raises `LedgerError` when it cannot be appended to."""
        self._prices = prices
        self.spending = spending or Spending()
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        try:
            self._file = path.open("ab")
            _end_last_line(path, self._file)
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
            key_digest=key_name(exchange.grant.digest),
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
        self.spending.add(line)
        self._lines.put(msgspec.json.encode(line) + b"\n")

    def close(self) -> None:
        """Write what is left."""
        self._lines.put(None)
        self._thread.join(CLOSE_S)

    def _write(self) -> None:
        is_failing = False
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
        try:
            self._file.close()
        except OSError as error:  # what a full disk has not taken is lost now
            log().error("usage_not_written", error=str(error))


def _end_last_line(path: Path, file: BinaryIO) -> None:
    """A line that a killed server or a full disk has torn must not take the next one with it."""
    if path.is_file() and file.tell():
        with path.open("rb") as whole:
            whole.seek(-1, SEEK_END)
            is_torn = whole.read() != b"\n"
        if is_torn:
            file.write(b"\n")
            file.flush()


def read_ledger(path: Path) -> tuple[list[UsageLine], int]:
    """All lines, and how many were none: a torn last one, for example. Raises `LedgerError`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"{path} cannot be read ({error.strerror}): name the file of --usage-ledger") from None
    lines: list[UsageLine] = []
    num_broken = 0
    for part in data.splitlines():
        line = _line_of(part)
        if line is None:
            num_broken += 1
        else:
            lines.append(line)
    return lines, num_broken


def read_since(path: Path, begin_s: float) -> Iterator[UsageLine]:
    """Requests that have ended at `begin_s` or later, without reading all that was before; none without a file.

    Raises `LedgerError`.
    """
    try:
        with path.open("rb") as file:
            file.seek(_place_of(file, begin_s - SLACK_S))
            for data in file:
                line = _line_of(data)
                if line is not None and line.time >= begin_s:
                    yield line
    except FileNotFoundError:
        return
    except OSError as error:
        raise LedgerError(f"{path} cannot be read ({error.strerror}): check --usage-ledger") from None


def _place_of(file: BinaryIO, begin_s: float) -> int:
    """Where a line begins before which nothing is as late as `begin_s`."""
    low, high = 0, file.seek(0, SEEK_END)
    while high - low > LOOK_BYTES:
        middle = (low + high) // 2
        file.seek(middle)
        file.readline()  # the rest of a line
        place = file.tell()
        line = None
        while line is None and file.tell() < high:
            place = file.tell()
            line = _line_of(file.readline())
        if line is None or line.time >= begin_s:
            high = middle
        else:
            low = place
    return low


def _line_of(data: bytes) -> UsageLine | None:
    try:
        return msgspec.json.decode(data, type=UsageLine)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
