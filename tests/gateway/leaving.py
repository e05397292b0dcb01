"""A client that leaves while its texts are being encoded. Knows no test."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec

from ortserve.gateway.http.server import Limits
from ortserve.runtime.encoders.driver import EncoderDriver, EncoderLimits
from ortserve.runtime.encoders.encoder import Encoder, Rows
from ortserve.runtime.encoders.manifest import read_encoder_manifest
from ortserve.runtime.encoders.queue import EncoderInput
from tests.gateway.encoders import encoder_service
from tests.gateway.running import serving
from tests.waiting import PATIENCE_S, wait_for


class Slow:
    """An encoder whose first batch waits for the test."""

    def __init__(self, folder: Path) -> None:
        self._encoder = Encoder(folder, read_encoder_manifest(folder), num_threads=1)
        self.manifest = self._encoder.manifest
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.num_batches = 0

    def encode(self, inputs: Sequence[EncoderInput]) -> Rows:
        self.num_batches += 1
        self.entered.set()
        assert self.gate.wait(PATIENCE_S)
        return self._encoder.encode(inputs)


def leave_while_encoding(folder: Path) -> tuple[int, int]:
    """Send 50 texts, leave during the first batch; inputs still waiting then, and batches that were run."""
    encoder = Slow(folder)
    driver = EncoderDriver(encoder, EncoderLimits(batch_tokens=16))
    submit, futures = driver.submit, list[Future[Rows]]()

    def noted(inputs: Sequence[EncoderInput], **options: Any) -> Future[Rows]:
        futures.append(submit(inputs, **options))
        return futures[-1]

    driver.submit = noted  # type: ignore[method-assign]
    body = msgspec.json.encode({"model": "averages", "input": ["one two three"] * 50})
    head = f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with serving(lambda: encoder_service(folder, driver), driver.close, Limits(drain_s=1.0)) as (
        port,
        _,
    ):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(head + body)
            assert encoder.entered.wait(PATIENCE_S)
        wait_for(lambda: futures and all(future.cancelled() for future in futures))
        encoder.gate.set()
        wait_for(lambda: not driver.stats().num_waiting)
        return driver.stats().num_waiting, encoder.num_batches
