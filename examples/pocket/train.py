"""Trains the tokenizer, the pocket model and its draft in one command; knows nothing of how replies are judged."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from .card import write_card
from .corpus import segments, training_samples
from .evaluate import evaluate
from .model import DRAFT, POCKET, Llama, load_model, save_model
from .optimizer import Muon
from .stream import CHUNK_ROWS, OPENS, TOKEN, TRAINED, Stream
from .tokenizer import PAD, TURN_END, save_tokenizer, token_id, train_tokenizer

PROMPT_WEIGHT = 0.03  # the words of a prompt are mostly random: little is to be learnt from predicting them


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how to train."""

    out: Path
    seconds: float
    draft_seconds: float
    steps: int
    rows: int
    length: int
    workers: int
    seed: int
    device: str
    matrix_rate: float
    vector_rate: float
    warm: Path | None
    eval_prompts: int
    dense: bool


class Batches:
    """Fresh rows while there are any, else rows seen before (kept on the device); counts what it gave out."""

    def __init__(self, stream: Stream, rows: int, device: str) -> None:
        self._stream, self._rows, self._device = stream, rows, device
        self._kept: list[Tensor] = []
        self._open: list[Tensor] = []
        self._random = random.Random(0)
        self.num_fresh, self.num_rows = 0, 0

    def next(self) -> Tensor:
        """Flagged ids [rows, length]."""
        if not self._open:
            chunk = self._stream.take(wait=len(self._kept) < 32)
            if chunk is None:
                tensor = self._random.choice(self._kept)
            else:
                tensor = torch.from_numpy(chunk).to(self._device)
                self._kept.append(tensor)
                self.num_fresh += len(chunk)
            shuffled = tensor[torch.randperm(CHUNK_ROWS, device=self._device)]
            self._open = list(torch.split(shuffled, self._rows))
        batch = self._open.pop()
        self.num_rows += len(batch)
        return batch


def visible(documents: Tensor, compiled_mask: Any) -> BlockMask | Tensor:
    """Each position sees the earlier ones of its own sample only; `documents` is [rows, length]."""
    rows, length = documents.shape
    if compiled_mask is None:
        same = documents[:, :, None] == documents[:, None, :]
        return (same & torch.ones(length, length, dtype=torch.bool, device=documents.device).tril())[:, None]

    def seen(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (documents[row, query] == documents[row, key])

    return cast(BlockMask, compiled_mask(seen, rows, None, length, length, device=documents.device))


def losses(
    model: Llama,
    teacher: Llama | None,
    tokens: Tensor,
    targets: Tensor,
    weights: Tensor,
    positions: Tensor,
    mask: BlockMask | Tensor,
) -> Tensor:
    """Weighted cross entropy; with a teacher, mostly its distribution instead of the text."""
    logits = model(tokens, positions, mask).float().flatten(0, 1)
    loss = functional.cross_entropy(logits, targets.flatten(), reduction="none")
    if teacher is not None:
        with torch.no_grad():
            wanted = teacher(tokens, positions, mask).float().flatten(0, 1).softmax(-1)
        loss = 0.2 * loss + 0.8 * functional.cross_entropy(logits, wanted, reduction="none")
    return (loss * weights.flatten()).sum() / weights.sum()


def rate_at(progress: float) -> float:
    """Warm up, stay, then fall to nothing over the last half."""
    return min(1.0, progress / 0.01 + 0.01) * min(1.0, (1.0 - progress) / 0.5)


@dataclass(frozen=True, slots=True)
class Step:
    """What one step reads: everything [rows, length - 1], the mask as the attention wants it."""

    tokens: Tensor
    targets: Tensor
    weights: Tensor
    mask: BlockMask | Tensor


def unpacked(flagged: Tensor, compiled_mask: Any) -> Step:
    """Flagged ids [rows, length] as a step; nothing is predicted across the border of two samples."""
    ids = (flagged & TOKEN).long()
    documents = ((flagged & OPENS) > 0).cumsum(1)
    weights = torch.where((flagged[:, 1:] & TRAINED) > 0, 1.0, PROMPT_WEIGHT)
    weights = weights * (documents[:, 1:] == documents[:, :-1])
    mask = visible(documents[:, :-1].contiguous(), compiled_mask)
    return Step(ids[:, :-1], ids[:, 1:], weights, mask)


class Optimizers:
    """Muon for the matrices of the layers, Adam for the rest."""

    def __init__(self, model: Llama, plan: Plan) -> None:
        matrices = [each for each in model.model.layers.parameters() if each.dim() == 2]
        vectors = [each for each in model.parameters() if not any(each is matrix for matrix in matrices)]
        fused = plan.device == "cuda"
        self._matrix_rate, self._vector_rate = plan.matrix_rate, plan.vector_rate
        self._muon = Muon(matrices, plan.matrix_rate)
        self._adam = torch.optim.AdamW(vectors, lr=plan.vector_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=fused)

    def step(self, rate: float) -> None:
        """Update all weights at a share of the full learning rates."""
        for group in self._muon.param_groups:
            group["lr"] = rate * self._matrix_rate
        for group in self._adam.param_groups:
            group["lr"] = rate * self._vector_rate
        self._muon.step()
        self._adam.step()


def train(model: Llama, teacher: Llama | None, batches: Batches, plan: Plan, seconds: float, name: str) -> float:
    """Train in place until the time or the steps are used up; returns the last mean loss."""
    cuda = plan.device == "cuda"
    optimizers = Optimizers(model, plan)
    step_losses = torch.compile(losses) if cuda else losses
    compiled_mask = torch.compile(create_block_mask) if cuda and not plan.dense else None
    positions = torch.arange(plan.length - 1, device=plan.device)[None].expand(plan.rows, -1)
    started = saved = time.monotonic()
    mean = torch.zeros((), device=plan.device)
    for number in itertools.count():
        if number == 10:
            started = time.monotonic()  # compiling and starting the workers is not training
        elapsed = time.monotonic() - started
        progress = max(elapsed / seconds if number > 10 else 0.0, number / plan.steps if plan.steps else 0.0)
        if progress >= 1.0:
            break
        step = unpacked(batches.next().int(), compiled_mask)
        with torch.autocast(plan.device, dtype=torch.bfloat16, enabled=cuda):
            loss = step_losses(model, teacher, step.tokens, step.targets, step.weights, positions, step.mask)
        torch.autograd.backward(loss)
        optimizers.step(rate_at(progress))
        model.zero_grad(set_to_none=True)
        mean = loss.detach() if number == 0 else mean.lerp(loss.detach(), 0.02)
        if number % 500 == 0:
            seen = f"{batches.num_rows * (plan.length - 1) / 1e6:.0f}M tokens, {batches.num_fresh} fresh rows"
            print(f"{name} step {number}: loss {mean.item():.4f}, {seen}, {progress:.0%} in {elapsed:.0f}s", flush=True)
        if time.monotonic() - saved > 60:
            saved = time.monotonic()
            save(model, plan.out if teacher is None else plan.out / "draft", draft=teacher is not None)
    return mean.item()


def save(model: Llama, folder: Path, draft: bool) -> None:
    """Write a checkpoint; a draft records that it has no tokenizer of its own."""
    tokenizer = Tokenizer.from_file(str((folder.parent if draft else folder) / "tokenizer.json"))
    extra: dict[str, object] = {"tokenizer": "../tokenizer.json"} if draft else {}
    save_model(model, folder, token_id(tokenizer, TURN_END), token_id(tokenizer, PAD), extra)


def prepare_tokenizer(plan: Plan) -> Tokenizer:
    """Train the tokenizer on the corpus, or take the one of the checkpoint to start from."""
    if plan.warm:
        tokenizer = Tokenizer.from_file(str(plan.warm / "tokenizer.json"))
    else:
        samples = itertools.islice(
            training_samples(plan.seed + 999), 3000 if plan.steps and plan.steps < 100 else 60000
        )
        tokenizer = train_tokenizer("".join(text for text, _ in segments(sample)) for sample in samples)
    save_tokenizer(tokenizer, plan.out)
    return tokenizer


def record_training(plan: Plan, record: dict[str, object]) -> None:
    """Write training.json: the trainings of the checkpoint started from, then this one."""
    before = plan.warm / "training.json" if plan.warm else None
    earlier = json.loads(before.read_text()) if before and before.exists() else []
    (plan.out / "training.json").write_text(json.dumps([*earlier, record], indent=2) + "\n")


def run(plan: Plan) -> None:
    """Everything: tokenizer, model, draft, evaluation, card."""
    torch.manual_seed(plan.seed)
    torch.set_float32_matmul_precision("high")
    begun = time.monotonic()
    tokenizer = prepare_tokenizer(plan)
    print(f"tokenizer ready after {time.monotonic() - begun:.0f}s", flush=True)
    model = (load_model(plan.warm) if plan.warm else Llama(POCKET)).to(plan.device)
    draft = (load_model(plan.warm / "draft") if plan.warm else Llama(DRAFT)).to(plan.device)
    with Stream(tokenizer, plan.seed, plan.length, plan.workers) as stream:
        batches = Batches(stream, plan.rows, plan.device)
        loss = train(model, None, batches, plan, plan.seconds, "pocket")
        num_model_rows = batches.num_rows
        save(model, plan.out, draft=False)
        draft_plan = replace(plan, vector_rate=plan.vector_rate * 2)
        draft_loss = train(draft, model, batches, draft_plan, plan.draft_seconds, "draft")
        save(draft, plan.out / "draft", draft=True)
    print(f"trained after {time.monotonic() - begun:.0f}s", flush=True)
    record: dict[str, object] = {
        "seed": plan.seed,
        "seconds": plan.seconds,
        "draft_seconds": plan.draft_seconds,
        "tokens": num_model_rows * (plan.length - 1),
        "draft_tokens": (batches.num_rows - num_model_rows) * (plan.length - 1),
        "distinct_tokens": batches.num_fresh * (plan.length - 1),
        "loss": loss,
        "draft_loss": draft_loss,
    }
    record_training(plan, record)
    evaluate(plan.out, plan.out / "evaluation.json", plan.eval_prompts, plan.device)
    write_card(plan.out)
    print(f"finished after {time.monotonic() - begun:.0f}s", flush=True)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(
        description="Train the tokenizer, the pocket model and its draft.",
        epilog="Example: python -m examples.pocket.train --out build/pocket",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--seconds", type=float, default=480.0, help="training time of the model")
    parser.add_argument("--draft-seconds", type=float, default=90.0, help="training time of the draft")
    parser.add_argument("--steps", type=int, default=0, help="stop after so many steps even if time is left")
    parser.add_argument("--rows", type=int, default=32, help="rows of a batch")
    parser.add_argument("--length", type=int, default=2049, help="tokens of a row")
    parser.add_argument(
        "--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="processes that make the corpus"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the corpus and the weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--matrix-rate", type=float, default=0.02, help="learning rate of the matrices")
    parser.add_argument("--vector-rate", type=float, default=0.003, help="learning rate of the embedding and the norms")
    parser.add_argument("--warm", type=Path, default=None, help="checkpoint folder to start from")
    parser.add_argument("--eval-prompts", type=int, default=1000, help="held-out prompts of each family")
    parser.add_argument(
        "--dense", action="store_true", help="plain masks, where block-sparse attention is not available"
    )
    run(Plan(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
