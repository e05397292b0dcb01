"""One served model: validated calls become engine requests, and their tokens text. Knows no HTTP and no wire format."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ortserve.gateway.access.turn import Turn
from ortserve.gateway.errors import ApiError, from_runtime, internal_error, unsupported_parameter
from ortserve.gateway.options.model import DefaultsSource
from ortserve.gateway.pool import WorkPool
from ortserve.gateway.prompts.hints import cache_hints
from ortserve.gateway.prompts.model_text import ModelText, load_model_text
from ortserve.gateway.prompts.prompt import PromptEncoder
from ortserve.gateway.replies.calling import after_reasoning
from ortserve.gateway.replies.choice import Choice, NothingToGenerate
from ortserve.gateway.replies.generation import Generation
from ortserve.gateway.replies.judged import JudgedPrompt
from ortserve.gateway.replies.pieces import TextAssembler
from ortserve.gateway.replies.reply import PLAIN_TEXT, ReplyPlan
from ortserve.gateway.replies.reply_style import reply_style
from ortserve.gateway.schema.chat import ChatRequest
from ortserve.gateway.schema.completions import CompletionRequest
from ortserve.gateway.schema.sampling import SamplingDefaults, Vocabulary
from ortserve.gateway.schema.structure import Structure
from ortserve.gateway.served.defaults import sampling_defaults
from ortserve.gateway.served.fingerprint import installed_versions, system_fingerprint
from ortserve.runtime.drivers.async_engine import AsyncEngine
from ortserve.runtime.errors import OrtserveError, RequestError
from ortserve.runtime.request import CacheHints, DraftHints, FinishReason, Grammar, Request, SamplingParams

if TYPE_CHECKING:
    from ortserve.runtime.drivers.engine_driver import EngineDriver
    from ortserve.runtime.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Prompt:
    """Ids to continue, and the text they came from when it must be echoed."""

    ids: tuple[int, ...]
    echo: str = ""


@dataclass(frozen=True, slots=True)
class _Job:
    """One prompt to be continued."""

    ids: tuple[int, ...]
    cache: CacheHints
    draft: DraftHints
    grammar: Grammar | None


class ModelService:
    """Everything routes need of one model. Belongs to the event loop its engine was made in."""

    def __init__(
        self,
        driver: EngineDriver,
        engine: AsyncEngine,
        text: ModelText,
        pool: WorkPool,
        *,
        name: str,
        defaults: SamplingDefaults,
        created: int,
    ) -> None:
        """`name` is the one that replies carry."""
        manifest = driver.manifest
        self.driver = driver
        self.name = name
        self.defaults = defaults
        self.created = created
        self.manifest = manifest
        self.pool = pool
        self.vocabulary = Vocabulary(min(manifest.num_tokens, manifest.vocab_size), driver.max_context)
        self.fingerprint = system_fingerprint(manifest, defaults, installed_versions())
        self.tokenizer = text.tokenizer
        self._engine = engine
        self._style = reply_style(text.template)
        self.prompts = PromptEncoder(
            text.tokenizer,
            text.template,
            pool,
            max_context=driver.max_context,
            empty_prompt=_first_id(manifest),
            reasoning=self._style.reasoning,
        )

    @property
    def max_context(self) -> int:
        """Tokens of prompt and output together."""
        return self.driver.max_context

    async def start_chat(
        self,
        request: ChatRequest,
        *,
        turn: Turn,
        num_body_bytes: int,
        param: str = "messages",
    ) -> Generation:
        """Validate, tokenize and submit. Everything wrong with the request raises `ApiError` here.

        `param` is the field that carried the conversation, as errors name it.
        """
        self.check_room(param)
        if request.demands_reasoning and self._style.reasoning is None:
            raise unsupported_parameter("thinking", "cannot be enabled: this model has no channel for it.")
        prompt = await self.prompts.encode_chat(request, num_body_bytes=num_body_bytes, param=param)
        hints = cache_hints(
            request.cache, turn.tenant, num_prompt_tokens=len(prompt.ids), breakpoints=prompt.breakpoints
        )
        draft = await self.prompts.encode_prediction(request.draft)
        grammar = await self._constrained(request, is_reasoning_open=prompt.is_reasoning_open)
        return self._submit(
            [_Job(prompt.ids, hints, draft, grammar)],
            request.sampling,
            request.num_choices,
            request.stops,
            param=param,
            strip_first_space=not request.continue_final_message,  # there, it separates two words
            turn=turn,
            plan=self._style.plan(request.tools, is_reasoning_open=prompt.is_reasoning_open),
        )

    async def count_tokens(self, request: ChatRequest, *, num_body_bytes: int, param: str = "messages") -> int:
        """Tokens of the prompt that `start_chat` would submit. Raises `ApiError` where that would."""
        prompt = await self.prompts.encode_chat(request, num_body_bytes=num_body_bytes, param=param)
        return len(prompt.ids)

    async def read_prompts(self, request: CompletionRequest) -> tuple[Prompt, ...]:
        """The prompts as ids; raises `ApiError` for the first that cannot be continued."""
        self.check_room("prompt")
        await self._prepared(request.structure)
        if request.suffix is not None:
            return tuple(map(Prompt, await self.prompts.encode_infills(request.prompts, request.suffix)))
        encoded = iter(await self.prompts.encode_texts([item for item in request.prompts if isinstance(item, str)]))
        prompts = []
        for prompt in request.prompts:
            if isinstance(prompt, str):
                prompts.append(Prompt(next(encoded), prompt if request.echo else ""))
            else:
                self.prompts.check_length(prompt, "prompt")
                prompts.append(Prompt(prompt, self._decode(prompt) if request.echo else ""))
        return tuple(prompts)

    def start_completion(
        self,
        request: CompletionRequest,
        prompts: Sequence[Prompt],
        *,
        turn: Turn,
    ) -> Generation:
        """Submit every prompt's choices: index is prompt * n + choice. Nothing is generated for `max_tokens` 0."""
        if request.sampling.max_tokens == 0 and request.sampling.num_prompt_logprobs is None:
            silent = [
                Choice(index, NothingToGenerate(), self._assembler(request.sampling, (), strip=False))
                for index in range(len(prompts) * request.num_candidates)
            ]
            return Generation(silent, [len(prompt.ids) for prompt in prompts])
        draft = DraftHints(max_draft=request.max_draft)
        grammar = None if request.structure is None else request.structure.grammar
        jobs = [
            _Job(prompt.ids, cache_hints(request.cache, turn.tenant, num_prompt_tokens=len(prompt.ids)), draft, grammar)
            for prompt in prompts
        ]
        sampling = request.sampling
        if request.suffix is not None and self.prompts.infill is not None:
            ends = (*sampling.stop_token_ids, *self.prompts.infill.ends)
            sampling = replace(sampling, stop_token_ids=tuple(dict.fromkeys(ends)))
        return self._submit(
            jobs,
            sampling,
            request.num_candidates,
            request.stops,
            param="prompt",
            strip_first_space=False,
            turn=turn,
        )

    async def compute(self, request: Request) -> int:
        """Run one request for its keys and values, whatever it says; the prompt tokens that were cached."""
        stream = self._engine.submit(request)
        num_cached = 0
        try:
            async for delta in stream:
                if delta.finish is FinishReason.ERROR:
                    raise ApiError(internal_error(f"The engine failed while running this request: {delta.error}."))
                if delta.usage is not None:
                    num_cached = delta.usage.num_cached_tokens
        finally:
            stream.close()
        return num_cached

    def check_room(self, param: str) -> None:
        """Raise `ApiError` (429) when the queue is full: before a prompt is made of what will be refused."""
        try:
            self.driver.check_room()
        except OrtserveError as error:
            raise ApiError(from_runtime(error, prompt_param=param)) from error

    async def _constrained(self, request: ChatRequest, *, is_reasoning_open: bool) -> Grammar | None:
        """What replies must look like: the request's structure, its demands on calls, or both, after reasoning."""
        calling = self._style.calling(request.tools, request.structure)
        structure = calling.structure() if calling.is_constrained else request.structure
        if structure is None:
            return None
        reasoning = self._style.reasoning
        try:
            return await self._prepared(after_reasoning(structure, reasoning, is_open=is_reasoning_open))
        except ApiError:
            if not calling.is_constrained:
                raise
        for culprit in calling.culprits():
            await self._prepared(culprit)  # names the tool, if it is one alone
        loose = after_reasoning(calling.structure(is_loose=True), reasoning, is_open=is_reasoning_open)
        return await self._prepared(loose)

    async def _prepared(self, structure: Structure | None) -> Grammar | None:
        """Compile a grammar in the worker pool, so that the engine takes it in no time. Raises `ApiError` (400)."""
        if structure is None:
            return None
        try:
            await self.pool.run(lambda: self.driver.prepare(structure.grammar))
        except RequestError as error:
            raise structure.refusal(error) from error
        return structure.grammar

    def _submit(
        self,
        jobs: Sequence[_Job],
        sampling: SamplingParams,
        num_choices: int,
        stops: Sequence[str],
        *,
        param: str,
        strip_first_space: bool,
        turn: Turn,
        plan: ReplyPlan = PLAIN_TEXT,
    ) -> Generation:
        call = secrets.token_hex(8)
        strip = strip_first_space and self.tokenizer.strips_first_space
        choices: list[Choice] = []
        try:
            for job in jobs:
                for place in range(num_choices):
                    index = len(choices)
                    request = Request(
                        f"{call}-{index}",
                        job.ids,
                        self._clamped(sampling, len(job.ids)),
                        choice=place,
                        group=call if num_choices > 1 else None,
                        cache=job.cache,
                        draft=job.draft,
                        grammar=job.grammar,
                        priority=turn.priority,
                        tenant=turn.tenant,
                        weight=turn.weight,
                        max_wait_s=turn.max_wait_s,
                    )
                    assembler = self._assembler(sampling, stops, strip=strip, plan=plan)
                    wants_prompt = sampling.num_prompt_logprobs is not None
                    judged = JudgedPrompt(self.tokenizer, job.ids) if wants_prompt else None
                    choices.append(Choice(index, self._engine.submit(request), assembler, plan.reader(), judged))
        except BaseException as error:
            for choice in choices:
                choice.stream.close()
            if isinstance(error, OrtserveError):
                raise ApiError(from_runtime(error, prompt_param=param)) from error
            raise
        return Generation(choices, [len(job.ids) for job in jobs])

    def _assembler(
        self, sampling: SamplingParams, stops: Sequence[str], *, strip: bool, plan: ReplyPlan = PLAIN_TEXT
    ) -> TextAssembler:
        return TextAssembler(
            self.tokenizer,
            stops,
            strip_first_space=strip,
            with_logprobs=sampling.num_logprobs is not None,
            markers=self.tokenizer.hidden_bytes(plan.markers),
            counts_tokens=plan.reasoning is not None,
        )

    def _clamped(self, sampling: SamplingParams, num_prompt_tokens: int) -> SamplingParams:
        """OpenAI clamps to the context and finishes with `length` instead of refusing."""
        room = self.max_context - num_prompt_tokens
        if sampling.max_tokens is None or sampling.max_tokens <= room:
            return sampling
        return replace(sampling, max_tokens=room)

    def _decode(self, ids: Sequence[int]) -> str:
        assembler = TextAssembler(
            self.tokenizer, (), strip_first_space=self.tokenizer.strips_first_space, with_logprobs=False
        )
        return assembler.feed(ids).text


def open_service(
    folder: Path,
    driver: EngineDriver,
    *,
    name: str | None = None,
    defaults: DefaultsSource = "model",
    created: int = 0,
    chat_template: Path | None = None,
) -> ModelService:
    """The service of an opened model; call it inside the running event loop. Raises `ModelError`."""
    manifest = driver.manifest
    text = load_model_text(folder, manifest, chat_template)
    return ModelService(
        driver,
        AsyncEngine(driver),
        text,
        WorkPool(),
        name=name or manifest.name,
        defaults=sampling_defaults(manifest, defaults),
        created=created,
    )


def _first_id(manifest: Manifest) -> int | None:
    """How a document begins: the beginning-of-sequence id, else the end of the one before it."""
    if manifest.bos_token_id is not None:
        return manifest.bos_token_id
    return manifest.eos_token_ids[0] if manifest.eos_token_ids else None
