"""Writes the small random LoRA adapters in `adapters/` with PEFT itself, and the logits it computes with them.

Not run by the suite, which needs neither torch, transformers nor PEFT: run it by hand after `make_family_checkpoints`,
whose checkpoints are the base models. Knows nothing of ortserve.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "adapters"
FAMILIES = Path(__file__).parent / "families"
ADAPTERS: dict[str, dict[str, Any]] = {
    "llama": {
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "r": 4,
        "lora_alpha": 6,
        "rank_pattern": {"down_proj": 2},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 9},
    },
    "phi3": {"target_modules": ["qkv_proj", "gate_up_proj"], "r": 4, "lora_alpha": 6, "use_rslora": True},
}


def write_adapter(family: str, fields: dict[str, Any]) -> None:
    """`adapters/FAMILY`: what PEFT saves, and the logits of the base model with it."""
    torch.manual_seed(1)
    base = transformers.AutoModelForCausalLM.from_pretrained(
        FAMILIES / family, dtype=torch.float64, attn_implementation="eager"
    )
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **fields)).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            value = torch.randn(parameter.shape, dtype=torch.float64) / parameter.shape[-1] ** 0.5
            parameter.data = value.to(torch.float32).to(torch.float64)
    tokens = torch.randint(0, 64, (17,))
    with torch.no_grad():
        logits = model(tokens[None]).logits[0].to(torch.float32)
    folder = FOLDER / family
    shutil.rmtree(folder, ignore_errors=True)
    model.to(torch.float32).save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    config = (folder / "adapter_config.json").read_text().replace(str(FAMILIES / family), family)
    (folder / "adapter_config.json").write_text(config)
    save_file({"tokens": tokens.to(torch.int32), "logits": logits}, folder / "expected.safetensors")


if __name__ == "__main__":
    for each, described in ADAPTERS.items():
        write_adapter(each, described)
