"""Writes tiny random decoders of architectures that have no builder here. Run by `make optimum` in its environment:

python -m tests.export.optimum.make_decoders FOLDER gpt2 opt gpt_neox
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.export.imported.make_folders import SIZES, spread, write_tokenizer

MAX_CONTEXT = 96
SHAPE: Mapping[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": MAX_CONTEXT,
    **SIZES,
}


def main() -> int:
    import torch
    from transformers import AutoModelForCausalLM

    for family in sys.argv[2:]:
        torch.manual_seed(7)
        folder = Path(sys.argv[1]) / family
        spread(AutoModelForCausalLM.from_config(CONFIGS[family]())).save_pretrained(folder)
        write_tokenizer(folder)
        marked = json.loads((folder / "config.json").read_text()) | {"ortserve_random_weights": True}
        (folder / "config.json").write_text(json.dumps(marked, indent=2) + "\n")
    return 0


def _gpt2() -> Any:
    from transformers import GPT2Config

    return GPT2Config(n_embd=32, n_head=2, n_layer=2, n_positions=MAX_CONTEXT, **SIZES)


def _opt() -> Any:
    from transformers import OPTConfig

    return OPTConfig(word_embed_proj_dim=32, ffn_dim=64, pad_token_id=0, **SHAPE)


def _gpt_neox() -> Any:
    from transformers import GPTNeoXConfig

    return GPTNeoXConfig(intermediate_size=64, **SHAPE)


def _bloom() -> Any:
    from transformers import BloomConfig

    return BloomConfig(hidden_size=32, n_head=2, n_layer=2, seq_length=MAX_CONTEXT, **SIZES)


def _falcon() -> Any:
    from transformers import FalconConfig

    return FalconConfig(**SHAPE)


def _phi() -> Any:
    from transformers import PhiConfig

    return PhiConfig(intermediate_size=64, **SHAPE)


def _stablelm() -> Any:
    from transformers import StableLmConfig

    return StableLmConfig(intermediate_size=64, num_key_value_heads=1, **SHAPE)


CONFIGS: Mapping[str, Callable[[], Any]] = {
    "gpt2": _gpt2,
    "opt": _opt,
    "gpt_neox": _gpt_neox,
    "bloom": _bloom,
    "falcon": _falcon,
    "phi": _phi,
    "stablelm": _stablelm,
}


if __name__ == "__main__":
    sys.exit(main())
