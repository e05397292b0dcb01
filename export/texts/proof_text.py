"""Text that ships with the package, as tokens of any model: to calibrate by, and to prove by. Knows no graph.

Both files hold prose, code, tables, letters, other languages and ChatML conversations; none of the text to prove by is
in the text to calibrate by, nor in the bundled model's training text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from ortserve.export.errors import ExportError
from ortserve.export.folder.describe import describe_tokens, open_tokenizer
from ortserve.export.sources.checkpoint import Checkpoint

FOLDER = Path(__file__).parent
SEPARATOR = "\n=====\n"
RANDOM_DOCUMENT = 64  # ids of a document drawn for a checkpoint without a tokenizer
NUM_RANDOM_DOCUMENTS = 24
Purpose = Literal["calibration", "held_out"]


def bundled_documents(purpose: Purpose) -> list[str]:
    """The documents of one file. Raises `ExportError` when this installation lacks it."""
    return read_documents(FOLDER / f"{purpose}.txt")


def read_documents(path: Path) -> list[str]:
    """Documents of a UTF-8 text file, separated by lines of five equals signs; without them it is one document."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ExportError(f"{path} cannot be read as UTF-8 text ({reason}): name another file") from None
    documents = [document.strip("\n") for document in text.split(SEPARATOR) if document.strip()]
    if not documents:
        raise ExportError(f"{path} holds no text: name another file")
    return documents


def document_tokens(
    checkpoint: Checkpoint, vocab_size: int, documents: list[str], *, max_tokens: int, max_length: int
) -> list[list[int]]:
    """Each document as ids, begun as the model expects; at most `max_length` of each and `max_tokens` in all.

    A checkpoint without a tokenizer gets ids drawn by a fixed seed. Raises `ExportError` when nothing is encoded.
    """
    facts = describe_tokens(checkpoint, vocab_size)
    tokenizer = open_tokenizer(checkpoint)
    if tokenizer is None:
        generator = np.random.default_rng(len(documents))
        size = (NUM_RANDOM_DOCUMENTS, min(max_length, RANDOM_DOCUMENT))
        encoded = generator.integers(0, facts.num_tokens, size).tolist()
    else:
        first = [facts.bos_token_id] if facts.add_bos and facts.bos_token_id is not None else []
        encoded = [[*first, *tokenizer.encode(text, add_special_tokens=True).ids] for text in documents]
    sequences: list[list[int]] = []
    left = max_tokens
    for ids in encoded:
        kept = ids[: min(max_length, left)]
        if len(kept) >= 2:  # one token predicts nothing
            sequences.append(kept)
            left -= len(kept)
    if not sequences:
        raise ExportError(f"{checkpoint.folder}: tokenizer.json encodes text to nothing: download it again")
    return sequences
