"""Marked parts become token counts: always a true prefix of the prompt, ending where the part ends."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ortserve.export.bundled import bundled_model
from ortserve.gateway.pool import WorkPool
from ortserve.gateway.prompts.breakpoints import DEFAULT_TTL_S, common_length
from ortserve.gateway.prompts.prompt import ChatPrompt, PromptEncoder
from ortserve.gateway.prompts.template import ChatTemplate
from ortserve.gateway.prompts.template_files import load_chat_template
from ortserve.gateway.prompts.tokenizer import TextTokenizer, load_tokenizer
from ortserve.gateway.schema.chat import read_chat
from ortserve.gateway.schema.fields import Fields
from ortserve.gateway.schema.sampling import SamplingDefaults, Vocabulary
from tests.gateway.scripted import make_tokenizer

# In the manner of published models: the first says a system message itself, trims, and announces the reply; the second
# writes the system message into the first question, insists on alternation, and refuses a conversation without one.
HEADERS = (
    "{{- bos_token }}"
    "{%- if messages[0].role != 'system' %}{{- '<|h|>system<|e|>\\n\\nBe helpful.<|end|>' }}{%- endif %}"
    "{%- for m in messages %}{{- '<|h|>' + m.role + '<|e|>\\n\\n' + m.content | trim + '<|end|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|h|>assistant<|e|>\\n\\n' }}{%- endif %}"
)
INSTRUCTIONS = (
    "{% if messages[0].role == 'system' %}{% set loop_messages = messages[1:] %}{% set system = messages[0].content %}"
    "{% else %}{% set loop_messages = messages %}{% set system = none %}{% endif %}"
    "{% if not loop_messages %}{{ raise_exception('A question is needed.') }}{% endif %}"
    "{% for m in loop_messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant.') }}{% endif %}"
    "{% if loop.first and system %}{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + m.content %}"
    "{% else %}{% set content = m.content %}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def pocket_text() -> tuple[ChatTemplate, TextTokenizer]:
    template = load_chat_template(bundled_model())
    assert template is not None
    return template, load_tokenizer(bundled_model(), bos_token_id=None, add_bos=False)


TEXTS = {
    "pocket": pocket_text(),
    "headers": (ChatTemplate(HEADERS, SPECIAL), make_tokenizer()),
    "instructions": (ChatTemplate(INSTRUCTIONS, SPECIAL), pocket_text()[1]),
}


def part(text: str, *, marked: bool = False, **options: str) -> dict[str, object]:
    point = {"prompt_cache_breakpoint": {"mode": "explicit", **options}} if marked or options else {}
    return {"type": "text", "text": text, **point}


def encode(name: str, messages: list[dict[str, object]], **fields: object) -> tuple[ChatPrompt, str]:
    """The prompt, and its text as the template writes it."""
    template, tokenizer = TEXTS[name]
    body = {"model": "m", "messages": messages, **fields}
    request = read_chat(Fields(json.loads(json.dumps(body))), SamplingDefaults(), Vocabulary(100_000, 4096))
    pool = WorkPool()
    encoder = PromptEncoder(tokenizer, template, pool, max_context=100_000, empty_prompt=0)
    try:
        prompt = asyncio.run(encoder.encode_chat(request, num_body_bytes=10**6))
    finally:
        pool.close()
    text = template.render(
        [message.template_value() for message in request.messages], add_generation_prompt=True, options={}
    )
    return prompt, text


@pytest.mark.parametrize("name", TEXTS)
def test_a_marked_system_message_ends_where_its_text_ends(name: str) -> None:
    rules = "Answer in one short sentence, and say so when you do not know."
    questions = ["What is 2 + 2?", "Where is Paris?", "\n\nhello"]
    prefixes = []
    for question in questions:
        messages: list[dict[str, object]] = [
            {"role": "system", "content": [part(rules, marked=True)]},
            {"role": "user", "content": question},
        ]
        prompt, text = encode(name, messages)
        (point,) = prompt.breakpoints
        assert point.ttl_s == DEFAULT_TTL_S
        head = text[: text.index(rules) + len(rules)]
        assert prompt.ids[: point.num_tokens] == TEXTS[name][1].encode(head, add_special_tokens=False)
        prefixes.append(prompt.ids[: point.num_tokens])
    assert prefixes[0] == prefixes[1] == prefixes[2]


@pytest.mark.parametrize("name", TEXTS)
def test_parts_in_the_middle_and_at_the_end(name: str) -> None:
    messages: list[dict[str, object]] = [
        {"role": "user", "content": [part("hello wor", marked=True), part("ld, and more  ", ttl="12h")]},
        {"role": "assistant", "content": [part("Yes.", marked=True)]},
        {"role": "user", "content": [part("Go on", ttl="2h")]},
    ]
    prompt, text = encode(name, messages, prompt_cache_options={"ttl": "5m"})
    assert [point.ttl_s for point in prompt.breakpoints] == [300, 12 * 3600, 300, 2 * 3600]
    counts = [point.num_tokens for point in prompt.breakpoints]
    assert counts == sorted(set(counts))
    assert counts[-1] < len(prompt.ids) == len(TEXTS[name][1].encode(text, add_special_tokens=False))
    # The first part ends inside a word, which is one token: the count stops before it.
    tokenizer = TEXTS[name][1]
    shown = b"".join(map(tokenizer.token_bytes, prompt.ids[: counts[0]])).decode("utf-8", "replace")
    assert "hello" in shown
    assert shown.count("ld") == 0


CONTENT = st.text(st.sampled_from("ab \n<|>hello world\ue000\ue001é\U0001f600"), max_size=12)


@pytest.mark.parametrize("name", TEXTS)
@given(contents=st.lists(st.lists(st.tuples(CONTENT, st.booleans()), min_size=1, max_size=3), min_size=1, max_size=4))
@settings(max_examples=40)
def test_counts_are_prefixes_of_the_ids_whatever_is_said(name: str, contents: list[list[tuple[str, bool]]]) -> None:
    messages: list[dict[str, object]] = [
        {"role": ("user", "assistant")[place % 2], "content": [part(text, marked=marked) for text, marked in parts]}
        for place, parts in enumerate(contents)
    ]
    prompt, _ = encode(name, messages)
    plain, _ = encode(
        name, [{**m, "content": "".join(t for t, _ in c)} for m, c in zip(messages, contents, strict=True)]
    )
    assert prompt.ids == plain.ids
    counts = [point.num_tokens for point in prompt.breakpoints]
    assert counts == sorted(set(counts))
    assert len(counts) <= 4
    assert all(0 < count <= len(prompt.ids) for count in counts)


def test_a_part_that_is_not_shown_has_no_breakpoint() -> None:
    template = ChatTemplate("{{ messages[-1].content }}", {})
    TEXTS["last only"] = (template, make_tokenizer())
    try:
        prompt, _ = encode(
            "last only",
            [{"role": "system", "content": [part("rules", marked=True)]}, {"role": "user", "content": "hello"}],
        )
    finally:
        del TEXTS["last only"]
    assert prompt.breakpoints == ()


def test_only_the_latest_four_count() -> None:
    parts = [part(f"number {place}, ", ttl=f"{place + 1}m") for place in range(7)]
    prompt, _ = encode("pocket", [{"role": "user", "content": parts}])
    assert [point.ttl_s for point in prompt.breakpoints] == [240, 300, 360, 420]


@given(st.text("ab", max_size=30), st.text("ab", max_size=30))
def test_the_common_length(first: str, second: str) -> None:
    length = common_length(first, second)
    assert first[:length] == second[:length]
    assert length in (len(first), len(second)) or first[length] != second[length]


@pytest.mark.parametrize("name", TEXTS)
def test_the_beginning_of_conversations_is_a_prefix_of_them(name: str) -> None:
    template, tokenizer = TEXTS[name]
    pool = WorkPool()
    encoder = PromptEncoder(tokenizer, template, pool, max_context=100_000, empty_prompt=0)
    rules: dict[str, object] = {"role": "system", "content": "Be brief. " * 20}
    whole, _ = encode(name, [rules, {"role": "user", "content": "hello"}])
    request = read_chat(Fields({"model": "m", "messages": [rules]}), SamplingDefaults(), Vocabulary(100_000, 4096))
    ids = asyncio.run(encoder.encode_beginning(request.messages))
    shared = common_length(ids, whole.ids)
    assert shared >= len(ids) - 1  # the last one may be merged with what follows
    assert len(tokenizer.encode("Be brief. " * 19, add_special_tokens=False)) < shared
    with_question = (*request.messages, replace(request.messages[0], role="user", content="hello"))
    assert asyncio.run(encoder.encode_beginning(with_question)) == whole.ids
    pool.close()
