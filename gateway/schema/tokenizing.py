"""The bodies of POST /v1/tokenize and /v1/detokenize in vLLM's and llama.cpp's words. Knows no token.

vLLM's tokenizer speaks of a `prompt` or of `messages`, llama.cpp's of `content`; a reply has the fields of both.
"""

from __future__ import annotations

from dataclasses import dataclass

from ortserve.gateway.errors import bad_request, unsupported_parameter
from ortserve.gateway.schema.caching import CacheWish
from ortserve.gateway.schema.chat import ChatRequest, read_continuation, read_template_options
from ortserve.gateway.schema.drafting import DraftWish
from ortserve.gateway.schema.fields import Fields, missing
from ortserve.gateway.schema.messages import read_messages
from ortserve.gateway.schema.sampling import Vocabulary, read_token_ids
from ortserve.gateway.schema.tools import read_tool_use
from ortserve.runtime.request import SamplingParams

MAX_TEXT_LENGTH = 1 << 20  # characters: half a second of a worker's time
SOURCES = ("prompt", "content", "messages")


@dataclass(frozen=True, slots=True)
class TokenizeRequest:
    """A text, or a conversation whose prompt is wanted. `model` None is the served one."""

    model: str | None
    source: str | ChatRequest
    adds_special_tokens: bool  # of a text: a template writes its own
    names_tokens: bool
    with_pieces: bool


@dataclass(frozen=True, slots=True)
class DetokenizeRequest:
    """Ids whose text is wanted."""

    model: str | None
    ids: tuple[int, ...]


def read_tokenize(fields: Fields, vocabulary: Vocabulary) -> TokenizeRequest:
    """Validate a whole body; `ApiError` (400) names the first field that is wrong or not supported."""
    model = fields.string("model")
    for name, advice in (
        ("chat_template", "the operator chooses it with `serve --chat-template`."),
        ("mm_processor_kwargs", "this model reads text only."),
    ):
        if fields.has(name):
            raise unsupported_parameter(name, f"is not supported: {advice}")
    if not fields.boolean("parse_special", default=True):
        raise unsupported_parameter("parse_special", "cannot be false: special tokens are always read from the text.")
    texts = {name: fields.string(name, max_length=MAX_TEXT_LENGTH) for name in ("prompt", "content")}
    given = [name for name in SOURCES if fields.get(name) is not None]
    if not given:
        raise missing("prompt")
    if len(given) > 1:
        message = f"Invalid '{given[1]}': '{given[0]}' and '{given[1]}' cannot be given together."
        raise bad_request(message, param=given[1], code="invalid_value")
    adds = fields.boolean("add_special_tokens", default=given[0] == "prompt")
    adds = fields.boolean("add_special", default=adds)
    if given[0] == "messages" and adds:
        param = "add_special_tokens" if fields.has("add_special_tokens") else "add_special"
        raise unsupported_parameter(param, "cannot be true with 'messages': the chat template writes special tokens.")
    text = texts.get(given[0])
    source = _read_chat(fields, model, vocabulary) if text is None else text
    return TokenizeRequest(
        model, source, adds, fields.boolean("return_token_strs"), fields.boolean("with_pieces")
    )  # fmt: skip


def read_detokenize(fields: Fields, vocabulary: Vocabulary) -> DetokenizeRequest:
    """Validate a whole body. No tokens at all are an empty text."""
    model = fields.string("model")
    values = fields.array("tokens", "an array of integers")
    if values is None:
        raise missing("tokens")
    if len(values) > MAX_TEXT_LENGTH:
        message = (
            f"Invalid 'tokens': array too long. Expected an array with maximum length {MAX_TEXT_LENGTH}, but got an "
            f"array with length {len(values)} instead."
        )
        raise bad_request(message, param="tokens", code="array_above_max_length")
    return DetokenizeRequest(model, read_token_ids(values, "tokens", vocabulary) if values else ())


def _read_chat(fields: Fields, model: str | None, vocabulary: Vocabulary) -> ChatRequest:
    messages = read_messages(fields, vocabulary)
    continues = read_continuation(fields, messages)
    return ChatRequest(
        model=model or "",
        messages=messages,
        sampling=SamplingParams(),
        num_choices=1,
        stops=(),
        stream=False,
        include_usage=False,
        template_options=read_template_options(fields),
        add_generation_prompt=fields.boolean("add_generation_prompt", default=not continues),
        cache=CacheWish(),
        draft=DraftWish(),
        continue_final_message=continues,
        tools=read_tool_use(fields),
    )
