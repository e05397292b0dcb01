"""The runner that a model's graph wants on the CPU. Decides by the manifest alone."""

from __future__ import annotations

from ortserve.runtime.manifest import Manifest
from ortserve.runtime.padded.runner import PaddedRunner
from ortserve.runtime.session import Session
from ortserve.runtime.slots.kv import SlotKvStore
from ortserve.runtime.slots.runner import Runner


def new_runner(
    manifest: Manifest, session: Session, store: SlotKvStore, *, max_logit_rows: int, deterministic: bool = False
) -> Runner | PaddedRunner:
    """For a graph of ours, or for one of another exporter."""
    if manifest.padded is not None:
        return PaddedRunner(manifest, session, store, max_logit_rows=max_logit_rows)
    return Runner(manifest, session, store, max_logit_rows=max_logit_rows, deterministic=deterministic)
