"""A reply that goes on from the last message: the prompt ends with that message's text, or the template is refused."""

from __future__ import annotations

import asyncio

import pytest

from ortserve.gateway.errors import ApiError
from ortserve.gateway.pool import WorkPool
from ortserve.gateway.prompts.prompt import ChatPrompt, PromptEncoder
from ortserve.gateway.prompts.template import ChatTemplate
from ortserve.gateway.schema.anthropic import read_counted_call
from ortserve.gateway.schema.fields import Fields
from ortserve.gateway.schema.sampling import SamplingDefaults, Vocabulary
from tests.gateway.scripted import CHATML, make_tokenizer
from tests.gateway.test_breakpoints import HEADERS, INSTRUCTIONS, SPECIAL

TOKENIZER = make_tokenizer()


def encode(source: str, content: object) -> ChatPrompt:
    messages = [{"role": "user", "content": "Question?"}, {"role": "assistant", "content": content}]
    body = Fields({"model": "m", "system": "Rules.", "messages": messages})
    request = read_counted_call(body, SamplingDefaults(), Vocabulary(1000, 4096))
    pool = WorkPool()
    encoder = PromptEncoder(TOKENIZER, ChatTemplate(source, SPECIAL), pool, max_context=10_000, empty_prompt=0)
    try:
        return asyncio.run(encoder.encode_chat(request, num_body_bytes=100))
    finally:
        pool.close()


def shown(ids: tuple[int, ...]) -> str:
    # Ids of special tokens have no bytes: nothing after the last word but what the template has put there.
    return b"".join(map(TOKENIZER.token_bytes, ids)).decode()


@pytest.mark.parametrize("source", [CHATML, HEADERS, INSTRUCTIONS])
@pytest.mark.parametrize("content", ["Half a sen", "", "  indented", "two\n\nlines \ue000 and \ue008 strangers"])
def test_the_prompt_ends_where_the_text_ends(source: str, content: str) -> None:
    text = shown(encode(source, content).ids)
    assert text.endswith(content.strip())
    assert text.count("Question?") == text.count("Rules.") == 1
    rest = text[text.index("Question?") :].removesuffix(content.strip())
    assert "\ue008" not in rest


@pytest.mark.parametrize("source", [CHATML, HEADERS, INSTRUCTIONS])
def test_a_breakpoint_at_its_end_covers_it(source: str) -> None:
    mark = {"type": "ephemeral"}
    prompt = encode(
        source, [{"type": "text", "text": "One.", "cache_control": mark}, {"type": "text", "text": " Two."}]
    )
    (point,) = prompt.breakpoints
    assert shown(prompt.ids[: point.num_tokens]).endswith("One.")
    assert shown(prompt.ids).endswith("One. Two.")


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}",
        "{% for m in messages %}{% if m.role != 'assistant' %}{{ m.content }}{% endif %}{% endfor %}",
        "{% for m in messages %}{{ m.content | trim('. \ue008') }}{% endfor %}",
    ],
)
def test_a_template_that_shows_other_text_is_refused(source: str) -> None:
    with pytest.raises(ApiError, match="does not let a reply go on") as caught:
        encode(source, "Half a sen.")
    assert caught.value.problem.status == 400
    assert caught.value.problem.param == "messages"
