"""What the prompt cache saves, and what it costs those who reuse nothing; every ratio within one process.

Time to first token of a prompt whose prefix is cached over that of a new one; the same from the disk tier after the
engine was opened again; tokens computed by 16 requests with one system prompt arriving together, and by a chat of 20
turns, over the tokens that had to be computed; time of prompts that reuse nothing with the cache over without.

  python -m tests.bench.prompt_cache FOLDER --json out.json
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter, sleep

import numpy as np

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.drivers.driver import Driver
from ortserve.runtime.opening import open_driver
from ortserve.runtime.request import Delta, FinishReason, Request, SamplingParams
from tests.bench.measurement import Goal, finish, script_parser, spread

NUM_TAIL = 8  # tokens of a prompt that differ from its prefix
ONE = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)


class Replies:
    """Outlet that keeps tokens and the time of each request's first."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.first: dict[str, float] = {}
        self._ended: set[str] = set()
        self._changed = threading.Condition()

    def deliver(self, deltas: Sequence[Delta]) -> None:
        """Part of the driver's `Outlet`."""
        now = perf_counter()
        with self._changed:
            for delta in deltas:
                assert delta.finish is not FinishReason.ERROR, delta.error
                self.tokens.setdefault(delta.request_id, []).extend(delta.token_ids)
                if delta.token_ids:
                    self.first.setdefault(delta.request_id, now)
                if delta.finish is not None:
                    self._ended.add(delta.request_id)
            self._changed.notify_all()

    def wait(self, names: Sequence[str]) -> None:
        """Until all of `names` have finished."""
        with self._changed:
            self._changed.wait_for(lambda: set(names) <= self._ended)


class Load:
    """Sends prompts of random tokens to one driver and times them."""

    def __init__(self, driver: Driver, seed: int) -> None:
        self.driver = driver
        self._generator = np.random.default_rng(seed)
        self._count = 0

    def random(self, count: int) -> tuple[int, ...]:
        """New tokens, equal to no earlier ones."""
        num_tokens = self.driver.manifest.num_tokens
        return tuple(self._generator.integers(num_tokens // 4, num_tokens, count).tolist())

    def together(
        self, prompts: Sequence[tuple[int, ...]], sampling: SamplingParams = ONE
    ) -> tuple[float, list[list[int]]]:
        """Seconds until the last of them has its first token, and all replies."""
        replies, names = Replies(), []
        start = perf_counter()
        for prompt in prompts:
            self._count += 1
            names.append(f"r{self._count}")
            self.driver.submit(Request(names[-1], prompt, sampling), replies)
        replies.wait(names)
        return max(replies.first.values()) - start, [replies.tokens[name] for name in names]

    def first_token_s(self, prompt: tuple[int, ...]) -> float:
        """Time to first token of one request."""
        return self.together([prompt])[0]

    @property
    def num_fed(self) -> int:
        """Tokens computed so far."""
        return self.driver.stats().num_fed_tokens


def hit_over_cold(load: Load, num_prefix: int, rounds: int) -> list[float]:
    """Cold time over hit time of the same length, new prefixes each round."""
    ratios = []
    for _ in range(rounds):
        prefix = load.random(num_prefix)
        cold = load.first_token_s(prefix + load.random(NUM_TAIL))
        hits = [load.first_token_s(prefix + load.random(NUM_TAIL)) for _ in range(3)]
        ratios.append(cold / float(np.median(hits)))
    return ratios


def disk_over_cold(folder: Path, config: EngineConfig, num_prefix: int, rounds: int) -> list[float]:
    """Cold time over the time of a hit in the disk tier of an engine opened anew."""
    ratios = []
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as tier:
            tiered = replace(config, prompt_cache_options=(("path", tier), ("max_bytes", str(2**31))))
            driver = open_driver(folder, tiered)
            load = Load(driver, 100 + number)
            prefix = load.random(num_prefix)
            cold = load.first_token_s(prefix + load.random(NUM_TAIL))
            sleep(2)  # the tier is written behind
            driver.close()
            again = open_driver(folder, tiered)
            warm = Load(again, 200 + number)
            warm.first_token_s(warm.random(NUM_TAIL))  # loads kernels and pages, not the prefix
            sleep(1)
            ratios.append(cold / warm.first_token_s(prefix + warm.random(NUM_TAIL)))
            again.close()
    return ratios


def shared_work(load: Load, num_shared: int, num_requests: int, rounds: int) -> list[float]:
    """Tokens computed by requests with one system prompt that arrive together, over computing it once."""
    ratios = []
    for _ in range(rounds):
        system = load.random(num_shared)
        before = load.num_fed
        load.together([system + load.random(NUM_TAIL) for _ in range(num_requests)])
        ratios.append((load.num_fed - before) / (num_shared + num_requests * NUM_TAIL))
    return ratios


def chat_work(load: Load, num_turns: int, rounds: int) -> list[float]:
    """Tokens computed by a growing conversation over its new tokens alone."""
    sampling = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    ratios = []
    for _ in range(rounds):
        conversation = load.random(100)
        before, num_new = load.num_fed, len(conversation)
        for _ in range(num_turns):
            _, (reply,) = load.together([conversation], sampling)
            asked = load.random(24)
            conversation = (*conversation, *reply, *asked)
            num_new += len(reply) + len(asked)
        num_new -= len(asked)  # the last question has not been asked
        ratios.append((load.num_fed - before) / num_new)
    return ratios


def miss_cost(folder: Path, config: EngineConfig, num_prompt: int, rounds: int) -> list[float]:
    """Time of prompts that reuse nothing: with the cache over without, in turns."""
    cached, plain = open_driver(folder, config), open_driver(folder, replace(config, prompt_cache="none"))
    loads = Load(cached, 7), Load(plain, 8)
    for load in loads:
        load.first_token_s(load.random(num_prompt))
    ratios = []
    for _ in range(rounds):
        with_cache, without = (load.first_token_s(load.random(num_prompt)) for load in loads)
        ratios.append(with_cache / without)
    cached.close()
    plain.close()
    return ratios


def main() -> int:
    parser = script_parser(__doc__ or "")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="exported model")
    parser.add_argument("--prefixes", default="2000,8000", help="tokens of shared prefixes (default %(default)s)")
    parser.set_defaults(rounds=3)
    arguments = parser.parse_args()
    lengths = [int(word) for word in arguments.prefixes.split(",")]
    config = EngineConfig(max_rows=16, max_context=max(*lengths, 4000) + 256, prompt_cache="prefix")
    driver = open_driver(arguments.folder, config)
    load = Load(driver, 1)
    load.first_token_s(load.random(64))
    wanted = {2000: 30.0, 8000: 80.0}
    hits = {length: hit_over_cold(load, length, arguments.rounds) for length in lengths}
    shared = shared_work(load, 1000, 16, arguments.rounds)
    chat = chat_work(load, 20, arguments.rounds)
    driver.close()
    disk = disk_over_cold(arguments.folder, config, min(lengths), arguments.rounds)
    miss = miss_cost(arguments.folder, config, 512, 4 * arguments.rounds)
    goals = [
        *(
            Goal(f"cold over hit, {length} tokens", spread(ratios), at_least=wanted.get(length, 0.0))
            for length, ratios in hits.items()
        ),
        Goal(f"cold over disk hit after a restart, {min(lengths)} tokens", spread(disk), at_least=12.0),
        Goal("work of 16 requests with one 1,000-token prompt", spread(shared), at_most=1.10),
        Goal("work of a 20-turn chat", spread(chat), at_most=1.05),
        Goal("time without reuse, cache over none", spread(miss), at_most=1.02),
    ]
    report = {"hits": hits, "disk": disk, "shared": shared, "chat": chat, "miss": miss}
    return finish(arguments, goals, report)


if __name__ == "__main__":
    sys.exit(main())
