"""What batching by token budget brings: texts of mixed lengths one by one, and through the driver at several budgets.

  python tests/bench/encoder_batching.py FOLDER [--texts 256] [--rounds 5] [--budgets 512 2048 8192]

FOLDER is an exported encoder. Rounds are interleaved; medians are printed, and as last line one JSON object. Random
token ids: the speed of an encoder does not depend on what the text says.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ortserve.runtime.encoders.driver import EncoderDriver, EncoderLimits
from ortserve.runtime.encoders.queue import EncoderInput
from ortserve.runtime.opening import open_encoder

BUDGETS = (512, 2048, 8192)


def mixed_inputs(count: int, driver: EncoderDriver) -> list[EncoderInput]:
    """Lengths as of sentences, paragraphs and a few pages: log-normal, median 32 tokens."""
    generator = np.random.default_rng(5)
    lengths = np.clip(np.exp(generator.normal(np.log(32), 0.9, count)), 4, driver.max_length).astype(int)
    top = driver.manifest.vocab_size
    return [EncoderInput(tuple(generator.integers(0, top, length).tolist())) for length in lengths]


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def one_by_one(driver: EncoderDriver, inputs: Sequence[EncoderInput]) -> None:
    for one in inputs:
        driver.submit([one]).result()


def together(driver: EncoderDriver, inputs: Sequence[EncoderInput]) -> None:
    driver.submit(inputs).result()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS, help="padded tokens of a batch")
    arguments = parser.parse_args()
    drivers = {
        budget: open_encoder(arguments.folder, EncoderLimits(batch_tokens=budget)) for budget in (1, *arguments.budgets)
    }
    inputs = mixed_inputs(arguments.texts, drivers[1])
    num_tokens = sum(map(len, inputs))
    times: dict[int, list[float]] = {budget: [] for budget in drivers}
    for _ in range(arguments.rounds + 1):
        for budget, driver in drivers.items():
            times[budget].append(seconds_of(partial(one_by_one if budget == 1 else together, driver, inputs)))
    medians = {budget: statistics.median(values[1:]) for budget, values in times.items()}
    report: dict[str, object] = {"texts": len(inputs), "tokens": num_tokens, "longest": max(map(len, inputs))}
    for budget, driver in drivers.items():
        stats = driver.stats()
        label = "one by one" if budget == 1 else f"budget {budget}"
        padding = stats.num_padded / (stats.num_padded + stats.num_tokens)
        ratio = medians[1] / medians[budget]
        print(
            f"{label:12} {medians[budget]:7.3f} s  {num_tokens / medians[budget]:8.0f} tokens/s  x{ratio:.2f}"
            f"  padding {padding:.1%}  batches {stats.num_batches // (arguments.rounds + 1)}"
        )
        report[label] = {"tokens_per_s": round(num_tokens / medians[budget]), "ratio": round(ratio, 2)}
        driver.close()
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
