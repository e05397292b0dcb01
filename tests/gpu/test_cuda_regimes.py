"""Positions that depend on a request's length, on a GPU: every token is nearly the likeliest of the reference.

Batched, cached and cold, in requests of every regime at once. `pytest -m gpu tests/gpu`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ortserve.export.families import read_architecture
from ortserve.export.float_reference.forward import reference_logits
from ortserve.export.publish import export_checkpoint
from ortserve.export.sources.checkpoint import open_checkpoint
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.devices.cuda import CudaDevice
from ortserve.runtime.devices.cuda_library import has_driver
from ortserve.runtime.opening import open_paged_engine
from ortserve.runtime.request import Request, SamplingParams
from ortserve.runtime.session import available_providers
from tests.export.regimes import BOUNDS, copy_model, every_model, expected_at
from tests.runtime.synthetic import run_to_end, whole

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not has_driver() or "CUDAExecutionProvider" not in available_providers(), reason="needs an NVIDIA GPU"
    ),
]
GAP = 0.06  # of logits: what 16-bit activations may move
# tokens of the prompt and max_tokens: in the first regime, at its bound, one beyond, and in the last
SIZES = ((10, 8), (12, 12), (13, 12), (12, 37), (20, 60), (44, 4), (44, 5))


@every_model
def test_replies_are_the_references(tmp_path: Path, name: str) -> None:
    source = copy_model(name, tmp_path / "source", eos_token_id=None)
    manifest = export_checkpoint(
        source, tmp_path / "out", precision="fp16", device="cuda", verify=False, progress=False
    )
    config = EngineConfig(max_rows=4, prompt_cache="prefix", max_chunk_tokens=7, kv_memory=2**26, swap_memory=0)
    engine, _ = open_paged_engine(tmp_path / "out", manifest, config, CudaDevice(0))
    checkpoint = open_checkpoint(source)
    architecture = read_architecture(checkpoint)
    tokens, _ = expected_at(name)[96]
    requests = [
        Request(f"{length}+{count}", tuple(tokens[:length]), SamplingParams(temperature=0, max_tokens=count))
        for length, count in SIZES
    ]
    for _ in range(2):  # the second time every prompt is cached, by requests of its length
        replies = {name: whole(deltas) for name, deltas in run_to_end(engine, requests).items()}
        told = [[*one.prompt, *replies[one.id].token_ids] for one in requests]
        lengths = [next(bound for bound in BOUNDS[name] if len(every) <= bound) for every in told]
        for request, every, logits in zip(
            requests, told, reference_logits(checkpoint, architecture, told, lengths), strict=True
        ):
            num_prompt = len(request.prompt)
            assert len(every) == num_prompt + (request.sampling.max_tokens or 0)
            wanted = logits[num_prompt - 1 : -1]
            chosen = wanted[np.arange(len(wanted)), every[num_prompt:]]
            assert (wanted.max(axis=1) - chosen < GAP).all(), request.id
    engine.close()
