"""Chat templates, rendered as transformers renders them. Knows no tokenizer, no token and no request."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ortserve.gateway.errors import bad_request
from ortserve.runtime.errors import ModelError

if TYPE_CHECKING:
    from jinja2.parser import Parser

CONFIG_NAME = "tokenizer_config.json"
TEMPLATE_NAME = "chat_template.jinja"
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


class ChatTemplate:
    """One compiled template with the special tokens it may name. Rendering is thread-safe."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Raise `ModelError` when the source does not compile."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = to_json
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = strftime_now
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ModelError(f"the chat template cannot be compiled ({error}): correct it and export again") from None
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool,
        options: Mapping[str, object],
    ) -> str:
        """The prompt's text. Raises `ApiError` (400) with the template's own message.

        A template that insists on one leading system message gets all system messages merged into one.
        """
        for name in options:
            if name in RESERVED_VARIABLES:
                message = f"Invalid 'chat_template_kwargs': '{name}' is set by the server."
                raise bad_request(message, param="chat_template_kwargs", code="invalid_value")
        variables = {
            **self._special_tokens,
            **options,
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            try:
                return self._template.render({**variables, "messages": list(messages)})
            except jinja2.TemplateError:
                merged = merge_system(messages)
                if merged == list(messages):
                    raise
                return self._template.render({**variables, "messages": merged})
        except TEMPLATE_FAILURES as error:
            reason = str(error) or type(error).__name__
            message = f"The chat template of this model refused the messages: {reason}"
            raise bad_request(message, param="messages", code="invalid_value") from None


def merge_system(messages: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """All system messages joined in order into one at the front."""
    system = [str(message["content"]) for message in messages if message["role"] == "system"]
    others = [message for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join(system)}, *others] if system else others


def load_chat_template(folder: Path) -> ChatTemplate | None:
    """The template beside the model: `chat_template.jinja`, else `tokenizer_config.json`; None when it has none.

    Raises `ModelError` when a file is damaged or the template does not compile.
    """
    config = _read_config(folder / CONFIG_NAME)
    path = folder / TEMPLATE_NAME
    source: str | None
    try:
        source = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        source = _configured_template(config.get("chat_template"))
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read ({error}): export the model again") from None
    if source is None:
        return None
    return ChatTemplate(source, _special_tokens(config))


def _read_config(path: Path) -> Mapping[str, object]:
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}): export the model again") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a JSON object: export the model again")
    return config


def _configured_template(value: object) -> str | None:
    """A template, or the one named "default" in a list of named ones."""
    if value is None or isinstance(value, str):
        return value
    named = {
        item.get("name"): item.get("template")
        for item in (value if isinstance(value, list) else ())
        if isinstance(item, dict)
    }
    template = named.get("default")
    if not isinstance(template, str):
        raise ModelError(
            f"{CONFIG_NAME} has several chat templates and none is named 'default': add it and export again"
        )
    return template


def _special_tokens(config: Mapping[str, object]) -> dict[str, str]:
    tokens = {}
    for name in SPECIAL_TOKENS:
        value = config.get(name)
        if isinstance(value, dict):  # an AddedToken written as an object
            value = value.get("content")
        if isinstance(value, str):
            tokens[name] = value
    return tokens


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
