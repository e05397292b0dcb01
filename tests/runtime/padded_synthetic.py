"""Engines on the synthetic model as another exporter would write it. Knows the model's rule, not how it is run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.padded_graph import Attention
from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.sampling.sampler import Sampler
from ortserve.runtime.slots.runner import load_session
from ortserve.runtime.testing import write_padded_synthetic_model
from tests.runtime.synthetic import SyntheticModel


@dataclass(frozen=True, slots=True)
class PaddedSyntheticModel(SyntheticModel):
    """Its sums are whole numbers, so that padding moves none of its bits."""

    def plan(self, config: EngineConfig, *, num_blocks: int | None = None, num_host_blocks: int = 0) -> EnginePlan:
        """See `SyntheticModel.plan`; never deterministic, which is refused."""
        config = replace(config, deterministic=False)
        return SyntheticModel.plan(self, config, num_blocks=num_blocks, num_host_blocks=num_host_blocks)


def load_padded_synthetic_model(folder: Path, attention: Attention, *, max_context: int) -> PaddedSyntheticModel:
    manifest = write_padded_synthetic_model(folder, attention, max_context=max_context)
    session = load_session(folder, manifest, num_threads=1)
    return PaddedSyntheticModel(folder, manifest, session, Sampler(manifest.num_tokens, num_threads=1))
