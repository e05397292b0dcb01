"""Fixtures of the runtime's tests."""

from __future__ import annotations

import pytest

from tests.runtime.synthetic import SyntheticModel, load_synthetic_model


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> SyntheticModel:
    return load_synthetic_model(tmp_path_factory.mktemp("synthetic"), max_context=512)
