"""Options of one engine as the user gives them, before the memory plan makes them concrete."""

from __future__ import annotations

from dataclasses import dataclass

from ortserve.runtime.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """None means: chosen from the model and the machine, and printed by the start-up plan."""

    device: str = "auto"  # auto, cpu, cuda, cuda:1; for `workers.opening` also cuda:0,cuda:1 and cuda:all
    max_rows: int | None = None  # sequences that run at once
    max_context: int | None = None  # tokens per sequence, prompt and output
    memory: int | None = None  # bytes of host memory for everything beside the weights; None: what is free then
    kv_memory: int | None = None  # bytes for running rows
    swap_memory: int | None = None  # bytes for preempted sequences
    max_step_ms: float | None = None  # bound on one step while sequences are decoding
    step_limit_s: float = 120.0  # of one that runs; an engine whose step takes longer has failed
    max_chunk_tokens: int | None = None  # prompt tokens of one sequence in one step
    max_logit_rows: int = 64
    max_waiting: int = 1024  # requests in the queue before new ones are refused
    max_waiting_tokens: int = 2**20  # of their prompts; one alone may be longer
    num_threads: int | None = None  # of the model's session
    prompt_cache: str = "prefix"  # name of a plugin; "none" switches caching off
    prompt_cache_memory: int | None = None  # bytes of host memory
    prompt_cache_options: tuple[tuple[str, str], ...] = ()  # for the plugin
    drafter: str = "none"  # name of a plugin; "none" switches speculation off
    drafter_options: tuple[tuple[str, str], ...] = ()  # for the plugin
    draft_model: str | None = None  # exported folder of a small model for the drafter
    deterministic: bool = False  # the same bits for any batch, at a cost (runtime/README.md)

    def __post_init__(self) -> None:
        """Raise `ConfigurationError` naming the first number that is too small."""
        for name in (
            "max_rows", "max_context", "max_chunk_tokens", "max_logit_rows", "num_threads", "max_step_ms",
            "step_limit_s",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigurationError(f"{name} must be above 0, not {value}")
        for name in (
            "memory", "kv_memory", "swap_memory", "prompt_cache_memory", "max_waiting", "max_waiting_tokens",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigurationError(f"{name} must be at least 0, not {value}")

    def free_of(self, available_bytes: int) -> int:
        """What the engine may take of so much free memory."""
        return available_bytes if self.memory is None else min(self.memory, available_bytes)
