"""`ortserve serve` beside llama.cpp's server, OpenVINO GenAI and onnxruntime-genai: one checkpoint, the same requests.

Sides take turns in every round, all of them loaded, one at work. ortserve and llama.cpp are asked over HTTP, streamed,
by the same client on the same cores; the other two have no server in their Python packages and are asked in their
process, which spares them HTTP and text. Prompts are token ids, replies greedy and exactly as long as asked, guesses
off but in the part `drafts`. A side that cannot be run is reported with the reason, never estimated.

  ortserve widen pocket at-size --like qwen2.5-0.5b
  python -m tests.bench.cpu_peers at-size --work DIR --llama DIR/bin --openvino-python PYTHON --json out.json \\
    --sides ours-int8,llama-q8_0,openvino-int8 --parts decode
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tokenizers import Tokenizer

from ortserve.gateway.bench.speculation_work import works
from tests.bench.measurement import Spread, finish, script_parser, spread, write_json
from tests.bench.peers.models import NotMadeError, Tools
from tests.bench.peers.quiet import Watch
from tests.bench.peers.roster import ROSTER, start
from tests.bench.peers.sides import Side, SideError
from tests.bench.peers.work import (
    DECODE_PROMPT,
    PREFIX,
    PROMPTS,
    STREAMS,
    SUFFIX,
    Ask,
    Prompts,
    decode_rate,
    decoding,
    interference,
    interference_figures,
    whole_rate,
)

QUESTION, ANSWER = "What is 23 + 58?", "81"
TEXTS = ("editing", "extraction", "chat")  # kinds of work with real text
TEXT_TOKENS, ONE_BY_ONE = 128, 3
GUESSES = ("drafts", "small")
ROUNDS_APART = 10_000  # prompts of another try are new ones
MANY_TOKENS = 512  # shorter prompts are repeated within a round
MEGABYTE = 1_000_000
MAX_OTHERS, TRIES = 0.1, 3  # processors that others may use; how often a part is measured for that
Figures = Iterator[tuple[str, float]]


@dataclass(slots=True)
class Found:
    """Figures so far: by name, by side, one for each round; and what was not run."""

    figures: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    disturbed: list[str] = field(default_factory=list)  # figures that do not count

    def add(self, name: str, side: str, number: int, value: float) -> None:
        self.figures.setdefault(name, {}).setdefault(side, {})[number] = value

    def ratio(self, name: str, ours: str, side: str) -> Spread | None:
        """Ours over the other's, in the rounds that have both."""
        sides = self.figures[name]
        both = sides.get(ours, {}).keys() & sides.get(side, {}).keys()
        return spread([sides[ours][one] / sides[side][one] for one in both]) if both else None

    def table(self, sides: Sequence[str]) -> Iterator[str]:
        """A line for each figure; after each side's figure, ours over it in brackets."""
        ours = next((side for side in sides if side.startswith("ours")), None)
        yield "| " + " | ".join(["", *sides]) + " |"
        yield "|---" * (len(sides) + 1) + "|"
        for name, found in self.figures.items():
            cells = [name]
            for side in sides:
                cell = str(spread(list(found[side].values()))) if side in found else "not run"
                ratio = self.ratio(name, ours, side) if ours and side != ours else None
                cells.append(f"{cell} [{ratio.median:.2f}]" if ratio else cell)
            yield "| " + " | ".join(cells) + " |"
        for what, reason in self.not_run.items():
            yield f"not run: {what}: {reason}"
        for what in self.disturbed:
            yield f"does not count, since others had more than {MAX_OTHERS} of a processor: {what}"


class Parts:
    """The parts of the comparison on one side in one round: names with figures."""

    def __init__(self, side: Side, number: int, tokenizer: Tokenizer) -> None:
        self._side = side
        self.number = number
        self._tokenizer = tokenizer
        self._prompts = Prompts(number, tokenizer.get_vocab_size())

    def decode(self) -> Figures:
        for streams in STREAMS:
            replies = self._side.run(decoding(self._prompts, streams))
            yield f"tokens/s decoding, {streams} streams", decode_rate(replies)
            yield f"tokens/s with prompts of {DECODE_PROMPT}, {streams} streams", whole_rate(replies)
        proportional, anonymous = self._side.memory()
        yield "MB resident after it (proportional)", proportional / MEGABYTE
        yield "MB of it anonymous", anonymous / MEGABYTE

    def prompts(self) -> Figures:
        for length in PROMPTS:
            times = [
                self._side.run([Ask(self._prompts.draw(length), 2)])[0].ttft_s for _ in range(1 + MANY_TOKENS // length)
            ]
            yield f"TTFT ms, prompt of {length}", 1e3 * median(times)

    def prefix(self) -> Figures:
        shared = self._prompts.draw(PREFIX)
        times = [self._side.run([Ask(shared + self._prompts.draw(SUFFIX), 2)])[0].ttft_s for _ in range(4)]
        yield f"TTFT ms, prefix of {PREFIX} and {SUFFIX} more, first time", 1e3 * times[0]
        yield f"TTFT ms, prefix of {PREFIX} and {SUFFIX} more, again", 1e3 * median(times[1:])

    def interference(self) -> Figures:
        yield from interference_figures(self._side.run(interference(self._prompts)))

    def drafts(self) -> Figures:
        """Real text, whose replies repeat what was said before. Run for each library with guesses and without."""
        for kind in TEXTS:
            asks = self._asks(kind, ONE_BY_ONE + 8)
            alone = [self._side.run([ask])[0] for ask in asks[:ONE_BY_ONE]]
            seconds = sum(reply.arrivals[-1] - reply.sent_s for reply in alone)
            yield f"tokens/s {kind}, 1 stream", sum(reply.num_tokens for reply in alone) / seconds
            together = self._side.run(asks[ONE_BY_ONE:])
            yield f"tokens/s {kind}, 8 streams", whole_rate(together)
            yield f"tokens of all replies, {kind}", sum(reply.num_tokens for reply in (*alone, *together))

    def _asks(self, kind: str, count: int) -> list[Ask]:
        works_of_kind = works(kind, self.number, count)
        return [Ask(self._chat(work.question), TEXT_TOKENS, ignore_eos=False) for work in works_of_kind]

    def check(self) -> str:
        """The reply to a question whose answer is known: do they compute the same model?"""
        (reply,) = self._side.run([Ask(self._chat(QUESTION), 24, ignore_eos=False)])
        return reply.text

    def _chat(self, question: str) -> tuple[int, ...]:
        text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)


PARTS: dict[str, Callable[[Parts], Figures]] = {
    "decode": Parts.decode,
    "prompts": Parts.prompts,
    "prefix": Parts.prefix,
    "interference": Parts.interference,
    "drafts": Parts.drafts,
}


def compare(sides: dict[str, Side], arguments: argparse.Namespace, tokenizer: Tokenizer, found: Found) -> None:
    """All rounds; what a side fails at is not asked of it again."""
    for name, side in list(sides.items()):
        try:
            found.answers[name] = Parts(side, 1_000_000, tokenizer).check()
            side.run(decoding(Prompts(2_000_000, tokenizer.get_vocab_size()), 2))  # warms up
        except (SideError, ValueError) as error:
            found.not_run[name] = str(error)
            del sides[name]
    for number in range(arguments.first_round, arguments.first_round + arguments.rounds):
        for part in arguments.parts:
            for name, side in sides.items():
                if f"{part} of {name}" in found.not_run:
                    continue
                try:
                    for figure, (others, value) in quiet_figures(side, part, number, tokenizer).items():
                        shown = f"round {number}, {name}: {figure}: {value:.4g} (others {others:.2f})"
                        if others <= MAX_OTHERS:
                            found.add(figure, name, number, value)
                        else:
                            found.disturbed.append(shown)
                        print(shown, flush=True)
                except (SideError, ValueError, TimeoutError) as error:
                    found.not_run[f"{part} of {name}"] = f"{type(error).__name__}: {error}"
        write_json(arguments, [], details(found))


def quiet_figures(side: Side, part: str, number: int, tokenizer: Tokenizer) -> dict[str, tuple[float, float]]:
    """Each figure with the processors that others used meanwhile: of several tries the one with the fewest."""
    best: dict[str, tuple[float, float]] = {}
    for attempt in range(TRIES):
        watch = Watch()
        for figure, value in PARTS[part](Parts(side, number + attempt * ROUNDS_APART, tokenizer)):
            others = watch.look()
            if figure not in best or others < best[figure][0]:
                best[figure] = (others, value)
        if all(others <= MAX_OTHERS for others, _ in best.values()):
            break
    return best


def details(found: Found) -> dict[str, object]:
    return {"figures": found.figures, "not_run": found.not_run, "answers": found.answers, "disturbed": found.disturbed}


def chosen(known: Mapping[str, object], suffixes: Sequence[str] = ()) -> Callable[[str], list[str]]:
    """Names out of `known`, with `+` and a suffix or without. It raises `argparse.ArgumentTypeError` naming all."""
    accepted = [*known, *(f"{name}+{suffix}" for name in known for suffix in suffixes)]

    def choose(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in accepted]
        if unknown:
            more = "".join(f", with or without +{suffix}" for suffix in suffixes)
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is unknown: choose from {', '.join(known)}{more}")
        return names

    return choose


def main() -> int:
    parser = script_parser(__doc__ or "")
    add = parser.add_argument
    add("checkpoint", type=Path, help="a Llama whose tokenizer is the bundled model's, as `ortserve widen` makes it")
    add("--work", type=Path, required=True, metavar="DIR", help="where every side's form of it is made and kept")
    sides_help = (
        f"{', '.join(ROSTER)}; the first of ours is what ratios are of; NAME+drafts: with guesses from the text,"
        " NAME+small: with a small model's"
    )
    add("--sides", type=chosen(ROSTER, GUESSES), default=list(ROSTER), metavar="A,B", help=sides_help)
    add("--parts", type=chosen(PARTS), default=list(PARTS)[:-1], metavar="A,B", help=", ".join(PARTS))
    add("--llama", type=Path, metavar="DIR", help="folder of llama-server and llama-quantize")
    add("--openvino-python", type=Path, metavar="PATH", help="interpreter that has openvino-genai")
    add("--genai-python", type=Path, metavar="PATH", help="interpreter that has onnxruntime-genai, torch, transformers")
    add("--optimum-python", type=Path, metavar="PATH", help="interpreter that has optimum-intel, for OpenVINO's model")
    add("--first-round", type=int, default=0, help="whose prompts are another run's no more (default %(default)s)")
    add("--extra", action="append", default=[], metavar="SIDE:OPTIONS", help="more options for a side")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    others = (arguments.llama, arguments.genai_python, arguments.optimum_python)
    tools = Tools(arguments.checkpoint, arguments.work, *others)
    pythons = {"openvino": arguments.openvino_python, "genai": arguments.genai_python}
    extra = dict(one.split(":", 1) for one in arguments.extra)
    tokenizer = Tokenizer.from_file(str(arguments.checkpoint / "tokenizer.json"))
    sides, found = dict[str, Side](), Found()
    try:
        for name in arguments.sides:
            plain, _, guesses = name.partition("+")
            entrant = ROSTER[plain]
            try:
                sides[name] = start(entrant, tools, pythons.get(entrant.library), extra.get(name, ""), guesses=guesses)
            except (NotMadeError, SideError) as error:
                found.not_run[name] = str(error)
        compare(sides, arguments, tokenizer, found)
    finally:
        for side in sides.values():
            side.close()
    print("\n".join(found.table(arguments.sides)))
    wrong = [name for name, text in found.answers.items() if ANSWER not in text]
    print(f"answers to {QUESTION!r}: {found.answers}")
    return finish(arguments, [], details(found)) or bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
