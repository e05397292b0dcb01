"""Which grammars some process of a model has compiled, so that nobody waits to hear it again. Knows no process."""

from __future__ import annotations

import threading
from collections import OrderedDict

from ortserve.runtime.request import Grammar

_MAX_GRAMMARS = 256


class KnownGrammars:
    """Grammars that some process of a model has compiled: any other one can compile them as well."""

    def __init__(self) -> None:
        self._known: OrderedDict[Grammar, None] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, grammar: Grammar) -> bool:
        with self._lock:
            return grammar in self._known

    def add(self, grammar: Grammar) -> None:
        """The latest are remembered."""
        with self._lock:
            self._known[grammar] = None
            self._known.move_to_end(grammar)
            if len(self._known) > _MAX_GRAMMARS:
                self._known.popitem(last=False)
