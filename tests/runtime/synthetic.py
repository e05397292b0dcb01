"""Engines on the synthetic model, and what they must answer. Knows the model's rule, not how the engine works."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.engine import Engine
from ortserve.runtime.grammar.constraint import Grammars
from ortserve.runtime.host.bell import Bell
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.model import join
from ortserve.runtime.new_runner import new_runner
from ortserve.runtime.opening import open_cache
from ortserve.runtime.plan import EnginePlan, plan_engine
from ortserve.runtime.request import Completion, Delta, Request, SamplingParams
from ortserve.runtime.sampling.sampler import Sampler
from ortserve.runtime.session import Session
from ortserve.runtime.slots.kv import SlotKvStore, block_size
from ortserve.runtime.testing import predict_logits, write_synthetic_model

PADDING_ID = 100  # of the synthetic embedding: never drawn
LAST_ID = 99


class Clock:
    """Time that moves only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True, slots=True)
class SyntheticModel:
    """The model once loaded, for any number of engines."""

    folder: Path
    manifest: Manifest
    session: Session
    sampler: Sampler

    def plan(self, config: EngineConfig, *, num_blocks: int | None = None, num_host_blocks: int = 0) -> EnginePlan:
        """A plan with exactly these block counts; None: enough for every row."""
        plan = plan_engine(self.manifest, config, available_bytes=2**30)
        wanted = plan.num_blocks if num_blocks is None else num_blocks
        return replace(plan, num_blocks=wanted, num_host_blocks=num_host_blocks)

    def engine(
        self,
        plan: EnginePlan,
        clock: Clock | None = None,
        *,
        prompt_cache: str = "none",
        cache_folder: Path | None = None,
        grammars: Grammars | None = None,
    ) -> Engine:
        """A new engine with memory and a prompt cache of its own, which may have a folder from one before."""
        store = SlotKvStore(
            self.manifest.kv, num_rows=plan.num_rows, capacity=plan.capacity, num_host_blocks=plan.num_host_blocks
        )
        runner = new_runner(self.manifest, self.session, store, max_logit_rows=plan.max_logit_rows)
        bell = Bell()
        options = () if cache_folder is None else (("path", str(cache_folder)),)
        config = EngineConfig(prompt_cache=prompt_cache, prompt_cache_options=options)
        reuse = open_cache(self.manifest, plan, config, store, bell)
        return Engine(
            self.manifest,
            plan,
            runner,
            self.sampler,
            reuse=reuse,
            bell=bell,
            grammars=grammars,
            clock=clock or Clock(),
        )


def load_synthetic_model(folder: Path, max_context: int) -> SyntheticModel:
    """Write the model into `folder` and load it."""
    manifest = write_synthetic_model(folder, max_context=max_context)
    session = Session(folder / manifest.graph, num_threads=1)
    return SyntheticModel(folder, manifest, session, Sampler(manifest.num_tokens, num_threads=1))


def block_tokens(model: SyntheticModel) -> int:
    """Tokens per block of the synthetic model."""
    return block_size(model.manifest.kv)


def run_to_end(engine: Engine, requests: list[Request]) -> dict[str, list[Delta]]:
    """Submit all, step until nothing is left, and return each one's deltas."""
    deltas: dict[str, list[Delta]] = {request.id: [] for request in requests}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for delta in engine.step():
            deltas[delta.request_id].append(delta)
    return deltas


def whole(deltas: list[Delta]) -> Completion:
    """The deltas of one finished request, joined."""
    return join(deltas)


def greedy_tokens(prompt: tuple[int, ...], sampling: SamplingParams, eos: int = 0, *, regime: int = 0) -> list[int]:
    """What a greedy request must produce, by the model's rule alone, in the rotary regime of that number."""
    tokens = list(prompt)
    assert sampling.max_tokens is not None
    for _ in range(sampling.max_tokens):
        token = int(predict_logits(tokens, regime)[:PADDING_ID].argmax())
        if token == eos and not sampling.ignore_eos:
            break
        tokens.append(token)
    return tokens[len(prompt) :]
