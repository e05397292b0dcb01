"""Every error the runtime raises on purpose. Knows no HTTP: the gateway maps these to status codes.

OrtserveError
├── ModelError            the model folder, its manifest or its graph is unusable
│   ├── ManifestError     manifest.json is missing, unreadable or of another version
│   ├── ReportError       report.json is missing, unreadable or of another version
│   ├── UnverifiedError   nothing proves that the model does what its checkpoint does
│   └── DraftModelError   the small model for drafters does not fit the model that is served
├── DeviceError           an execution provider, kernel or library is missing or unfit
├── ConfigurationError    an option has a value it cannot have
├── PluginUnusableError   a prompt cache or drafter that was named cannot be used
├── MemoryBudgetError     the plan does not fit in memory; says the largest that does
├── RequestError          this request can never run as asked
│   └── ContextLengthError
├── OverloadedError       the queue is full; try again later
│   └── WaitTooLongError  this request would wait longer than its caller does
└── EngineError           the engine failed while running; only the requests it names are lost
    └── EngineClosedError
"""

from __future__ import annotations


class OrtserveError(Exception):
    """Root of all deliberate errors; `str(error)` is one line: what, where, what to do."""


class ModelError(OrtserveError):
    """The model folder, its graph or its weights cannot be used."""


class ManifestError(ModelError):
    """`manifest.json` is missing, unreadable, or written for another version."""


class ReportError(ModelError):
    """`report.json` is missing, unreadable, or written for another version."""


class UnverifiedError(ModelError):
    """The model's report is missing, says that its proof failed, or belongs to other files."""


class DraftModelError(ModelError):
    """The small model that drafters guess with is missing, or speaks other tokens than the served one."""


class DeviceError(OrtserveError):
    """An execution provider, kernel or library is missing or gives wrong results on this machine."""


class ConfigurationError(OrtserveError):
    """An option of the engine has a value it cannot have."""


class PluginUnusableError(OrtserveError):
    """The plugin that was named is missing, ambiguous or broken."""


class MemoryBudgetError(OrtserveError):
    """The requested rows and context do not fit into the memory budget."""


class RequestError(OrtserveError):
    """The request can never run as asked. `parameter` names the offending field."""

    def __init__(self, message: str, *, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


class ContextLengthError(RequestError):
    """The prompt alone does not fit into the model's context."""

    def __init__(self, num_prompt_tokens: int, max_context: int) -> None:
        super().__init__(
            f"the prompt has {num_prompt_tokens} tokens, and the model's context holds {max_context}"
            " with at least one token to generate: shorten the prompt",
            parameter="prompt",
        )
        self.num_prompt_tokens = num_prompt_tokens
        self.max_context = max_context


class OverloadedError(OrtserveError):
    """The waiting queue is full. `retry_after_s` is an estimate in seconds, `limit` what is bounded and by how much."""

    def __init__(self, message: str, *, retry_after_s: float, limit: tuple[str, int] | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.limit = limit


class WaitTooLongError(OverloadedError):
    """The queue has room, but a row would come too late for this request."""


class EngineError(OrtserveError):
    """A step failed; the requests in it are lost, others go on."""


class EngineClosedError(EngineError):
    """The engine has been closed or its thread has died."""


class EngineHungError(EngineClosedError):
    """A step of the engine does not end. Its thread, and the memory it holds, are lost until the process ends."""
