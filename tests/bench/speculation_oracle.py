"""Tokens per second with an oracle for a drafter over without, at a set acceptance per token, on any exported model.

The oracle plays back the tokens of the plain run just before, and spoils each with a probability keyed by its position,
so that the share of guesses that hold is set, whatever the weights say. Random weights in a real shape (`ortserve toy`)
will do: what is measured is the engine's cost of verifying. It runs in process, through the driver: tokens of random
weights do not survive being text, and the load generator may not know an engine. Deterministic mode, so that both runs
say the same. Wall-clock ratios, never a formula.

  python -m tests.bench.speculation_oracle FOLDER --acceptance 0.6,0.8,0.9 --streams 1,8 --json out.json --plot out.png
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter

from ortserve.plugins.drafting import Draft, DraftRequest, Ended, SequenceView, Verified
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.drivers.driver import Driver
from ortserve.runtime.manifest import Manifest, read_manifest
from ortserve.runtime.opening import open_engine
from ortserve.runtime.request import DraftHints, Request, SamplingParams
from ortserve.runtime.speculation.drafting import Drafting
from tests.bench.measurement import Goal, finish, script_parser, spread
from tests.bench.speculation import Finished

PROMPT_TOKENS = 32
OFF = DraftHints(max_draft=0)
WANTED = {(0.8, 1): 2.8, (0.8, 8): 1.7}  # the 0.5B shape in int8, where a verification is cheap


class OracleDrafter:
    """Knows the replies. Each of its guesses is spoilt with probability `1 - acceptance`, by its prompt and place."""

    def __init__(self, num_tokens: int) -> None:
        self.acceptance = 1.0
        self.replies: dict[tuple[int, ...], list[int]] = {}  # by prompt
        self._num_tokens = num_tokens
        self._spoilt: dict[tuple[float, tuple[int, ...]], list[int]] = {}  # replies with wrong guesses in them
        self._running: dict[str, tuple[int, ...]] = {}

    def start(self, request: DraftRequest) -> None:
        self._running[request.id] = request.prompt

    def propose(self, views: Sequence[SequenceView], deadline_s: float) -> Sequence[Draft]:
        return [
            Draft(view.id, len(view.tokens), self._guesses(view), "oracle")
            for view in views
            if view.id in self._running
        ]

    def observe(self, results: Sequence[Verified]) -> None:
        pass

    def forget(self, ended: Sequence[Ended]) -> None:
        for one in ended:
            self._running.pop(one.id, None)

    def close(self) -> None:
        self._running.clear()

    def _guesses(self, view: SequenceView) -> tuple[int, ...]:
        prompt = self._running[view.id]
        begin = len(view.tokens) - view.num_prompt_tokens
        spoilt = self._spoilt.get((self.acceptance, prompt))
        if spoilt is None:  # once: a step of a GPU takes less time than a few hundred random generators
            chance = Random(f"{self.acceptance} {prompt}")
            spoilt = self._spoilt[self.acceptance, prompt] = [
                token if chance.random() < self.acceptance else (token + 1) % self._num_tokens
                for token in self.replies.get(prompt, [])
            ]
        return tuple(spoilt[begin : begin + view.max_draft])


def run(
    driver: Driver, prompts: Sequence[tuple[int, ...]], sampling: SamplingParams, hints: DraftHints, label: str
) -> tuple[float, list[list[int]], int, int]:
    """Output tokens per second of all together, the replies, and the guesses accepted and rejected."""
    requests = [
        Request(f"{label} {place}", prompt, sampling, choice=place, draft=hints) for place, prompt in enumerate(prompts)
    ]
    outlet = Finished([request.id for request in requests])
    begun = perf_counter()
    for request in requests:
        driver.submit(request, outlet)
    outlet.wait()
    replies = list(outlet.tokens.values())
    return sum(map(len, replies)) / (perf_counter() - begun), replies, outlet.accepted, outlet.rejected


def new_prompts(manifest: Manifest, number: int, count: int) -> list[tuple[int, ...]]:
    random = Random(number)
    return [tuple(random.randrange(manifest.num_tokens) for _ in range(PROMPT_TOKENS)) for _ in range(count)]


def draw(points: dict[tuple[float, int], list[float]], title: str, path: Path) -> None:
    """Speedup over acceptance, a line per number of streams."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for streams in sorted({streams for _, streams in points}):
        shares = sorted(share for share, its in points if its == streams)
        values = [points[share, streams] for share in shares]
        medians = [median(own) for own in values]
        below = [one - min(own) for one, own in zip(medians, values, strict=True)]
        above = [max(own) - one for one, own in zip(medians, values, strict=True)]
        axes.errorbar(shares, medians, yerr=(below, above), fmt="o-", capsize=3, label=f"{streams} streams")
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel("acceptance per guess")
    axes.set_ylabel("tokens per second, with over without")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    axes.set_title(title)
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = script_parser(__doc__ or "")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="exported model, int8 or fp32")
    parser.add_argument("--acceptance", default="0,0.5,0.7,0.8,0.9,1", help="per guess (default %(default)s)")
    parser.add_argument("--streams", default="1,8", help="at once (default %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="default %(default)g")
    parser.add_argument("--output-tokens", type=int, default=128, help="default %(default)s")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it")
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.folder)
    config = EngineConfig(max_rows=16, max_context=1024, prompt_cache="none", deterministic=True)
    engine, plan = open_engine(arguments.folder, manifest, config)
    oracle = OracleDrafter(manifest.num_tokens)
    engine.drafting = Drafting(oracle, vocab_size=manifest.num_tokens)
    driver = Driver(engine, manifest, plan)
    sampling = SamplingParams(
        temperature=arguments.temperature, seed=1, max_tokens=arguments.output_tokens, ignore_eos=True
    )
    points: dict[tuple[float, int], list[float]] = {}
    goals, details = [], {}
    for streams in map(int, arguments.streams.split(",")):
        for share in map(float, arguments.acceptance.split(",")):
            ratios, held, num_different = [], [], 0
            for number in range(arguments.rounds + 1):  # the first warms up
                prompts = new_prompts(manifest, number, streams)
                label = f"{streams} {share} {number}"
                base, expected, _, _ = run(driver, prompts, sampling, OFF, f"plain {label}")
                oracle.acceptance, oracle.replies = share, dict(zip(prompts, expected, strict=True))
                fast, found, accepted, rejected = run(driver, prompts, sampling, DraftHints(), f"drafted {label}")
                num_different += sum(one != other for one, other in zip(expected, found, strict=True))
                if number:
                    ratios.append(fast / base)
                    held.append(accepted / max(accepted + rejected, 1))
            points[share, streams] = ratios
            title = f"acceptance {share:g}, {streams} streams"
            details[title] = {"ratios": ratios, "held": held, "different": num_different}
            goals.append(Goal(title, spread(ratios), at_least=WANTED.get((share, streams), 0.97)))
            print(f"{goals[-1]}; guesses that held {spread(held)}, replies that differ {num_different}")
    driver.close()
    if arguments.plot is not None:
        draw(points, f"{manifest.name}, an oracle for a drafter", arguments.plot)
    return finish(arguments, goals, {"work": details})


if __name__ == "__main__":
    sys.exit(main())
