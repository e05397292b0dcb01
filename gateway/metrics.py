"""What the server has done, as Prometheus metrics: counted per request, read from the engine when asked.

Knows no prompt, no key and no tenant: no label can tell one caller from another. All counts belong to the event loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ortserve.gateway.draft_metrics import draft_metrics
from ortserve.gateway.tally import TOKEN_SECONDS, Tally
from ortserve.plugins.api import CacheStats, TierStats

if TYPE_CHECKING:
    from ortserve.gateway.exchange import Exchange
    from ortserve.runtime.encoder_driver import EncoderDriver, EncoderStats
    from ortserve.runtime.engine_driver import EngineDriver, WorkerState

OTHER = "other"
UNKNOWN = "unknown"  # whatever strangers call it
ROUTES = (
    "/", "/health", "/health/live", "/health/ready", "/metrics", "/openapi.json", "/docs",
    "/v1/chat/completions", "/v1/completions", "/v1/models",
    "/v1/messages", "/v1/messages/count_tokens", "/v1/responses", "/v1/responses/input_tokens",
    "/v1/conversations", "/v1/files", "/v1/batches",
    "/v1/embeddings", "/v1/rerank", "/v1/score",
    "/admin/cache/stats", "/admin/cache/entries", "/admin/cache/clear", "/admin/cache/warm",
)  # fmt: skip
PATTERNS = (
    "/v1/chat/completions/{id}", "/v1/chat/completions/{id}/messages",
    "/v1/responses/{id}", "/v1/responses/{id}/cancel", "/v1/responses/{id}/input_items",
    "/v1/batches/{id}", "/v1/batches/{id}/cancel", "/v1/files/{id}", "/v1/files/{id}/content",
    "/v1/conversations/{id}", "/v1/conversations/{id}/items", "/v1/conversations/{id}/items/{item}",
)  # fmt: skip
MODEL_ROUTE = "/v1/models/"  # names may have slashes
TIER_COUNTERS = (
    ("reads", "num_reads", "Blocks read from a slower tier"),
    ("writes", "num_writes", "Blocks written to a slower tier"),
    ("ignored_files", "num_ignored_files", "Files not used: damaged, foreign, or of another version"),
    ("skipped_writes", "num_skipped_writes", "Blocks not written because the tier was slower than what it was given"),
    ("failures", "num_failures", "Reads and writes that the system refused"),
)
ENCODER_COUNTERS = (
    ("batches", "num_batches", "Model calls"),
    ("failed_batches", "num_failed_batches", "Model calls that failed"),
    ("inputs", "num_inputs", "Inputs encoded"),
    ("tokens", "num_tokens", "Tokens encoded"),
    ("padding_tokens", "num_padded", "Places computed for nothing, because inputs of a batch differ in length"),
)

Labelled: TypeAlias = dict[tuple[str, ...], float]
Tallies: TypeAlias = dict[tuple[str, ...], Tally]


class Metrics:
    """The counts of one server: two servers in one process do not mix."""

    def __init__(self, driver: EngineDriver | None, encoders: Mapping[str, EncoderDriver] | None = None) -> None:
        """`encoders` by served name."""
        self._driver = driver
        self._encoders = encoders or {}
        self._requests: Counter[tuple[str, ...]] = Counter()  # by route, status, outcome
        self._ignored: Counter[tuple[str, ...]] = Counter()  # by route, field
        self._errors: Counter[tuple[str, ...]] = Counter()  # by route, code
        self._seconds: dict[str, Tally] = {}  # by route
        self._num_prompt_tokens = 0
        self._num_cached_tokens = 0
        self._num_output_tokens = 0
        self._queue = Tally()
        self._first_token = Tally()
        self._intervals = Tally(TOKEN_SECONDS)

    def count(self, exchange: Exchange, path: str, seconds: float) -> None:
        """Take over one exchange when it has ended. `path` is canonical."""
        route = route_of(path)
        self._requests[route, str(exchange.status), exchange.outcome] += 1
        if exchange.error_code is not None:
            self._errors[route, exchange.error_code] += 1
        unheeded = exchange.unheeded
        for name in unheeded.ignored:
            self._ignored[route, name] += 1
        if unheeded.unknown:
            self._ignored[route, UNKNOWN] += len(unheeded.unknown)
        self.count_generated(exchange, path, seconds)

    def count_generated(self, exchange: Exchange, path: str, seconds: float) -> None:
        """Take over the tokens and times of one that may have been answered before they were known."""
        timings, route = exchange.timings, route_of(path)
        if timings is None:
            return
        self._seconds.setdefault(route, Tally()).add(seconds)
        self._num_prompt_tokens += exchange.num_prompt_tokens or 0
        self._num_cached_tokens += exchange.num_cached_tokens or 0
        self._num_output_tokens += exchange.num_output_tokens or 0
        if exchange.first_token_s is not None:
            self._first_token.add(exchange.first_token_s)
        for queue_s in timings.queue_s:
            self._queue.add(queue_s)
        self._intervals.merge(timings.intervals)

    def collect(self) -> Iterator[Metric]:
        """Everything as of now."""
        yield _counter("requests", "HTTP requests that have ended", self._requests, ("route", "status", "outcome"))
        yield _counter("errors", "Replies that were an error, by its code", self._errors, ("route", "code"))
        yield _counter("ignored_fields", "Request fields without effect", self._ignored, ("route", "field"))
        tallies: Tallies = {(route,): tally for route, tally in self._seconds.items()}
        yield _histogram("request_seconds", "From the first byte to the last, of generations", tallies, ("route",))
        yield _plain("prompt_tokens", "Tokens of prompts", self._num_prompt_tokens)
        yield _plain("cached_prompt_tokens", "Tokens of prompts that were not computed", self._num_cached_tokens)
        yield _plain("output_tokens", "Tokens generated", self._num_output_tokens)
        yield _histogram("queue_seconds", "From submission to the first step of a sequence", {(): self._queue})
        yield _histogram("time_to_first_token_seconds", "From the first byte to a token", {(): self._first_token})
        yield _histogram("inter_token_seconds", "Between two tokens of a sequence", {(): self._intervals})
        if self._driver is not None:
            yield from _engine_metrics(self._driver)
            yield from _worker_metrics(self._driver.workers())
            yield from _cache_metrics(self._driver.cache_stats())
            yield from draft_metrics(self._driver.draft_stats())
        if self._encoders:
            yield from _encoder_metrics({name: driver.stats() for name, driver in self._encoders.items()})


def route_of(path: str) -> str:
    """A label of bounded variety: what strangers ask for must not become series."""
    if path in ROUTES:
        return path
    if path.startswith(MODEL_ROUTE):
        return f"{MODEL_ROUTE}{{id}}"
    parts = path.split("/")
    return next((pattern for pattern in PATTERNS if _matches(pattern.split("/"), parts)), OTHER)


def _matches(pattern: list[str], parts: list[str]) -> bool:
    return len(pattern) == len(parts) and all(
        word == part or word.startswith("{") for word, part in zip(pattern, parts, strict=True)
    )


def _engine_metrics(driver: EngineDriver) -> Iterator[Metric]:
    stats = driver.stats()
    states: Labelled = {
        ("running",): stats.num_running, ("waiting",): stats.num_waiting, ("swapped",): stats.num_swapped,
    }  # fmt: skip
    yield _gauge("sequences", "Sequences in the engine", states, ("state",))
    num_blocks = driver.plan.num_blocks
    blocks: Labelled = {("free",): stats.num_free_blocks, ("used",): num_blocks - stats.num_free_blocks}
    yield _gauge("kv_blocks", "Blocks of the running sequences' KV budget", blocks, ("state",))
    queue = driver.queue_stats()
    yield _gauge("max_rows", "Sequences that may run at once", {(): driver.plan.num_rows})
    yield _gauge("waiting_requests", "Sequences beyond the rows", {(): queue.num_requests})
    yield _gauge("waiting_tokens", "Tokens of prompts for which no row is free", {(): queue.num_tokens})
    yield _gauge("estimated_wait_seconds", "Until a request that came now would have a row", {(): queue.wait_s})
    yield _gauge("healthy", "1 while requests are accepted", {(): driver.healthy})
    yield _plain("preemptions", "Times a running sequence had to give way", stats.num_preemptions)
    yield _plain("steps", "Model calls", stats.num_steps)
    yield _plain("step_rows", "Sequences in model calls; by steps: how full batches are", stats.num_fed_rows)
    yield _plain("failed_steps", "Model calls that failed, and their requests with them", stats.num_failed_steps)
    yield _plain("computed_tokens", "Tokens fed to the model, computed again or not", stats.num_fed_tokens)


def _worker_metrics(workers: Sequence[WorkerState]) -> Iterator[Metric]:
    """Nothing of an engine in this process."""
    if not workers:
        return
    up: Labelled = {(one.name,): one.pid is not None for one in workers}
    yield _gauge("worker_up", "1 while the engine process runs", up, ("worker",))
    requests: Labelled = {(one.name,): one.num_requests for one in workers}
    yield _gauge("worker_requests", "Requests of the engine process that have not ended", requests, ("worker",))
    restarts: Labelled = {(one.name,): one.num_restarts for one in workers}
    yield _counter("worker_restarts", "Times the engine process was started again", restarts, ("worker",))


def _encoder_metrics(stats: Mapping[str, EncoderStats]) -> Iterator[Metric]:
    waiting: Labelled = {(name,): one.num_waiting for name, one in stats.items()}
    yield _gauge("encoder_waiting_inputs", "Inputs that wait or are being encoded", waiting, ("model",))
    for word, attribute, help_ in ENCODER_COUNTERS:
        counts: Labelled = {(name,): getattr(one, attribute) for name, one in stats.items()}
        yield _counter(f"encoder_{word}", help_, counts, ("model",))


def _cache_metrics(stats: CacheStats) -> Iterator[Metric]:
    name = "prompt_cache_"
    yield _plain(f"{name}lookups", "Prefixes looked up", stats.num_lookups)
    yield _plain(f"{name}query_tokens", "Tokens that could have been reused", stats.num_query_tokens)
    yield _plain(f"{name}hit_tokens", "Tokens that were reused; by query_tokens: the hit ratio", stats.num_hit_tokens)
    yield _plain(f"{name}saved_seconds", "Estimated computing time that reuse has saved", stats.seconds_saved)
    yield _plain(f"{name}published_blocks", "Blocks the cache has taken", stats.num_published_blocks)
    yield _plain(
        f"{name}refused_blocks", "Blocks offered and not taken, most of them held already", stats.num_refused_blocks
    )
    memory = TierStats(stats.num_blocks, stats.num_bytes, num_evicted_blocks=stats.num_evicted_blocks)
    tiers = {"memory": memory, **stats.tiers}
    blocks: Labelled = {(tier,): one.num_blocks for tier, one in tiers.items()}
    yield _gauge(f"{name}blocks", "Blocks kept", blocks, ("tier",))
    sizes: Labelled = {(tier,): one.num_bytes for tier, one in tiers.items()}
    yield _gauge(f"{name}bytes", "Bytes kept", sizes, ("tier",))
    evicted: Labelled = {(tier,): one.num_evicted_blocks for tier, one in tiers.items()}
    yield _counter(f"{name}evicted_blocks", "Blocks given up for others", evicted, ("tier",))
    for word, attribute, help_ in TIER_COUNTERS:
        counts: Labelled = {(tier,): getattr(one, attribute) for tier, one in stats.tiers.items()}
        yield _counter(f"{name}{word}", help_, counts, ("tier",))


def _plain(name: str, help_: str, value: float) -> Metric:
    return CounterMetricFamily(f"ortserve_{name}", help_, value=value)


def _counter(name: str, help_: str, values: Labelled | Counter[tuple[str, ...]], labels: tuple[str, ...]) -> Metric:
    family = CounterMetricFamily(f"ortserve_{name}", help_, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _gauge(name: str, help_: str, values: Labelled, labels: tuple[str, ...] = ()) -> Metric:
    family = GaugeMetricFamily(f"ortserve_{name}", help_, labels=labels)
    for key, value in values.items():
        family.add_metric(key, float(value))
    return family


def _histogram(name: str, help_: str, tallies: Tallies, labels: tuple[str, ...] = ()) -> Metric:
    family = HistogramMetricFamily(f"ortserve_{name}", help_, labels=labels)
    for key, tally in tallies.items():
        family.add_metric(key, tally.buckets(), tally.total)
    return family
