"""Which format a chat template writes calls in: its text says so. Knows no model's name."""

from __future__ import annotations

from ortserve.gateway.tools.deepseek import CALL, DeepSeekFormat
from ortserve.gateway.tools.format import ToolFormat
from ortserve.gateway.tools.gemma import FUNCTION_GEMMA, GEMMA_4
from ortserve.gateway.tools.hermes import HermesFormat
from ortserve.gateway.tools.listed import ListedFormat
from ortserve.gateway.tools.llama_json import LlamaJsonFormat, PlainFormat
from ortserve.gateway.tools.mistral import MistralFormat
from ortserve.gateway.tools.pythonic import PythonicFormat
from ortserve.gateway.tools.qwen_xml import QwenXmlFormat


def detect_tool_format(template: str) -> ToolFormat:
    """The format whose own words are in the template, the most particular first; the plain one when none are."""
    formats: tuple[tuple[tuple[str, ...], ToolFormat], ...] = (
        (("<start_function_call>",), FUNCTION_GEMMA),
        (("<|tool_call>",), GEMMA_4),
        (("<function=", "<parameter="), QwenXmlFormat()),
        (("[TOOL_CALLS]", "[ARGS]"), MistralFormat(is_named=True)),
        (("[TOOL_CALLS]",), MistralFormat()),
        ((CALL,), DeepSeekFormat()),
        (("<|tool_call|>",), ListedFormat()),
        (("<|tool|>", "<|/tool|>"), ListedFormat()),
        (("<tool_call>",), HermesFormat()),
        (("<|python_start|>",), PythonicFormat()),
        (("[func_name1(",), PythonicFormat()),
        (("<|python_tag|>",), LlamaJsonFormat()),
        (('{"name": function name, "parameters"',), LlamaJsonFormat()),
    )
    for words, format_ in formats:
        if all(word in template for word in words):
            return format_
    return PlainFormat()
