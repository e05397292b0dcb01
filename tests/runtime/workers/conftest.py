"""The model that engine processes run."""

from __future__ import annotations

from pathlib import Path

import pytest

from ortserve.runtime.manifest import Manifest, read_manifest
from tests.gateway.synthetic import write_synthetic_text_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_text_model(tmp_path_factory.mktemp("model"), max_context=4096)


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    return read_manifest(folder)
