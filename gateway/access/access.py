"""The keys of a running server: those of flags and those of a file, which is read again when it changes."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from pathlib import Path

from ortserve.gateway.access.grant import Grant, Scope, Unit, digest_of
from ortserve.gateway.access.key_file import KeyFileError, read_key_file
from ortserve.gateway.access.ring import KeyRing
from ortserve.gateway.access.tenancy import tenant_of
from ortserve.gateway.changes import Seen, look
from ortserve.gateway.logs import log

LOOK_S = 1.0


class Access:
    """Belongs to the event loop. `ring` are the keys of now."""

    def __init__(
        self,
        *,
        api_key: str | None = None,
        admin_key: str | None = None,
        file: Path | None = None,
        accounted: Collection[Unit] = (),
    ) -> None:
        """`accounted` is what the server keeps account of: only such budgets can be kept.

        Raises `KeyFileError` for a file that cannot be used. With a file, even an empty one, a key is needed.
        """
        self._accounted = accounted
        self._file = file
        self._fixed = tuple(_flag_grants(api_key, admin_key))
        self._default = tenant_of((api_key or "").encode())
        self._is_open = api_key is None and file is None
        self._seen = Seen() if file is None else look(file)
        self.ring = self._ring_of(() if file is None else read_key_file(file))

    def whose(self, key: str | None) -> bytes:
        """The tenant of a key; of None: that of --api-key, or of those without a key."""
        return self._default if key is None else self.ring.tenant(key.encode())

    async def watch(self, *, every_s: float = LOOK_S) -> None:
        """Take over the file whenever it has changed; runs until it is cancelled."""
        while self._file is not None:
            await asyncio.sleep(every_s)
            seen = await asyncio.to_thread(look, self._file)
            if seen == self._seen:
                continue
            self._seen = seen
            try:
                grants = await asyncio.to_thread(read_key_file, self._file)
                self.ring = self._ring_of(grants)
            except KeyFileError as error:
                # Once per content of the file: what was read before stays in force.
                log().error("api_keys_refused", error=str(error), kept="the keys read before")
            else:
                log().info("api_keys_loaded", keys=len(grants))

    def _ring_of(self, grants: Iterable[Grant]) -> KeyRing:
        own = tuple(grants)
        for grant in own:
            self._check_budgets(grant)
        fixed = {grant.digest for grant in self._fixed}
        double = next((grant for grant in own if grant.digest in fixed), None)
        if double is not None:
            raise KeyFileError(
                f"{self._file}, key {double.name!r}: its hash is that of --api-key or --admin-key; give each its own"
            )
        return KeyRing((*self._fixed, *own), is_open=self._is_open)

    def _check_budgets(self, grant: Grant) -> None:
        unkept = next((one for one in grant.limits.budgets if one.unit not in self._accounted), None)
        if unkept is not None:
            needed = "--usage-ledger" if unkept.unit == "tokens" else "--usage-ledger and --prices"
            raise KeyFileError(
                f"{self._file}, key {grant.name!r}: {unkept.unit}_per_{unkept.period} needs {needed} to be kept"
            )


def _flag_grants(api_key: str | None, admin_key: str | None) -> Iterable[Grant]:
    """What --api-key and --admin-key grant; where nobody needs a key, neither does the administrator for the rest."""
    keys: dict[str, set[Scope]] = {}
    if api_key is not None:
        keys.setdefault(api_key, set()).add("inference")
    if admin_key is not None:
        keys.setdefault(admin_key, set()).update({"admin"} if api_key is not None else {"admin", "inference"})
    for key, scopes in keys.items():
        name = "--api-key" if "inference" in scopes and key == api_key else "--admin-key"
        yield Grant(name, digest_of(key.encode()), tenant_of(key.encode()), frozenset(scopes))
