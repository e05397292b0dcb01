"""What grammars cost each step on the engine's thread, without the model: masks, their application, constraints.

All rows are inside a JSON string, where nearly every id is allowed: the dearest case. Processor time, so that other
work on the machine counts little; to be compared with a step of that model and as many rows (`step_profile.py`).

  python -m tests.bench.grammar_masks FOLDER --rows 16 --step-ms 57 --json out.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import process_time, thread_time

import numpy as np

from ortserve.runtime.grammar.guidance import open_grammars
from ortserve.runtime.manifest import read_manifest
from ortserve.runtime.request import Grammar, GrammarKind, SamplingParams
from ortserve.runtime.sampling.draw import Draw
from ortserve.runtime.sampling.sampler import Sampler
from tests.bench.measurement import Goal, finish, script_parser, spread

STRINGS = {
    "type": "array",
    "minItems": 4,
    "maxItems": 9,
    "items": {"type": "string", "minLength": 400},
    "x-guidance": {"whitespace_flexible": False},
}
GREEDY = SamplingParams(temperature=0)


def main() -> int:
    parser = script_parser(__doc__ or "")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="exported model: its tokenizer is what counts")
    parser.add_argument("--rows", type=int, default=16, help="rows at once (default %(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="steps measured (default %(default)s)")
    parser.add_argument("--step-ms", type=float, required=True, help="what a step of so many rows takes the model")
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.folder)
    grammars = open_grammars(arguments.folder, manifest, num_threads=2)
    grammar = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(STRINGS))
    constraints = [grammars.compile(grammar) for _ in range(arguments.rows)]
    chance = np.random.default_rng(0)
    for constraint in constraints:
        assert all(map(constraint.accept, constraint.forced()))
    logits = chance.normal(0, 4, (arguments.rows, manifest.vocab_size)).astype(np.float32)
    sampler = Sampler(manifest.num_tokens, num_threads=1)
    masks_ms: list[float] = []
    plain_ms: list[float] = []
    drawn_ms: list[float] = []
    told_ms: list[float] = []
    for _ in range(arguments.steps):
        begun = process_time()
        masks = [mask for (mask,) in grammars.masks([(constraint, ()) for constraint in constraints])]
        masks_ms.append((process_time() - begun) * 1e3)
        free = [Draw(GREEDY, 0, 0, 0) for _ in masks]
        tied = [Draw(GREEDY, 0, 0, 0, allowed=mask.with_ends(())) for mask in masks]
        for draws, times in ((free, plain_ms), (tied, drawn_ms)):
            rows = logits.copy()
            begun = thread_time()
            drawn = sampler.draw(rows, draws)
            times.append((thread_time() - begun) * 1e3)
        begun = thread_time()
        for constraint, one in zip(constraints, drawn, strict=True):
            assert one.token_id is not None
            constraint.accept(one.token_id)
            constraint.forced()
        told_ms.append((thread_time() - begun) * 1e3)
        logits = np.roll(logits, 1, axis=1)
    added = [tied + told - free for tied, free, told in zip(drawn_ms, plain_ms, told_ms, strict=True)]
    share = spread([one / arguments.step_ms for one in added])
    details = {"masks_ms": masks_ms, "plain_draw_ms": plain_ms, "masked_draw_ms": drawn_ms, "constraints_ms": told_ms}
    for name, values in details.items():
        print(f"{name}: {spread(values)}")
    return finish(arguments, [Goal("share of a step, masks hidden by the run", share, at_most=0.05)], details)


if __name__ == "__main__":
    sys.exit(main())
