"""The file of API keys: one JSON object per line, read strictly. Holds digests of keys, never keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from ortserve.gateway.access.grant import Budget, Grant, Limits, Scope
from ortserve.gateway.access.tenancy import named_tenant
from ortserve.runtime.errors import OrtserveError

MAX_BYTES = 16 * 1024 * 1024
HASH_PREFIX = "sha256:"

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Bound = Annotated[int, Meta(ge=1)]
Amount = Annotated[float, Meta(gt=0)]


class KeyFileError(OrtserveError):
    """The file of keys cannot be used; names the line and what is wrong there."""


class KeyLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line as it is written. Keys of one tenant share its cached prompts and kept responses."""

    name: Name
    hash: Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}$")]
    tenant: Name | None = None  # its own when absent
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)] = ("inference",)
    models: tuple[Name, ...] | None = None
    requests_per_minute: Bound | None = None
    tokens_per_minute: Bound | None = None
    concurrency: Bound | None = None
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0
    weight: Annotated[int, Meta(ge=1, le=1000)] = 1
    tokens_per_day: Bound | None = None
    tokens_per_month: Bound | None = None
    cost_per_day: Amount | None = None
    cost_per_month: Amount | None = None

    def grant(self) -> Grant:
        """What it means."""
        return Grant(
            name=self.name,
            digest=bytes.fromhex(self.hash.removeprefix(HASH_PREFIX)),
            tenant=named_tenant(self.name if self.tenant is None else self.tenant),
            scopes=frozenset(self.scopes),
            models=None if self.models is None else frozenset(self.models),
            limits=Limits(
                self.requests_per_minute,
                self.tokens_per_minute,
                self.concurrency,
                self.priority,
                self.weight,
                tuple(self._budgets()),
            ),
        )

    def _budgets(self) -> Iterator[Budget]:
        if self.tokens_per_day is not None:
            yield Budget("tokens", "day", self.tokens_per_day)
        if self.tokens_per_month is not None:
            yield Budget("tokens", "month", self.tokens_per_month)
        if self.cost_per_day is not None:
            yield Budget("cost", "day", self.cost_per_day)
        if self.cost_per_month is not None:
            yield Budget("cost", "month", self.cost_per_month)


def read_key_file(path: Path) -> tuple[Grant, ...]:
    """All keys of a file; empty lines and those that begin with # are skipped. Raises `KeyFileError`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read ({error.strerror}): check --api-keys") from None
    if len(data) > MAX_BYTES:
        raise KeyFileError(f"{path} is larger than {MAX_BYTES} bytes: is it a file of keys?")
    names: dict[str, int] = {}
    hashes: dict[str, int] = {}
    grants: list[Grant] = []
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith(b"#"):
            continue
        read = _read_line(line, f"{path}, line {number}")
        for seen, value, word in ((names, read.name, "name"), (hashes, read.hash, "hash")):
            if value in seen:
                raise KeyFileError(
                    f"{path}, line {number}, key {read.name!r}: its {word} is also that of line {seen[value]};"
                    " give each key its own"
                )
            seen[value] = number
        grants.append(read.grant())
    return tuple(grants)


def _read_line(line: bytes, place: str) -> KeyLine:
    try:
        return msgspec.json.decode(line, type=KeyLine)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise KeyFileError(f"{place}{_named(line)}: {error}") from None


def _named(line: bytes) -> str:
    """Which key a wrong line is about, if it says so."""
    try:
        name = msgspec.json.decode(line)["name"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
    return f", key {name!r}"[:120] if isinstance(name, str) else ""
