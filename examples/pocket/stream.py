"""Worker processes that turn samples into packed token rows; knows nothing of the model that reads them."""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Iterator
from multiprocessing.queues import Queue
from types import TracebackType
from typing import Self

import numpy
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .corpus import segments, training_samples

Rows = NDArray[numpy.int16]
# Each number is a token id plus two flags, so that one array carries the targets and the borders.
TRAINED, OPENS, TOKEN = 4096, 8192, 2047
CHUNK_ROWS = 64


def encode(tokenizer: Tokenizer, batch: list[list[tuple[str, bool]]]) -> Iterator[Rows]:
    """The samples of a batch as flagged ids; as turns end in special tokens, pieces encode as the whole would."""
    flat = [text for pieces in batch for text, _ in pieces]
    encodings = iter(tokenizer.encode_batch_fast(flat, add_special_tokens=False))
    for pieces in batch:
        parts = [
            numpy.asarray(next(encodings).ids, dtype=numpy.int16) + (TRAINED if trained else 0) for _, trained in pieces
        ]
        row = numpy.concatenate(parts).astype(numpy.int16)
        row[0] += OPENS
        yield row


def packed_rows(tokenizer: Tokenizer, seed: int, length: int) -> Iterator[Rows]:
    """Endless rows of exactly `length` flagged ids; a sample that is cut by the end starts again in the next row."""
    samples = training_samples(seed)
    row, filled = numpy.zeros(length, dtype=numpy.int16), 0
    while True:
        for encoded in encode(tokenizer, [list(segments(next(samples))) for _ in range(256)]):
            if len(encoded) > length:
                continue
            space = length - filled
            row[filled : filled + len(encoded)] = encoded[:space]
            filled += len(encoded)
            if filled < length:
                continue
            yield row
            row, again = numpy.zeros(length, dtype=numpy.int16), filled > length
            filled = len(encoded) if again else 0
            row[:filled] = encoded[:filled]


def _work(tokenizer_json: str, seed: int, length: int, target: Queue[Rows]) -> None:
    rows = packed_rows(Tokenizer.from_str(tokenizer_json), seed, length)
    while True:
        target.put(numpy.stack([next(rows) for _ in range(CHUNK_ROWS)]))


class Stream:
    """Chunks of rows from several processes, each with its own seed."""

    def __init__(self, tokenizer: Tokenizer, seed: int, length: int, num_workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._queue: Queue[Rows] = context.Queue(maxsize=96)
        json_text = tokenizer.to_str()
        self._workers = [
            context.Process(target=_work, args=(json_text, seed * 1000 + number, length, self._queue), daemon=True)
            for number in range(num_workers)
        ]

    def __enter__(self) -> Self:
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.terminate()
        self._queue.cancel_join_thread()

    def take(self, wait: bool) -> Rows | None:
        """A fresh chunk [CHUNK_ROWS, length]; nothing if none is ready and the caller will not wait."""
        try:
            return self._queue.get(timeout=120) if wait else self._queue.get_nowait()
        except queue.Empty:
            if wait:
                raise
            return None
