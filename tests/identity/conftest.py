"""The bundled model, exported once for all tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from ortserve.export.bundled import bundled_model
from ortserve.export.publish import export_checkpoint
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.runner import load_session
from ortserve.runtime.sampler import Sampler
from ortserve.runtime.session import Session


@dataclass(frozen=True, slots=True)
class PocketModel:
    """The exported bundled model, loaded."""

    folder: Path
    manifest: Manifest
    session: Session
    sampler: Sampler


@pytest.fixture(scope="session", params=["int8", "fp32"])
def pocket(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PocketModel:
    folder = tmp_path_factory.mktemp("pocket") / request.param
    manifest = export_checkpoint(bundled_model(), folder, precision=request.param, verify=False, progress=False)
    session = load_session(folder, manifest, num_threads=2)
    return PocketModel(folder, manifest, session, Sampler(manifest.num_tokens, num_threads=2))
