"""POST /v1/tokenize and /v1/detokenize, field by field: vLLM's fields and llama.cpp's."""

from __future__ import annotations

from dataclasses import replace

from ortserve.gateway.request_fields.chat import MESSAGES, TOOLS
from ortserve.gateway.request_fields.rules import extension, honoured, ignored, refused, refused_extension, required
from ortserve.gateway.request_fields.shapes import BOOLEAN, OBJECT, STRING, array, integer, string, words
from ortserve.gateway.request_fields.table import FieldTable
from ortserve.gateway.schema.chat import REASONING_EFFORTS
from ortserve.gateway.schema.tokenizing import MAX_TEXT_LENGTH

MODEL = honoured("model", STRING, "absent: the served one")
TEXT = string(MAX_TEXT_LENGTH)

TOKENIZE = FieldTable(
    (
        MODEL,
        honoured("prompt", TEXT, "one of `prompt`, `content` and `messages`"),
        honoured("content", TEXT, "llama.cpp's `prompt`: without special tokens when nothing is said"),
        replace(MESSAGES[0], is_required=False, note="as the prompt of a chat, which must fit the context"),
        *MESSAGES[1:],
        honoured("add_special_tokens", BOOLEAN, "absent: true with `prompt`; never with `messages`"),
        honoured("add_special", BOOLEAN, "the same in llama.cpp's words"),
        refused("parse_special", BOOLEAN, "special tokens are always read from the text", neutral=(True,)),
        honoured("return_token_strs", BOOLEAN, "fills `token_strs`"),
        honoured("with_pieces", BOOLEAN, "each token is an object of `id` and `piece`"),
        *(rule for rule in TOOLS if rule.path != "parallel_tool_calls"),
        ignored("parallel_tool_calls", BOOLEAN, "nothing is generated", neutral=(True, False)),
        honoured("reasoning_effort", words(*REASONING_EFFORTS), "given to the template"),
        extension("chat_template_kwargs", OBJECT, "variables of the chat template"),
        extension("add_generation_prompt", BOOLEAN, "absent: true"),
        extension("continue_final_message", BOOLEAN, "the prompt ends within the last message"),
        refused_extension("chat_template", "the operator chooses it"),
        refused_extension("mm_processor_kwargs", "the model reads text only"),
    )
)
DETOKENIZE = FieldTable(
    (MODEL, required("tokens", array(integer(0), max_items=MAX_TEXT_LENGTH), "special ones are shown by name"))
)
