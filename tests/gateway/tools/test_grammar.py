"""Grammars of calls: whatever noise says under one is calls of the offered tools with arguments that are valid."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest

from ortserve.export.bundled import bundled_model
from ortserve.gateway.errors import ApiError
from ortserve.gateway.prompts.reasoning import ReasoningFormat
from ortserve.gateway.prompts.tokenizer import load_tokenizer
from ortserve.gateway.replies.calling import Calling, after_reasoning
from ortserve.gateway.replies.reply import ReplyPlan, ReplyReader, WholeCall, join_calls
from ortserve.gateway.schema.structure import Structure, regex_structure, schema_structure
from ortserve.gateway.schema.tools import InputGrammar, Tool, ToolMode, ToolUse
from ortserve.gateway.tools.custom import INPUT_SCHEMA
from ortserve.gateway.tools.deepseek import DeepSeekFormat
from ortserve.gateway.tools.format import ToolFormat
from ortserve.gateway.tools.gemma import FUNCTION_GEMMA, GEMMA_4
from ortserve.gateway.tools.hermes import HermesFormat
from ortserve.gateway.tools.listed import ListedFormat
from ortserve.gateway.tools.llama_json import LlamaJsonFormat, PlainFormat
from ortserve.gateway.tools.mistral import MistralFormat
from ortserve.gateway.tools.pythonic import PythonicFormat
from ortserve.gateway.tools.qwen_xml import QwenXmlFormat
from ortserve.runtime.grammar.guidance import GuidanceGrammars
from tests.gateway.scripted import make_manifest

FORMATS: list[ToolFormat] = [
    HermesFormat(), QwenXmlFormat(), LlamaJsonFormat(), PlainFormat(), MistralFormat(), MistralFormat(is_named=True),
    ListedFormat(), FUNCTION_GEMMA, GEMMA_4, PythonicFormat(), DeepSeekFormat(),
]  # fmt: skip
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "unit": {"type": "string", "enum": ["c", "f"]},
        "days": {"type": "integer", "minimum": 0, "maximum": 99},
        "deep": {"type": "boolean"},
    },
    "required": ["unit", "days"],
    "additionalProperties": False,
}
EMPTY: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS = (Tool("forecast", None, SCHEMA, is_strict=True), Tool("now", None, EMPTY, is_strict=True))
REQUIRED = ToolUse(TOOLS, ToolMode.REQUIRED)
ONE = replace(REQUIRED, is_parallel=False)
NAMED = ToolUse(TOOLS, ToolMode.REQUIRED, frozenset(["now"]), is_named=True)
TOKENIZER = load_tokenizer(bundled_model(), bos_token_id=None, add_bos=False)
EOS = 2


@pytest.fixture(scope="module")
def grammars() -> GuidanceGrammars:
    manifest = make_manifest(TOKENIZER.num_tokens, eos=EOS)
    return GuidanceGrammars((bundled_model() / "tokenizer.json").read_bytes(), manifest)


def noise(grammars: GuidanceGrammars, structure: Structure, seed: int, *, limit: int = 900) -> str | None:
    """A reply of random tokens that the grammar allows; None when it has not ended by `limit`."""
    constraint = grammars.compile(structure.grammar)
    rng = random.Random(seed)
    said: list[int] = []
    hidden = TOKENIZER.hidden_bytes(structure.grammar.markers)
    while len(said) < limit:
        if constraint.is_complete:
            break
        ((mask,),) = grammars.masks([(constraint, ())])
        assert constraint.failure is None
        allowed = np.flatnonzero(np.unpackbits(mask.bits, bitorder="little")).tolist()
        if mask.can_end and (not allowed or rng.random() < 0.3):
            break
        token = rng.choice(allowed)
        assert constraint.accept(token)
        said.append(token)
    else:
        return None
    return b"".join(hidden.get(token) or TOKENIZER.token_bytes(token) for token in said).decode("utf-8", "replace")


def read(format_: ToolFormat, use: ToolUse, text: str) -> tuple[str, tuple[WholeCall, ...]]:
    plan = ReplyPlan(None, False, format_, {tool.name: tool.shape for tool in use.callable_tools}, frozenset(["run"]))
    reader = ReplyReader(plan)
    parts = reader.feed(text) + reader.finish()
    return "".join(part.text for part in parts), join_calls([delta for part in parts for delta in part.calls])


def check(calls: tuple[WholeCall, ...], schemas: Mapping[str, Mapping[str, Any]]) -> None:
    for call in calls:
        jsonschema.validate(json.loads(call.arguments), schemas[call.name])


SCHEMAS = {"forecast": SCHEMA, "now": EMPTY}


@pytest.mark.parametrize("format_", FORMATS, ids=lambda one: f"{one.name}-{one.markers[:1]}")
@pytest.mark.parametrize("use", [REQUIRED, ONE, NAMED], ids=["required", "one", "named"])
def test_noise_calls_as_demanded(grammars: GuidanceGrammars, format_: ToolFormat, use: ToolUse) -> None:
    structure = Calling(use, format_, use.is_parallel).structure()
    num_ended = 0
    for seed in range(12):
        text = noise(grammars, structure, seed)
        if text is None:
            continue
        num_ended += 1
        content, calls = read(format_, use, text)
        assert content == "", text
        assert calls, text
        check(calls, SCHEMAS)
        if use is not REQUIRED:
            assert len(calls) == 1
        if use is NAMED:
            assert calls[0].name == "now"
    assert num_ended >= 11


@pytest.mark.parametrize("format_", FORMATS, ids=lambda one: f"{one.name}-{one.markers[:1]}")
def test_replies_may_be_text_or_valid_calls(grammars: GuidanceGrammars, format_: ToolFormat) -> None:
    """Noise hardly ever begins a call by itself, so its opening is said for it."""
    use = ToolUse(TOOLS)
    calling = Calling(use, format_, is_parallel=True)
    assert calling.is_constrained
    structure = calling.structure()
    constraint = grammars.compile(structure.grammar)
    for token in TOKENIZER.encode("No call here.", add_special_tokens=False):
        assert constraint.accept(token)
    ((mask,),) = grammars.masks([(constraint, ())])
    assert mask.can_end
    demanded = Calling(REQUIRED, format_, is_parallel=True).structure()
    for seed in range(8):
        text = noise(grammars, demanded, seed)
        if text is None:
            continue
        constraint = grammars.compile(structure.grammar)
        tokens = TOKENIZER.encode(text, add_special_tokens=False)
        assert constraint.allowed_prefix(tokens) == len(tokens), text
    wrong = grammars.compile(structure.grammar)
    broken = text_of_call(grammars, demanded).replace("now", "not")
    tokens = TOKENIZER.encode(broken, add_special_tokens=False)
    assert wrong.allowed_prefix(tokens) < len(tokens), broken


def text_of_call(grammars: GuidanceGrammars, demanded: Structure) -> str:
    for seed in range(100):
        text = noise(grammars, demanded, seed)
        if text is not None and "now" in text:
            return text
    raise AssertionError


def test_without_demands_nothing_is_constrained() -> None:
    loose = (Tool("f"), Tool("g"))
    assert not Calling(ToolUse(loose), HermesFormat(), is_parallel=True).is_constrained
    assert not Calling(ToolUse(), HermesFormat(), is_parallel=True, otherwise=schema_structure({}, "x")).is_constrained
    assert not Calling(ToolUse(TOOLS, ToolMode.NONE), HermesFormat(), is_parallel=True).is_constrained
    assert Calling(ToolUse(loose, allowed=frozenset("f")), HermesFormat(), is_parallel=True).is_constrained


@pytest.mark.parametrize("format_", [HermesFormat(), MistralFormat(), PlainFormat(), ListedFormat()])
def test_a_structure_beside_tools(grammars: GuidanceGrammars, format_: ToolFormat) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    for otherwise, valid in ((schema_structure(schema, "x"), '{"ok": true}'), (regex_structure("yes|no", "x"), "yes")):
        structure = Calling(ToolUse(TOOLS), format_, is_parallel=True, otherwise=otherwise).structure()
        for seed in range(6):
            text = noise(grammars, structure, seed)
            if text is None:
                continue
            content, calls = read(format_, ToolUse(TOOLS), text)
            check(calls, SCHEMAS)
            assert bool(calls) != bool(content), text
        tokens = TOKENIZER.encode(valid, add_special_tokens=False)
        assert grammars.compile(structure.grammar).allowed_prefix(tokens) == len(tokens)
        tokens = TOKENIZER.encode("Well", add_special_tokens=False)
        assert grammars.compile(structure.grammar).allowed_prefix(tokens) < len(tokens)


@pytest.mark.parametrize("format_", [HermesFormat(), QwenXmlFormat(), PlainFormat(), GEMMA_4])
@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (InputGrammar("regex", '(ab|"c"){1,3}'), '(ab|"c"){1,3}'),
        (
            InputGrammar("lark", 'start: item ("," item)*\nitem: /[0-9]{1,2}/ | "\\"x\\"\\n"'),
            '([0-9]{1,2}|"x"\\n)(,([0-9]{1,2}|"x"\\n))*',
        ),
    ],
)
def test_inputs_of_custom_tools_match_their_grammar(
    grammars: GuidanceGrammars, format_: ToolFormat, grammar: InputGrammar, pattern: str
) -> None:
    tool = Tool("run", None, INPUT_SCHEMA, is_custom=True, grammar=grammar)
    use = ToolUse((tool,), ToolMode.REQUIRED, is_parallel=False)
    structure = Calling(use, format_, is_parallel=False).structure()
    num_ended = 0
    for seed in range(8):
        text = noise(grammars, structure, seed)
        if text is None:
            continue
        num_ended += 1
        content, calls = read(format_, use, text)
        assert content == ""
        (call,) = calls
        assert call.is_custom
        assert re.fullmatch(pattern, call.arguments), (text, call.arguments)
    assert num_ended >= 6


def test_a_format_that_cannot_write_a_demand_refuses_it() -> None:
    tool = Tool("run", None, INPUT_SCHEMA, is_custom=True, grammar=InputGrammar("lark", "start: /a/"))
    with pytest.raises(ApiError, match="run"):
        Calling(ToolUse((tool,)), PythonicFormat(), is_parallel=True).structure()


@pytest.mark.parametrize("is_open", [False, True])
def test_reasoning_comes_first(grammars: GuidanceGrammars, is_open: bool) -> None:
    channel = ReasoningFormat("<tools>", "</tools>")  # tokens of this tokenizer
    structure = after_reasoning(Calling(ONE, HermesFormat(), is_parallel=False).structure(), channel, is_open=is_open)
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    start = "" if is_open else "<tools>"
    assert ends(grammars, structure, f"{start}hm, or</tools>\n\n{call}")
    assert ends(grammars, structure, f"{start}so</tools>{call}")
    assert ends(grammars, structure, f"{start}hm, or</tools>\n\nwell") is None
    assert ends(grammars, structure, f"{start}hm, or") is False  # the call is owed
    assert ends(grammars, structure, call) is (None if is_open else True)


def ends(grammars: GuidanceGrammars, structure: Structure, text: str) -> bool | None:
    """Whether a reply may end after `text`; None when it cannot say it."""
    constraint = grammars.compile(structure.grammar)
    for token in TOKENIZER.encode(text, add_special_tokens=False):
        if not constraint.accept(token):
            return None
    if constraint.is_complete:
        return True
    ((mask,),) = grammars.masks([(constraint, ())])
    return mask.can_end
