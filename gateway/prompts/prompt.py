"""Conversations and texts as token ids that fit the context. Knows no sampling and no reply.

Anything longer than a few kilobytes is prepared in a worker pool: the event loop carries every running stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from ortserve.gateway.errors import ApiError, bad_request, context_overflow, unsupported_parameter
from ortserve.gateway.pool import WorkPool
from ortserve.gateway.prompts.breakpoints import STRANGERS, find_breakpoints, marked_places
from ortserve.gateway.prompts.infill import find_infill
from ortserve.gateway.prompts.reasoning import ReasoningFormat
from ortserve.gateway.prompts.template import ChatTemplate
from ortserve.gateway.prompts.tokenizer import TextTokenizer
from ortserve.gateway.schema.chat import ChatRequest
from ortserve.gateway.schema.drafting import DraftWish
from ortserve.gateway.schema.messages import Message, num_characters
from ortserve.plugins.api import Breakpoint
from ortserve.runtime.request import DraftHints

INLINE_BYTES = 1536  # rendering (0.1 ms) and tokenizing (0.5 us a byte) that much stay below 1 ms

CUT = "\ue008"  # where an unfinished message ends; none of the breakpoints' strangers

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation as ids, how much of it the request wants kept, and whether replies begin with reasoning."""

    ids: tuple[int, ...]
    breakpoints: tuple[Breakpoint, ...] = ()
    is_reasoning_open: bool = False


class PromptEncoder:
    """Template, tokenizer and the limits a prompt must keep."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        template: ChatTemplate | None,
        pool: WorkPool,
        *,
        max_context: int,
        empty_prompt: int | None,
        reasoning: ReasoningFormat | None = None,
    ) -> None:
        """`empty_prompt` is the id that begins a document when the prompt has no tokens at all."""
        self._reasoning = reasoning
        self._tokenizer = tokenizer
        self._template = template
        self._pool = pool
        self._max_context = max_context
        self._empty_prompt = empty_prompt
        self.infill = find_infill(tokenizer)  # None: the model cannot fill in the middle

    @property
    def template_source(self) -> str | None:
        """The chat template's text; None: there is none."""
        return None if self._template is None else self._template.source

    async def encode_chat(self, request: ChatRequest, *, num_body_bytes: int, param: str = "messages") -> ChatPrompt:
        """The rendered conversation as ids. The template writes the special tokens itself, so none are added.

        `num_body_bytes` is the length of the request's JSON: it decides whether the work leaves the event loop. `param`
        is the field that carried the conversation.
        """
        template = self._needed_template()
        self._refuse_too_many(request.messages, param)
        places = marked_places(request.messages)
        tools = [tool.template_value() for tool in request.tools.offered]

        def render(messages: Sequence[Message]) -> str:
            if request.continue_final_message:
                return render_unfinished(template, messages, request.template_options, tools)
            return template.render(
                [message.template_value() for message in messages],
                add_generation_prompt=request.add_generation_prompt,
                options=request.template_options,
                tools=tools,
            )

        def prepare() -> ChatPrompt:
            text = render(request.messages)
            is_open = self._is_reasoning_open(request, text)
            if not places:
                ids = self._encode(text, param, add_special_tokens=False)
                return ChatPrompt(ids, is_reasoning_open=is_open)
            self._refuse_too_long(len(text.encode()), param)
            tokens = self._tokenizer.encode_measured(text)
            points = find_breakpoints(
                request.messages,
                places,
                text,
                tokens,
                render=render,
                tokenizer=self._tokenizer,
                ttl_s=request.cache.ttl_s,
            )
            return ChatPrompt(self._checked(tokens.ids, param), points, is_open)

        # Breakpoints render again, and tokens with places take longer.
        return await self._run(prepare, num_body_bytes * (2 if places else 1))

    async def encode_beginning(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """What every conversation that goes on from `messages` begins with.

        Many templates refuse conversations without a question, or write the system message into the first one: one is
        put behind, and what comes before its text is taken.
        """
        template = self._needed_template()
        self._refuse_too_many(messages, "messages")

        def prepare() -> tuple[int, ...]:
            values = [message.template_value() for message in messages]
            if messages[-1].role == "user":
                text = template.render(values, add_generation_prompt=True, options={})
            else:
                question = {"role": "user", "content": STRANGERS[0]}
                text = template.render([*values, question], add_generation_prompt=False, options={})
                end = text.rfind(STRANGERS[0])
                # Not found: the template shows it otherwise than it was written.
                text = template.render(values, add_generation_prompt=False, options={}) if end < 0 else text[:end]
            return self._encode(text, "messages", add_special_tokens=False)

        return await self._pool.run(prepare)

    async def encode_prediction(self, wish: DraftWish) -> DraftHints:
        """The expected output as ids; what cannot fit into the context is not looked at."""
        text = wish.prediction
        if not text:
            return DraftHints(None, wish.max_draft)
        text = text[: self._max_context * self._tokenizer.longest_token]
        ids = await self._run(lambda: self._tokenizer.encode(text, add_special_tokens=False), len(text))
        return DraftHints(ids[: self._max_context], wish.max_draft)

    async def encode_texts(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Plain prompts as ids, with the beginning-of-sequence id if the model expects one."""
        for text in texts:
            self._refuse_too_long(len(text), "prompt")

        def prepare() -> list[tuple[int, ...]]:
            return [self._encode(text, "prompt", add_special_tokens=True) for text in texts]

        return await self._run(prepare, sum(map(len, texts)))

    async def encode_infills(self, prompts: Sequence[str | tuple[int, ...]], suffix: str) -> list[tuple[int, ...]]:
        """Prompts that are gone on from with what comes before `suffix`. Raises `ApiError` (400) if that cannot be."""
        infill = self.infill
        if infill is None:
            raise unsupported_parameter("suffix", "is not supported with this model: it cannot fill in the middle.")
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        for text in (*texts, suffix):
            self._refuse_too_long(len(text), "prompt")

        def prepare() -> list[tuple[int, ...]]:
            encode = self._tokenizer.encode
            after = encode(suffix, add_special_tokens=False)
            found = []
            for prompt in prompts:
                before = encode(prompt, add_special_tokens=False) if isinstance(prompt, str) else prompt
                found.append(self._checked(infill.prompt(before, after), "prompt"))
            return found

        return await self._run(prepare, sum(map(len, texts)) + len(suffix))

    def check_length(self, ids: Sequence[int], param: str) -> None:
        """Raise `ApiError` (400) unless at least one token can be generated after `ids`."""
        if len(ids) >= self._max_context:
            raise ApiError(context_overflow(len(ids), self._max_context, param=param))

    def _is_reasoning_open(self, request: ChatRequest, text: str) -> bool:
        unfinished = request.messages[-1].content if request.continue_final_message else ""
        return self._reasoning is not None and self._reasoning.is_open_after(text, unfinished)

    def _needed_template(self) -> ChatTemplate:
        if self._template is None:
            message = "This model has no chat template and cannot answer chat requests: use /v1/completions."
            raise bad_request(message, param="messages", code="unsupported_parameter")
        return self._template

    async def _run(self, prepare: Callable[[], Result], size: int) -> Result:
        return prepare() if size <= INLINE_BYTES else await self._pool.run(prepare)

    def _encode(self, text: str, param: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        self._refuse_too_long(len(text.encode()), param)
        return self._checked(self._tokenizer.encode(text, add_special_tokens=add_special_tokens), param)

    def _checked(self, ids: tuple[int, ...], param: str) -> tuple[int, ...]:
        if not ids:
            if self._empty_prompt is None:
                raise bad_request(f"Invalid '{param}': the prompt has no tokens.", param=param, code="invalid_value")
            ids = (self._empty_prompt,)
        self.check_length(ids, param)
        return ids

    def _refuse_too_many(self, messages: Sequence[Message], param: str) -> None:
        """Before anything is rendered: a message takes a token at least, and thousands of them a template a second."""
        if len(messages) >= self._max_context:
            raise ApiError(context_overflow(len(messages), self._max_context, param=param, exact=False))
        self._refuse_too_long(num_characters(messages), param)

    def _refuse_too_long(self, size: int, param: str) -> None:
        """`size` is at most the UTF-8 length: no token covers more than the longest one's bytes."""
        num_tokens = -(-size // self._tokenizer.longest_token)
        if num_tokens >= self._max_context:
            raise ApiError(context_overflow(num_tokens, self._max_context, param=param, exact=False))


def render_unfinished(
    template: ChatTemplate,
    messages: Sequence[Message],
    options: Mapping[str, object],
    tools: Sequence[Mapping[str, object]],
) -> str:
    """The conversation up to the end of the last message's text, as transformers' `continue_final_message` has it.

    Blanks at that end are kept if the template keeps blanks at the ends of messages. Raises `ApiError` (400) when the
    template does not show the text as it was written: there is no place to go on.
    """
    last = replace(messages[-1], content=f"{messages[-1].content}{CUT} ")
    values = [message.template_value() for message in (*messages[:-1], last)]
    rendered = template.render(values, add_generation_prompt=False, options=options, tools=tools)
    text, found, after = rendered.rpartition(CUT)
    if not found or not text.endswith(messages[-1].content.lstrip()):
        message = "Invalid 'messages': the chat template of this model does not let a reply go on from the last one."
        raise bad_request(message, param="messages", code="unsupported_value")
    return text if after.startswith(" ") else text.rstrip()
