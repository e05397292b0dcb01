"""The proof of an export: logits of the graph against the independent reference in every shape the engine uses.

Knows the reference and the graph contract, not how the graph was built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ortserve.export.architecture import Architecture
from ortserve.export.errors import ExportError
from ortserve.export.float_reference.forward import logits_by, reference_logits
from ortserve.export.folder.describe import open_tokenizer
from ortserve.export.proof.feeds import FEEDS, RAGGED_STEPS, Run, in_steps
from ortserve.export.proof.graph_run import RowInput
from ortserve.export.proof.limits import LIMITS, Limits, limits_of
from ortserve.export.proof.paged_run import open_graph_run
from ortserve.export.proof.references import Reference, open_reference
from ortserve.export.proof.stored_weights import StoredWeights
from ortserve.export.proof.streams import StreamRecord
from ortserve.export.proof.text_proof import compare_greedy, compare_perplexity, greedy_reply, log_probabilities
from ortserve.export.proof.verdict import all_pass, check_parity_report
from ortserve.export.recipes.precisions import FLOAT_PRECISIONS, ReferenceName
from ortserve.export.sources.checkpoint import RANDOM_WEIGHTS, Checkpoint
from ortserve.export.texts.proof_text import bundled_documents, document_tokens
from ortserve.runtime.host.heap import trim_heap
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.parity import LayerError, ParityCase, ParityReport, StoredComparison

Floats = NDArray[np.float32]
Sequences = Sequence[Sequence[int]]
Pair: TypeAlias = tuple[float, float]
AsStored: TypeAlias = tuple[StoredComparison, tuple[LayerError, ...]]
CompareStored: TypeAlias = Callable[[Sequences, Sequence[Floats], StreamRecord], AsStored]
AtLengths: TypeAlias = Callable[[Sequences, Sequence[int]], list[Floats]]
SENTENCES = (
    "The harbour was quiet that morning, and the first boats were already far out on the grey water.",
    "def add(first, second):\n    return first + second\n",
    "Question: what is the capital of France? Answer: the capital of France is Paris.",
)
NUM_ROWS = len(SENTENCES)
LARGE_MODEL = 100_000_000  # parameters; above it the proof uses fewer positions
TEXT, LARGE_TEXT = 480, 144  # held-out tokens for perplexity
# The tenth of positions that differ least measures 1e-14 to 5e-6 on tiny and trained models, the median up to 7e-4;
# planted errors of one percent 5e-5 and above, those of later positions medians of 2e-2 and above. Through many layers
# more roundings fall the other way: large models have wider limits.
MAX_STORED_KL, MAX_STORED_KL_OF_LARGE = (2e-5, 2e-3), (1e-2, 3e-2)
# Measured on tiny matrices: int8 0.0007; int4 0.015, whose scales are fitted, which shrinks them a little.
MAX_FACTOR_ERRORS: Mapping[str, float] = {"fp32": 1e-4, "int8": 0.005, "int4": 0.03}


@dataclass(frozen=True, slots=True)
class ProofText:
    """What one proof computes."""

    rows: tuple[list[int], ...]  # in every shape of step
    documents: tuple[list[int], ...]  # held out, for perplexity
    prompt: list[int]  # answered greedily
    reply_length: int


def check_parity(
    folder: Path,
    manifest: Manifest,
    architecture: Architecture,
    checkpoint: Checkpoint,
    *,
    reference: ReferenceName = "auto",
) -> ParityReport:
    """Compare at prefill, token-by-token decode, chunks, and ragged steps mixing decode, chunks and idle rows.

    Quantized graphs are also compared with the reference over their own stored matrices, perplexities over held-out
    text, and greedy replies. Raises `ExportError` when the checkpoint is another model's, and when either side gives
    values that are not finite: no limit could be stated for those.
    """
    _check_same_model(manifest, architecture)
    compare_stored = None
    if manifest.kv.kind == "slots" and (manifest.kv.is_quantized or manifest.precision not in FLOAT_PRECISIONS):
        weights = StoredWeights(folder, manifest, architecture, checkpoint)
        compare_stored = partial(_against_stored, manifest=manifest, architecture=architecture, weights=weights)
    opened = open_reference(reference, checkpoint, architecture)
    at_lengths = partial(reference_logits, checkpoint, architecture)
    return compare_with(folder, manifest, checkpoint, opened, compare_stored=compare_stored, at_lengths=at_lengths)


def compare_with(
    folder: Path,
    manifest: Manifest,
    checkpoint: Checkpoint,
    reference: Reference,
    *,
    compare_stored: CompareStored | None = None,
    at_lengths: AtLengths | None = None,
    limits: Limits | None = None,
) -> ParityReport:
    """The same against any reference; `checkpoint` lends its tokenizer. Raises as `check_parity` does.

    `at_lengths` gives the logits of sequences that become so many tokens long, where positions depend on that.
    No `limits` are those of the model's precision and cache.
    """
    is_random = checkpoint.config.get(RANDOM_WEIGHTS) is True
    limits = limits or limits_of(manifest, is_random=is_random)
    text = _proof_text(checkpoint, manifest)
    graph = _run_graph(folder, manifest, text, by_length=at_lengths is not None)
    exact = StreamRecord(sum(map(len, text.rows)), sum(map(len, text.documents)))
    expected = reference.compute([*text.rows, *text.documents, [*text.prompt, *graph.reply]], exact.see)
    if not all(np.isfinite(logits).all() for logits in expected):
        raise ExportError(
            f"{checkpoint.folder}: the reference computes values that are not finite: its weights are damaged"
        )
    cases = tuple(
        _compare(name, expected[:NUM_ROWS], found, num_tokens=manifest.num_tokens) for name, found in graph.rows.items()
    )
    if at_lengths is not None:
        cases += tuple(_regimes(graph.by_length, manifest, at_lengths, text.rows))
    stored, layers = (None, ()) if compare_stored is None else compare_stored(text.documents, graph.documents, exact)
    report = ParityReport(
        reference.description,
        True,
        limits.max_mean_kl,
        limits.min_top1_agreement,
        cases,
        max_abs_error=limits.max_abs_error,
        stored=stored,
        perplexity=compare_perplexity(
            text.documents,
            expected[NUM_ROWS:-1],
            graph.documents,
            num_tokens=manifest.num_tokens,
            max_ratio=None if is_random else limits.max_perplexity_ratio,
        ),
        greedy=compare_greedy(text.prompt, graph.reply, expected[-1], num_tokens=manifest.num_tokens),
        libraries=reference.libraries,
        layers=layers,
    )
    return replace(report, passed=all_pass(check_parity_report(report)))


@dataclass(frozen=True, slots=True)
class _Answers:
    """Logits of the graph, `[tokens, vocab_size]` each."""

    reply: list[int]  # greedy
    rows: Mapping[str, list[Floats]]  # by the way they are fed
    documents: list[Floats]
    by_length: list[tuple[tuple[int, ...], list[Floats]]]  # rows that become so many tokens long


def _run_graph(folder: Path, manifest: Manifest, text: ProofText, *, by_length: bool) -> _Answers:
    """All that the proof asks of the graph: afterwards its session is gone, and the reference has the memory."""
    run = open_graph_run(folder, manifest, num_rows=NUM_ROWS, capacity=_capacity(text))
    answers = _Answers(
        greedy_reply(partial(_alone, run), text.prompt, text.reply_length, num_tokens=manifest.num_tokens),
        {name: feed(run, text.rows) for name, feed in FEEDS.items()},
        [_alone(run, tokens, 0) for tokens in text.documents],
        list(_run_regimes(run, manifest, text.rows)) if by_length else [],
    )
    del run
    trim_heap()
    return answers


def _against_stored(
    documents: Sequences,
    answers: Sequence[Floats],
    exact: StreamRecord,
    *,
    manifest: Manifest,
    architecture: Architecture,
    weights: StoredWeights,
) -> AsStored:
    rounded = StreamRecord(0, sum(map(len, documents)))
    as_stored = logits_by(weights, architecture, documents, watch=rounded.see)
    most = MAX_STORED_KL_OF_LARGE if manifest.num_parameters > LARGE_MODEL else MAX_STORED_KL
    factors = (weights.factor_error(architecture), MAX_FACTOR_ERRORS[manifest.precision])
    compared = _compare_stored(as_stored, answers, num_tokens=manifest.num_tokens, limits=most, factors=factors)
    return compared, rounded.errors(exact)


def _proof_text(checkpoint: Checkpoint, manifest: Manifest) -> ProofText:
    """Fewer positions for a large model, and none beyond its context."""
    is_large = manifest.num_parameters > LARGE_MODEL
    longest = manifest.short_context  # what becomes longer rotates otherwise: see `_regimes`
    num_positions = min(24 if is_large else 48, longest)
    documents = document_tokens(
        checkpoint,
        manifest.vocab_size,
        bundled_documents("held_out"),
        max_tokens=LARGE_TEXT if is_large else TEXT,
        max_length=min(2 * num_positions, longest),
    )
    prompt = documents[0][: max(1, num_positions // 2)]
    return ProofText(
        rows=tuple(proof_sequences(checkpoint, manifest, num_positions=num_positions)),
        documents=tuple(documents),
        prompt=prompt,
        reply_length=max(1, min(num_positions // 2, longest - len(prompt))),
    )


def _capacity(text: ProofText) -> int:
    """Room for a padded step behind a full row."""
    return 2 * max(map(len, (*text.rows, *text.documents)))


def _alone(run: Run, tokens: Sequence[int], num_past: int) -> Floats:
    """Logits of one row beside idle ones."""
    return run.run([RowInput(tokens, num_past), *[RowInput((), 0)] * (NUM_ROWS - 1)])[0]


def proof_sequences(checkpoint: Checkpoint, manifest: Manifest, *, num_positions: int) -> list[list[int]]:
    """Three sequences of unequal length, the longest of `num_positions` tokens.

    Sentences where there is a tokenizer; otherwise ids drawn, by a fixed seed, from those that can be generated.
    """
    lengths = [num_positions, max(1, num_positions * 2 // 3), max(1, num_positions // 2)]
    tokenizer = open_tokenizer(checkpoint)
    if tokenizer is None:
        generator = np.random.default_rng(7)
        return [generator.integers(0, manifest.num_tokens, length).tolist() for length in lengths]
    sequences: list[list[int]] = []
    for sentence, length in zip(SENTENCES, lengths, strict=True):
        tokens = [manifest.bos_token_id] if manifest.add_bos and manifest.bos_token_id is not None else []
        tokens += tokenizer.encode(sentence, add_special_tokens=True).ids
        if not tokens:
            raise ExportError(f"{checkpoint.folder}: tokenizer.json encodes a sentence to nothing: download it again")
        sequences.append((tokens * (1 + length // len(tokens)))[:length])
    return sequences


def _check_same_model(manifest: Manifest, architecture: Architecture) -> None:
    kv = manifest.kv
    exported = (manifest.vocab_size, manifest.hidden_size, manifest.num_heads, kv.num_layers, kv.num_kv_heads)
    described = (
        architecture.vocab_size,
        architecture.hidden_size,
        architecture.num_heads,
        len(architecture.layers),
        architecture.num_kv_heads,
    )
    if exported != described or kv.head_dim != architecture.head_dim or manifest.precision not in LIMITS:
        raise ExportError(f"{manifest.name} was not exported from this checkpoint: their sizes differ")


def _run_regimes(run: Run, manifest: Manifest, sequences: Sequences) -> Iterator[tuple[tuple[int, ...], list[Floats]]]:
    """Ragged steps of rows that rotate by different lengths, where there are several: each regime beside others."""
    regimes = manifest.rotary_regimes
    for first in range(0, len(regimes) if len(regimes) > 1 else 0, NUM_ROWS):
        chosen = [regimes[(first + row) % len(regimes)] for row in range(NUM_ROWS)]
        lengths = tuple(regime.max_tokens for regime in chosen)
        yield lengths, in_steps(run, sequences, RAGGED_STEPS, [regime.first_row for regime in chosen])


def _regimes(
    found: Sequence[tuple[tuple[int, ...], list[Floats]]], manifest: Manifest, at_lengths: AtLengths, rows: Sequences
) -> Iterator[ParityCase]:
    """Against the NumPy reference, which takes any length; transformers would have to compute a text of that length."""
    for lengths, logits in found:
        name = "lengths " + ", ".join(map(str, lengths))
        yield _compare(name, at_lengths(rows, lengths), logits, num_tokens=manifest.num_tokens)


def _compare(name: str, expected: Sequence[Floats], found: Sequence[Floats], *, num_tokens: int) -> ParityCase:
    """Differences over the ids that can be drawn: padding of the embedding is masked before every draw."""
    divergences: list[float] = []
    num_agreeing = 0
    max_abs_error = 0.0
    for wanted_rows, found_rows in zip(expected, found, strict=True):
        for wanted, got in zip(wanted_rows[:, :num_tokens], found_rows[:, :num_tokens], strict=True):
            if not np.isfinite(got).all():
                raise ExportError(f"the exported graph computes values that are not finite ({name}): report a bug")
            divergences.append(_kl(wanted, got))
            num_agreeing += int(np.argmax(wanted) == np.argmax(got))
            max_abs_error = max(max_abs_error, float(np.abs(wanted - got).max()))
    num_positions = len(divergences)
    return ParityCase(
        name,
        num_positions,
        max_abs_error,
        sum(divergences) / num_positions,
        num_agreeing / num_positions,
        max(divergences),
    )


def _compare_stored(
    expected: Sequence[Floats], found: Sequence[Floats], *, num_tokens: int, limits: Pair, factors: Pair
) -> StoredComparison:
    """`limits` of the lowest tenth and of the median; `factors`: the error that was found, and the one allowed."""
    divergences = [
        _kl(wanted, got)
        for wanted_rows, found_rows in zip(expected, found, strict=True)
        for wanted, got in zip(wanted_rows[:, :num_tokens], found_rows[:, :num_tokens], strict=True)
    ]
    low, median = float(np.quantile(divergences, 0.1)), float(np.median(divergences))
    return StoredComparison(len(divergences), low, median, *limits, *factors)


def _kl(wanted: Floats, found: Floats) -> float:
    """KL(softmax(wanted) || softmax(found)) in nats, never below 0."""
    log_wanted, log_found = log_probabilities(wanted), log_probabilities(found)
    return max(0.0, float(np.sum(np.exp(log_wanted) * (log_wanted - log_found))))
