"""What the settings of access mean: the keys a server begins with. Knows no ledger and no route."""

from __future__ import annotations

from collections.abc import Collection

from ortserve.gateway.access.access import Access
from ortserve.gateway.access.grant import Unit
from ortserve.gateway.options.access import AccessSettings


def open_access(settings: AccessSettings, accounted: Collection[Unit] = ()) -> Access:
    """The keys a server begins with; `accounted` is what it keeps account of. Raises `KeyFileError`."""
    return Access(api_key=settings.api_key, admin_key=settings.admin_key, file=settings.api_keys, accounted=accounted)
