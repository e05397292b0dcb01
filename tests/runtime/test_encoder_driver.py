"""The encoder's thread: rows in order, batched as alone, bounded, cancellable, and one bad input hurts one request."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest

from ortserve.runtime.encoders.driver import EncoderDriver, EncoderLimits
from ortserve.runtime.encoders.encoder import Encoder, Rows
from ortserve.runtime.encoders.manifest import read_any_manifest, read_encoder_manifest
from ortserve.runtime.encoders.queue import EncoderInput
from ortserve.runtime.errors import (
    EngineClosedError,
    EngineError,
    EngineHungError,
    ManifestError,
    ModelError,
    OverloadedError,
    RequestError,
)
from ortserve.runtime.host.turn import Turn
from ortserve.runtime.manifest import MANIFEST_NAME, manifest_json, read_manifest
from ortserve.runtime.opening import open_encoder
from tests.runtime.synthetic import SyntheticModel
from tests.runtime.synthetic_encoder import expected, make_manifest, random_inputs, write_synthetic_encoder
from tests.waiting import PATIENCE_S, wait_for

POISON = 299


class Gated:
    """The synthetic encoder behind a gate that the test opens, counting its batches; it fails on one token id."""

    def __init__(self, folder: Path) -> None:
        self._encoder = Encoder(folder, read_encoder_manifest(folder), num_threads=1)
        self.manifest = self._encoder.manifest
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.batches: list[int] = []

    def encode(self, inputs: Sequence[EncoderInput]) -> Rows:
        self.entered.set()
        assert self.gate.wait(PATIENCE_S)
        self.batches.append(len(inputs))
        if any(POISON in one.ids for one in inputs):
            raise ValueError("poison")
        return self._encoder.encode(inputs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder")
    write_synthetic_encoder(path)
    return path


@pytest.fixture
def gated(folder: Path) -> Gated:
    return Gated(folder)


@pytest.fixture
def driver(gated: Gated) -> Iterator[EncoderDriver]:
    driver = EncoderDriver(gated, EncoderLimits(batch_tokens=256, max_waiting=50))
    yield driver
    gated.gate.set()
    driver.close()


def healthy_inputs(seed: int, lengths: Sequence[int]) -> list[EncoderInput]:
    return [
        EncoderInput(tuple(min(number, POISON - 1) for number in one.ids), one.second_start)
        for one in random_inputs(seed, lengths)
    ]


def test_rows_come_in_the_order_of_the_inputs(folder: Path) -> None:
    driver = open_encoder(folder, EncoderLimits(batch_tokens=128), num_threads=1)
    try:
        inputs = random_inputs(1, [1, 60, 3, 3, 17, 64, 2, 30, 31, 5])
        rows = driver.submit(inputs).result(PATIENCE_S)
        assert rows.shape == (10, 8)
        for one, row in zip(inputs, rows, strict=True):
            np.testing.assert_allclose(row, expected(one), atol=1e-6)
            np.testing.assert_allclose(driver.submit([one]).result(PATIENCE_S)[0], row, atol=1e-6)
    finally:
        driver.close()


def test_waiting_requests_are_encoded_together(gated: Gated, driver: EncoderDriver) -> None:
    first = driver.submit(healthy_inputs(1, [5]))
    assert gated.entered.wait(PATIENCE_S)
    futures = [driver.submit(healthy_inputs(seed, [9, 10])) for seed in range(2, 8)]
    gated.gate.set()
    first.result(PATIENCE_S)
    for seed, future in enumerate(futures, 2):
        wanted = np.array([expected(one) for one in healthy_inputs(seed, [9, 10])])
        np.testing.assert_allclose(future.result(PATIENCE_S), wanted, atol=1e-6)
    assert gated.batches == [1, 12]
    stats = driver.stats()
    assert (stats.num_batches, stats.num_inputs, stats.num_waiting) == (2, 13, 0)
    assert stats.num_tokens == 5 + 6 * 19
    assert stats.num_padded == 6


def test_a_bad_input_fails_its_own_request_only(gated: Gated, driver: EncoderDriver) -> None:
    opener = driver.submit(healthy_inputs(1, [5]))
    assert gated.entered.wait(PATIENCE_S)
    good = driver.submit(healthy_inputs(2, [9, 9]))
    bad = driver.submit([EncoderInput((1,) * 9), EncoderInput((POISON,) * 9)])
    gated.gate.set()
    opener.result(PATIENCE_S)
    wanted = np.array([expected(one) for one in healthy_inputs(2, [9, 9])])
    np.testing.assert_allclose(good.result(PATIENCE_S), wanted, atol=1e-6)
    with pytest.raises(EngineError, match="input 1 could not be encoded"):
        bad.result(PATIENCE_S)
    again = healthy_inputs(3, [4])
    np.testing.assert_allclose(driver.submit(again).result(PATIENCE_S)[0], expected(again[0]), atol=1e-6)
    assert driver.stats().num_waiting == 0


def test_numbers_that_are_not_finite_are_an_error(folder: Path) -> None:
    class Broken(Gated):
        def encode(self, inputs: Sequence[EncoderInput]) -> Rows:
            return np.full((len(inputs), 8), np.nan, np.float32)

    driver = EncoderDriver(Broken(folder))
    try:
        with pytest.raises(EngineError, match="not finite"):
            driver.submit(random_inputs(1, [3])).result(PATIENCE_S)
    finally:
        driver.close()


def test_a_cancelled_request_is_not_encoded(gated: Gated, driver: EncoderDriver) -> None:
    opener = driver.submit(healthy_inputs(1, [5]))
    assert gated.entered.wait(PATIENCE_S)
    unwanted = driver.submit(healthy_inputs(2, [9] * 20))
    wanted = driver.submit(healthy_inputs(3, [40]))
    assert unwanted.cancel()
    gated.gate.set()
    opener.result(PATIENCE_S)
    wanted.result(PATIENCE_S)
    with pytest.raises(CancelledError):
        unwanted.result(PATIENCE_S)
    assert gated.batches == [1, 1]
    assert driver.stats().num_waiting == 0


def test_a_full_queue_refuses_and_recovers(gated: Gated, driver: EncoderDriver) -> None:
    held = driver.submit(healthy_inputs(1, [5] * 45))
    with pytest.raises(OverloadedError, match="limit is 50") as refusal:
        driver.submit(healthy_inputs(2, [5] * 6))
    assert refusal.value.retry_after_s > 0
    gated.gate.set()
    held.result(PATIENCE_S)
    driver.submit(healthy_inputs(2, [5] * 6)).result(PATIENCE_S)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([], "nothing to encode"),
        ([EncoderInput(())], "input 0 has 0 tokens"),
        ([EncoderInput((1,)), EncoderInput((1,) * 65)], "input 1 has 65 tokens, this model takes 1 to 64"),
        ([EncoderInput((1, 300))], "outside 0 to 299"),
        ([EncoderInput((-1,))], "outside 0 to 299"),
        ([EncoderInput((1,))] * 51, "at most 50"),
    ],
)
def test_what_can_never_be_encoded_is_refused(driver: EncoderDriver, inputs: list[EncoderInput], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        driver.submit(inputs)


def test_closing_drains_and_then_fails_what_is_left(gated: Gated, driver: EncoderDriver) -> None:
    running = driver.submit(healthy_inputs(1, [5]))
    assert gated.entered.wait(PATIENCE_S)
    waiting = driver.submit(healthy_inputs(2, [60]))
    closer = threading.Thread(target=driver.close)
    closer.start()
    wait_for(lambda: not driver.healthy)
    gated.gate.set()
    closer.join(PATIENCE_S)
    running.result(PATIENCE_S)
    with pytest.raises(EngineClosedError):
        waiting.result(PATIENCE_S)
    with pytest.raises(EngineClosedError):
        driver.submit(healthy_inputs(3, [5]))
    assert not driver.healthy


def test_a_drain_finishes_what_waits(gated: Gated, driver: EncoderDriver) -> None:
    futures = [driver.submit(healthy_inputs(seed, [5, 60])) for seed in range(4)]
    gated.gate.set()
    driver.close(drain_s=PATIENCE_S)
    for future in futures:
        assert future.result(0).shape == (2, 8)


def test_a_run_that_does_not_end_is_told_to_all_who_wait(gated: Gated) -> None:
    driver = EncoderDriver(gated, EncoderLimits(run_limit_s=0.08))
    running = driver.submit(healthy_inputs(1, [5]))
    assert gated.entered.wait(PATIENCE_S)
    waiting = driver.submit(healthy_inputs(2, [60]))
    for asked in (running, waiting):
        with pytest.raises(EngineClosedError, match="a run of the encoder has not ended for"):
            asked.result(PATIENCE_S)
    with pytest.raises(EngineHungError, match="a run of the encoder has not ended for"):
        driver.ended.result(PATIENCE_S)
    with pytest.raises(EngineClosedError, match="a run of the encoder has not ended for"):
        driver.submit(healthy_inputs(3, [5]))
    assert (driver.healthy, driver.has_failed, driver.stats().num_waiting) == (False, True, 0)
    driver.close(drain_s=10 * PATIENCE_S)  # waits for nothing that does not come
    assert driver._thread.is_alive()
    gated.gate.set()  # it ends after all: its rows are nobody's, and the thread lets go of its encoder
    driver._thread.join(PATIENCE_S)
    assert not driver._thread.is_alive()
    assert gated.batches == [1]
    assert not hasattr(driver, "_encoder")


def test_who_waits_for_the_turn_of_an_encoder_that_hangs_is_told_too(gated: Gated) -> None:
    turn = Turn()
    with turn:  # another's run
        driver = EncoderDriver(gated, EncoderLimits(run_limit_s=0.08), turn=turn)
        with pytest.raises(EngineClosedError, match="a run of the encoder has not ended for"):
            driver.submit(healthy_inputs(1, [5])).result(PATIENCE_S)
    gated.gate.set()
    driver._thread.join(PATIENCE_S)
    assert not driver._thread.is_alive()


def test_a_manifest_of_the_other_kind_is_refused_by_name(
    folder: Path, tmp_path: Path, synthetic: SyntheticModel
) -> None:
    with pytest.raises(ManifestError, match="holds an encoder"):
        read_manifest(folder)
    (tmp_path / MANIFEST_NAME).write_bytes(manifest_json(synthetic.manifest))
    with pytest.raises(ManifestError, match="holds a decoder"):
        read_encoder_manifest(tmp_path)
    assert read_any_manifest(tmp_path) == synthetic.manifest
    assert read_any_manifest(folder) == make_manifest()


def test_a_missing_graph_is_named(tmp_path: Path) -> None:
    manifest = write_synthetic_encoder(tmp_path)
    (tmp_path / manifest.graph).unlink()
    with pytest.raises(ModelError, match=r"model\.onnx is missing"):
        open_encoder(tmp_path)


def test_a_graph_that_breaks_its_manifest_is_an_error(folder: Path) -> None:
    encoder = Encoder(folder, make_manifest(num_outputs=4), num_threads=1)
    with pytest.raises(EngineError, match="its manifest says"):
        encoder.encode(random_inputs(1, [3]))
