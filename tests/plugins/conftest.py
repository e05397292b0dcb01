"""What holds for every test of plugins: a disk is waited for as long as a busy machine takes."""

from __future__ import annotations

import pytest

from ortserve.plugins.prefix_cache import disk
from tests.waiting import PATIENCE_S


@pytest.fixture(autouse=True)
def patient_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server begins without the index of its disk after a second, and ends without its last writes after three."""
    for name in ("_FIRST_LISTING_S", "_FLUSH_S", "_JOIN_S"):
        monkeypatch.setattr(disk, name, PATIENCE_S)
