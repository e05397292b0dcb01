"""A model whose folder is there and whose manifest has been read, but which holds no memory yet. Frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ortserve.gateway.directory import ServedModel
from ortserve.gateway.fleet.spec import ModelSpec
from ortserve.gateway.schema.sampling import SamplingDefaults
from ortserve.gateway.served.defaults import sampling_defaults
from ortserve.runtime.encoders.manifest import EncoderManifest
from ortserve.runtime.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is known of a model without loading it."""

    spec: ModelSpec
    folder: Path
    manifest: Manifest | EncoderManifest
    created: int = 0  # seconds since the epoch
    verified: bool = True  # a report proves it
    draft_folder: Path | None = None
    draft_manifest: Manifest | None = None

    @property
    def entry(self) -> ServedModel:
        """Its names, the one that is shown first, and what it does."""
        own = self.manifest.name
        task = self.manifest.task if isinstance(self.manifest, EncoderManifest) else "generate"
        return self.spec.entry(own, task, verified=self.verified)

    @property
    def name(self) -> str:
        """The name that is shown."""
        return self.entry.names[0]

    @property
    def generates(self) -> bool:
        """Not an encoder."""
        return isinstance(self.manifest, Manifest)

    @property
    def weight_bytes(self) -> int:
        """Of the model and of its drafter's, as their files are."""
        return self.manifest.weight_bytes + (0 if self.draft_manifest is None else self.draft_manifest.weight_bytes)

    @property
    def max_length(self) -> int:
        """Tokens it takes at most, loaded or not; memory may allow fewer."""
        if isinstance(self.manifest, Manifest):
            return min(self.manifest.max_context, self.spec.engine.max_context or self.manifest.max_context)
        return min(self.manifest.max_length, self.spec.encoder.max_length or self.manifest.max_length)

    @property
    def sampling_defaults(self) -> SamplingDefaults:
        """Of a model that generates."""
        assert isinstance(self.manifest, Manifest)
        return sampling_defaults(self.manifest, self.spec.options.generation_defaults)
