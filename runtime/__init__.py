"""In-process inference on ONNX Runtime: token ids in, token ids out. Knows no text and no HTTP.

`open` loads an exported folder; `Model` generates and streams. Everything public is named in `__all__`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.request import (
    Completion,
    Delta,
    FinishReason,
    Grammar,
    GrammarKind,
    Request,
    SamplingParams,
    TokenLogprobs,
    Usage,
)

if TYPE_CHECKING:
    from ortserve.runtime.model import Model, open

__all__ = [
    "Completion",
    "Delta",
    "EngineConfig",
    "FinishReason",
    "Grammar",
    "GrammarKind",
    "Model",
    "Request",
    "SamplingParams",
    "TokenLogprobs",
    "Usage",
    "open",
]


def __getattr__(name: str) -> object:
    """Load ONNX Runtime only when a model is opened, so that everything else starts fast (PEP 562)."""
    if name in ("Model", "open"):
        from ortserve.runtime import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
