"""Templates of the main families against what transformers renders of them (make_renderings.py writes it down)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ortserve.gateway.errors import ApiError
from ortserve.gateway.prompts.prompt import render_unfinished
from ortserve.gateway.prompts.template import ChatTemplate
from ortserve.gateway.replies.reply_style import reply_style
from ortserve.gateway.schema.fields import Fields
from ortserve.gateway.schema.messages import read_messages
from ortserve.gateway.schema.tools import read_tool_use
from tests.gateway.bodies import VOCABULARY
from tests.gateway.make_renderings import CASES, TOKENS

FOLDER = Path(__file__).parent / "templates"
RENDERINGS: dict[str, dict[str, dict[str, str]]] = json.loads((FOLDER / "renderings.json").read_text(encoding="utf-8"))
NAMES = sorted(RENDERINGS)
WITH_TOOLS = {"llama3", "qwen3", "mistral", "smollm3", "granite"}  # templates that read `tools`
LOSES_CALLS = {"granite", "phi4_mini", "smollm3"}  # templates that show results only
TOOL_CASES = [name for name, case in CASES.items() if "tools" in case]


def source_of(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def render(name: str, case: dict[str, Any], **changes: Any) -> str:
    """From a request's fields to the text, as the chat route goes."""
    template = ChatTemplate(source_of(name), TOKENS)
    fields = Fields({**case, **changes})
    messages = read_messages(fields, VOCABULARY)
    tools = [tool.template_value() for tool in read_tool_use(fields).offered]
    options = case.get("options", {})
    if case.get("continue_final_message"):
        return render_unfinished(template, messages, options, tools)
    return template.render(
        [message.template_value() for message in messages],
        add_generation_prompt=case.get("add_generation_prompt", True),
        options=options,
        tools=tools,
    )


def test_every_template_has_been_rendered() -> None:
    assert [path.stem for path in sorted(FOLDER.glob("*.jinja"))] == NAMES
    assert all(set(renderings) == set(CASES) for renderings in RENDERINGS.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES)
def test_texts_are_those_of_transformers(name: str, case: str) -> None:
    if case in TOOL_CASES and (name not in WITH_TOOLS or (name in LOSES_CALLS and "call" in case)):
        pytest.skip("transformers leaves tools or calls out, which are told in words here")
    expected = RENDERINGS[name][case]
    if "text" in expected:
        assert render(name, CASES[case]) == expected["text"]
        return
    with pytest.raises(ApiError) as caught:
        render(name, CASES[case])
    assert caught.value.problem.status == 400
    assert expected["error"].partition(": ")[2] in caught.value.problem.message


@pytest.mark.parametrize("name", sorted((set(NAMES) - WITH_TOOLS) | LOSES_CALLS))
@pytest.mark.parametrize("case", TOOL_CASES)
def test_no_template_leaves_tools_out(name: str, case: str) -> None:
    text = render(name, CASES[case])
    assert "get_weather" in text
    assert "get_time" in text
    if "call" in case:
        assert "Zürich" in text or "Z\\u00fcrich" in text
        assert '{"sky": "clear"}' in text


def test_phi_reads_tools_from_the_system_message() -> None:
    text = render("phi4_mini", CASES["tools"])
    assert text.startswith('<|system|>Be brief.<|tool|>[{"name": "get_weather", ')
    assert "<|/tool|><|end|><|user|>" in text
    assert render("phi4_mini", CASES["tools alone"]).startswith("<|system|><|tool|>[")


def test_templates_that_join_arguments_get_text() -> None:
    text = render("deepseek_r1", CASES["call"], tools=None)
    assert '<call>function<sep>get_weather\n```json\n{"city": "Zürich", "days": 2}\n```</call>' in text


def test_ids_of_other_shapes_are_shortened_alike() -> None:
    changed = json.loads(json.dumps(CASES["call"]).replace("abcdefghi", "call_0123456789"))
    text = render("mistral", changed)
    short = text.partition('"id": "')[2].partition('"')[0]
    assert len(short) == 9
    assert f'"call_id": "{short}"' in text


@pytest.mark.parametrize(
    ("name", "format_", "has_channel", "is_parallel"),
    [
        ("chatml", "plain", False, True),
        ("deepseek_r1", "plain", True, True),
        ("gemma", "plain", False, True),
        ("granite", "listed", False, True),
        ("llama3", "llama_json", False, False),
        ("mistral", "mistral", False, True),
        ("phi3", "plain", False, True),
        ("phi4_mini", "listed", False, True),
        ("qwen3", "hermes", True, True),
        ("smollm3", "hermes", True, True),
    ],
)
def test_what_a_template_says_of_replies(name: str, format_: str, has_channel: bool, is_parallel: bool) -> None:
    style = reply_style(ChatTemplate(source_of(name), TOKENS))
    assert style.format.name == format_
    assert (style.reasoning is not None) == has_channel
    assert style.is_parallel == is_parallel
