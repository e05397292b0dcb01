"""The engine rotates every request by the length it was admitted with, as the independent reference would."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from ortserve.export.architecture import Architecture
from ortserve.export.families import read_architecture
from ortserve.export.float_reference.forward import reference_logits
from ortserve.export.publish import export_checkpoint
from ortserve.export.sources.checkpoint import Checkpoint, open_checkpoint
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.devices.device import HostDevice
from ortserve.runtime.manifest import read_manifest
from ortserve.runtime.opening import open_engine, open_paged_engine
from ortserve.runtime.request import Completion, Request, SamplingParams
from tests.export.regimes import BOUNDS, copy_model, every_model, expected_at
from tests.runtime.synthetic import run_to_end, whole

# tokens of the prompt and max_tokens: in the first regime, at its bound, one beyond, and in the last
SIZES = ((10, 8), (12, 12), (13, 12), (12, 37), (20, 60), (44, 4), (44, 5))


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint and what was exported from it."""

    folder: Path
    checkpoint: Checkpoint
    architecture: Architecture


def _export(name: str, tmp_path: Path, device: str) -> Source:
    """In float, with the checkpoint's own 16-bit weights."""
    source = copy_model(name, tmp_path / "source", eos_token_id=None)  # nothing ends a reply early
    if device == "cpu":
        export_checkpoint(source, tmp_path / "out", precision="fp32", verify=False, progress=False)
    else:
        export_checkpoint(source, tmp_path / "out", precision="fp16", device="cuda", verify=False, progress=False)
    checkpoint = open_checkpoint(source)
    return Source(tmp_path / "out", checkpoint, read_architecture(checkpoint))


def _requests(name: str) -> list[Request]:
    tokens, _ = expected_at(name)[96]
    return [
        Request(f"{length}+{count}", tuple(tokens[:length]), SamplingParams(temperature=0, max_tokens=count))
        for length, count in SIZES
    ]


def _expected(requests: list[Request], replies: dict[str, Completion], name: str, source: Source) -> None:
    """Every token is the reference's greedy one, given those before and how long the request may become."""
    told = [[*one.prompt, *replies[one.id].token_ids] for one in requests]
    lengths = [next(bound for bound in BOUNDS[name] if len(tokens) <= bound) for tokens in told]
    for request, tokens, logits in zip(
        requests, told, reference_logits(source.checkpoint, source.architecture, told, lengths), strict=True
    ):
        num_prompt = len(request.prompt)
        assert len(tokens) == num_prompt + (request.sampling.max_tokens or 0)
        assert tokens[num_prompt:] == logits[num_prompt - 1 : -1].argmax(axis=1).tolist(), request.id


@every_model
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_replies_are_the_references_batched_cached_and_cold(tmp_path: Path, name: str, device: str) -> None:
    source = _export(name, tmp_path, device)
    config = EngineConfig(max_rows=4, prompt_cache="prefix", max_chunk_tokens=7, kv_memory=2**26, swap_memory=0)
    manifest = read_manifest(source.folder)
    if device == "cpu":
        engine, _ = open_engine(source.folder, manifest, config)
    else:
        engine, _ = open_paged_engine(source.folder, manifest, config, HostDevice())
    requests = _requests(name)
    for _ in range(2):  # the second time every prompt is cached, by requests of its length
        replies = {name: whole(deltas) for name, deltas in run_to_end(engine, requests).items()}
        _expected(requests, replies, name, source)
    assert all(reply.usage.num_cached_tokens == reply.usage.num_prompt_tokens - 1 for reply in replies.values())
    engine.close()
