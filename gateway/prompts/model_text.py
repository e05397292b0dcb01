"""What the gateway reads beside a model's graph: tokenizer, chat template, the author's sampling values. No engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ortserve.gateway.prompts.template import ChatTemplate
from ortserve.gateway.prompts.template_files import load_chat_template
from ortserve.gateway.prompts.tokenizer import TextTokenizer, load_tokenizer
from ortserve.gateway.schema.sampling import SamplingDefaults

if TYPE_CHECKING:
    from ortserve.runtime.manifest import Manifest

DefaultsSource = Literal["model", "openai"]


@dataclass(frozen=True, slots=True)
class ModelText:
    """What the gateway reads beside the graph: how this model's tokens become text and back."""

    tokenizer: TextTokenizer
    template: ChatTemplate | None


def load_model_text(folder: Path, manifest: Manifest, chat_template: Path | None = None) -> ModelText:
    """Read tokenizer and chat template; raises `ModelError` when they are missing or unusable."""
    tokenizer = load_tokenizer(folder, bos_token_id=manifest.bos_token_id, add_bos=manifest.add_bos)
    return ModelText(tokenizer, load_chat_template(folder, chat_template))


def sampling_defaults(manifest: Manifest, source: DefaultsSource) -> SamplingDefaults:
    """The model author's values where stated and wanted, OpenAI's otherwise."""
    if source == "openai":
        return SamplingDefaults()
    stated = manifest.generation
    return SamplingDefaults(
        temperature=1.0 if stated.temperature is None else min(max(stated.temperature, 0.0), 2.0),
        top_p=1.0 if stated.top_p is None else stated.top_p,
        top_k=0 if stated.top_k is None else max(stated.top_k, 0),
        repetition_penalty=1.0 if stated.repetition_penalty is None else stated.repetition_penalty,
    )
