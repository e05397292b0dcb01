"""The automaton finds what a search of all runs finds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ortserve.plugins.automaton import Match, SuffixAutomaton

TEXTS = st.lists(st.integers(0, 2), min_size=1, max_size=40)


def places(run: list[int], texts: list[list[int]]) -> list[tuple[int, int]]:
    """Where `run` ends."""
    return [
        (number, end)
        for number, text in enumerate(texts)
        for end in range(len(run), len(text) + 1)
        if text[end - len(run) : end] == run
    ]


@given(TEXTS)
def test_the_longest_repeated_end_is_found(text: list[int]) -> None:
    automaton = SuffixAutomaton()
    for end in range(1, len(text) + 1):
        automaton.extend(text[end - 1 : end])
        lengths = [n for n in range(1, end) if len(places(text[end - n : end], [text[:end]])) > 1]
        assert automaton.repeated.length == max(lengths, default=0)


@given(st.lists(TEXTS, min_size=1, max_size=4), TEXTS, st.integers(0, 4))
def test_a_match_follows_both_texts_as_they_grow(texts: list[list[int]], other: list[int], known: int) -> None:
    automaton = SuffixAutomaton()
    match = Match(automaton)
    learnt: list[list[int]] = []
    for number, token in enumerate(other):
        if number % 5 == known and texts:
            automaton.begin()
            learnt.append(texts.pop())
            automaton.extend(learnt[-1])
            match = match if number % 2 else _searched(automaton, other[:number])
        length_before = match.length
        match.follow([token])
        seen = other[: number + 1]
        longest = max((n for n in range(len(seen) + 1) if n == 0 or places(seen[-n:], learnt)), default=0)
        assert match.length == min(longest, length_before + 1)


def _searched(automaton: SuffixAutomaton, tokens: list[int]) -> Match:
    match = Match(automaton)
    match.follow(tokens)
    return match


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=3))
def test_the_guess_is_what_followed_most_often(texts: list[list[int]]) -> None:
    """Short texts: the counts are exact while no run has more than the counted number of shorter ends."""
    automaton = SuffixAutomaton()
    for text in texts:
        automaton.begin()
        automaton.extend(text)
    for run in ([0], [0, 1], [1, 0, 2]):
        match = _searched(automaton, run)
        if match.length < len(run):
            continue
        followers = [texts[number][end] for number, end in places(run, texts) if end < len(texts[number])]
        guess = match.guess(1, len(run))
        assert bool(guess) == bool(followers)
        if guess:
            assert followers.count(guess[0]) == max(map(followers.count, followers)) == match.support


def test_runs_do_not_reach_across_texts() -> None:
    automaton = SuffixAutomaton()
    for text in ([1, 2, 3], [4, 5, 6]):
        automaton.begin()
        automaton.extend(text)
    assert _searched(automaton, [3, 4]).length == 1


def test_a_loop_costs_no_more_per_token_than_prose() -> None:
    automaton = SuffixAutomaton()
    automaton.extend([1] * 20000)
    assert automaton.repeated.guess(5, 2) == (1,) * 5
