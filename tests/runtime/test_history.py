"""What penalties know of a sequence, against a counter of its output."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ortserve.runtime.sampling.history import TokenHistory

tokens = st.lists(st.integers(0, 400), max_size=300)


@given(tokens, tokens)
def test_ids_are_those_of_prompt_and_output_and_counts_those_of_the_output(
    prompt: list[int], output: list[int]
) -> None:
    history = TokenHistory(prompt)
    for token in output:
        history.add(token)
    counter = Counter(output)
    assert history.ids.tolist() == list(dict.fromkeys(prompt + output))
    assert history.counts.tolist() == [counter[token] for token in history.ids.tolist()]


@given(tokens, tokens)
def test_every_prefix_of_an_output_is_counted_as_it_stood(prompt: list[int], output: list[int]) -> None:
    history = TokenHistory(iter(prompt))
    for place, token in enumerate(output[:40]):
        history.add(token)
        counts = dict(zip(history.ids.tolist(), history.counts.tolist(), strict=True))
        assert {id: count for id, count in counts.items() if count} == Counter(output[: place + 1])


def test_thousands_of_different_tokens_fit() -> None:
    history = TokenHistory(range(100))
    for token in range(5_000):
        history.add(token)
        history.add(4_999 - token)
    assert history.ids.tolist()[:100] == list(range(100))
    assert np.array_equal(np.sort(history.ids), np.arange(5_000))
    assert set(history.counts.tolist()) == {2.0}


def test_an_empty_history_has_empty_arrays() -> None:
    history = TokenHistory(())
    assert history.ids.shape == history.counts.shape == (0,)
