"""Measures greedy replies to held-out prompts, family by family; never trains and never sees training samples."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from .corpus import FAMILIES, evaluation_samples, prompt_text
from .model import Cache, Llama, load_model
from .sample import Sample, is_right
from .tokenizer import PAD, TURN_END, token_id

BATCH = 256
SEED = 7


@torch.no_grad()
def greedy(model: Llama, prompts: Sequence[Sequence[int]], num_new: int, end: int) -> list[list[int]]:
    """The most likely continuation of each prompt, up to and without the end token."""
    device = model.model.norm.weight.device
    longest = max(len(prompt) for prompt in prompts)
    num_new = min(num_new, model.shape.positions - longest)
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
    padding = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(prompt, device=device)
    cache = Cache(model.shape, len(prompts), longest + num_new, model.model.norm.weight)
    places = torch.arange(longest + num_new, device=device)
    real = places[None] >= padding[:, None]  # [rows, positions]: not left padding
    causal = places[None, :longest] <= places[:longest, None]
    # Padding sees itself, as an empty row of the softmax is not a number.
    own = torch.eye(longest, dtype=torch.bool, device=device)
    mask = (causal & real[:, None, :longest] | own)[:, None]
    replies: list[Tensor] = []
    done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for step in range(num_new):
        begin = 0 if step == 0 else longest + step - 1
        positions = (places[None, begin : longest + step] - padding[:, None]).clamp(min=0)
        logits = model(tokens, positions, mask, cache)[:, -1]
        tokens = logits.argmax(-1, keepdim=True)
        done |= tokens[:, 0] == end
        replies.append(tokens[:, 0])
        if step % 16 == 15 and bool(done.all()):
            break
        mask = real[:, None, None, : longest + step + 1]
    rows = torch.stack(replies, dim=1).tolist() if replies else [[] for _ in prompts]
    return [row[: row.index(end)] if end in row else row for row in rows]


def replies_of(model: Llama, tokenizer: Tokenizer, samples: Sequence[Sample]) -> list[str]:
    """Greedy replies as text, in the order of the samples."""
    prompts = [tokenizer.encode(prompt_text(sample), add_special_tokens=False).ids for sample in samples]
    wanted = [
        len(tokenizer.encode(sample.answer, add_special_tokens=False).ids) + (400 if sample.check == "story" else 24)
        for sample in samples
    ]
    order = sorted(range(len(samples)), key=lambda place: len(prompts[place]) + wanted[place])
    replies = [""] * len(samples)
    for begin in range(0, len(order), BATCH):
        chosen = order[begin : begin + BATCH]
        out = greedy(
            model,
            [prompts[place] for place in chosen],
            max(wanted[place] for place in chosen),
            token_id(tokenizer, TURN_END),
        )
        for place, ids in zip(chosen, out, strict=True):
            replies[place] = tokenizer.decode(ids, skip_special_tokens=True)
    return replies


@torch.no_grad()
def agreement(model: Llama, draft: Llama, tokenizer: Tokenizer, samples: Sequence[Sample]) -> float:
    """Share of the tokens of the reference replies at which both models would choose the same token."""
    device = model.model.norm.weight.device
    same = total = 0
    for sample in samples:
        prompt = tokenizer.encode(prompt_text(sample), add_special_tokens=False).ids
        reply = tokenizer.encode(f"{sample.answer}{TURN_END}", add_special_tokens=False).ids
        tokens = torch.tensor([prompt + reply], device=device)[:, : model.shape.positions]
        length = tokens.shape[1]
        positions = torch.arange(length, device=device)[None]
        mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=device).tril()
        chosen = [each(tokens, positions, mask)[0, len(prompt) - 1 : -1].argmax(-1) for each in (model, draft)]
        same += int((chosen[0] == chosen[1]).sum())
        total += len(chosen[0])
    return same / max(1, total)


def fitting(tokenizer: Tokenizer, family: str, num_prompts: int, positions: int) -> list[Sample]:
    """Held-out samples that fit the context, so that a wrong reply is the model's doing."""
    kept: list[Sample] = []
    for sample in evaluation_samples(family, SEED, num_prompts * 2):
        room = 0 if sample.check != "story" else 200
        whole = tokenizer.encode(prompt_text(sample) + sample.answer, add_special_tokens=False).ids
        if len(whole) + room < positions - 32:
            kept.append(sample)
    return kept[:num_prompts]


def evaluate(folder: Path, report: Path, num_prompts: int, device: str, wrong_report: Path | None = None) -> None:
    """Write a JSON report on the checkpoint in a folder and, where wished, a few wrong replies of each family."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert token_id(tokenizer, PAD) == 0
    model = load_model(folder).to(device).eval()
    draft = load_model(folder / "draft").to(device).eval() if (folder / "draft" / "config.json").exists() else None
    families: dict[str, dict[str, float]] = {}
    wrong: list[dict[str, str]] = []
    for family in FAMILIES:
        samples = fitting(tokenizer, family, num_prompts, model.shape.positions)
        replies = replies_of(model, tokenizer, samples)
        marks = [is_right(sample, reply) for sample, reply in zip(samples, replies, strict=True)]
        families[family] = {"prompts": len(samples), "right": sum(marks), "accuracy": sum(marks) / len(samples)}
        failures = [(sample, reply) for sample, reply, mark in zip(samples, replies, marks, strict=True) if not mark]
        wrong += [
            {"family": family, "prompt": prompt_text(s)[-900:], "expected": s.answer, "reply": reply}
            for s, reply in failures[:25]
        ]
        if draft is not None:
            families[family]["draft_agreement"] = agreement(model, draft, tokenizer, samples[:40])
        print(family, {key: round(value, 4) for key, value in families[family].items()}, flush=True)
    exact = [row for family, row in families.items() if family != "story"]
    overall = sum(row["right"] for row in exact) / sum(row["prompts"] for row in exact)
    print(f"overall {overall:.4f}", flush=True)
    parameters = {
        "model": sum(p.numel() for p in model.parameters()),
        "draft": sum(p.numel() for p in draft.parameters()) if draft else 0,
    }
    report.write_text(json.dumps({"overall": overall, "families": families, "parameters": parameters}, indent=2) + "\n")
    if wrong_report is not None:
        wrong_report.write_text(json.dumps(wrong, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    """Read the command line and evaluate."""
    parser = argparse.ArgumentParser(
        description="Measure a checkpoint on held-out prompts.",
        epilog="Example: python -m examples.pocket.evaluate --model export/pocket --report build/report.json",
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--report", type=Path, required=True, help="where to write the JSON report")
    parser.add_argument("--wrong", type=Path, default=None, help="where to write some of the wrong replies as JSON")
    parser.add_argument("--prompts", type=int, default=1000, help="held-out prompts of each family")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    evaluate(arguments.model, arguments.report, arguments.prompts, arguments.device, arguments.wrong)


if __name__ == "__main__":
    main()
