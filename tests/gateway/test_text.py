"""Text comes out the same however tokens are cut: against naive oracles."""

from __future__ import annotations

import itertools

from hypothesis import example, given
from hypothesis import strategies as st

from ortserve.gateway.replies.text import StopScanner, Utf8Decoder

alphabet = st.text("ab", max_size=30)  # two letters: a stop string often begins again inside of itself
stop_strings = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def naive_cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """Read character by character; at the first end of a stop string cut before the longest one that ends there."""
    for end in range(1, len(text) + 1):
        ending = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(ending)], True
    return text, False


def chunked(text: str, cuts: list[int]) -> list[str]:
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    return [text[start:end] for start, end in itertools.pairwise(places)]


@example("aaab", ["aab"], [])  # begins again within what has failed
@given(alphabet, stop_strings, st.lists(st.integers(0, 30)))
@example("aaab", ["aab"], [])  # a beginning that fails holds another one
@example("aab", ["ab", "b"], [])  # two that end together
@example("aab", ["b", "ab"], [])
def test_stop_scanner_agrees_with_the_oracle_under_any_chunking(text: str, stops: list[str], cuts: list[int]) -> None:
    scanner = StopScanner(stops)
    shown, stopped = "", False
    for chunk in chunked(text, cuts):
        scan = scanner.feed(chunk)
        shown += scan.text
        assert naive_cut(text, stops)[0].startswith(shown), "something was shown that a stop string takes back"
        if scan.stop is not None:
            stopped = True
            assert scan.stop in stops
            assert text.startswith(shown + scan.stop)
            break
    else:
        shown += scanner.flush()
    assert (shown, stopped) == naive_cut(text, stops)


@given(alphabet, stop_strings)
def test_only_a_proper_prefix_of_a_stop_is_held_back(text: str, stops: list[str]) -> None:
    scanner = StopScanner(stops)
    scan = scanner.feed(text)
    if not scan.stopped:
        held = text[len(scan.text) :]
        assert held == "" or any(stop.startswith(held) and held != stop for stop in stops)


@given(st.text(max_size=20), st.lists(st.integers(0, 80)))
def test_characters_are_never_split(text: str, cuts: list[int]) -> None:
    data = text.encode("utf-8", "replace")
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    decoder = Utf8Decoder()
    pieces = [decoder.feed(data[start:end]) for start, end in itertools.pairwise(places)]
    assert "".join(pieces) == data.decode()
    assert decoder.num_pending == 0


@given(st.text(min_size=1, max_size=8))
def test_an_unfinished_character_is_dropped(text: str) -> None:
    data = text.encode("utf-8", "replace")
    decoder = Utf8Decoder()
    shown = decoder.feed(data[:-1])
    assert "\ufffd" not in shown or "\ufffd" in text
    assert data.decode().startswith(shown)
