"""How much the engine costs on top of a loop that only binds and runs the same graph: 1, 8 and 16 rows.

Both sides run on the engine's thread in turns: the outlet, which the engine calls after every step, counts a block of
the engine's steps and then runs a block of bare steps itself, at the same contexts, on the same session. So prompts are
prefilled once, and whatever else the machine does hits both sides alike. The first step of each block is not counted.

  python -m tests.bench.engine_overhead FOLDER --json out.json
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from time import perf_counter, process_time

import numpy as np

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.drivers.driver import Driver
from ortserve.runtime.engine import Engine
from ortserve.runtime.host.machine import memory_budget
from ortserve.runtime.manifest import Manifest, read_manifest
from ortserve.runtime.plan import EnginePlan, plan_engine
from ortserve.runtime.request import Delta, Request, SamplingParams
from ortserve.runtime.sampling.sampler import Sampler
from ortserve.runtime.session import Binding, Session
from ortserve.runtime.slots.batch import build_batch
from ortserve.runtime.slots.kv import SlotKvStore
from ortserve.runtime.slots.runner import Runner, load_session
from ortserve.runtime.step import Row, Step
from tests.bench.measurement import Goal, finish, script_parser, spread


@dataclass(frozen=True, slots=True)
class Tick:
    """A moment, or the time between two."""

    wall_s: float
    cpu_s: float

    def __sub__(self, other: Tick) -> Tick:
        return Tick(self.wall_s - other.wall_s, self.cpu_s - other.cpu_s)


def tick() -> Tick:
    """Now."""
    return Tick(perf_counter(), process_time())


class BareLoop:
    """Decodes with a KV store of its own: arrays are packed before the clock starts, then bound and run."""

    def __init__(self, session: Session, manifest: Manifest, plan: EnginePlan, num_rows: int) -> None:
        self._store = SlotKvStore(manifest.kv, num_rows=num_rows, capacity=plan.capacity, num_host_blocks=0)
        self._capacity = plan.capacity
        self._num_rows = num_rows
        self._logits = np.empty((num_rows, manifest.vocab_size), np.float32)
        self._binding = session.binding()
        for tensor in self._store.tensors():
            shape = (num_rows, *tensor.row_shape)
            self._binding.bind_shared(
                f"past.{tensor.name}", f"present.{tensor.name}", tensor.address, tensor.dtype, shape
            )
        self._binding.bind_output("logits", self._logits)

    def run(self, contexts: Sequence[int], num_steps: int) -> list[Tick]:
        """Time of each of `num_steps` decodes of all rows, which hold `contexts` tokens at first."""
        ticks: list[Tick] = []
        for offset in range(num_steps):
            rows = tuple(Row(str(slot), slot, start + offset, (17,), 1) for slot, start in enumerate(contexts))
            batch = build_batch(Step(0, (), rows), num_rows=self._num_rows, capacity=self._capacity)
            before = tick()
            _bind(self._binding, batch)
            self._binding.run()
            ticks.append(tick() - before)
        return ticks


def _bind(binding: Binding, batch: object) -> None:
    names = ("input_ids", "position_ids", "seqlens_k", "query_lengths", "total_length", "pad_index", "unpad_index")
    for name in (*names, "logit_index"):
        binding.bind_input(name, getattr(batch, name))


@dataclass(frozen=True, slots=True)
class Block:
    """Means of two neighbouring blocks of steps: seconds per step, and processor seconds of the whole process."""

    engine_s: float
    bare_s: float
    engine_cpu_s: float
    bare_cpu_s: float


class AlternatingOutlet:
    """Counts steps of the engine and, on its thread, of the bare loop, in turns."""

    def __init__(self, bare: BareLoop, num_rows: int, num_prompt_tokens: int, *, block: int, num_blocks: int) -> None:
        self.blocks: list[Block] = []
        self.finished = threading.Event()
        self.failure: str | None = None
        self._bare = bare
        self._contexts = {str(row): num_prompt_tokens for row in range(num_rows)}
        self._block = block
        self._num_blocks = num_blocks
        self._ticks: list[Tick] = []
        self._returned: Tick | None = None

    def deliver(self, deltas: Sequence[Delta]) -> None:
        """All deltas of one step; what the engine did since the last return is one step's time."""
        now = tick()
        for delta in deltas:
            self._contexts[delta.request_id] += len(delta.token_ids)
            if delta.error is not None:
                self.failure = delta.error
        if any(delta.finish is not None for delta in deltas):
            self.finished.set()
        elif len(deltas) == len(self._contexts) and len(self.blocks) < self._num_blocks:
            self._count(now)
        self._returned = tick()

    def _count(self, now: Tick) -> None:
        if self._returned is not None:
            self._ticks.append(now - self._returned)
        if len(self._ticks) <= self._block:
            return
        own, bare = self._ticks[1:], self._bare.run([c - 1 for c in self._contexts.values()], self._block + 1)[1:]
        self.blocks.append(
            Block(
                engine_s=mean(one.wall_s for one in own),
                bare_s=mean(one.wall_s for one in bare),
                engine_cpu_s=mean(one.cpu_s for one in own),
                bare_cpu_s=mean(one.cpu_s for one in bare),
            )
        )
        self._ticks = []
        if len(self.blocks) == self._num_blocks:
            self.finished.set()


@dataclass(frozen=True, slots=True)
class Side:
    """One row count under one way of sampling."""

    num_rows: int
    temperature: float
    blocks: tuple[Block, ...]

    def goal(self) -> Goal:
        """Tokens per second of the engine over the bare loop's, block by block."""
        name = f"{self.num_rows} rows, temperature {self.temperature:g}"
        return Goal(name, spread([block.bare_s / block.engine_s for block in self.blocks]), at_least=0.92)


def measure(
    session: Session,
    manifest: Manifest,
    *,
    num_rows: int,
    temperature: float,
    num_prompt_tokens: int,
    block: int,
    num_blocks: int,
) -> Side:
    """Prefill `num_rows` prompts, then count `num_blocks` blocks of both sides."""
    most = (
        num_prompt_tokens + (num_blocks + 2) * (block + 2) + 512
    )  # a small model runs ahead while others are submitted
    config = EngineConfig(max_rows=num_rows, max_context=most)
    plan = plan_engine(manifest, config, available_bytes=memory_budget().available)
    store = SlotKvStore(manifest.kv, num_rows=plan.num_rows, capacity=plan.capacity, num_host_blocks=1)
    runner = Runner(manifest, session, store, max_logit_rows=plan.max_logit_rows)
    driver = Driver(Engine(manifest, plan, runner, Sampler(manifest.num_tokens)), manifest, plan)
    outlet = AlternatingOutlet(
        BareLoop(session, manifest, plan, num_rows), num_rows, num_prompt_tokens, block=block, num_blocks=num_blocks
    )
    generator = np.random.default_rng(num_rows)
    try:
        for row in range(num_rows):
            prompt = tuple(
                generator.integers(manifest.num_tokens // 4, manifest.num_tokens, num_prompt_tokens).tolist()
            )
            sampling = SamplingParams(
                temperature=temperature, seed=row, max_tokens=most - num_prompt_tokens, ignore_eos=True
            )
            driver.submit(Request(str(row), prompt, sampling), outlet)
        outlet.finished.wait()
    finally:
        driver.close()
    if outlet.failure is not None or not outlet.blocks:
        raise RuntimeError(f"the engine ended early: {outlet.failure}")
    return Side(num_rows, temperature, tuple(outlet.blocks))


def main() -> int:
    parser = script_parser(__doc__ or "")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="exported model")
    parser.add_argument("--rows", default="1,8,16", help="row counts (default %(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=224, help="default %(default)s: context 256 in the middle")
    parser.add_argument("--block", type=int, default=6, help="steps per block (default %(default)s)")
    parser.set_defaults(rounds=8)
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.folder)
    session = load_session(arguments.folder, manifest, num_threads=None)
    sides = [
        measure(
            session,
            manifest,
            num_rows=int(rows),
            temperature=temperature,
            num_prompt_tokens=arguments.prompt_tokens,
            block=arguments.block,
            num_blocks=arguments.rounds,
        )
        for rows in arguments.rows.split(",")
        for temperature in (0.0, 1.0)
    ]
    for side in sides:
        speed = spread([side.num_rows / block.engine_s for block in side.blocks])
        bare = spread([side.num_rows / block.bare_s for block in side.blocks])
        cpu = spread([block.bare_cpu_s / block.engine_cpu_s for block in side.blocks])
        print(f"{side.num_rows} rows, temperature {side.temperature:g}: engine {speed}, bare {bare} tokens/s")
        print(f"  processor time, bare over engine: {cpu}")
    return finish(arguments, [side.goal() for side in sides], {"sides": sides})


if __name__ == "__main__":
    sys.exit(main())
