"""Decode speed of transformers with a static cache and torch.compile, for comparison. Knows no ortserve.

python tests/bench/cuda_peer.py --streams 1,8,32 --out peer.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

SIZES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
    },
    "llama-3.1-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}
NUM_SHORT = 9  # new tokens of the short run, whose time is taken off the long one's


def measure(model: Any, num_streams: int, context: int, num_tokens: int) -> dict[str, float]:
    """Seconds per step: long runs minus short ones, the best of three each, after two that compile."""
    import torch

    ids = torch.randint(0, 128_000, (num_streams, context), device="cuda")

    def seconds(count: int) -> float:
        torch.cuda.synchronize()
        begun = time.perf_counter()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            cache_implementation="static",
            pad_token_id=0,
            eos_token_id=None,
        )
        torch.cuda.synchronize()
        return time.perf_counter() - begun

    compile_s = seconds(num_tokens)
    seconds(num_tokens)
    long, short = (min(seconds(count) for _ in range(3)) for count in (num_tokens, NUM_SHORT))
    step_s = (long - short) / (num_tokens - NUM_SHORT)
    return {"compile_s": compile_s, "step_ms": step_s * 1e3, "tokens_per_s": num_streams / step_s}


def main() -> None:
    """Arguments, figures as JSON."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-3.2-1b", choices=tuple(SIZES))
    parser.add_argument("--streams", default="1,8,32", type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_default_dtype(torch.float16)
    with torch.device("cuda"), torch.no_grad():
        config = LlamaConfig(
            **SIZES[arguments.shape], vocab_size=128_256, tie_word_embeddings=True, max_position_embeddings=16_384
        )
        model = LlamaForCausalLM(config).eval()
        figures: dict[str, Any] = {"card": torch.cuda.get_device_name(), "torch": torch.__version__}
        for count in arguments.streams:
            figures[str(count)] = measure(model, count, arguments.context, arguments.tokens)
            sys.stdout.write(f"{count}: {figures[str(count)]}\n")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
