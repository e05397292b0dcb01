"""One checkpoint in the form that each side reads. Knows the formats of llama.cpp and the peers' own exporters.

A form that is there is taken as it is; one that cannot be made is missing, with the reason.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_dtypes import bfloat16
from safetensors.numpy import load_file, save_file

from ortserve.export.bundled import bundled_draft
from tests.bench.measurement import command
from tests.export.gguf_writer import interleave, write_gguf

LIMIT_S = 1800.0
NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
NOISE = 1e-6
NORMAL, CONTROL, UNUSED = np.int32(1), np.int32(3), np.int32(5)  # kinds of a GGUF file's tokens


class NotMadeError(Exception):
    """A form that could not be made; the message says why."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What the peers' forms are made with, and where they are kept."""

    source: Path
    work: Path
    llama: Path | None  # folder of llama.cpp's programs
    genai: Path | None  # interpreters
    optimum: Path | None

    @property
    def checkpoint(self) -> Path:
        """What every side's form is made from."""
        return self.make("checkpoint")

    @property
    def environment(self) -> dict[str, str]:
        """No network; of our own folders a peer sees none."""
        variables = dict(os.environ) | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        variables.pop("PYTHONPATH", None)
        return variables

    def make(self, form: str) -> Path:
        """The file or folder of that name. Raises `NotMadeError`."""
        target = self.work / form
        if form == "checkpoint" and not target.exists():
            fill_zeros(self.source, target)
        if form == "small" and not target.exists():
            pad_vocabulary(bundled_draft(), self.source, target)
        if target.exists():
            return target
        family, _, kind = form.partition("-")
        maker: Callable[[str, Path], None] = _MAKERS[family].__get__(self)
        unfinished = self.work / f"unfinished-{form}"
        maker(kind.removesuffix(".gguf"), unfinished)
        unfinished.rename(target)
        return target

    def _ours(self, kind: str, target: Path) -> None:
        """`int8`: as a plain export makes it. 4 bits: every matrix but embedding and output, so without calibration."""
        precision, _, block = kind.partition("-")
        words = ["--precision", precision, "--no-verify"]
        if block:
            words = ["--precision", precision, "--block-size", block, "--activations", "token", "--no-verify"]
        _run([*command("export", self.checkpoint, target), *words], dict(os.environ))

    def _gguf(self, kind: str, target: Path) -> None:
        """`bf16`, what llama-quantize makes of it, or `small`: the small model in Q8_0."""
        if kind in ("bf16", "smallbf16"):
            write_llama(self.checkpoint if kind == "bf16" else self.make("small"), target)
            return
        program = _found(self.llama, "llama.cpp's programs") / "llama-quantize"
        source, kind = ("gguf-smallbf16.gguf", "q8_0") if kind == "small" else ("gguf-bf16.gguf", kind)
        _run([program, self.make(source), target, kind.upper()], self.environment)

    def _genai(self, kind: str, target: Path) -> None:
        python = _found(self.genai, "onnxruntime-genai's builder")
        line: list[str | Path] = [
            python,
            "-m",
            "onnxruntime_genai.models.builder",
            "-i",
            self.checkpoint,
            "-o",
            target,
            "-p",
            kind,
        ]
        _run([*line, "-e", "cpu", "-c", self.work / "cache"], self.environment)

    def _openvino(self, kind: str, target: Path) -> None:
        """4 or 8 bits, or `small`: the small model in 8."""
        python = _found(self.optimum, "optimum-intel")
        source, kind = (self.make("small"), "int8") if kind == "small" else (self.checkpoint, kind)
        line: list[str | Path] = [
            python,
            "-m",
            "optimum.commands.optimum_cli",
            "export",
            "openvino",
            "-m",
            source,
        ]
        line += ["--task", "text-generation-with-past", "--weight-format", kind]
        if kind == "int4":
            line += ["--sym", "--group-size", "128", "--ratio", "1.0"]
        _run([*line, target], self.environment)


_MAKERS = {"ours": Tools._ours, "gguf": Tools._gguf, "genai": Tools._genai, "openvino": Tools._openvino}


def _found(path: Path | None, name: str) -> Path:
    if path is None:
        raise NotMadeError(f"{name} was not named")
    if not path.exists():
        raise NotMadeError(f"{name}: there is no {path}")
    return path


def _run(words: Sequence[str | Path], env: Mapping[str, str]) -> None:
    try:
        done = subprocess.run(
            [str(word) for word in words], env=dict(env), capture_output=True, text=True, check=False, timeout=LIMIT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotMadeError(str(error)) from error
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()[-4:]
        raise NotMadeError(f"{Path(words[0]).name} ended with {done.returncode}: {' / '.join(said)[-500:]}")


def write_llama(checkpoint: Path, target: Path) -> None:
    """A Llama checkpoint with tied matrices as GGUF in bfloat16. Raises `NotMadeError` for another one."""
    config = json.loads((checkpoint / "config.json").read_text())
    if (
        config["architectures"] != ["LlamaForCausalLM"]
        or not config["tie_word_embeddings"]
        or config.get("rope_scaling")
    ):
        raise NotMadeError("only Llama with tied matrices and plain rotary positions is written as GGUF here")
    tensors = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        for name, values in load_file(path).items():
            stored = _stored_name(name)
            floats = values.view(bfloat16).astype(np.float32) if values.dtype.itemsize == 2 else values
            if stored.endswith(("attn_q.weight", "attn_k.weight")):
                heads = config["num_attention_heads" if "attn_q" in stored else "num_key_value_heads"]
                floats = interleave(floats, heads)
            tensors[stored] = ("F32" if floats.ndim == 1 else "BF16", floats)
    write_gguf(target, {**_facts(config), **dict(_vocabulary(checkpoint, config))}, tensors)


def _stored_name(name: str) -> str:
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in fixed:
        return fixed[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def _facts(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "general.architecture": "llama",
        "general.name": "checkpoint",
        "llama.block_count": config["num_hidden_layers"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.key_length": config["head_dim"],
        "llama.attention.value_length": config["head_dim"],
        "llama.rope.dimension_count": config["head_dim"],
        "llama.rope.freq_base": float(config["rope_theta"]),
        "llama.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "llama.vocab_size": config["vocab_size"],
    }


def _vocabulary(checkpoint: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names for every row of the embedding: prompts are ids, so that how texts are split plays no part."""
    stored = json.loads((checkpoint / "tokenizer.json").read_text())
    names = {index: name for name, index in stored["model"]["vocab"].items()}
    special = {token["id"]: token["content"] for token in stored["added_tokens"]}
    size = config["vocab_size"]
    tokens = [special.get(index) or names.get(index) or f"[unused{index}]" for index in range(size)]
    kinds = [CONTROL if index in special else NORMAL if index in names else UNUSED for index in range(size)]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in stored["model"]["merges"]]
    yield "tokenizer.ggml.model", "gpt2"
    yield "tokenizer.ggml.pre", "gpt-2"
    yield "tokenizer.ggml.tokens", tokens
    yield "tokenizer.ggml.token_type", kinds
    yield "tokenizer.ggml.merges", merges
    yield "tokenizer.ggml.eos_token_id", config.get("eos_token_id", 2)
    yield "tokenizer.ggml.add_bos_token", False


def fill_zeros(checkpoint: Path, target: Path) -> None:
    """A copy of `checkpoint` whose matrices of zeros hold noise too small to matter.

    `ortserve widen` adds layers that end in zeros, all alike: an exporter that stores equal matrices once would read
    less memory than it would with a real checkpoint of that size.
    """
    target.mkdir()
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, target)
            continue
        tensors, generator = load_file(path), np.random.default_rng(7)
        for name, values in tensors.items():
            if values.ndim == 2 and not values.any():
                tensors[name] = (generator.standard_normal(values.shape, np.float32) * NOISE).astype(values.dtype)
        save_file(tensors, target / path.name, metadata={"format": "pt"})


def pad_vocabulary(small: Path, like: Path, target: Path) -> None:
    """The checkpoint `small` with rows of zeros for the ids that `like` has beyond its own, and its tokenizer.

    llama-server takes a small model only where both have about as many ids.
    """
    target.mkdir()
    config = json.loads((small / "config.json").read_text())
    size = json.loads((like / "config.json").read_text())["vocab_size"]
    tensors = load_file(small / "model.safetensors")
    name = "model.embed_tokens.weight"
    padded = np.zeros((size, tensors[name].shape[1]), tensors[name].dtype)
    padded[: len(tensors[name])] = tensors[name]
    save_file({**tensors, name: padded}, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps({**config, "vocab_size": size}))
    beside = (like / "tokenizer.json", like / "tokenizer_config.json", small / "generation_config.json")
    for path in filter(Path.exists, beside):
        shutil.copy(path, target)
