"""Tokens per second with a drafter over without, on the bundled model or one widened from it; replies must be equal.

Two engines on the same folder, one with the drafter, take turns on the same requests: copying, editing with the
original as prediction, and stories, which nothing predicts. Wall-clock ratios, never a formula.

  python -m tests.bench.speculation FOLDER --drafter combined --json out.json
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from tokenizers import Tokenizer

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.drivers.driver import Driver
from ortserve.runtime.opening import open_driver
from ortserve.runtime.request import Delta, DraftHints, FinishReason, Request, SamplingParams
from tests.bench.measurement import Goal, finish, script_parser, spread

TEXT = (
    "the red fox found a small {thing} in the garden and carried it to the old bridge where {name} waited for the "
    "train to the city with a warm coat and a green hat and a letter for the baker of the village"
)
THINGS = ("box", "clock", "lamp", "piano", "ladder", "mirror", "kettle", "violin", "basket", "engine", "drum")
NAMES = ("Alice", "Boris", "Clara", "David", "Elena", "Frank", "Grace", "Hugo")


class Finished:
    """Outlet that waits for all of its requests."""

    def __init__(self, names: Sequence[str]) -> None:
        self.tokens: dict[str, list[int]] = {name: [] for name in names}
        self.accepted = 0
        self.rejected = 0
        self._open = set(names)
        self._changed = threading.Condition()

    def deliver(self, deltas: Sequence[Delta]) -> None:
        """Part of the driver's `Outlet`."""
        with self._changed:
            for delta in deltas:
                assert delta.finish is not FinishReason.ERROR, delta.error
                self.tokens[delta.request_id] += delta.token_ids
                if delta.finish is not None:
                    self._open.discard(delta.request_id)
                    if delta.usage is not None:
                        self.accepted += delta.usage.num_accepted_tokens
                        self.rejected += delta.usage.num_rejected_tokens
            self._changed.notify_all()

    def wait(self) -> None:
        """Until every request has finished."""
        with self._changed:
            self._changed.wait_for(lambda: not self._open)


def workloads(tokenizer: Tokenizer, number: int) -> dict[str, list[tuple[tuple[int, ...], DraftHints]]]:
    """For each kind of work one request per name: prompt and hints. Other rounds get other texts: no reply repeats."""

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

    def ask(question: str) -> tuple[int, ...]:
        return ids(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")

    thing = THINGS[number % len(THINGS)]
    texts = [TEXT.format(name=name, thing=thing) for name in NAMES]
    return {
        "copying": [(ask(f"Repeat after me: {text}"), DraftHints()) for text in texts],
        "editing with prediction": [
            (ask(f"Replace the word garden with forest in this text: {text}"), DraftHints(prediction=ids(text)))
            for text in texts
        ],
        "stories": [(ask(f"Tell me a short story about {name} and a {thing}."), DraftHints()) for name in NAMES],
    }


def run(
    driver: Driver, work: Sequence[tuple[tuple[int, ...], DraftHints]], temperature: float, label: str
) -> tuple[float, list[list[int]], int]:
    """Output tokens per second, the replies, and how many of their tokens were guessed."""
    requests = [
        Request(
            f"{label}.{place}", prompt, SamplingParams(temperature=temperature, seed=place, max_tokens=160), draft=hints
        )
        for place, (prompt, hints) in enumerate(work)
    ]
    outlet = Finished([request.id for request in requests])
    begun = perf_counter()
    for request in requests:
        driver.submit(request, outlet)
    outlet.wait()
    replies = list(outlet.tokens.values())
    return sum(map(len, replies)) / (perf_counter() - begun), replies, outlet.accepted


def main() -> int:
    parser = script_parser(__doc__ or "")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="exported bundled model, or one widened from it")
    parser.add_argument("--drafter", default="combined", help="default %(default)s")
    parser.add_argument("--streams", default="1,8", help="at once (default %(default)s)")
    parser.set_defaults(rounds=5)
    arguments = parser.parse_args()
    plain = open_driver(arguments.folder, EngineConfig(max_rows=8, max_context=1024, prompt_cache="none"))
    drafted = open_driver(
        arguments.folder, EngineConfig(max_rows=8, max_context=1024, prompt_cache="none", drafter=arguments.drafter)
    )
    tokenizer = Tokenizer.from_file(str(arguments.folder / "tokenizer.json"))
    rounds = [workloads(tokenizer, number) for number in range(arguments.rounds + 1)]
    goals, details = [], {}
    for streams in map(int, arguments.streams.split(",")):
        for name in rounds[0]:
            for temperature in (0.0, 0.7):
                ratios, shares, num_different = [], [], 0
                for number, work in enumerate(rounds):  # the first warms up both
                    label = f"{name}{streams}{temperature}{number}"
                    base, expected, _ = run(plain, work[name][:streams], temperature, label)
                    fast, found, accepted = run(drafted, work[name][:streams], temperature, label)
                    num_different += sum(one != other for one, other in zip(expected, found, strict=True))
                    if number:
                        ratios.append(fast / base)
                        shares.append(accepted / max(1, sum(map(len, found))))
                title = f"{name}, {streams} streams, temperature {temperature:g}"
                details[title] = {"ratios": ratios, "guessed": shares, "different": num_different}
                goals.append(Goal(title, spread(ratios), at_least=0.97))
                print(f"{title}: guessed {spread(shares)}, replies that differ {num_different}")
    plain.close()
    drafted.close()
    return finish(arguments, goals, {"work": details})


if __name__ == "__main__":
    sys.exit(main())
