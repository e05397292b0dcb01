"""The encoders that optimum exported and what sentence-transformers computed; see `make_encoder_checkpoints`."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortserve.export.encoders.bridge import OptimumExport, read_optimum_export
from ortserve.export.encoders.proof_texts import PAIRS, TEXTS
from ortserve.export.encoders.publish import EncoderPlan, plan_encoder, publish_encoder
from ortserve.runtime.encoders.manifest import EncoderManifest, EncoderTask

FOLDER = Path(__file__).parent / "encoders"
NAMES = tuple(sorted(path.name for path in FOLDER.iterdir() if path.is_dir()))
EMBEDDERS = tuple(name for name in NAMES if not name.endswith("-rerank"))
RERANKERS = tuple(name for name in NAMES if name.endswith("-rerank"))


def checkpoint_of(name: str) -> Path:
    return FOLDER / name / "checkpoint"


def task_of(name: str) -> EncoderTask:
    return "rerank" if name.endswith("-rerank") else "embeddings"


def made_of(name: str) -> OptimumExport:
    return read_optimum_export(FOLDER / name / "optimum")


def plan_of(name: str, precision: str, **changes: Any) -> EncoderPlan:
    plan = plan_encoder(checkpoint_of(name), name=name, source=name, task=task_of(name), precision=precision)
    return replace(plan, modules=replace(plan.modules, **changes))


def publish(
    name: str,
    destination: Path,
    *,
    precision: str = "fp32",
    made: OptimumExport | None = None,
    plan: EncoderPlan | None = None,
    **options: Any,
) -> EncoderManifest:
    """What export does outside optimum's environment, with the stored answer of that environment."""
    return publish_encoder(
        plan or plan_of(name, precision),
        checkpoint_of(name),
        made or made_of(name),
        destination,
        texts=TEXTS,
        pairs=PAIRS,
        **options,
    )


def reference_of(name: str) -> NDArray[np.float32]:
    return made_of(name).reference


def copy_checkpoint(name: str, folder: Path, **config: Any) -> Path:
    """A copy whose config.json has other values (`...` removes one)."""
    copy = folder / name
    shutil.copytree(checkpoint_of(name), copy)
    path = copy / "config.json"
    fields = {**json.loads(path.read_text()), **config}
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not ...}))
    return copy
