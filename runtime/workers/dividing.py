"""What each of several engines of one host gets of its cores, memory and queue. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.errors import ConfigurationError

WEIGHT_FACTOR = 1.3  # resident bytes of a session for each byte of its weights' files, as measured in int8


def divide_config(
    config: EngineConfig, devices: Sequence[str], *, num_cores: int, available_bytes: int, weight_bytes: int
) -> list[EngineConfig]:
    """One configuration for each device. `available_bytes` of host memory are free, before any weights are loaded.

    Threads, the queue and host memory are for all engines together, and divided; rows and context are each engine's,
    and so is `kv_memory` on a GPU, where it is memory of that GPU. Raises `ConfigurationError` for fewer threads than
    engines, or more than cores.
    """
    count = len(devices)
    total = config.num_threads or num_cores
    if total < count:
        raise ConfigurationError(
            f"{count} engines need a thread each, and there are {total}: run fewer engines, or raise --threads"
        )
    if total > num_cores:
        raise ConfigurationError(
            f"--threads {total} for {count} engine{'s' if count > 1 else ''} exceed the {num_cores} cores this process"
            " may use: lower it"
        )
    on_host = not any(device.startswith("cuda") for device in devices)
    weights = int(weight_bytes * WEIGHT_FACTOR) if on_host else 0
    # `memory` is what is free beside the weights of one engine.
    memory = available_bytes - count * weights if config.memory is None else config.memory - (count - 1) * weights
    swap, kv, cache = config.swap_memory, config.kv_memory, config.prompt_cache_memory
    return [
        replace(
            config,
            device=device,
            num_threads=total // count + (place < total % count),
            memory=max(memory, 0) // count,
            max_waiting=-(-config.max_waiting // count),
            max_waiting_tokens=-(-config.max_waiting_tokens // count),
            swap_memory=None if swap is None else swap // count,
            kv_memory=kv // count if kv is not None and on_host else kv,
            prompt_cache_memory=cache // count if cache is not None and on_host else cache,
        )
        for place, device in enumerate(devices)
    ]
