"""The chat template beside a model, or the operator's. Knows no conversation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ortserve.gateway.prompts.template import SPECIAL_TOKENS, ChatTemplate
from ortserve.runtime.errors import ModelError

CONFIG_NAME = "tokenizer_config.json"
TEMPLATE_NAME = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"
DEFAULT, TOOL_USE = "default", "tool_use"


def load_chat_template(folder: Path, chosen: Path | None = None) -> ChatTemplate | None:
    """The template `chosen` by the operator, else `chat_template.jinja`, else `tokenizer_config.json`'s; None: none.

    One named `tool_use` beside the default is used for conversations with tools, as in transformers. Raises
    `ModelError` when a file is damaged or a template does not compile.
    """
    config = _read_config(folder / CONFIG_NAME)
    tokens = _special_tokens(config)
    if chosen is not None:
        source = _read_text(chosen)
        if source is None:
            raise ModelError(f"{chosen} cannot be read (no such file): check --chat-template")
        return ChatTemplate(source, tokens)
    sources = _configured_templates(config.get("chat_template"))
    source = _read_text(folder / TEMPLATE_NAME)
    if source is not None:
        sources = {DEFAULT: source}
    more = _read_text(folder / MORE_TEMPLATES / f"{TOOL_USE}.jinja")
    if more is not None:
        sources[TOOL_USE] = more
    if not sources:
        return None
    if DEFAULT not in sources:
        raise ModelError(
            f"{CONFIG_NAME} has several chat templates and none is named 'default': add it and export again"
        )
    return ChatTemplate(sources[DEFAULT], tokens, tool_source=sources.get(TOOL_USE))


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read ({error}): export the model again") from None


def _configured_templates(value: object) -> dict[str, str]:
    """One template, or a list of named ones."""
    if isinstance(value, str):
        return {DEFAULT: value}
    named: dict[str, str] = {}
    for item in value if isinstance(value, list) else ():
        name, template = (item.get("name"), item.get("template")) if isinstance(item, dict) else (None, None)
        if isinstance(name, str) and isinstance(template, str):
            named[name] = template
    return named


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


def _special_tokens(config: Mapping[str, object]) -> dict[str, str]:
    tokens = {}
    for name in SPECIAL_TOKENS:
        value = config.get(name)
        if isinstance(value, dict):  # an AddedToken written as an object
            value = value.get("content")
        if isinstance(value, str):
            tokens[name] = value
    return tokens
