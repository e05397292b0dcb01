"""What holds for every test: no network, no leftovers of the user's settings, and properties that repeat."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

# Examples are bounded by number, not by time: the machine may be busy. The failing one is printed, to be pasted.
settings.register_profile("ortserve", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ortserve")

# before NumPy is imported: its matrices are small here, and its threads would wait for each other on a busy machine
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: nothing may be downloaded


@pytest.fixture(autouse=True)
def without_user_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's ORTSERVE_* variables must not change what is tested."""
    for name in [name for name in os.environ if name.startswith("ORTSERVE_")]:
        monkeypatch.delenv(name)
