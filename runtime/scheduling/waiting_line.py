"""Those that wait for a row, kept in order by tenant and priority. Knows no turns, no rows and no memory.

Of one tenant and one priority, whoever came first has waited longest, and always will have: their order never changes
with time. So a step looks at the first of each such line, and not at all that wait.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from ortserve.runtime.sequence import Sequence, Stage

Lines = tuple[tuple[Sequence, ...], ...]  # of one tenant: those of one priority by arrival


class WaitingLine:
    """Sequences that are WAITING or SWAPPED, and do not change that while they are here."""

    def __init__(self) -> None:
        self._sequences: dict[str, Sequence] = {}  # by request id, in the order they came here
        self._lines: dict[bytes, dict[int, list[Sequence]]] = {}  # by tenant and priority, each by arrival
        self._copies: dict[bytes, Lines] = {}  # by tenant, until they change
        self.num_swapped = 0

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences.values())

    def add(self, sequence: Sequence) -> None:
        """Let it wait; one that has run before goes before all that came later."""
        request = sequence.request
        line = self._lines.setdefault(request.tenant, {}).setdefault(request.priority, [])
        insort(line, sequence, key=_arrival)
        self._sequences[request.id] = sequence
        self._copies.pop(request.tenant, None)
        self.num_swapped += sequence.stage is Stage.SWAPPED

    def remove(self, sequence: Sequence) -> None:
        """It waits no more."""
        request = sequence.request
        del self._sequences[request.id]
        self._copies.pop(request.tenant, None)
        lines = self._lines[request.tenant]
        line = lines[request.priority]
        del line[bisect_left(line, sequence.arrival, key=_arrival)]
        if not line:
            del lines[request.priority]
            if not lines:
                del self._lines[request.tenant]
        self.num_swapped -= sequence.stage is Stage.SWAPPED

    def lines(self) -> dict[bytes, Lines]:
        """All as of now, in copies that stay as they are: by tenant."""
        for tenant in self._lines.keys() - self._copies.keys():
            self._copies[tenant] = tuple(map(tuple, self._lines[tenant].values()))
        return self._copies.copy()


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival
