"""Who may reuse whose cached prompts: one salt per API key or named tenant, refined by the request. Keeps no key.

Only digests leave this file. A salt is what the prompt cache keys everything by, so two callers share exactly when
their salts are equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

_TENANT = b"ortserve prompt cache tenant v1\0"
_NAMED = b"ortserve named tenant v1\0"
_SALT = b"ortserve prompt cache salt v1\0"


def given_key(headers: Mapping[str, str]) -> bytes:
    """The key a client has sent, as a bearer token or in `x-api-key`; empty when none."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    key = key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    return key.encode("latin-1")


def tenant_of(key: bytes) -> bytes:
    """The tenant of a key, 32 bytes; everyone without a key is one tenant."""
    return hashlib.sha256(_TENANT + key).digest()


def named_tenant(name: str) -> bytes:
    """The tenant of that name in a file of keys, 32 bytes: the same for all its keys, and no key's own."""
    return hashlib.sha256(_NAMED + name.encode("utf-8", "surrogatepass")).digest()


def salt_of(tenant: bytes, refinement: str | None = None) -> bytes:
    """What a request's prefixes are keyed by, 32 bytes. `refinement`, its `cache_salt`, divides a tenant further."""
    if refinement is None:
        return hashlib.sha256(_SALT + tenant).digest()
    # Hashed on its own, so that no refinement can spell another tenant or none.
    inner = hashlib.sha256(refinement.encode("utf-8", "surrogatepass")).digest()
    return hashlib.sha256(_SALT + tenant + inner).digest()
