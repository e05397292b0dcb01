"""Variants that no graph is built for are named, with what is supported; nothing falls back in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ortserve.export.errors import ExportError
from ortserve.export.families import read_architecture
from ortserve.export.sources.checkpoint import open_checkpoint
from ortserve.export.toys.shapes import SHAPES
from ortserve.export.toys.widen import widen_checkpoint
from tests.export.checkpoints import Tiny, write_checkpoint
from tests.export.family_checkpoints import copy_family

LONGROPE = {"rope_type": "longrope", "rope_theta": 100.0, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
DYNAMIC = {"rope_type": "dynamic"}


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("gemma3", {"architectures": ["Gemma3ForConditionalGeneration"]}, "is not supported: export knows Gemma2For"),
        ("qwen3", {"architectures": ["Qwen3NextForCausalLM"]}, "Qwen3NextForCausalLM is not supported: export knows"),
        ("qwen3_moe", {"num_local_experts": 9}, r"mlp.gate.weight has shape \[6, 32\], config.json implies \[9, 32\]"),
        ("qwen3_moe", {"num_experts_per_tok": 7}, "7 of 6 experts a token"),
        ("qwen3_moe", {"mlp_only_layers": 3}, "mlp_only_layers is no list of layer numbers"),
        (
            "qwen3_moe",
            {"moe_intermediate_size": 16},
            r"gate_proj.weight has shape \[24, 32\], config.json implies \[16",
        ),
        ("mixtral", {"num_local_experts": 100000}, "3 of 100000 experts a token: export knows 1024 at most"),
        (
            "gemma2",
            {"hidden_activation": "gelu"},
            "hidden_activation 'gelu' is not supported: gemma2 export knows gelu",
        ),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention is not supported"),
        ("qwen2", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported: qwen2 export knows silu"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types is no list of 2 kinds"),
        (
            "qwen2",
            {"layer_types": ["full_attention", "chunked_attention"]},
            "layer type 'chunked_attention' is not supported: export knows full_attention, sliding_attention",
        ),
        ("qwen3", {"layer_types": ["full_attention", {}]}, r"layer type \{\} is not supported"),
        ("qwen2", {"sliding_window": None}, "config.json has no sliding_window"),
        ("smollm3", {"no_rope_layers": [1, 2]}, "no_rope_layers is no list of 2 zeros and ones"),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers is no list of 2 zeros and ones"),
        ("granite", {"residual_multiplier": 0}, "residual_multiplier is 0, expected a positive number"),
        (
            "phi3",
            {"intermediate_size": 48},
            r"gate_up_proj.weight has shape \[80, 32\], config.json implies \[96, 32\]",
        ),
        ("phi3", {"num_key_value_heads": 4}, r"qkv_proj.weight has shape \[64, 32\], config.json implies \[96, 32\]"),
        ("olmo2", {"num_key_value_heads": 1}, r"k_proj.weight has shape \[16, 32\], config.json implies \[8, 32\]"),
        ("qwen3", {"head_dim": 16}, r"q_proj.weight has shape \[48, 32\], config.json implies \[32, 32\]"),
    ],
)
def test_a_variant_without_a_graph(tmp_path: Path, family: str, fields: dict[str, Any], message: str) -> None:
    source = open_checkpoint(copy_family(family, tmp_path / "source", **fields))
    with pytest.raises(ExportError, match=message) as caught:
        read_architecture(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope_type": "mrope"}, "rope_type 'mrope' is not supported: export knows default, linear, llama3, yarn, dyn"),
        ({"rope_type": ["yarn"]}, r"rope_type \['yarn'\] is not supported"),
        ({"rope_type": "yarn", "factor": 0}, "factor is 0, expected a positive number"),
        ({"rope_type": "yarn", "factor": 2, "rope_theta": 1.0}, "rope_theta 1 does not slow any pair down"),
        ({"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 1}, "leaves nothing to stretch"),
        (
            {"rope_type": "llama3", "factor": 2, "low_freq_factor": 4.0, "high_freq_factor": 4.0},
            "low_freq_factor 4 is not below high_freq_factor 4",
        ),
        ({"rope_type": "default", "partial_rotary_factor": 0.07}, "rotates 1 of 16 components: export rotates pairs"),
        ({"rope_type": "default", "partial_rotary_factor": 2.0}, "rotates 32 of 16 components"),
        ({**LONGROPE, "short_factor": [1.0] * 7}, "short_factor is no list of 8 numbers"),
        ({**LONGROPE, "short_factor": [1.0] * 7 + [0]}, "short_factor holds values that are no positive numbers"),
        ({**LONGROPE, "long_factor": [1.0] * 9}, "long_factor is no list of 8 numbers"),
        ({**LONGROPE, "long_factor": None}, "long_factor is no list of 8 numbers"),
        (DYNAMIC, "config.json has no factor"),
        ({**DYNAMIC, "factor": 0.5}, "dynamic rope scaling with factor 0.5 over 16 rotated components"),
        ({**DYNAMIC, "factor": 2, "partial_rotary_factor": 0.125}, "with factor 2 over 2 rotated components"),
    ],
)
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_rope_settings_that_no_table_holds(tmp_path: Path, key: str, settings: dict[str, Any], message: str) -> None:
    tiny = Tiny(config={key: settings})
    with pytest.raises(ExportError, match=message):
        read_architecture(open_checkpoint(write_checkpoint(tmp_path / "source", tiny)))


def test_an_early_phi3_calls_longrope_yarn_or_su(tmp_path: Path) -> None:
    source = copy_family("phi4_mini", tmp_path / "source")
    named = read_architecture(open_checkpoint(source))
    for alias in ("su", "yarn"):
        config = json.loads((source / "config.json").read_text())
        config["rope_parameters"]["rope_type"] = alias
        (source / "config.json").write_text(json.dumps(config))
        assert read_architecture(open_checkpoint(source)) == named


def test_only_llama_checkpoints_are_widened(tmp_path: Path) -> None:
    source = copy_family("granite", tmp_path / "source")
    with pytest.raises(ExportError, match="widen knows llama and mistral checkpoints, not granite"):
        widen_checkpoint(source, tmp_path / "wide", SHAPES["tiny"])
