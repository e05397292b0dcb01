"""Writes the tiny random checkpoints in `families/` with transformers itself, and the logits it computes for them.

Not run by the suite, which needs neither torch nor transformers: run it by hand, when a family is added, with
transformers 5 (`python tests/export/make_family_checkpoints.py`), then with transformers 4, which adds the same
configurations in its own spelling as `config4.json`. Arguments name the families to
write, or `regimes` and `ropes`, none: all. Knows nothing of ortserve.

Weights are float16 in the files; transformers computes with those values in float64, so that what differs from its
logits is our rounding and not its own.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "families"
LENGTHS = (24, 9)
VOCAB_SIZE = 64
COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FEW_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
GEMMA = {"hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 5}
ROPE = {"rope_type": "default", "rope_theta": 100.0}  # low: every pair turns visibly within a few positions
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 24}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 2.5],
    "long_factor": [1.0, 2.0, 4.0, 6.0, 8.0, 9.0],
    "original_max_position_embeddings": 48,
}


@dataclass(frozen=True, slots=True)
class Family:
    """A model class of transformers and what its configuration says beyond `COMMON`."""

    model: str
    config: str
    fields: Mapping[str, Any] = field(default_factory=dict)


FAMILIES = {
    "llama": Family("LlamaForCausalLM", "LlamaConfig", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "mistral": Family("MistralForCausalLM", "MistralConfig", {"rope_parameters": ROPE, "sliding_window": 6}),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {
            "rope_parameters": ROPE,
            "use_sliding_window": True,
            "sliding_window": 7,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3": Family("Qwen3ForCausalLM", "Qwen3Config", {"rope_parameters": YARN, **FEW_HEADS, "head_dim": 24}),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        "SmolLM3Config",
        {"rope_parameters": ROPE, "no_rope_layer_interval": 2},
    ),
    "phi3": Family("Phi3ForCausalLM", "Phi3Config", {"rope_parameters": ROPE, "sliding_window": 9}),
    "phi4_mini": Family(
        "Phi3ForCausalLM",
        "Phi3Config",
        {
            "rope_parameters": LONGROPE,
            "original_max_position_embeddings": 48,
            **FEW_HEADS,
            "tie_word_embeddings": True,
        },
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {
            **GEMMA,
            "rope_parameters": ROPE,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 6.0,
        },
    ),
    "gemma3": Family(
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {
            **GEMMA,
            "num_hidden_layers": 3,
            "sliding_window_pattern": 2,
            "query_pre_attn_scalar": 24,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
            },
        },
    ),
    "granite": Family(
        "GraniteForCausalLM",
        "GraniteConfig",
        {
            "rope_parameters": ROPE,
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.7,
            "logits_scaling": 1.5,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "olmo2": Family("Olmo2ForCausalLM", "Olmo2Config", {"rope_parameters": ROPE}),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {
            "rope_parameters": ROPE,
            **FEW_HEADS,
            "head_dim": 16,
            "num_hidden_layers": 3,
            "moe_intermediate_size": 24,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "norm_topk_prob": False,
            "mlp_only_layers": [0],
        },
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        "MixtralConfig",
        {"rope_parameters": ROPE, "sliding_window": 6, "num_local_experts": 5, "num_experts_per_tok": 3},
    ),
}
ROPES = {
    "linear": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0},
    "llama3": {**LLAMA3, "rope_theta": 5000.0},
    "yarn": {**YARN, "rope_theta": 1e6, "original_max_position_embeddings": 4096},
    "yarn without whole pairs": {**YARN, "rope_theta": 1e6, "truncate": False, "beta_fast": 16.0, "beta_slow": 2.0},
    "yarn with two scales": {**YARN, "mscale": 0.8, "mscale_all_dim": 0.5},
    "yarn with a written factor": {**YARN, "attention_factor": 1.25},
    "longrope": {**LONGROPE, "partial_rotary_factor": 1.0, "short_factor": [1.0, 1.5] * 8, "long_factor": [3.0] * 16},
}


# Models whose positions rotate by how long the sequence is, of other families' weights, and lengths on both sides of
# where that changes: exactly at the lengths that requests are sized by.
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0}
REGIMES: Mapping[str, tuple[Mapping[str, Any], tuple[int, ...]]] = {
    "phi4_mini": ({}, (48, 49, 96)),
    "llama": ({"rope_parameters": DYNAMIC, "max_position_embeddings": 24}, (24, 48, 96)),
}


def random_values(model: torch.nn.Module) -> None:
    """Every weight matters: norms away from one, biases away from zero, products that keep the size of their input."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, dtype=torch.float64)
        if "norm" in name:
            value = parameter + 0.2 * noise  # Gemma stores its norms around 0, the others around 1
        elif name.endswith("bias"):
            value = 0.5 * noise
        elif "embed" in name or "lm_head" in name:
            value = noise * 2 / parameter.shape[-1] ** 0.5
        else:
            value = noise / parameter.shape[-1] ** 0.5
        parameter.data = value.to(torch.float16).to(torch.float64)


def write_family(name: str, family: Family) -> None:
    """`families/NAME`: config.json and model.safetensors as transformers saves them, and the logits."""
    torch.manual_seed(0)
    eager = {"attn_implementation": "eager", "experts_implementation": "eager"}  # the others know no float64
    config = getattr(transformers, family.config)(**{**COMMON, **family.fields}, **eager)
    model = getattr(transformers, family.model)(config).to(torch.float64).eval()
    random_values(model)
    scaled = model.model.embed_tokens
    if hasattr(scaled, "embed_scale"):  # a checkpoint is loaded in its own dtype, and the scale rounded to it
        scaled.embed_scale = scaled.embed_scale.to(torch.float16).to(torch.float64)
    expected: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for length in LENGTHS:
            tokens = torch.randint(0, VOCAB_SIZE, (length,))
            expected[f"tokens.{length}"] = tokens.to(torch.int32)
            expected[f"logits.{length}"] = model(tokens[None]).logits[0].to(torch.float32)
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    model.to(torch.float16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    save_file(expected, folder / "expected.safetensors")


def write_regimes() -> None:
    """`families/regimes.safetensors`: logits of `REGIMES`; `families/regimes.json`: their fields and frequencies."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    torch.manual_seed(1)
    expected: dict[str, torch.Tensor] = {}
    described: dict[str, Any] = {}
    for name, (fields, lengths) in REGIMES.items():
        rates = {}
        for length in lengths:  # each by a fresh model: one remembers the longest it has seen
            config = transformers.AutoConfig.from_pretrained(FOLDER / name, **fields, attn_implementation="eager")
            model = transformers.AutoModelForCausalLM.from_pretrained(
                FOLDER / name, config=config, dtype=torch.float64
            ).eval()
            tokens = torch.randint(0, VOCAB_SIZE, (length,))
            expected[f"{name}.tokens.{length}"] = tokens.to(torch.int32)
            with torch.no_grad():
                expected[f"{name}.logits.{length}"] = model(tokens[None]).logits[0].to(torch.float32)
            kind = config.rope_parameters["rope_type"]
            frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=length)
            rates[length] = {"frequencies": frequencies.tolist(), "attention_factor": factor}
        described[name] = {"fields": fields, "lengths": rates}
    save_file(expected, FOLDER / "regimes.safetensors")
    (FOLDER / "regimes.json").write_text(json.dumps(described, indent=1) + "\n")


def write_older_spelling(name: str, family: Family) -> None:
    """`families/NAME/config4.json`: the same configuration as transformers 4 saves it."""
    fields = {**COMMON, **family.fields}
    rope = fields.pop("rope_parameters")
    if "full_attention" in rope:
        fields["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    if scaling["rope_type"] == "longrope":  # Phi-3's own check knows these three fields
        scaling = {"type": "longrope", **{key: scaling[key] for key in ("short_factor", "long_factor")}}
    fields["rope_theta"] = rope["rope_theta"]
    fields["rope_scaling"] = None if scaling.get("rope_type") == "default" else scaling
    if "partial_rotary_factor" in rope:
        fields["partial_rotary_factor"] = rope["partial_rotary_factor"]
    config = getattr(transformers, family.config)(**fields, architectures=[family.model])
    config.to_json_file(FOLDER / name / "config4.json")


def write_ropes() -> None:
    """`families/ropes.json`: frequencies and attention factors for a Llama of 4 heads of 32 and context 16384."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    found: dict[str, Any] = {}
    for name, settings in ROPES.items():
        config = transformers.LlamaConfig(
            hidden_size=128, num_attention_heads=4, max_position_embeddings=16384, rope_parameters=dict(settings)
        )
        frequencies, factor = ROPE_INIT_FUNCTIONS[settings["rope_type"]](config, "cpu")
        found[name] = {"settings": settings, "frequencies": frequencies.tolist(), "attention_factor": factor}
    (FOLDER / "ropes.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    is_older = transformers.__version__.startswith("4.")
    wanted = sys.argv[1:] or [*FAMILIES, "ropes", "regimes"]
    for each, described in ((name, FAMILIES[name]) for name in wanted if name in FAMILIES):
        (write_older_spelling if is_older else write_family)(each, described)
    if not is_older and "ropes" in wanted:
        write_ropes()
    if not is_older and "regimes" in wanted:
        write_regimes()
