"""The keys in force at one moment, found without telling by its time how near a wrong one came. Reads no file."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable

from ortserve.gateway.access.grant import Grant, anonymous, digest_of
from ortserve.gateway.access.tenancy import tenant_of


class KeyRing:
    """Immutable. `is_open`: whoever has no key of it may generate all the same."""

    def __init__(self, grants: Iterable[Grant], *, is_open: bool) -> None:
        self.is_open = is_open
        self._secret = secrets.token_bytes(32)  # places in the table cannot be foretold, so its times say nothing
        self._grants = {self._place(grant.digest): grant for grant in grants}

    @property
    def has_admin(self) -> bool:
        """Some key may administrate."""
        return any("admin" in grant.scopes for grant in self._grants.values())

    def find(self, key: bytes) -> Grant | None:
        """What this very key grants."""
        digest = digest_of(key)
        grant = self._grants.get(self._place(digest))
        return grant if grant is not None and hmac.compare_digest(grant.digest, digest) else None

    def caller(self, key: bytes) -> Grant | None:
        """What whoever sends this key is granted; None for a stranger, unless strangers are welcome."""
        return self.find(key) or (anonymous(key) if self.is_open else None)

    def tenant(self, key: bytes) -> bytes:
        """Whose cached prompts a key reaches, whether or not it is one of these."""
        grant = self.find(key)
        return tenant_of(key) if grant is None else grant.tenant

    def of_tenant(self, tenant: bytes) -> Grant | None:
        """What work that a tenant has left behind may do: what every one of its inference keys allows.

        It is charged to the first of them. None when no key of it is left, unless no key is asked for.
        """
        own = [one for one in self._grants.values() if one.tenant == tenant and "inference" in one.scopes]
        if not own:
            return Grant("batch", b"", tenant) if self.is_open else None
        models: frozenset[str] | None = None
        for grant in own:
            if grant.models is not None:
                models = grant.models if models is None else models & grant.models
        return Grant("batch", own[0].digest, tenant, models=models, limits=own[0].limits)

    def _place(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, key=self._secret, digest_size=16).digest()
