"""Chat templates against texts written out by hand from transformers' rules."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ortserve.gateway.errors import ApiError
from ortserve.gateway.prompts.template import ChatTemplate
from ortserve.gateway.prompts.template_files import load_chat_template
from ortserve.gateway.schema.chat import read_template_options
from ortserve.gateway.schema.fields import Fields
from ortserve.runtime.errors import ModelError
from tests.gateway.scripted import CHATML

HELLO = [{"role": "user", "content": "hi"}]
ONE_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be first.') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"
)


def render(source: str, messages: list[dict[str, Any]] | None = None, **options: object) -> str:
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    return template.render(messages or HELLO, add_generation_prompt=True, options=options)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (CHATML, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"),
        ("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", "<s>hi</s>"),
        # trim_blocks eats the newline after a block, lstrip_blocks the blanks before one
        ("a\n  {% if true %}\nb\n  {% endif %}\nc\n", "a\nb\nc"),
        ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "hi!"),
        ("{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}", "21"),
        ('{{ {"a": "<é>", "b": 1} | tojson }}', '{"a": "<é>", "b": 1}'),
        ('{{ {"b": 1, "a": [2]} | tojson(indent=1, sort_keys=true) }}', '{\n "a": [\n  2\n ],\n "b": 1\n}'),
        ('{{ {"b": 1} | tojson(separators=(",", ":")) }}', '{"b":1}'),
        ('{{ "é" | tojson(true) }}', '"\\u00e9"'),
        ("{{ tools is none }}{{ documents is none }}{{ unknown is defined }}", "TrueTrueFalse"),
        ("{{ strftime_now('%Y') | length }}", "4"),
    ],
)
def test_renders_as_transformers_does(source: str, expected: str) -> None:
    assert render(source) == expected


def test_options_reach_the_template() -> None:
    assert render("{{ enable_thinking }}", enable_thinking=False) == "False"


def test_effort_is_an_option_beside_those_of_the_request() -> None:
    def read(**fields: Any) -> Mapping[str, object]:
        return read_template_options(Fields(fields))

    assert read() == read(reasoning_effort=None, chat_template_kwargs=None) == {}
    assert read(reasoning_effort="low") == {"reasoning_effort": "low"}
    assert read(reasoning_effort="none") == {"reasoning_effort": "none", "enable_thinking": False}
    own = {"enable_thinking": True, "style": "terse"}
    assert read(reasoning_effort="none", chat_template_kwargs=own) == {"reasoning_effort": "none", **own}


@pytest.mark.parametrize("name", ["messages", "tools", "bos_token", "add_generation_prompt"])
def test_options_cannot_replace_what_the_server_sets(name: str) -> None:
    with pytest.raises(ApiError, match=name):
        ChatTemplate("x", {}).render(HELLO, add_generation_prompt=True, options={name: "y"})


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('Roles must alternate.') }}", "Roles must alternate."),
        ("{{ messages[0].content + 1 }}", "concatenate"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for i in range(10000000) %}{% endfor %}", "Range too big"),
    ],
)
def test_refusals_are_the_clients_to_read(source: str, reason: str) -> None:
    with pytest.raises(ApiError) as caught:
        render(source)
    assert caught.value.problem.status == 400
    assert caught.value.problem.param == "messages"
    assert reason in caught.value.problem.message


def test_system_messages_are_merged_for_templates_that_allow_one() -> None:
    messages = [
        {"role": "system", "content": "A"},
        {"role": "user", "content": "q"},
        {"role": "system", "content": "B"},
    ]
    assert render(ONE_SYSTEM, messages) == "[system]A\n\nB[user]q"


def write_config(folder: Path, **config: object) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def load(folder: Path) -> str:
    template = load_chat_template(folder)
    assert template is not None
    return template.render(HELLO, add_generation_prompt=False, options={})


def test_the_template_comes_from_the_tokenizer_config(tmp_path: Path) -> None:
    write_config(tmp_path, chat_template="{{ eos_token }}{{ bos_token }}", eos_token={"content": "E"}, bos_token="B")
    assert load(tmp_path) == "EB"


def test_the_default_of_several_templates_is_taken(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    write_config(tmp_path, chat_template=named)
    assert load(tmp_path) == "D"


def test_a_template_file_wins(tmp_path: Path) -> None:
    write_config(tmp_path, chat_template="config")
    (tmp_path / "chat_template.jinja").write_text("file")
    assert load(tmp_path) == "file"


def test_tools_have_a_template_of_their_own_if_there_is_one(tmp_path: Path) -> None:
    write_config(tmp_path, chat_template=[{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}])
    (tmp_path / "additional_chat_templates").mkdir()
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    template = load_chat_template(tmp_path)
    assert template is not None
    assert template.render(HELLO, add_generation_prompt=False, options={}, tools=[tool]) == "T"
    assert template.render(HELLO, add_generation_prompt=False, options={}) == "D"
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools[0].function.name }}")
    template = load_chat_template(tmp_path)
    assert template is not None
    assert template.render(HELLO, add_generation_prompt=False, options={}, tools=[tool]) == "f"


def test_the_operators_template_wins(tmp_path: Path) -> None:
    write_config(tmp_path, chat_template="config", eos_token="E")
    (tmp_path / "own.jinja").write_text("own {{ eos_token }}")
    template = load_chat_template(tmp_path, tmp_path / "own.jinja")
    assert template is not None
    assert template.render(HELLO, add_generation_prompt=False, options={}) == "own E"
    with pytest.raises(ModelError, match="--chat-template"):
        load_chat_template(tmp_path, tmp_path / "absent.jinja")


def test_a_model_may_have_no_template(tmp_path: Path) -> None:
    assert load_chat_template(tmp_path) is None
    write_config(tmp_path, bos_token="B")
    assert load_chat_template(tmp_path) is None


@pytest.mark.parametrize("template", ["{% if %}", [{"name": "rag", "template": "x"}]])
def test_unusable_templates_are_model_errors(tmp_path: Path, template: object) -> None:
    write_config(tmp_path, chat_template=template)
    with pytest.raises(ModelError, match="template"):
        load_chat_template(tmp_path)


def test_a_damaged_config_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelError, match="export the model again"):
        load_chat_template(tmp_path)
