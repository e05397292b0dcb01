"""Pagination: walking any list by pages of any size gives the list, in either order, forwards and backwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ortserve.gateway.store.items import KeptItem
from ortserve.gateway.store.pages import CursorError, Page, PageRequest
from ortserve.gateway.store.state import State
from tests.gateway.store.keeping import ALICE, ids, items, opened, run

PageOf = Callable[[PageRequest], Page[KeptItem]]


def fill(state: State, count: int) -> PageOf:
    run(state.conversations.add(ALICE, "c", 0, b"{}", items("i", count)))

    def page_of(request: PageRequest) -> Page[KeptItem]:
        page = run(state.conversations.page(ALICE, "c", request))
        assert page is not None
        return page

    return page_of


def walk(page_of: PageOf, limit: int, *, ascending: bool) -> list[str]:
    seen: list[str] = []
    after = None
    while True:
        page = page_of(PageRequest(limit, ascending, after))
        assert len(page.elements) <= limit
        assert page.elements or after is None, "there was to be more"
        seen += ids(page.elements)
        if not page.has_more:
            return seen
        assert len(page.elements) == limit
        after = seen[-1]


@settings(max_examples=25)
@given(count=st.integers(0, 12), limit=st.integers(1, 14), ascending=st.booleans())
def test_pages_are_the_list(count: int, limit: int, ascending: bool) -> None:
    with opened() as state:
        page_of = fill(state, count)
        expected = [f"i{place}" for place in range(count)]
        assert walk(page_of, limit, ascending=ascending) == (expected if ascending else expected[::-1])


@settings(max_examples=25)
@given(data=st.data(), count=st.integers(2, 10), limit=st.integers(1, 12), ascending=st.booleans())
def test_before_is_the_mirror_of_after(data: st.DataObject, count: int, limit: int, ascending: bool) -> None:
    with opened() as state:
        page_of = fill(state, count)
        order = [f"i{place}" for place in range(count)][:: 1 if ascending else -1]
        place = data.draw(st.integers(0, count - 1))
        earlier = page_of(PageRequest(limit, ascending, before=order[place]))
        assert ids(earlier.elements) == order[max(place - limit, 0) : place]
        assert earlier.has_more == (place > limit)
        later = page_of(PageRequest(limit, ascending, after=order[place]))
        assert ids(later.elements) == order[place + 1 : place + 1 + limit]
        assert later.has_more == (place + 1 + limit < count)
        end = data.draw(st.integers(place, count - 1))
        between = page_of(PageRequest(limit, ascending, after=order[place], before=order[end]))
        assert ids(between.elements) == order[place + 1 : end][:limit]


@pytest.mark.parametrize("parameter", ["after", "before"])
def test_a_cursor_that_is_not_in_the_list(parameter: str) -> None:
    with opened() as state:
        page_of = fill(state, 2)
        with pytest.raises(CursorError) as raised:
            page_of(PageRequest(after="elsewhere") if parameter == "after" else PageRequest(before="elsewhere"))
        assert raised.value.parameter == parameter
