"""Checks that a checkpoint's chat templates compile, before anything is written. Renders none."""

from __future__ import annotations

from collections.abc import Iterator

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ortserve.export.errors import ExportError
from ortserve.export.sources.checkpoint import MORE_TEMPLATES, Checkpoint


class _GenerationTag(jinja2.ext.Extension):
    """transformers' `{% generation %}`, which marks what the assistant says."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def check_templates(checkpoint: Checkpoint) -> None:
    """Raise `ExportError` for one that does not compile: the server would fail at its first conversation."""
    environment = ImmutableSandboxedEnvironment(extensions=[_GenerationTag, jinja2.ext.loopcontrols])
    for place, source in _sources(checkpoint):
        try:
            environment.compile(source)
        except jinja2.TemplateSyntaxError as error:
            raise ExportError(
                f"{checkpoint.folder}: the chat template in {place} does not compile (line {error.lineno}:"
                f" {error.message}): correct it, or download it again"
            ) from None


def _sources(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """Where each template is, and its text."""
    configured = checkpoint.tokenizer_config.get("chat_template")
    if isinstance(configured, str):
        yield "tokenizer_config.json", configured
    for item in configured if isinstance(configured, list) else ():
        if isinstance(item, dict) and isinstance(item.get("template"), str):
            yield f"tokenizer_config.json ({item.get('name')})", item["template"]
    for name, path in checkpoint.tokenizer_files():
        if name == "chat_template.jinja" or name.startswith(f"{MORE_TEMPLATES}/"):
            try:
                yield name, path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ExportError(f"{path} is not UTF-8 text ({error}): download it again") from None
