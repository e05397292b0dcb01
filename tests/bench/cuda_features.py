"""What guesses and positions that depend on a request's length cost on a GPU, where plain decodes are recorded.

    python -m tests.bench.cuda_features drafts --out drafts.json --folder DIR
    python -m tests.bench.cuda_features regimes --out regimes.json --folder DIR

drafts: an oracle for a drafter, whose guesses hold as often as is asked; with the steps that were recorded, prepared
ahead or eager. regimes: a model with dynamic scaling beside the same one without. Random weights in the shape of
Llama 3.2 1B, or of another.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from ortserve.export.publish import export_checkpoint
from ortserve.export.toys.shapes import SHAPES
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.devices.cuda import CudaDevice
from ortserve.runtime.drivers.driver import Driver
from ortserve.runtime.manifest import read_manifest
from ortserve.runtime.opening import open_paged_engine
from ortserve.runtime.pages.runner import PagedRunner
from ortserve.runtime.request import DraftHints, SamplingParams
from ortserve.runtime.speculation.drafting import Drafting
from tests.bench.cuda_engine import GREEDY, Bench, make_checkpoint, make_model
from tests.bench.measurement import spread
from tests.bench.speculation_oracle import OFF, OracleDrafter, new_prompts, run

SHAPE = "llama-3.2-1b"
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}
REPLY, MAX_CONTEXT = 128, 8704


class Steps:
    """Counts a runner's steps: recorded or eager; launched ahead of a plan, or even behind unknown tokens."""

    def __init__(self, runner: Any) -> None:
        self.recorded = self.ahead = self.behind = self.eager = 0
        assert isinstance(runner, PagedRunner)
        enqueue, launch, launch_behind = runner._enqueue, runner.launch, runner.launch_behind

        def counted(batch: Any, tokens: Any = None) -> None:
            is_recorded = batch.is_spread and batch.shape in runner.recordings
            self.recorded += is_recorded
            self.eager += not is_recorded
            enqueue(batch, tokens)

        def ahead(batch: Any, tokens: Sequence[int]) -> Any:
            self.ahead += 1
            return launch(batch, tokens)

        def behind(batch: Any, address: int, num_rows: int) -> Any:
            self.behind += 1
            return launch_behind(batch, address, num_rows)

        runner._enqueue = counted  # type: ignore[method-assign]
        runner.launch = ahead  # type: ignore[method-assign, assignment]
        runner.launch_behind = behind  # type: ignore[method-assign, assignment]

    def taken(self) -> dict[str, int]:
        """Since the last call."""
        found = {"recorded": self.recorded, "eager": self.eager, "ahead": self.ahead, "behind": self.behind}
        self.recorded = self.ahead = self.behind = self.eager = 0
        return found


def drafts(arguments: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second with guesses over without, by acceptance and streams."""
    manifest, _ = make_model(arguments.folder, arguments.shape, "fp16", MAX_CONTEXT)
    config = EngineConfig(max_rows=16, max_context=min(2048, MAX_CONTEXT), prompt_cache="none", kv_memory=4 << 30)
    engine, plan = open_paged_engine(arguments.folder / f"{arguments.shape}-fp16", manifest, config, CudaDevice(0))
    oracle = OracleDrafter(manifest.num_tokens)
    engine.drafting = Drafting(oracle, vocab_size=manifest.num_tokens)
    steps = Steps(engine._runner)
    driver = Driver(engine, manifest, plan)
    sampling = SamplingParams(temperature=0, seed=1, max_tokens=REPLY, ignore_eos=True)
    figures: dict[str, Any] = {}
    for streams in arguments.streams:
        for share in arguments.acceptance:
            ratios, rates, held, parted = [], [], [], 0
            for number in range(arguments.rounds + 1):  # the first warms up
                prompts = new_prompts(manifest, number, streams)
                label = f"{streams} {share} {number}"
                base, expected, _, _ = run(driver, prompts, sampling, OFF, f"plain {label}")
                of_plain = steps.taken()
                oracle.acceptance, oracle.replies = share, dict(zip(prompts, expected, strict=True))
                fast, found, accepted, rejected = run(driver, prompts, sampling, DraftHints(), f"drafted {label}")
                of_drafted = steps.taken()
                if number:
                    parted += sum(one != other for one, other in zip(expected, found, strict=True))
                    ratios.append(fast / base)
                    rates.append(fast)
                    held.append(accepted / max(accepted + rejected, 1))
            name = f"{streams} streams, acceptance {share:g}"
            figures[name] = {
                "ratio": str(spread(ratios)),
                "tokens_per_s": median(rates),
                "held": median(held),
                "replies_that_part": parted,
                "steps_without": of_plain,
                "steps_with": of_drafted,
            }
            sys.stdout.write(f"{name}: {json.dumps(figures[name])}\n")
            sys.stdout.flush()
            arguments.out.write_text(json.dumps(figures, indent=1))
    driver.close()
    return figures


def regimes(arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of decodes, and kernels, with tables for several lengths and with one."""
    plain = replace(SHAPES[SHAPE], num_layers=arguments.layers, max_context=8192, rope_scaling=None)
    shapes = {
        f"{SHAPE}-plain": plain,
        f"{SHAPE}-dynamic": replace(plain, rope_scaling=DYNAMIC, max_context=2048),
    }
    figures: dict[str, Any] = {}
    for name, shape in shapes.items():
        with ExitStack() as stack:
            stack.enter_context(mock.patch.dict(SHAPES, {name: shape}))
            checkpoint = make_checkpoint(arguments.folder, name)
        target = arguments.folder / f"{name}-fp16"
        if not target.exists():
            export_checkpoint(checkpoint, target, precision="fp16", device="cuda", progress=False, verify=False)
        manifest = read_manifest(target)
        config = EngineConfig(max_rows=32, kv_memory=2 << 30, prompt_cache="none", swap_memory=0)
        bench = Bench(target, manifest, config)
        figures[name] = {"regimes": [regime.max_tokens for regime in manifest.rotary_regimes]}
        for streams in arguments.streams:
            figures[name][f"decode {streams}"] = bench.decode(streams, 512, GREEDY, steps=30)
        sys.stdout.write(f"{name}: {json.dumps(figures[name])}\n")
        arguments.out.write_text(json.dumps(figures, indent=1))
        bench.engine.close()
    return figures


def main() -> None:
    """Arguments, figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("drafts", "regimes"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="where models are made and kept")
    parser.add_argument("--streams", default="1,8", type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument(
        "--acceptance", default="0,0.7,0.9", type=lambda text: [float(word) for word in text.split(",")]
    )
    parser.add_argument("--shape", default=SHAPE, choices=tuple(SHAPES), help="drafts: of the model (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=8)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    (drafts if arguments.what == "drafts" else regimes)(arguments)


if __name__ == "__main__":
    main()
