"""Learning what steps cost, and how many prompt tokens fit into the next one. Time here is a formula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ortserve.runtime.scheduling.pace import AUTO_FACTOR, QUANTUM, SMALLEST_CHUNK, Pace

CHUNK = 128


def cost(tokens: int, attended: int, *, base: float = 10.0, token: float = 0.3, pair: float = 2e-5) -> float:
    """Milliseconds of a step on an imaginary machine."""
    return base + token * tokens + pair * attended


def trained(
    *, max_step_ms: float | None = None, noise: float = 0.0, chunk: int = CHUNK, **terms: float
) -> tuple[Pace, np.random.Generator]:
    """A pace that has seen decodes of several widths and chunks of several lengths at several depths."""
    pace = Pace(max_step_ms=max_step_ms, max_chunk_tokens=chunk)
    generator = np.random.default_rng(1)
    for _ in range(200):
        tokens = int(generator.choice([1, 4, 8, 16, 32, 64, 128, 140]))
        attended = tokens * int(generator.integers(64, 4_000))
        pace.observe(tokens, attended, cost(tokens, attended, **terms) * float(np.exp(noise * generator.normal())))
    return pace, generator


def step_cost(pace: Pace, *, rows: int, context: int, start: int, **terms: float) -> tuple[int, float]:
    chunk = pace.chunk_tokens(decode_tokens=rows, decode_attended=rows * context, start=start)
    return chunk, cost(rows + chunk, rows * context + chunk * (start + chunk), **terms)


@settings(max_examples=25)
@given(
    base=st.floats(0.1, 50),
    token=st.floats(0.01, 2),
    pair=st.floats(1e-7, 1e-4),
    tokens=st.integers(1, 150),
    context=st.integers(64, 4_000),
)
def test_a_linear_cost_is_learned(base: float, token: float, pair: float, tokens: int, context: int) -> None:
    pace, _ = trained(base=base, token=token, pair=pair)
    predicted = pace.predict(tokens, tokens * context)
    assert predicted is not None
    assert predicted == pytest.approx(cost(tokens, tokens * context, base=base, token=token, pair=pair), rel=0.02)


def test_a_noisy_cost_is_learned_well_enough() -> None:
    pace, generator = trained(noise=0.1)
    for _ in range(100):
        tokens, context = int(generator.integers(1, 140)), int(generator.integers(64, 4_000))
        predicted = pace.predict(tokens, tokens * context)
        assert predicted == pytest.approx(cost(tokens, tokens * context), rel=0.2)


@settings(max_examples=25)
@given(
    limit=st.floats(12, 120),
    rows=st.integers(0, 16),
    context=st.integers(1, 4_000),
    start=st.integers(0, 8_000),
    chunk=st.sampled_from([1, 16, 40, 128, 512]),
)
def test_a_step_stays_within_the_limit_or_carries_the_least(
    limit: float, rows: int, context: int, start: int, chunk: int
) -> None:
    pace, _ = trained(max_step_ms=limit, chunk=chunk)
    count, milliseconds = step_cost(pace, rows=rows, context=context, start=start)
    least = min(SMALLEST_CHUNK, chunk)
    assert least <= count <= chunk
    assert count == least or milliseconds <= 1.05 * limit
    # and it does not give away what would have fitted
    more = min(count + 2 * SMALLEST_CHUNK, chunk)
    too_much = cost(rows + more, rows * context + more * (start + more))
    assert count == chunk or too_much > 0.95 * limit or more == count


@settings(max_examples=25)
@given(rows=st.integers(1, 16), context=st.integers(64, 4_000), start=st.integers(0, 4_000))
def test_without_a_limit_a_step_takes_a_few_decodes_at_most(rows: int, context: int, start: int) -> None:
    pace, _ = trained()
    count, milliseconds = step_cost(pace, rows=rows, context=context, start=start)
    assert count == SMALLEST_CHUNK or milliseconds <= 1.05 * AUTO_FACTOR * cost(rows, rows * context)


@pytest.mark.parametrize("held", [1, 10, 16])
def test_decodes_that_wait_for_a_step_bound_its_time_and_leave_it_their_room(held: int) -> None:
    rows, context = 16, 2_000
    pace, _ = trained(pair=2e-4)
    beside, _ = step_cost(pace, rows=rows, context=context, start=0, pair=2e-4)
    count = pace.chunk_tokens(
        decode_tokens=rows,
        decode_attended=rows * context,
        start=0,
        held_tokens=held,
        held_attended=held * context,
    )
    fed = rows - held
    milliseconds = cost(fed + count, fed * context + count * count, pair=2e-4)
    assert milliseconds <= 1.05 * AUTO_FACTOR * cost(rows, rows * context, pair=2e-4)
    assert count >= beside + (held > 1) * QUANTUM or count == CHUNK


def test_without_decodes_and_limit_a_step_carries_the_largest_chunk() -> None:
    pace, _ = trained(token=100.0)
    assert pace.chunk_tokens(decode_tokens=0, decode_attended=0, start=5_000) == CHUNK


def test_a_limit_holds_without_decodes_too() -> None:
    pace, _ = trained(max_step_ms=30.0)
    count, milliseconds = step_cost(pace, rows=0, context=0, start=0)
    assert SMALLEST_CHUNK <= count < CHUNK
    assert milliseconds <= 31.0


@pytest.mark.parametrize("limit", [None, 5.0])
@pytest.mark.parametrize("chunk", [1, 16, 50, 512])
def test_a_pace_that_knows_nothing_starts_with_small_chunks(limit: float | None, chunk: int) -> None:
    pace = Pace(max_step_ms=limit, max_chunk_tokens=chunk)
    assert pace.predict(1, 1) is None
    assert pace.chunk_tokens(decode_tokens=4, decode_attended=400, start=0) == min(4 * SMALLEST_CHUNK, chunk)
    for tokens in (1, 64):
        pace.observe(tokens, tokens * 100, 5.0)
    assert pace.predict(1, 1) is None


def test_what_a_chunk_costs_is_still_known_after_thousands_of_decodes() -> None:
    pace, _ = trained(max_step_ms=40.0)
    before = step_cost(pace, rows=8, context=500, start=1_000)
    for number in range(5_000):
        attended = 8 * (500 + number % 100)
        pace.observe(8, attended, cost(8, attended))
    after = step_cost(pace, rows=8, context=500, start=1_000)
    assert abs(after[0] - before[0]) <= SMALLEST_CHUNK
    assert SMALLEST_CHUNK < after[0] < CHUNK
    assert after[1] <= 1.05 * 40.0


def test_one_outlier_moves_no_chunk_far() -> None:
    pace, _ = trained(max_step_ms=40.0)
    before, _ = step_cost(pace, rows=8, context=500, start=0)
    pace.observe(8, 8 * 500, 60_000.0)
    after, _ = step_cost(pace, rows=8, context=500, start=0)
    assert abs(after - before) <= 2 * SMALLEST_CHUNK


def test_one_outlier_among_few_shapes_moves_no_prediction_far() -> None:
    pace = Pace(max_step_ms=None, max_chunk_tokens=CHUNK)
    for tokens, attended in ((1, 100), (8, 4_000), (136, 20_000)):
        pace.observe(tokens, attended, cost(tokens, attended))
    before = pace.predict(8, 4_000)
    pace.observe(8, 4_000, 60_000.0)
    after = pace.predict(8, 4_000)
    assert before is not None
    assert after is not None
    assert after < 1.3 * before


def test_a_machine_that_becomes_slower_is_noticed() -> None:
    pace = Pace(max_step_ms=60.0, max_chunk_tokens=CHUNK)
    chunks = []
    for slowness in (1, 2):
        for _ in range(50):
            for tokens, context in ((1, 100), (8, 500), (16, 900), (64, 200), (136, 400)):
                pace.observe(tokens, tokens * context, slowness * cost(tokens, tokens * context))
        chunk, milliseconds = step_cost(pace, rows=8, context=500, start=0)
        assert slowness * milliseconds <= 1.05 * 60.0
        chunks.append(chunk)
    assert chunks[0] > chunks[1]


@given(
    st.lists(
        st.tuples(st.integers(1, 600), st.integers(1, 10**7), st.floats(0.0, 1e6)),
        min_size=3,
        max_size=30,
    ),
    st.integers(0, 64),
    st.integers(0, 100_000),
)
def test_whatever_was_seen_chunks_stay_between_the_least_and_the_largest(
    steps: list[tuple[int, int, float]], rows: int, start: int
) -> None:
    pace = Pace(max_step_ms=20.0, max_chunk_tokens=200)
    for tokens, attended, milliseconds in steps:
        pace.observe(tokens, attended, milliseconds)
    assert SMALLEST_CHUNK <= pace.chunk_tokens(decode_tokens=rows, decode_attended=rows * 99, start=start) <= 200
    predicted = pace.predict(rows, rows * 99)
    assert predicted is None or predicted >= 0, "a term is negative"


def test_a_machine_that_has_become_slower_is_believed() -> None:
    pace = Pace(max_step_ms=100.0, max_chunk_tokens=128)
    for factor, rounds in ((1.0, 60), (2.0, 300)):
        for number in range(rounds):
            for tokens, depth in ((8, 100 + number), (72, 100 + 5 * number)):
                attended = tokens * depth
                pace.observe(tokens, attended, factor * (10 + 0.5 * tokens + 1e-4 * attended))
    predicted = pace.predict(40, 40 * 300)
    assert predicted is not None
    assert abs(predicted / (2 * (10 + 20 + 1.2)) - 1) < 0.15


def test_kinds_of_steps_have_costs_of_their_own_where_they_are_told_apart() -> None:
    """As on a device: 16 tokens in 8 rows take longer than 16 rows, and a chunk of 40 longer than both."""
    own = {1: 0.0, 2: 0.4, 100: 2.0}
    pace = Pace(max_step_ms=None, max_chunk_tokens=512, longest_short=32)
    alike = Pace(max_step_ms=None, max_chunk_tokens=512)
    for tokens, longest in [(1, 1), (8, 1), (32, 1), (4, 2), (16, 2), (64, 2), (100, 100), (500, 100), (200, 100)]:
        for attended in (tokens * 100, tokens * 900):
            pace.observe(tokens, attended, cost(tokens, attended, base=1.2, token=0.01) + own[longest], longest=longest)
            alike.observe(tokens, attended, 5.0, longest=longest)
    for tokens, longest, expected in [(8, 1, 0.0), (8, 2, 0.4), (8, 32, 0.4), (8, 33, 2.0), (40, 512, 2.0)]:
        found = pace.predict(tokens, tokens * 500, longest=longest)
        assert found == pytest.approx(cost(tokens, tokens * 500, base=1.2, token=0.01) + expected, rel=0.02)
        assert alike.predict(tokens, tokens * 500, longest=longest) == pytest.approx(5.0)


def test_a_kind_that_was_never_seen_costs_nothing_of_its_own() -> None:
    pace = Pace(max_step_ms=None, max_chunk_tokens=128, longest_short=32)
    for tokens in (1, 8, 32):
        pace.observe(tokens, tokens * 100, cost(tokens, tokens * 100))
    assert pace.predict(4, 400, longest=4) == pace.predict(4, 400)


def replayed(pace: Pace, slowness: float, num_steps: int) -> list[float]:
    """Milliseconds of steps that carry one long prompt after another beside sixteen rows, as the pace has it."""
    rows, context, start, times = 16, 800, 0, []
    for _ in range(num_steps):
        chunk, milliseconds = step_cost(pace, rows=rows, context=context, start=start)
        times.append(slowness * milliseconds)
        pace.observe(rows + chunk, rows * context + chunk * (start + chunk), times[-1])
        start = (start + chunk) % 4_000
    return times


@pytest.mark.parametrize("slowness", [1.5, 2.0, 3.0])
def test_other_work_on_the_machine_is_followed_within_some_steps_and_so_is_its_end(slowness: float) -> None:
    pace = Pace(max_step_ms=60.0, max_chunk_tokens=512)
    assert max(replayed(pace, 1.0, 400)[100:]) <= 1.05 * 60.0
    beside = replayed(pace, slowness, 100)
    assert sum(milliseconds > 1.2 * 60.0 for milliseconds in beside) <= 20
    after = replayed(pace, 1.0, 100)
    assert sum(milliseconds < 0.8 * 60.0 for milliseconds in after) <= 20
    assert sum(milliseconds > 1.2 * 60.0 for milliseconds in after) <= 10


def test_what_nobody_asked_for_meanwhile_is_not_counted_twice() -> None:
    """Steps that carry no prompt ask for no prediction: what they teach the shapes is no slowness any more."""
    pace, _ = trained()
    assert pace.predict(8, 4_000) is not None
    for _ in range(200):
        pace.observe(8, 4_000, 2 * cost(8, 4_000))
    assert pace.predict(8, 4_000) == pytest.approx(2 * cost(8, 4_000), rel=0.05)


def test_a_first_step_that_waited_for_something_is_soon_forgotten() -> None:
    pace = Pace(max_step_ms=None, max_chunk_tokens=512, longest_short=32)
    for _ in range(3):
        for tokens in (1, 2, 4):
            pace.observe(tokens, tokens * 100, 5.0)
    pace.observe(64, 64 * 64, 600.0, longest=64)
    pace.observe(64, 64 * 64, 6.0, longest=64)
    predicted = pace.predict(5, 500, longest=5)
    assert predicted is not None
    assert predicted < 5.5
