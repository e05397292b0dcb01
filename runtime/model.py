"""The in-process API: open a model folder, generate and stream token ids from any thread. Knows no text.

```python
from ortserve import runtime

with runtime.open("models/pocket") as model:
    print(model.generate([1, 2, 3], runtime.SamplingParams(max_tokens=8)).token_ids)
```
"""

from __future__ import annotations

import itertools
import os
import queue
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.drivers.engine_driver import EngineDriver
from ortserve.runtime.engine import EngineStats
from ortserve.runtime.errors import EngineError
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.request import Completion, Delta, FinishReason, Grammar, Request, SamplingParams, TokenLogprobs
from ortserve.runtime.workers.opening import open_engines


def open(
    folder: str | os.PathLike[str], config: EngineConfig | None = None, *, num_engines: int | None = None
) -> Model:
    """Load an exported folder and start its engine on a thread, or `num_engines` in processes of their own.

    Several processes divide the CPU. `config.device` may name several GPUs, as cuda:0,cuda:1 or cuda:all; each has a
    process of its own then.

    Raises `ManifestError`, `ModelError`, `DeviceError` or `MemoryBudgetError`, each one line with the remedy.
    """
    return Model(open_engines(Path(folder), config, num_engines=num_engines))


class Model:
    """A running engine. Requests from all threads share its continuous batch."""

    def __init__(self, driver: EngineDriver) -> None:
        self._driver = driver
        self._numbers = itertools.count()

    @property
    def manifest(self) -> Manifest:
        """What export wrote down about the model."""
        return self._driver.manifest

    @property
    def plan(self) -> EnginePlan:
        """Rows, context and memory the engine runs with."""
        return self._driver.plan

    def stats(self) -> EngineStats:
        """Counters as of the last step."""
        return self._driver.stats()

    def stream(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        grammar: Grammar | None = None,
    ) -> DeltaIterator:
        """Deltas as they are generated; the last one carries `finish` and `usage`. Closing or dropping it cancels.

        Raises `RequestError` (`ContextLengthError`, a bad grammar, or `request_id` in use), `OverloadedError` or
        `EngineClosedError` at once, and `EngineError` in the middle when the engine loses the request.
        """
        name = f"local-{next(self._numbers)}" if request_id is None else request_id
        outlet = _QueueOutlet()
        self._driver.submit(Request(name, tuple(prompt), sampling or SamplingParams(), grammar=grammar), outlet)
        return DeltaIterator(name, self._driver, outlet.deltas)

    def generate(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        grammar: Grammar | None = None,
    ) -> Completion:
        """The whole reply. Raises as `stream` does."""
        with self.stream(prompt, sampling, request_id=request_id, grammar=grammar) as deltas:
            return join(list(deltas))

    def cancel(self, request_id: str) -> None:
        """End a request of any thread; its stream gets a last delta with `FinishReason.CANCELLED`."""
        self._driver.cancel(request_id)

    def close(self, *, drain_s: float = 0.0) -> None:
        """Stop the engine, after giving running requests up to `drain_s` seconds."""
        self._driver.close(drain_s=drain_s)

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class DeltaIterator(Iterator[Delta]):
    """The deltas of one request, in order, for one reading thread; the last one carries `finish`.

    A context manager. Left early, closed or dropped, even before the first delta was asked for, it cancels the request.
    """

    __slots__ = ("_deltas", "_driver", "_is_over", "request_id")

    def __init__(self, request_id: str, driver: EngineDriver, deltas: queue.SimpleQueue[Delta]) -> None:
        self.request_id = request_id
        self._driver = driver
        self._deltas = deltas
        self._is_over = False  # read to its end, or closed

    def __next__(self) -> Delta:
        """Wait for the next delta. Raises `EngineError` when the engine has lost the request."""
        if self._is_over:
            raise StopIteration
        delta = self._deltas.get()
        self._is_over = delta.finish is not None
        if delta.finish is FinishReason.ERROR:
            raise EngineError(delta.error or "the engine lost the request")
        return delta

    def close(self) -> None:
        """Cancel the request unless its end has been read. Nothing is read afterwards."""
        if not self._is_over:
            self._is_over = True
            self._driver.cancel(self.request_id)

    def __enter__(self) -> DeltaIterator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def join(deltas: Sequence[Delta]) -> Completion:
    """All deltas of one finished request as one reply."""
    last = deltas[-1]
    assert last.finish is not None
    assert last.usage is not None
    tokens: tuple[int, ...] = tuple(itertools.chain.from_iterable(delta.token_ids for delta in deltas))
    logprobs: tuple[TokenLogprobs, ...] = tuple(itertools.chain.from_iterable(delta.logprobs for delta in deltas))
    scored: tuple[TokenLogprobs, ...] = tuple(itertools.chain.from_iterable(delta.prompt_logprobs for delta in deltas))
    return Completion(last.request_id, tokens, logprobs, last.finish, last.usage, scored)


class _QueueOutlet:
    """Hands deltas to one reading thread."""

    def __init__(self) -> None:
        self.deltas: queue.SimpleQueue[Delta] = queue.SimpleQueue()

    def deliver(self, deltas: Sequence[Delta]) -> None:
        for delta in deltas:
            self.deltas.put(delta)
