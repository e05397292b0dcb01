"""Makes the folders beside this file with the other exporters themselves. Run by hand, once in each environment:

  python -m tests.export.imported.make_folders genai      with onnxruntime-genai 0.18, transformers 5 and torch
  python -m tests.export.imported.make_folders optimum    with what the extra `optimum` pins

`genai` writes a tiny random Qwen2, its checkpoint and its int4 folder, `optimum` a tiny random GPT-2's folder alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parent
VOCAB_SIZE, NUM_WORDS = 64, 60  # the builder adds a padding token to the tokenizer
SIZES = {"vocab_size": VOCAB_SIZE, "bos_token_id": 1, "eos_token_id": 2}


def main() -> int:
    import torch

    torch.manual_seed(7)
    make_genai() if sys.argv[1] == "genai" else make_optimum()
    return 0


def make_genai() -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        hidden_size=32,
        intermediate_size=48,  # the builder takes any matrix with as many rows as the vocabulary for the head
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=96,
        tie_word_embeddings=True,
        rope_theta=100.0,
        **SIZES,
    )
    source = HERE / "qwen2-source"
    spread(Qwen2ForCausalLM(config)).to(torch.float16).save_pretrained(source)
    write_tokenizer(source)
    marked = json.loads((source / "config.json").read_text()) | {"ortserve_random_weights": True}
    (source / "config.json").write_text(json.dumps(marked, indent=2) + "\n")
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu", "-i", str(source)]
    with TemporaryDirectory() as cache:
        subprocess.run([*builder, "-o", str(HERE / "qwen2-genai"), "-c", cache], check=True)


def make_optimum() -> None:
    from optimum.exporters.onnx import main_export
    from transformers import GPT2Config, GPT2LMHeadModel

    with TemporaryDirectory() as scratch:
        source = Path(scratch)
        spread(GPT2LMHeadModel(GPT2Config(n_embd=16, n_head=2, n_layer=2, n_positions=96, **SIZES))).save_pretrained(
            source
        )
        write_tokenizer(source)
        main_export(
            str(source),
            output=HERE / "gpt2-optimum",
            task="text-generation-with-past",
            library_name="transformers",
            framework="pt",
            do_validation=False,
        )


def spread(model: Any) -> Any:
    """Weights of a size that makes every part count."""
    import torch

    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() == 1:
                value.copy_(float(name.endswith("weight")) + 0.2 * torch.randn_like(value))
            else:
                value.copy_(torch.randn_like(value) / value.shape[-1] ** 0.5)
    return model


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab={chr(33 + place): place for place in range(NUM_WORDS)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": '"', "eos_token": "#", "model_max_length": 96}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields) + "\n")


if __name__ == "__main__":
    sys.exit(main())
