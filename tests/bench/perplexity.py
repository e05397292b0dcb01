"""What each recipe costs in perplexity: graphs of one checkpoint over held-out text, against its float32 reference.

The text is all of what exports are proved by (their own proof reads its beginning): prose, code, tables and other
languages, and conversations of the kind the bundled model was trained on, which it has not seen. Repeat it anywhere:

  python -m tests.bench.perplexity --json out.json
  python -m tests.bench.perplexity --source CHECKPOINT --recipes fp32,int8,int4-32
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ortserve.export.bundled import bundled_model
from ortserve.export.families import read_architecture
from ortserve.export.float_reference.forward import Floats, reference_logits
from ortserve.export.proof.graph_run import RowInput
from ortserve.export.proof.paged_run import open_graph_run
from ortserve.export.proof.text_proof import compare_perplexity, log_probabilities
from ortserve.export.publish import export_checkpoint
from ortserve.export.sources.checkpoint import Checkpoint, open_checkpoint
from ortserve.export.texts.proof_text import bundled_documents, document_tokens
from ortserve.runtime.manifest import read_manifest
from tests.bench.measurement import Goal, finish, script_parser, spread

MAX_LENGTH = 512  # tokens of a document
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "int8": {"precision": "int8"},
    "int8-token": {"precision": "int8", "activations": "token"},
    "int8-kv-int8": {"precision": "int8", "kv": "int8"},
    "int4-32": {"precision": "int4", "block_size": 32},
    "int4-64": {"precision": "int4", "block_size": 64},
    "int4-128": {"precision": "int4", "block_size": 128},
    "int4-32-token": {"precision": "int4", "block_size": 32, "activations": "token"},
    "int4-128-token": {"precision": "int4", "block_size": 128, "activations": "token"},
    "cuda-int4": {"precision": "int4", "device": "cuda"},
    "cuda-int4-token": {"precision": "int4", "device": "cuda", "activations": "token"},
    "cuda-fp16": {"precision": "fp16", "device": "cuda"},
}
AT_MOST = {"int8": 0.01, "int4-32": 0.04, "cuda-int4": 0.04}  # more perplexity than the reference has


@dataclass(frozen=True, slots=True)
class Quality:
    """Of one recipe on one kind of text."""

    num_tokens: int  # that were predicted
    reference: float  # perplexity
    graph: float
    mean_kl: float  # nats
    top1_agreement: float

    @property
    def increase(self) -> float:
        return self.graph / self.reference - 1


def kinds_of_text(checkpoint: Checkpoint, vocab_size: int, *, max_tokens: int = 10**9) -> dict[str, list[list[int]]]:
    """Documents by kind, as token ids, at most so many of each kind."""
    documents = bundled_documents("held_out")
    talks = [text for text in documents if text.startswith("<|im_start|>")]
    kinds = {"conversations": talks, "other text": [text for text in documents if text not in talks]}
    return {
        kind: document_tokens(checkpoint, vocab_size, texts, max_tokens=max_tokens, max_length=MAX_LENGTH)
        for kind, texts in kinds.items()
    }


def graph_logits(folder: Path, documents: Sequence[Sequence[int]]) -> list[Floats]:
    """Each document in one call."""
    run = open_graph_run(folder, read_manifest(folder), num_rows=1, capacity=2 * MAX_LENGTH)
    return [run.run([RowInput(tokens, 0)])[0] for tokens in documents]


def compare(
    documents: Sequence[Sequence[int]], expected: Sequence[Floats], found: Sequence[Floats], *, num_tokens: int
) -> Quality:
    """Over the ids that can be drawn."""
    perplexity = compare_perplexity(documents, expected, found, num_tokens=num_tokens, max_ratio=None)
    divergences: list[float] = []
    agreeing: list[bool] = []
    for wanted, got in zip(expected, found, strict=True):
        log_wanted, log_got = (log_probabilities(logits[:, :num_tokens]) for logits in (wanted, got))
        divergences += np.sum(np.exp(log_wanted) * (log_wanted - log_got), axis=1).tolist()
        agreeing += (log_wanted.argmax(axis=1) == log_got.argmax(axis=1)).tolist()
    return Quality(
        perplexity.num_tokens,
        perplexity.reference,
        perplexity.graph,
        float(np.mean(divergences)),
        float(np.mean(agreeing)),
    )


def measure(
    checkpoint: Checkpoint, kinds: Mapping[str, Sequence[Sequence[int]]], recipes: Sequence[str], folder: Path
) -> dict[str, dict[str, Quality]]:
    """By recipe and kind of text, of documents as `kinds_of_text` gives them."""
    architecture = read_architecture(checkpoint)
    expected = {kind: reference_logits(checkpoint, architecture, documents) for kind, documents in kinds.items()}
    measured: dict[str, dict[str, Quality]] = {}
    for recipe in recipes:
        made = folder / recipe
        manifest = export_checkpoint(checkpoint, made, verify=False, progress=False, **RECIPES[recipe])
        measured[recipe] = {}
        for kind, documents in kinds.items():
            found = graph_logits(made, documents)
            quality = compare(documents, expected[kind], found, num_tokens=manifest.num_tokens)
            measured[recipe][kind] = quality
            bits = 8 * manifest.weight_bytes / manifest.num_parameters
            print(
                f"| {recipe} | {bits:.2f} | {kind} ({quality.num_tokens}) | {quality.reference:.3f} |"
                f" {quality.increase:+.2%} | {quality.mean_kl:.1e} | {quality.top1_agreement:.1%} |",
                flush=True,
            )
    return measured


def chosen_recipes(text: str) -> list[str]:
    """Raises `argparse.ArgumentTypeError` naming all of them."""
    names = text.split(",")
    unknown = [name for name in names if name not in RECIPES]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is unknown: choose from {', '.join(RECIPES)}")
    return names


def main() -> int:
    parser = script_parser(__doc__ or "")
    parser.add_argument("--source", type=Path, metavar="DIR", help="checkpoint (default: the bundled model)")
    parser.add_argument("--recipes", type=chosen_recipes, default=list(RECIPES), metavar="A,B", help=", ".join(RECIPES))
    arguments = parser.parse_args()
    print("| recipe | bits per parameter | text (tokens) | reference | more perplexity | mean KL | same best token |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = open_checkpoint(arguments.source or bundled_model())
        kinds = kinds_of_text(checkpoint, read_architecture(checkpoint).vocab_size)
        measured = measure(checkpoint, kinds, arguments.recipes, Path(folder))
    goals = [
        Goal(f"{recipe}, {kind}: more perplexity", spread([quality.increase]), at_most=AT_MOST[recipe])
        for recipe, kinds in measured.items()
        if recipe in AT_MOST
        for kind, quality in kinds.items()
    ]
    details = {recipe: {kind: asdict(quality) for kind, quality in kinds.items()} for recipe, kinds in measured.items()}
    return finish(arguments, goals, details)


if __name__ == "__main__":
    sys.exit(main())
