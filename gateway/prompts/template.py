"""Chat templates, rendered as transformers renders them. Knows no tokenizer, no token and no request."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ortserve.gateway.errors import ApiError, bad_request
from ortserve.gateway.prompts import offering
from ortserve.runtime.errors import ModelError

if TYPE_CHECKING:
    from jinja2.parser import Parser

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
RESERVED_VARIABLES = frozenset(("messages", "tools", "documents", "add_generation_prompt", *SPECIAL_TOKENS))

# What a template can raise on odd conversations besides its own errors: it indexes, adds and compares values.
TEMPLATE_FAILURES = (
    jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError,
)  # fmt: skip


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks training targets; here its body is rendered in place, in its own scope as upstream."""

    tags = {"generation"}  # noqa: RUF012  # declared so by jinja2

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        """Part of jinja2's extension interface."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("render_body"), [], [], body).set_lineno(line)

    def render_body(self, caller: Callable[[], str]) -> str:
        """The text of the tag's body."""
        return caller()


class TemplateDict:
    """`dict` in templates: makes dictionaries, and has no attributes that lead elsewhere."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """A dictionary."""
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Part of `dict`."""
        return dict.fromkeys(*args)


class ChatTemplate:
    """A model's template, and another for conversations with tools if it has one. Rendering is thread-safe."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], *, tool_source: str | None = None) -> None:
        """Raise `ModelError` when a source does not compile."""
        self._plain = CompiledTemplate(source, special_tokens)
        self._tool_use = None if tool_source is None else CompiledTemplate(tool_source, special_tokens)

    @property
    def source(self) -> str:
        """The text of the template that is used with tools: it shows how the model calls them."""
        return (self._tool_use or self._plain).source

    @property
    def takes_tools(self) -> bool:
        """Whether tools are written as the template's author has it; otherwise the system message explains them."""
        template = self._tool_use or self._plain
        return template.reads_tools or template.reads_system_tools

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool,
        options: Mapping[str, object],
        tools: Sequence[Mapping[str, object]] = (),
    ) -> str:
        """The prompt's text. Raises `ApiError` (400) with the template's own message.

        A template that insists on one leading system message gets all system messages merged into one; one that joins
        arguments of calls to strings gets them as text.
        """
        for name in options:
            if name in RESERVED_VARIABLES:
                message = f"Invalid 'chat_template_kwargs': '{name}' is set by the server."
                raise bad_request(message, param="chat_template_kwargs", code="invalid_value")
        template = self._tool_use if tools and self._tool_use is not None else self._plain
        variables = {**options, "add_generation_prompt": add_generation_prompt}
        conversation = [with_reasoning_aliases(message) for message in messages]
        try:
            try:
                return template.render(conversation, tools, variables)
            except jinja2.TemplateError:
                changed = merge_system(conversation)
                if changed == conversation:
                    raise
            except TypeError:
                changed = offering.with_arguments_as_text(conversation)
                if changed == conversation:
                    raise
            return template.render(changed, tools, variables)
        except TEMPLATE_FAILURES as error:
            raise _refused(error) from None


class CompiledTemplate:
    """One template with the special tokens it may name, and what its text says that it reads."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = to_json
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = strftime_now
        environment.globals["dict"] = TemplateDict()
        try:
            self._template = environment.from_string(source)
            variables = jinja2.meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateError as error:
            raise ModelError(f"the chat template cannot be compiled ({error}): correct it and export again") from None
        self.source = source
        self.reads_tools = "tools" in variables
        self.reads_system_tools = not self.reads_tools and ("['tools']" in source or ".tools" in source)
        self._is_tool_aware = "tool" in source
        self._loses_calls = self._is_tool_aware and "tool_calls" not in source
        self._wants_short_ids = "length 9" in source  # of its complaint about others
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object]],
        variables: Mapping[str, object],
    ) -> str:
        """Raises whatever the template does."""
        if self._wants_short_ids:
            messages = offering.with_short_ids(messages)
        if tools and self.reads_system_tools:
            messages = offering.with_tools_in_system(messages, tools)
        elif not self._is_tool_aware or (tools and not self.reads_tools):
            messages = offering.with_instructions(messages, tools)
        if self._loses_calls:
            messages = offering.with_calls_as_text(messages, in_tags="<tool_call>" in self.source)
        return self._template.render(
            {
                **self._special_tokens,
                **variables,
                "tools": list(tools) if tools and self.reads_tools else None,
                "documents": None,
                "messages": list(messages),
            }
        )


def _refused(error: Exception) -> ApiError:
    reason = str(error) or type(error).__name__
    message = f"The chat template of this model refused the messages: {reason}"
    return bad_request(message, param="messages", code="invalid_value")


def with_reasoning_aliases(message: Mapping[str, object]) -> Mapping[str, object]:
    """An assistant's reasoning under the other name that templates read, as in transformers."""
    reasoning = message.get("reasoning_content")
    return message if reasoning is None else {"thinking": reasoning, **message}


def merge_system(messages: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """All system messages joined in order into one at the front."""
    system = [str(message["content"]) for message in messages if message["role"] == "system"]
    others = [message for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join(system)}, *others] if system else others


def to_json(
    value: object,
    ensure_ascii: bool = False,  # templates call it by position, as in transformers
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: jinja2's own filter escapes HTML, which models were not trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str) -> NoReturn:
    """How a template refuses a conversation."""
    raise jinja2.TemplateError(message)


def strftime_now(pattern: str) -> str:
    """Local time, as in transformers."""
    return datetime.now().strftime(pattern)
