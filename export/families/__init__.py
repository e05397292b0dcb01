"""The supported architectures: which reader understands which `architectures` entry. Knows no tensor names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ortserve.export.architecture import Architecture
from ortserve.export.errors import ExportError
from ortserve.export.families.gemma import read_gemma2, read_gemma3
from ortserve.export.families.granite import read_granite
from ortserve.export.families.llama import read_llama, read_mistral
from ortserve.export.families.mixture import read_mixtral, read_qwen3_moe
from ortserve.export.families.olmo2 import read_olmo2
from ortserve.export.families.phi3 import read_phi3
from ortserve.export.families.qwen import read_qwen2, read_qwen3
from ortserve.export.families.smollm3 import read_smollm3
from ortserve.export.sources.checkpoint import Checkpoint

READERS: Mapping[str, Callable[[Checkpoint], Architecture]] = {
    "Gemma2ForCausalLM": read_gemma2,
    "Gemma3ForCausalLM": read_gemma3,
    "GraniteForCausalLM": read_granite,
    "LlamaForCausalLM": read_llama,
    "MistralForCausalLM": read_mistral,
    "MixtralForCausalLM": read_mixtral,
    "Olmo2ForCausalLM": read_olmo2,
    "Phi3ForCausalLM": read_phi3,
    "Qwen2ForCausalLM": read_qwen2,
    "Qwen3ForCausalLM": read_qwen3,
    "Qwen3MoeForCausalLM": read_qwen3_moe,
    "SmolLM3ForCausalLM": read_smollm3,
}


def has_builder(checkpoint: Checkpoint) -> bool:
    """Whether `read_architecture` knows what `config.json` names."""
    named = checkpoint.config.get("architectures")
    return isinstance(named, list) and any(name in READERS for name in named)


def read_architecture(checkpoint: Checkpoint) -> Architecture:
    """What `config.json` and the tensor shapes describe. Raises `ExportError` for an unsupported architecture."""
    named = checkpoint.config.get("architectures") or []
    if not isinstance(named, list):
        raise ExportError(f"config.json: architectures is {named!r}, expected a list of names")
    for name in named:
        if name in READERS:
            return READERS[name](checkpoint)
    found = ", ".join(str(name) for name in named) or f"model_type {checkpoint.config.get('model_type')!r}"
    raise ExportError(
        f"the architecture {found} is not supported: export knows {', '.join(sorted(READERS))}; an encoder is exported"
        " with --task embeddings or --task rerank, many other decoders with --via optimum"
    )
