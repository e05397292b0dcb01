"""One page of a list, and where it begins. Knows no table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Element = TypeVar("Element")


@dataclass(frozen=True, slots=True)
class PageRequest:
    """At most `limit` elements that follow `after` or precede `before` in the list's order."""

    limit: int = 20
    ascending: bool = False
    after: str | None = None
    before: str | None = None


@dataclass(frozen=True, slots=True)
class Page(Generic[Element]):
    """Elements in the list's order. `has_more`: there are others beyond, in the direction of the request."""

    elements: Sequence[Element]
    has_more: bool


class CursorError(LookupError):
    """The element that a page was to follow or precede is not in the list; `parameter` is after or before."""

    def __init__(self, parameter: str) -> None:
        super().__init__(parameter)
        self.parameter = parameter


@dataclass(frozen=True, slots=True)
class PageQuery:
    """A page as SQL over one increasing column: a condition with its value, an order, and whether to turn it around."""

    condition: str
    values: tuple[int, ...]
    order: str
    is_reversed: bool

    def page(self, rows: Sequence[Element], limit: int) -> Page[Element]:
        """The page of up to `limit` + 1 rows in the order asked for."""
        shown = rows[:limit]
        return Page(shown[::-1] if self.is_reversed else shown, len(rows) > limit)


def page_query(request: PageRequest, column: str, *, after: int | None, before: int | None) -> PageQuery:
    """`after` and `before` are the column's values at those elements."""
    # Looking back from `before` reads the list in the other direction, unless `after` says where to begin.
    is_reversed = before is not None and after is None
    conditions, values = [], []
    for value, is_after in ((after, True), (before, False)):
        if value is not None:
            conditions.append(f"{column} {'>' if is_after == request.ascending else '<'} ?")
            values.append(value)
    ascending = request.ascending != is_reversed
    return PageQuery(
        " AND ".join(conditions) or "1", tuple(values), f"{column} {'ASC' if ascending else 'DESC'}", is_reversed
    )


def page_of(ids: Sequence[str], request: PageRequest) -> Page[str]:
    """A page of a list that is at hand, the first element being the oldest. Raises `CursorError`."""
    places = {id: place for place, id in enumerate(ids)}
    for parameter, id in (("after", request.after), ("before", request.before)):
        if id is not None and id not in places:
            raise CursorError(parameter)
    ordered = ids if request.ascending else ids[::-1]
    start = 0 if request.after is None else ordered.index(request.after) + 1
    end = len(ordered) if request.before is None else ordered.index(request.before)
    if request.before is not None and request.after is None:
        return Page(ordered[max(end - request.limit, 0) : end], end > request.limit)
    return Page(ordered[start:end][: request.limit], end - start > request.limit)
