"""What models are and do, as Prometheus metrics, each with a model's served name. Counts nothing itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import Metric

from ortserve.gateway.telemetry.prometheus import Labelled, counter, gauge
from ortserve.plugins.api import CacheStats, TierStats

if TYPE_CHECKING:
    from ortserve.gateway.fleet.fleet import Fleet
    from ortserve.gateway.fleet.state import ModelState
    from ortserve.runtime.drivers.engine_driver import EngineDriver, WorkerState
    from ortserve.runtime.encoders.driver import EncoderStats

MODEL = ("model",)
ENGINE_COUNTERS = (
    ("preemptions", "num_preemptions", "Times a running sequence had to give way"),
    ("steps", "num_steps", "Model calls"),
    ("step_rows", "num_fed_rows", "Sequences in model calls; by steps: how full batches are"),
    ("failed_steps", "num_failed_steps", "Model calls that failed, and their requests with them"),
    ("computed_tokens", "num_fed_tokens", "Tokens fed to the model, computed again or not"),
)
ENCODER_COUNTERS = (
    ("batches", "num_batches", "Model calls"),
    ("failed_batches", "num_failed_batches", "Model calls that failed"),
    ("inputs", "num_inputs", "Inputs encoded"),
    ("tokens", "num_tokens", "Tokens encoded"),
    ("padding_tokens", "num_padded", "Places computed for nothing, because inputs of a batch differ in length"),
)
CACHE_COUNTERS = (
    ("lookups", "num_lookups", "Prefixes looked up"),
    ("query_tokens", "num_query_tokens", "Tokens that could have been reused"),
    ("hit_tokens", "num_hit_tokens", "Tokens that were reused; by query_tokens: the hit ratio"),
    ("saved_seconds", "seconds_saved", "Estimated computing time that reuse has saved"),
    ("published_blocks", "num_published_blocks", "Blocks the cache has taken"),
    ("refused_blocks", "num_refused_blocks", "Blocks offered and not taken, most of them held already"),
)
TIER_COUNTERS = (
    ("reads", "num_reads", "Blocks read from a slower tier"),
    ("writes", "num_writes", "Blocks written to a slower tier"),
    ("ignored_files", "num_ignored_files", "Files not used: damaged, foreign, or of another version"),
    ("skipped_writes", "num_skipped_writes", "Blocks not written because the tier was slower than what it was given"),
    ("failures", "num_failures", "Reads and writes that the system refused"),
)


def fleet_metrics(fleet: Fleet, states: list[ModelState]) -> Iterator[Metric]:
    """Which models there are."""
    phases: Labelled = {(state.name, state.phase): 1.0 for state in states}
    yield gauge("model_state", "1 for what a model is now: ready, loading, failed, ...", phases, ("model", "state"))
    yield gauge("healthy", "1 while its requests are accepted", {(one.name,): one.can_serve for one in states}, MODEL)
    hung: Labelled = {(state.name,): state.is_hung for state in states}
    yield gauge("engine_hung", "1 once a step or batch of it does not end: restart the process", hung, MODEL)
    held: Labelled = {(state.name,): state.num_bytes for state in states}
    yield gauge("model_memory_bytes", "Host memory set aside for a model", held, MODEL)
    yield gauge("model_memory_budget_bytes", "Host memory for all models together", {(): fleet.memory})
    using: Labelled = {(state.name,): state.num_users for state in states}
    yield gauge("model_requests", "Requests that use a model now", using, MODEL)
    restarts: Labelled = {(state.name,): state.num_restarts for state in states}
    yield counter("model_restarts", "Times an engine was started again after it had failed", restarts, MODEL)


def engine_metrics(engines: Mapping[str, EngineDriver]) -> Iterator[Metric]:
    """Of models that generate."""
    stats = {name: driver.stats() for name, driver in engines.items()}
    sequences: Labelled = {}
    blocks: Labelled = {}
    for name, one in stats.items():
        sequences[name, "running"] = one.num_running
        sequences[name, "waiting"] = one.num_waiting
        sequences[name, "swapped"] = one.num_swapped
        blocks[name, "free"] = one.num_free_blocks
        blocks[name, "used"] = engines[name].plan.num_blocks - one.num_free_blocks
    yield gauge("sequences", "Sequences in the engine", sequences, ("model", "state"))
    yield gauge("kv_blocks", "Blocks of the running sequences' KV budget", blocks, ("model", "state"))
    queues = {name: driver.queue_stats() for name, driver in engines.items()}
    for word, help_, values in (
        ("max_rows", "Sequences that may run at once", {one: driver.plan.num_rows for one, driver in engines.items()}),
        ("waiting_requests", "Sequences beyond the rows", {one: queue.num_requests for one, queue in queues.items()}),
        (
            "waiting_tokens",
            "Tokens of prompts for which no row is free",
            {one: queue.num_tokens for one, queue in queues.items()},
        ),
        (
            "estimated_wait_seconds",
            "Until a request that came now would have a row",
            {one: queue.wait_s for one, queue in queues.items()},
        ),
    ):
        yield gauge(word, help_, {(name,): float(number) for name, number in values.items()}, MODEL)
    yield from _worker_metrics({name: driver.workers() for name, driver in engines.items()})
    for word, attribute, help_ in ENGINE_COUNTERS:
        yield counter(word, help_, {(name,): getattr(one, attribute) for name, one in stats.items()}, MODEL)


def _worker_metrics(workers: Mapping[str, Sequence[WorkerState]]) -> Iterator[Metric]:
    """Nothing of engines in this process."""
    each = [(name, one) for name, own in workers.items() for one in own]
    if not each:
        return
    labels = ("model", "worker")
    up: Labelled = {(name, one.name): one.pid is not None for name, one in each}
    yield gauge("worker_up", "1 while the engine process runs", up, labels)
    requests: Labelled = {(name, one.name): one.num_requests for name, one in each}
    yield gauge("worker_requests", "Requests of the engine process that have not ended", requests, labels)
    restarts: Labelled = {(name, one.name): one.num_restarts for name, one in each}
    yield counter("worker_restarts", "Times the engine process was started again", restarts, labels)


def encoder_metrics(stats: Mapping[str, EncoderStats]) -> Iterator[Metric]:
    """Of encoders."""
    waiting: Labelled = {(name,): one.num_waiting for name, one in stats.items()}
    yield gauge("encoder_waiting_inputs", "Inputs that wait or are being encoded", waiting, MODEL)
    for word, attribute, help_ in ENCODER_COUNTERS:
        counts: Labelled = {(name,): getattr(one, attribute) for name, one in stats.items()}
        yield counter(f"encoder_{word}", help_, counts, MODEL)


def cache_metrics(stats: Mapping[str, CacheStats]) -> Iterator[Metric]:
    """Of prompt caches."""
    prefix, labels = "prompt_cache_", ("model", "tier")
    for word, attribute, help_ in CACHE_COUNTERS:
        values: Labelled = {(name,): getattr(one, attribute) for name, one in stats.items()}
        yield counter(f"{prefix}{word}", help_, values, MODEL)
    tiers: dict[tuple[str, ...], TierStats] = {}
    slower: dict[tuple[str, ...], TierStats] = {}
    for name, one in stats.items():
        tiers[name, "memory"] = TierStats(one.num_blocks, one.num_bytes, num_evicted_blocks=one.num_evicted_blocks)
        slower |= {(name, tier): its for tier, its in one.tiers.items()}
    tiers |= slower
    yield gauge(f"{prefix}blocks", "Blocks kept", {key: one.num_blocks for key, one in tiers.items()}, labels)
    yield gauge(f"{prefix}bytes", "Bytes kept", {key: one.num_bytes for key, one in tiers.items()}, labels)
    evicted: Labelled = {key: one.num_evicted_blocks for key, one in tiers.items()}
    yield counter(f"{prefix}evicted_blocks", "Blocks given up for others", evicted, labels)
    for word, attribute, help_ in TIER_COUNTERS:
        counts: Labelled = {key: getattr(one, attribute) for key, one in slower.items()}
        yield counter(f"{prefix}{word}", help_, counts, labels)
