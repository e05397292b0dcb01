"""What a drafter would bring on known replies: steps and tokens, by a step cost of your choice; no clock, so no noise.

Replies are drawn once without guesses, then replayed through the drafter and the engine's adaptation as a batch that
begins and ends together. Beside the drafter as it is stand two that cannot be: one that ends each of its drafts before
the first wrong guess, and one that knows the reply. The difference says where to look: in stopping, or in guessing.
`varied` are the corpus's own extraction tasks: other keys, order and wording in every request, values seen once.

  python -m tests.bench.draft_replay FOLDER --streams 1,8 --base-ms 40 --token-ms 1.5     (FOLDER: the bundled model)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import median

from tokenizers import Tokenizer

from examples.pocket.family_extract import extract
from ortserve.gateway.bench.speculation_work import KINDS, works
from ortserve.plugins.combined import CombinedDrafter
from ortserve.plugins.drafting import Draft, Drafter, DraftRequest, Ended, SequenceView, Verified
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.manifest import RotaryRegime
from ortserve.runtime.opening import open_driver
from ortserve.runtime.request import DraftHints, Request, SamplingParams
from ortserve.runtime.scheduling.pace import Pace
from ortserve.runtime.sequence import Sequence as Running
from ortserve.runtime.speculation.adaptation import DraftCost, heard, learn, limits, rooms, worthwhile
from ortserve.runtime.speculation.words import read_words
from tests.bench.measurement import script_parser, spread, write_json
from tests.bench.speculation import Finished
from tests.plugins.drafters.play import NEVER, new_context

MAX_TOKENS = 160


@dataclass(frozen=True, slots=True)
class Said:
    """One request and its reply."""

    prompt: tuple[int, ...]
    prediction: tuple[int, ...] | None
    reply: tuple[int, ...]


class LinearPace(Pace):
    """A step costs so much, and so much per token."""

    def __init__(self, base_ms: float, token_ms: float) -> None:
        super().__init__(max_step_ms=None, max_chunk_tokens=128)
        self._base_ms, self._token_ms = base_ms, token_ms

    def predict(self, tokens: int, attended: int, *, longest: int = 1) -> float:
        del attended, longest
        return self._base_ms + self._token_ms * tokens

    def prompts(self, count: int) -> float:
        """Milliseconds for `count` tokens of prompts."""
        return self._token_ms * count + self._base_ms * -(-count // 128)


@dataclass(slots=True)
class Tally:
    """Of some replays."""

    num_row_steps: int = 0
    num_tokens: int = 0
    num_fed: int = 0
    num_held: int = 0


Ideal = Callable[[Draft, Sequence[int], int], Draft]  # of a draft, what follows in truth, and the room there is


def in_time(draft: Draft, rest: Sequence[int], room: int) -> Draft:
    """It ends before its first wrong guess."""
    del room
    count = num_equal(draft.tokens, rest)
    return replace(draft, tokens=draft.tokens[:count], chances=draft.chances[:count])


def all_right(draft: Draft, rest: Sequence[int], room: int) -> Draft:
    """It is what follows."""
    return replace(draft, tokens=tuple(rest[:room]), chances=(1.0,) * len(rest[:room]))


IDEALS: Mapping[str, Ideal | None] = {"as it is": None, "ends in time": in_time, "knows all": all_right}


def num_equal(one: Sequence[int], other: Sequence[int]) -> int:
    """How far two sequences agree."""
    return next(
        (at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
    )


def prompt_of(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def draw(folder: Path, temperature: float, num_rounds: int, num_rows: int) -> dict[str, list[list[Said]]]:
    """Replies of the model, by kind of work and round."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

    driver = open_driver(folder, EngineConfig(max_rows=num_rows, max_context=1024, prompt_cache="none"))
    found: dict[str, list[list[Said]]] = {kind: [] for kind in KINDS}
    for kind in KINDS:
        for number in range(num_rounds):
            work = works(kind, number, num_rows)
            names = [f"{kind}.{number}.{place}" for place in range(num_rows)]
            outlet = Finished(names)
            for place, (name, one) in enumerate(zip(names, work, strict=True)):
                sampling = SamplingParams(
                    temperature=2.0 if one.is_random else temperature,
                    seed=place,
                    max_tokens=MAX_TOKENS,
                    ignore_eos=one.is_random,
                )
                driver.submit(Request(name, ids(prompt_of(one.question)), sampling, draft=DraftHints()), outlet)
            outlet.wait()
            found[kind].append(
                [
                    Said(
                        ids(prompt_of(one.question)),
                        None if one.prediction is None else ids(one.prediction),
                        tuple(outlet.tokens[name]),
                    )
                    for name, one in zip(names, work, strict=True)
                ]
            )
    driver.close()
    random = Random(5)
    found["varied"] = [[varied(random, ids) for _ in range(num_rows)] for _ in range(num_rounds)]
    return found


def varied(random: Random, ids: Callable[[str], tuple[int, ...]]) -> Said:
    """A task of the corpus with its right answer."""
    sample = extract(random)
    turns = "".join(
        f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in sample.messages if turn.role != "assistant"
    )
    return Said(ids(f"{turns}<|im_start|>assistant\n"), None, ids(f"{sample.answer}<|im_end|>"))


def replay(
    drafter: Drafter, batch: Sequence[Said], name: str, pace: LinearPace, ideal: Ideal | None, tally: Tally
) -> float:
    """Milliseconds without guesses over milliseconds with them."""
    truth = {f"{name}.{place}": said for place, said in enumerate(batch)}
    live: list[Running] = []
    for id_, said in truth.items():
        drafter.start(DraftRequest(id_, b"", said.prompt, said.prediction))
        tokens = [*said.prompt, *said.reply[:1]]
        regime = RotaryRegime(4096, 0)
        live.append(
            Running(Request(id_, said.prompt), 0, MAX_TOKENS, 0, 0.0, tokens, frozenset(), frozenset(), None, regime)
        )
    spent = plain = pace.prompts(sum(len(said.prompt) for said in batch))
    for step in range(1, max(len(said.reply) for said in batch)):
        plain += pace.predict(sum(len(said.reply) > step for said in batch), 0)
    while True:
        ended = [one for one in live if one.num_output_tokens >= len(truth[one.request.id].reply)]
        drafter.forget([Ended(one.request.id, truth[one.request.id].reply) for one in ended])
        live = [one for one in live if one not in ended]
        if not live:
            return plain / spent
        spent += _step(drafter, live, truth, pace, ideal, tally)


def _step(
    drafter: Drafter,
    live: Sequence[Running],
    truth: Mapping[str, Said],
    pace: LinearPace,
    ideal: Ideal | None,
    tally: Tally,
) -> float:
    allowed = limits(live, pace, DraftCost())
    room = rooms(live, allowed)
    rests = {one.request.id: truth[one.request.id].reply[one.num_output_tokens :] for one in live}
    views = [
        SequenceView(id_, one.tokens, one.num_prompt_tokens, allowed[id_], room=room[id_])
        for one in live
        if (id_ := one.request.id) in allowed
    ]
    drafts = {draft.id: draft for draft in drafter.propose(views, NEVER)}
    if ideal is all_right:
        drafts = {view.id: Draft(view.id, len(view.tokens), (), "truth") for view in views}
    if ideal is not None:
        drafts = {id_: ideal(draft, rests[id_], room[id_]) for id_, draft in drafts.items()}
    drafts = {id_: draft for id_, draft in drafts.items() if draft.tokens}
    for one in live:
        heard(one, was_asked=one.request.id in allowed, has_draft=one.request.id in drafts)
    fed = worthwhile(drafts, allowed, live, pace)
    results = []
    for one in live:
        id_, guesses = one.request.id, fed.get(one.request.id, ())
        num_held = num_equal(guesses, rests[id_])
        added = tuple(rests[id_][: num_held + 1])
        one.tokens.extend(added)
        one.num_accepted += num_held
        one.num_rejected += len(guesses) - num_held
        learn(one, len(guesses), num_held, drafts[id_].chances if guesses else ())
        if guesses:
            results.append(Verified(id_, drafts[id_].source, len(guesses), num_held, added))
        tally.num_row_steps += 1
        tally.num_tokens += len(added)
        tally.num_fed += len(guesses)
        tally.num_held += num_held
    drafter.observe(results)
    return pace.predict(len(live) + sum(map(len, fed.values())), 0)


def main() -> int:
    parser = script_parser(__doc__ or "")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="exported bundled model")
    parser.add_argument("--sources", default="", help="of `combined` (default: its own)")
    parser.add_argument("--streams", default="1,8,16", help="at once (default %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="of the replies (default %(default)g)")
    parser.add_argument("--base-ms", type=float, default=40.0, help="of a step (default %(default)g: 0.5B shape, AMX)")
    parser.add_argument("--token-ms", type=float, default=1.5, help="of each of its tokens (default %(default)g)")
    parser.set_defaults(rounds=5)
    arguments = parser.parse_args()
    streams = [int(word) for word in arguments.streams.split(",")]
    said = draw(arguments.folder, arguments.temperature, arguments.rounds + 1, max(streams))
    words = read_words(arguments.folder, Tokenizer.from_file(str(arguments.folder / "tokenizer.json")).get_vocab_size())
    options = {"sources": arguments.sources} if arguments.sources else {}
    details: dict[str, list[float]] = {}
    for kind, rounds in said.items():
        for count in streams:
            for title, ideal in IDEALS.items():
                drafter = CombinedDrafter(replace(new_context(options), load_words=lambda: words))
                pace, tally, ratios = LinearPace(arguments.base_ms, arguments.token_ms), Tally(), list[float]()
                for number, batch in enumerate(rounds):
                    tally = Tally() if number == 1 else tally  # the first round is what the drafter learns from
                    ratios.append(replay(drafter, batch[:count], str(number), pace, ideal, tally))
                details[f"{kind}, {count} streams, {title}"] = ratios[1:]
                print(
                    f"{kind:11}{count:3} streams  {title:13} {spread(ratios[1:])}  tokens per row and step"
                    f" {tally.num_tokens / tally.num_row_steps:.2f}  held {tally.num_held / max(tally.num_fed, 1):.2f}",
                    flush=True,
                )
    write_json(arguments, [], {"ratios": details, "medians": {title: median(some) for title, some in details.items()}})
    return 0


if __name__ == "__main__":
    sys.exit(main())
