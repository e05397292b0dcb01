"""Measures on calibration text what each way of rounding would lose, product by product. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ortserve.export.architecture import Architecture, Linear
from ortserve.export.folder.describe import describe_tokens
from ortserve.export.progress import show_progress
from ortserve.export.recipes.calibrate import Observed, places, watch_products
from ortserve.export.recipes.precisions import Precision
from ortserve.export.recipes.recipe import Calibration, InputOptions, int4_options, int8_options, weight_options
from ortserve.export.sources.checkpoint import Checkpoint
from ortserve.export.texts.proof_text import bundled_documents, document_tokens, read_documents

MAX_TOKENS = 1024
MAX_TOKENS_OF_LARGE = 384
LARGE_MODEL = 100_000_000  # weights of the layers
MAX_DOCUMENT = 128  # tokens: many beginnings rather than long ones, since first tokens are the outliers
BUNDLED = "bundled text"


def measure_options(
    checkpoint: Checkpoint,
    architecture: Architecture,
    *,
    precision: Precision,
    block_size: int,
    weights_only: bool = False,
    text: Path | None = None,
    progress: bool = False,
) -> Calibration:
    """Options of every input for int8 or int4, from a float pass over `text` or the bundled calibration text.

    With `weights_only` for kernels that leave activations as they are, in half floats.

    Raises `ExportError` for text that cannot be read, and for a checkpoint that computes values that are not finite.
    """
    sequences = calibration_sequences(checkpoint, architecture, text)
    options: dict[Linear, InputOptions] = {}
    num_places = sum(1 for _ in places(architecture))
    with show_progress(f"calibrate {checkpoint.name}", num_places, wanted=progress, unit="steps") as advance:
        if weights_only:
            watch_products(checkpoint, architecture, sequences, partial(_keep_weights, options, block_size, advance))
        else:
            keep = _keep(options, architecture, precision, block_size, advance)
            watch_products(checkpoint, architecture, sequences, keep)
    return Calibration(options, sum(map(len, sequences)), BUNDLED if text is None else text.name)


def calibration_sequences(checkpoint: Checkpoint, architecture: Architecture, text: Path | None) -> list[list[int]]:
    """Tokens of `text` or of the bundled calibration text, then rare ones. Raises `ExportError`."""
    documents = bundled_documents("calibration") if text is None else read_documents(text)
    max_tokens = MAX_TOKENS_OF_LARGE if architecture.num_layer_weights > LARGE_MODEL else MAX_TOKENS
    sequences = document_tokens(
        checkpoint,
        architecture.vocab_size,
        documents,
        max_tokens=max_tokens,
        max_length=min(MAX_DOCUMENT, architecture.max_context),
    )
    num_tokens = describe_tokens(checkpoint, architecture.vocab_size).num_tokens
    sequences.append(_rare_tokens(num_tokens, min(MAX_DOCUMENT, architecture.max_context)))
    return sequences


def _rare_tokens(num_tokens: int, length: int) -> list[int]:
    """Ids of the whole vocabulary: calibrated scales must have codes for tokens that no short text holds."""
    ids: list[int] = np.random.default_rng(5).integers(0, num_tokens, length).tolist()
    return ids


def _keep_weights(
    options: dict[Linear, InputOptions], block_size: int, advance: Callable[[int], None], observed: Observed
) -> None:
    options.update(dict.fromkeys(observed.place.linears, weight_options(observed, block_size)))
    advance(1)


def _keep(
    options: dict[Linear, InputOptions],
    architecture: Architecture,
    precision: Precision,
    block_size: int,
    advance: Callable[[int], None],
) -> Callable[[Observed], None]:
    def keep(observed: Observed) -> None:
        place = observed.place
        is_head = place.kind == "head"
        found = int8_options(observed, tied=is_head and architecture.tied)
        if precision == "int4" and not is_head:
            block = int4_options(observed, block_size).block
            found = InputOptions(token=found.token, block=block)
        if place.kind == "routed":
            found = replace(found, static=None)  # experts share the codes of a token, and their scales
        options.update(dict.fromkeys(place.linears, found))
        advance(1)

    return keep
