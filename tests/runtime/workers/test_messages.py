"""Values and errors that travel between processes arrive as they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from ortserve.plugins.api import Breakpoint, CacheMode, CacheStats, Entry, TierStats
from ortserve.runtime import errors
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.engine import EngineStats
from ortserve.runtime.errors import (
    ContextLengthError,
    EngineError,
    ModelError,
    OrtserveError,
    OverloadedError,
    RequestError,
)
from ortserve.runtime.request import (
    CacheHints,
    Delta,
    DraftHints,
    FinishReason,
    Grammar,
    GrammarKind,
    Request,
    SamplingParams,
    TokenLogprobs,
    Usage,
)
from ortserve.runtime.scheduling.backlog import Progress, RunningState
from ortserve.runtime.scheduling.fair_order import FairOrder
from ortserve.runtime.scheduling.pace import Costs
from ortserve.runtime.speculation.stats import DraftStats
from ortserve.runtime.testing import write_synthetic_model
from ortserve.runtime.workers import process
from ortserve.runtime.workers.crossing import arrived, departing
from ortserve.runtime.workers.launch import OPENER
from ortserve.runtime.workers.messages import (
    Answered,
    Clear,
    Command,
    Ended,
    Logged,
    Pin,
    Report,
    Start,
    Stepped,
    Submit,
    decode_command,
    decode_report,
    decode_start,
    encode,
)

REQUEST = Request(
    "id",
    (1, 2, 3),
    SamplingParams(0.5, 3, logit_bias=((4, -1.5),), seed=2**62, stop_token_ids=(9,), num_logprobs=2),
    priority=-3,
    choice=1,
    group="call",
    cache=CacheHints(b"\x00\xff", CacheMode.EXPLICIT, (Breakpoint(2, 1.5),), "who", durable=False),
    draft=DraftHints((5, 6), 4),
    grammar=Grammar(GrammarKind.LARK, "start: X", "after", "opener", ("<m>",)),
    tenant=b"\x80",
    weight=2,
)


@pytest.mark.parametrize("command", [Submit(REQUEST), Pin(1, (2, 3), b"\xfe", 0.5), Clear(2, None), Clear(3, b"")])
def test_commands(command: Command) -> None:
    assert decode_command(encode(command)) == command


def test_a_step() -> None:
    top = TokenLogprobs(7, -0.25, ((7, -0.25), (8, -3.0)))
    usage = Usage(1, 2, 3, 4, 5, 6, 7, 0.1, 0.2, 0.3)
    deltas = (
        Delta("a", (7,), (top,), prompt_logprobs=(top,)),
        Delta("b", (), finish=FinishReason.ERROR, usage=usage, error="why", is_lost=True),
    )
    drafts = DraftStats(num_calls=3)
    drafts.add("ngram", 4, 2, 0.5)
    fair = FairOrder()
    fair.charge(REQUEST, 100)
    fair.admit(REQUEST, 12.5)
    stepped = Stepped(
        deltas,
        EngineStats(num_running=2, num_steps=9),
        Progress({"a": RunningState(1, 5)}, True, fair, Costs(0.1, 0.2)),
        CacheStats(num_lookups=1, tiers={"disk": TierStats(2)}),
        drafts,
    )
    again = decode_report(encode(stepped))
    assert isinstance(again, Stepped)
    assert (again.deltas, again.stats, again.cache, again.drafts) == (deltas, stepped.stats, stepped.cache, drafts)
    assert again.drafts is not None
    assert again.drafts.proposed["ngram", 9] == 0  # a counter still
    assert again.progress is not None
    assert again.progress.running == {"a": RunningState(1, 5)}
    assert again.progress.fair.values() == ({b"\x80": 50.0}, {b"\x80": 12.5}, 0.0)
    assert again.progress.costs == Costs(0.1, 0.2)


def test_other_reports() -> None:
    entry = Entry("k", None, 128, 0, "memory", 1000, 2, 0.5, None)
    reports: list[Report] = [Answered(1, 5), Answered(2, entries=(entry,)), Ended(departing(ModelError("m")))]
    assert [decode_report(encode(report)) for report in reports] == reports
    line = decode_report(encode(Logged("info", "event", {"path": Path("here"), "number": 1})))
    assert line == Logged("info", "event", {"path": "here", "number": 1})


@pytest.mark.parametrize(
    "error",
    [
        RequestError("no", parameter="prompt"),
        ContextLengthError(10, 5),
        OverloadedError("full", retry_after_s=1.5, limit=("tokens", 7)),
        *(
            kind("a line")
            for kind in vars(errors).values()
            if isinstance(kind, type) and issubclass(kind, OrtserveError) and kind.__init__ is Exception.__init__
        ),
    ],
)
def test_errors_keep_their_class_and_what_they_carry(error: OrtserveError) -> None:
    ended = decode_report(encode(Ended(departing(error))))
    assert isinstance(ended, Ended)
    assert ended.error is not None
    again = arrived(ended.error)
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_errors_that_are_not_ours_become_the_nearest_of_ours() -> None:
    class StrangeError(ModelError):
        pass

    assert type(arrived(departing(StrangeError("s")))) is ModelError
    other = arrived(departing(KeyError("k")))
    assert (type(other), str(other)) == (EngineError, "KeyError: 'k'")


def test_a_process_refuses_a_folder_that_has_changed(tmp_path: Path) -> None:
    write_synthetic_model(tmp_path)
    config = EngineConfig(num_threads=1, kv_memory=2**20, prompt_cache="none")
    start = decode_start(encode(Start(str(tmp_path), config, "another", OPENER, ("x",))))
    assert (start.config, start.import_path) == (config, ("x",))
    with pytest.raises(ModelError, match="has become another model since the server began: restart the server"):
        process.open_driver_of(start)
