"""A scripted engine with the Driver's interface, and a tiny byte-level tokenizer. Knows no model and no HTTP."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ortserve.gateway.pool import WorkPool
from ortserve.gateway.prompts.model_text import ModelText
from ortserve.gateway.prompts.template import ChatTemplate
from ortserve.gateway.prompts.tokenizer import TextTokenizer
from ortserve.gateway.schema.sampling import SamplingDefaults
from ortserve.gateway.served.service import ModelService
from ortserve.plugins.api import CacheStats
from ortserve.runtime.drivers.async_engine import AsyncEngine
from ortserve.runtime.drivers.engine_driver import Outlet, WorkerState
from ortserve.runtime.engine import EngineStats
from ortserve.runtime.errors import EngineClosedError, OrtserveError, OverloadedError
from ortserve.runtime.manifest import FORMAT_VERSION, KvLayout, Manifest
from ortserve.runtime.request import Delta, FinishReason, Request, TokenLogprobs, Usage
from ortserve.runtime.scheduling.backlog import QueueStats
from ortserve.runtime.speculation.stats import DraftStats

MAX_CONTEXT = 512
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
TOOL_CALLS = "[TOOL_CALLS]"  # special too, as in Mistral's tokenizers
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
WORDS = ("he", "ll", "llo", "hello", "Ġw", "or", "ld", "Ġworld", "ðŁ", "ðŁĺ", "ST", "OP", "STOP")
MERGES = (
    ("h", "e"), ("l", "l"), ("ll", "o"), ("he", "llo"), ("Ġ", "w"), ("o", "r"), ("l", "d"), ("or", "ld"),
    ("Ġw", "orld"), ("ð", "Ł"), ("ðŁ", "ĺ"), ("S", "T"), ("O", "P"), ("ST", "OP"),
)  # fmt: skip

Script = Callable[[Request], Iterable[Sequence[int]]]


def tokenizer_json() -> bytes:
    """256 byte tokens, a few words, two halves of an emoji, three special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate([*alphabet, *WORDS, "orld"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(MERGES)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in (IM_START, IM_END, TOOL_CALLS)])
    return tokenizer.to_str().encode()


def make_tokenizer() -> TextTokenizer:
    return TextTokenizer(tokenizer_json(), bos_token_id=None, add_bos=False)


def make_manifest(num_tokens: int, *, eos: int, name: str = "scripted") -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION, name=name, family="scripted", precision="fp32", digest="0" * 64,
        graph="model.onnx", min_onnxruntime="1.32", kv=KvLayout("slots", 1, 1, 8, "float32"), hidden_size=8,
        num_heads=1, vocab_size=num_tokens, num_tokens=num_tokens, max_context=MAX_CONTEXT, eos_token_ids=(eos,),
        bos_token_id=None, add_bos=False, num_parameters=1, weight_bytes=1,
    )  # fmt: skip


def write_text_files(folder: Path) -> None:
    """Tokenizer and template beside a model that has none."""
    (folder / "tokenizer.json").write_bytes(tokenizer_json())
    config = {"chat_template": CHATML, "eos_token": IM_END}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@dataclass(frozen=True)
class ScriptedPlan:
    """The numbers the gateway reads of a plan."""

    num_blocks: int = 8
    num_rows: int = 4


@dataclass
class ScriptedDriver:
    """Plays `script(request)` on a thread of its own: one element per step and request, steps `pace_s` apart.

    An empty element is a step in which nothing is said.
    """

    manifest: Manifest
    script: Script
    pace_s: float = 0.0
    max_context: int = MAX_CONTEXT
    refusal: OrtserveError | None = None
    full: OverloadedError | None = None  # before a prompt is made
    ending: FinishReason = FinishReason.STOP
    submitted: list[Request] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    drained: list[float] = field(default_factory=list)  # seconds, of each call of `close`
    plan: ScriptedPlan = ScriptedPlan()

    def __post_init__(self) -> None:
        self._running: dict[str, tuple[Outlet, Iterator[Delta]]] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._drain_until: float | None = None
        self.ended: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def has_failed(self) -> bool:
        return False

    @property
    def healthy(self) -> bool:
        return not self._closed

    def submit(self, request: Request, outlet: Outlet) -> None:
        if self._closed:
            raise EngineClosedError("the engine is shutting down")
        if self.refusal is not None:
            raise self.refusal
        with self._changed:
            self.submitted.append(request)
            self._running[request.id] = (outlet, iter(self._deltas(request)))
            self._changed.notify()

    def check_room(self) -> None:
        if self.full is not None:
            raise self.full

    def queue_stats(self) -> QueueStats:
        return QueueStats()

    def cancel(self, request_id: str) -> None:
        with self._changed:
            running = self._running.pop(request_id, None)
            if running is not None:
                self.cancelled.append(request_id)
                request = next(one for one in self.submitted if one.id == request_id)
                delta = Delta(request_id, (), finish=FinishReason.CANCELLED, usage=_usage(request, 0))
                running[0].deliver([delta])

    def workers(self) -> tuple[WorkerState, ...]:
        return ()

    def stats(self) -> EngineStats:
        return EngineStats(num_running=len(self._running))

    def cache_stats(self) -> CacheStats:
        return CacheStats()

    def draft_stats(self) -> DraftStats | None:
        return None

    def close(self, *, drain_s: float = 0.0) -> None:
        self._closed = True
        self.drained.append(drain_s)
        with self._changed:
            self._drain_until = monotonic() + drain_s
            self._changed.notify()
        self._thread.join(drain_s + 5.0)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._running and self._drain_until is None:
                    self._changed.wait()
                if self._drain_until is not None and (not self._running or monotonic() >= self._drain_until):
                    break
                has_spoken = self._step()
            sleep(self.pace_s if has_spoken else max(self.pace_s, 0.002))
        for request_id in list(self._running):
            self.cancel(request_id)
        self.ended.set_result(None)

    def _step(self) -> bool:
        """Whether anything was said."""
        by_outlet: dict[int, tuple[Outlet, list[Delta]]] = {}
        for request_id, (outlet, deltas) in list(self._running.items()):
            delta = next(deltas)
            if not (delta.token_ids or delta.finish):
                continue
            by_outlet.setdefault(id(outlet), (outlet, []))[1].append(delta)
            if delta.finish is not None:
                del self._running[request_id]
                self.finished.append(request_id)
        for outlet, own in by_outlet.values():
            outlet.deliver(own)
        return bool(by_outlet)

    def _deltas(self, request: Request) -> Iterator[Delta]:
        limit = request.sampling.max_tokens or MAX_CONTEXT
        num_tokens = 0
        finish = self.ending
        for step in self.script(request):
            ids = tuple(step)[: limit - num_tokens]
            num_tokens += len(ids)
            yield Delta(request.id, ids, tuple(_logprobs(request, token) for token in ids))
            if num_tokens == limit:
                finish = FinishReason.LENGTH
                break
        usage = _usage(request, num_tokens + (finish is FinishReason.STOP))
        error = "the graph failed" if finish is FinishReason.ERROR else None
        yield Delta(request.id, (), (), finish, usage, error)


def usage_of(num_prompt_tokens: int, num_output_tokens: int, **counts: int) -> Usage:
    zeros: dict[str, Any] = dict.fromkeys(Usage.__struct_fields__, 0)
    return Usage(**{**zeros, "num_prompt_tokens": num_prompt_tokens, "num_output_tokens": num_output_tokens, **counts})


def _usage(request: Request, num_output_tokens: int) -> Usage:
    return usage_of(len(request.prompt), num_output_tokens)


def _logprobs(request: Request, token: int) -> TokenLogprobs:
    num = request.sampling.num_logprobs or 0
    return TokenLogprobs(token, -0.25, tuple((token + place, -0.25 - place) for place in range(num)))


def make_driver(script: Script, **options: Any) -> ScriptedDriver:
    tokenizer = make_tokenizer()
    eos = tokenizer.encode(IM_END, add_special_tokens=False)[0]
    return ScriptedDriver(make_manifest(tokenizer.num_tokens, eos=eos), script, **options)


def make_service(
    driver: ScriptedDriver, template: str = CHATML, tokenizer: TextTokenizer | None = None
) -> ModelService:
    """A service over a scripted driver; call it in the loop that reads it."""
    real: Any = driver
    text = ModelText(tokenizer or make_tokenizer(), ChatTemplate(template, {"eos_token": IM_END}))
    return ModelService(
        real, AsyncEngine(real), text, WorkPool(), name="scripted", defaults=SamplingDefaults(), created=1_700_000_000
    )


def saying(text: str, *, tokens_per_step: int = 1) -> Script:
    """A script that says `text` whatever was asked."""
    ids = make_tokenizer().encode(text, add_special_tokens=False)
    steps = [ids[start : start + tokens_per_step] for start in range(0, len(ids), tokens_per_step)]
    return lambda _: steps


def answering_first(num_requests: int, text: str) -> Script:
    """A script that says `text` to the first requests, and to later ones never anything."""
    steps, numbers = saying(text), itertools.count()
    return lambda request: steps(request) if next(numbers) < num_requests else itertools.repeat(())


class Held:
    """A script that says `text` to everybody, but no further than it may yet: what a test does comes in between."""

    def __init__(self, text: str, num_allowed: int = 0) -> None:
        self.ids = make_tokenizer().encode(text, add_special_tokens=False)
        self.num_allowed = num_allowed  # tokens of each reply

    def __call__(self, _: Request) -> Iterator[Sequence[int]]:
        for place, token in enumerate(self.ids):
            while place >= self.num_allowed:
                yield ()
            yield (token,)
        while self.num_allowed <= len(self.ids):  # its end is held too
            yield ()

    def allow(self, num_tokens: int = 1) -> None:
        """So many more."""
        self.num_allowed += num_tokens

    def release(self) -> None:
        """All of it, and its end."""
        self.num_allowed = len(self.ids) + 1
