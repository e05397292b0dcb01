"""The bundled model, exported once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from ortserve.export.bundled import bundled_draft, bundled_model
from ortserve.export.publish import export_checkpoint
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.sampling.sampler import Sampler
from ortserve.runtime.session import Session
from ortserve.runtime.slots.runner import load_session


@dataclass(frozen=True, slots=True)
class PocketModel:
    """The exported bundled model, loaded."""

    folder: Path
    manifest: Manifest
    session: Session
    sampler: Sampler


@pytest.fixture(scope="session")
def open_pocket(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PocketModel]:
    """The bundled model in a precision, or with `draft ` before it its small sibling; exported and loaded once."""

    @cache
    def export(precision: str) -> PocketModel:
        folder = tmp_path_factory.mktemp("pocket") / precision
        source = bundled_draft() if precision.startswith("draft ") else bundled_model()
        manifest = export_checkpoint(
            source, folder, precision=precision.removeprefix("draft "), verify=False, progress=False
        )
        session = load_session(folder, manifest, num_threads=2)
        return PocketModel(folder, manifest, session, Sampler(manifest.num_tokens, num_threads=2))

    return export
