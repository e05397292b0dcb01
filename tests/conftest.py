"""What holds for every test: no network, no leftovers of the user's settings, and properties that repeat."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import structlog
from httpx._config import DEFAULT_TIMEOUT_CONFIG
from hypothesis import HealthCheck, settings

from tests.waiting import PATIENCE_S

# Examples are bounded by number, not by time: the machine may be busy. The failing one is printed, to be pasted.
settings.register_profile("ortserve", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ortserve")

# before NumPy is imported: its matrices are small here, and its threads would wait for each other on a busy machine
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: nothing may be downloaded

for phase in (
    "connect",
    "read",
    "write",
    "pool",
):  # clients give up after 5 seconds where nobody says how long they wait
    setattr(DEFAULT_TIMEOUT_CONFIG, phase, PATIENCE_S)


@pytest.fixture(autouse=True)
def without_user_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's ORTSERVE_* variables, and those of `serve`, must not change what is tested."""
    for name in [name for name in os.environ if name.startswith("ORTSERVE_") or name in ("HOST", "PORT", "MODEL")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def with_logs_of_its_own() -> Iterator[None]:
    """A level that one test or folder asks for must not hide what another reads: they share processes."""
    yield
    structlog.reset_defaults()


# Files of few tests that take long. Tests are handed out file by file: whatever comes last is waited for.
FIRST = (
    "tests/test_readme.py",
    "tests/runtime/test_equalities.py",
    "tests/runtime/test_paged_equalities.py",
    "tests/runtime/test_padded.py",
    "tests/identity/test_pocket.py",
    "tests/plugins/test_contract_bites.py",
    "tests/gateway_bench/test_speculation.py",
    "tests/structured/test_noise.py",
    "tests/export/test_encoder_files.py",
    "tests/export/test_outlier_twin.py",
    "tests/runtime/test_drafted_distribution.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """After the tests have been put in random order, begin with those files."""
    items.sort(key=lambda item: item.nodeid.partition("::")[0] not in FIRST)
