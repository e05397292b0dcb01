"""The supported architectures: which reader understands which `architectures` entry. Knows no tensor names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ortserve.export.architecture import Architecture
from ortserve.export.checkpoint import Checkpoint
from ortserve.export.errors import ExportError
from ortserve.export.families.llama import read_llama, read_mistral

READERS: Mapping[str, Callable[[Checkpoint], Architecture]] = {
    "LlamaForCausalLM": read_llama,
    "MistralForCausalLM": read_mistral,
}


def read_architecture(checkpoint: Checkpoint) -> Architecture:
    """What `config.json` and the tensor shapes describe. Raises `ExportError` for an unsupported architecture."""
    named = checkpoint.config.get("architectures") or []
    if not isinstance(named, list):
        raise ExportError(f"config.json: architectures is {named!r}, expected a list of names")
    for name in named:
        if name in READERS:
            return READERS[name](checkpoint)
    found = ", ".join(str(name) for name in named) or f"model_type {checkpoint.config.get('model_type')!r}"
    raise ExportError(f"the architecture {found} is not supported: export knows {', '.join(sorted(READERS))}")
