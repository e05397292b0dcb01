"""What the results of a batch say together: how many there are, by which model, of how many tokens. Knows no disk."""

from __future__ import annotations

import msgspec

from ortserve.gateway.answers.batches import BatchResult, BatchUsage


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class _Usage(msgspec.Struct, frozen=True):
    """Counts under the names of either API."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens_details: _Details = _Details()
    completion_tokens_details: _Details = _Details()
    input_tokens_details: _Details = _Details()
    output_tokens_details: _Details = _Details()


class _Answer(msgspec.Struct, frozen=True):
    model: str | None = None
    usage: _Usage | None = None


class BatchTally:
    """Grows by one result at a time. `model` is the first answer's: the others have it too."""

    def __init__(self) -> None:
        self.ids: set[str] = set()  # of requests
        self.usage = BatchUsage()
        self.model: str | None = None

    def add(self, result: BatchResult) -> None:
        """Count what one line of an output or error file says; a refusal has no tokens."""
        self.ids.add(result.custom_id)
        if result.response is None or result.response.status_code != 200:
            return
        answer = msgspec.json.decode(result.response.body, type=_Answer)
        self.model = self.model or answer.model
        if answer.usage is not None:
            self.usage = self.usage.plus(_counts(answer.usage))


def _counts(usage: _Usage) -> BatchUsage:
    return BatchUsage.of(
        usage.prompt_tokens + usage.input_tokens,
        usage.completion_tokens + usage.output_tokens,
        num_cached=usage.prompt_tokens_details.cached_tokens + usage.input_tokens_details.cached_tokens,
        num_reasoning=usage.completion_tokens_details.reasoning_tokens + usage.output_tokens_details.reasoning_tokens,
    )
