"""Writes the tiny random encoders in `encoders/`, optimum's graphs of them and what sentence-transformers computes.

Not run by the suite, which needs neither torch nor optimum: run it by hand in optimum's environment, when an
architecture is added (`python tests/export/make_encoder_checkpoints.py`). Knows nothing of ortserve but the worker that
runs in the same environment, and the texts of the proof.
"""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Dense, Normalize, Pooling, Transformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

FOLDER = Path(__file__).parent / "encoders"
SOURCE = Path(__file__).parents[2] / "export" / "encoders"
WORKER = runpy.run_path(str(SOURCE / "worker.py"))
PROOF = runpy.run_path(str(SOURCE / "proof_texts.py"))
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
VOCAB_SIZE = 220
SIZES = {"vocab_size": VOCAB_SIZE, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 32, "max_position_embeddings": 72, "pad_token_id": 1}  # fmt: skip
DISTIL = {"vocab_size": VOCAB_SIZE, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32,
          "max_position_embeddings": 72, "pad_token_id": 1}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One checkpoint: its model class, configuration, and what comes after the transformer."""

    model: str
    config: Mapping[str, Any]
    modules: Callable[[int], Sequence[Any]] = lambda size: [Pooling(size, "mean")]
    max_length: int = 64
    prompts: Mapping[str, str] = field(default_factory=dict)


CASES: Mapping[str, Case] = {
    "bert": Case("Bert", {**SIZES, "type_vocab_size": 2}, lambda size: [Pooling(size, "mean"), Normalize()]),
    "distilbert": Case("DistilBert", DISTIL, lambda size: [Pooling(size, ("cls", "max", "mean"))]),
    "mpnet": Case("MPNet", SIZES, lambda size: [Pooling(size, "cls")]),
    "xlm-roberta": Case(
        "XLMRoberta",
        {**SIZES, "type_vocab_size": 1},
        lambda size: [
            Pooling(size, "weightedmean"),
            Dense(size, 12, activation_function=torch.nn.Tanh()),
            Dense(12, 10, bias=False, activation_function=torch.nn.GELU()),
            Normalize(),
        ],
        prompts={"query": "query: ", "document": "passage: "},
    ),
    "modernbert": Case(
        "ModernBert",
        {**SIZES, "global_attn_every_n_layers": 2, "local_attention": 8, "global_rope_theta": 500.0,
         "local_rope_theta": 50.0, "reference_compile": False},
        lambda size: [Pooling(size, ("lasttoken", "mean_sqrt_len_tokens"))],
    ),
}  # fmt: skip
RERANKERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "bert-rerank": ("Bert", {**SIZES, "type_vocab_size": 2}),
    "xlm-roberta-rerank": (
        "XLMRoberta",
        {**SIZES, "type_vocab_size": 1, "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
    ),
}


def make_tokenizer(*, types: bool) -> Any:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=VOCAB_SIZE, special_tokens=SPECIAL, limit_alphabet=60)
    tokenizer.train_from_iterator(PROOF["TEXTS"], trainer)
    second = ":1" if types else ":0"
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair=f"<s> $A </s> $B{second} </s>{second}",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        cls_token="<s>", sep_token="</s>", unk_token="<unk>", mask_token="<mask>",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"] if types
        else ["input_ids", "attention_mask"],
    )  # fmt: skip


def shake(model: Any) -> Any:
    """Weights large enough that texts differ, and biases that are not zero."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.dim() > 1 else 0.1
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(noise + 1.0 if "norm" in name.lower() and name.endswith("weight") else noise)
    return model.eval()


def save(name: str, kind: str, head: str, config: Mapping[str, Any], checkpoint: Path) -> None:
    model = getattr(transformers, f"{kind}{head}")(getattr(transformers, f"{kind}Config")(**config))
    shake(model).save_pretrained(checkpoint)
    make_tokenizer(types=config.get("type_vocab_size") == 2).save_pretrained(checkpoint)
    print(name, sum(parameter.numel() for parameter in model.parameters()))


def make(name: str) -> None:
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    checkpoint = folder / "checkpoint"
    if name in CASES:
        case = CASES[name]
        plain = folder / "plain"
        save(name, case.model, "Model", case.config, plain)
        transformer = Transformer(str(plain), max_seq_length=case.max_length)
        modules = [shake(module) for module in case.modules(16)]
        SentenceTransformer(modules=[transformer, *modules], prompts=dict(case.prompts) or None).save(
            str(checkpoint), create_model_card=False
        )
        shutil.rmtree(plain)
    else:
        kind, config = RERANKERS[name]
        save(name, kind, "ForSequenceClassification", {**config, "num_labels": 1}, checkpoint)
    work(checkpoint, folder, "embeddings" if name in CASES else "rerank")


def work(checkpoint: Path, folder: Path, task: str) -> None:
    """What export asks of the worker."""
    request = folder / "request.json"
    out = folder / "optimum"
    request.write_text(
        json.dumps(
            {"checkpoint": str(checkpoint), "folder": str(out), "task": task, "texts": PROOF["TEXTS"],
             "pairs": PROOF["PAIRS"]}
        )
    )  # fmt: skip
    sys.argv[1:] = [str(request)]
    WORKER["main"]()
    request.unlink()
    for path in out.iterdir():
        if path.name not in ("model.onnx", "reference.npy", "dense.npz", "done.json"):
            path.unlink()


def main() -> None:
    for name in sys.argv[1:] or [*CASES, *RERANKERS]:
        make(name)


if __name__ == "__main__":
    main()
