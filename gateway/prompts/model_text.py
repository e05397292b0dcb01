"""What the gateway reads beside a model's graph: tokenizer and chat template. No engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ortserve.gateway.prompts.template import ChatTemplate
from ortserve.gateway.prompts.template_files import load_chat_template
from ortserve.gateway.prompts.tokenizer import TextTokenizer, load_tokenizer

if TYPE_CHECKING:
    from ortserve.runtime.manifest import Manifest


@dataclass(frozen=True, slots=True)
class ModelText:
    """What the gateway reads beside the graph: how this model's tokens become text and back."""

    tokenizer: TextTokenizer
    template: ChatTemplate | None


def load_model_text(folder: Path, manifest: Manifest, chat_template: Path | None = None) -> ModelText:
    """Read tokenizer and chat template; raises `ModelError` when they are missing or unusable."""
    tokenizer = load_tokenizer(folder, bos_token_id=manifest.bos_token_id, add_bos=manifest.add_bos)
    return ModelText(tokenizer, load_chat_template(folder, chat_template))
