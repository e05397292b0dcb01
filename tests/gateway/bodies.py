"""Bodies that together use every field each endpoint honours, and one for each field it refuses. Knows no server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from ortserve.gateway.request_fields.items import MEDIA
from ortserve.gateway.request_fields.messages import OTHER_RESULTS, OTHER_TOOLS
from ortserve.gateway.routes.admin import read_clear
from ortserve.gateway.schema.admin_models import read_load, read_swap, read_unload
from ortserve.gateway.schema.anthropic import read_counted_call, read_message_call
from ortserve.gateway.schema.batches import read_batch_call
from ortserve.gateway.schema.chat import read_chat
from ortserve.gateway.schema.completions import read_completion
from ortserve.gateway.schema.conversations import read_conversation_call, read_new_items
from ortserve.gateway.schema.embeddings import read_embedding
from ortserve.gateway.schema.fields import Fields
from ortserve.gateway.schema.metadata import read_new_metadata
from ortserve.gateway.schema.responses import read_response_call
from ortserve.gateway.schema.sampling import SamplingDefaults, Vocabulary
from ortserve.gateway.schema.scoring import read_rerank, read_score
from ortserve.gateway.schema.tokenizing import read_detokenize, read_tokenize
from ortserve.gateway.served.warming import read_warm

Body: TypeAlias = dict[str, Any]

DEFAULTS, VOCABULARY = SamplingDefaults(), Vocabulary(300, 512)
READERS: Mapping[str, Callable[[Fields], object]] = {
    "/v1/chat/completions": lambda fields: read_chat(fields, DEFAULTS, VOCABULARY),
    "/v1/completions": lambda fields: read_completion(fields, DEFAULTS, VOCABULARY),
    "/v1/messages": lambda fields: read_message_call(fields, DEFAULTS, VOCABULARY),
    "/v1/messages/count_tokens": lambda fields: read_counted_call(fields, DEFAULTS, VOCABULARY),
    "/v1/responses": lambda fields: read_response_call(fields, DEFAULTS, VOCABULARY),
    "/v1/batches": read_batch_call,
    "/v1/conversations": read_conversation_call,
    "/v1/chat/completions/{id}": read_new_metadata,
    "/v1/conversations/{id}": read_new_metadata,
    "/v1/conversations/{id}/items": read_new_items,
    "/v1/embeddings": read_embedding,
    "/v1/rerank": read_rerank,
    "/v1/score": read_score,
    "/v1/tokenize": lambda fields: read_tokenize(fields, VOCABULARY),
    "/v1/detokenize": lambda fields: read_detokenize(fields, VOCABULARY),
    "/admin/cache/warm": lambda fields: read_warm(fields, VOCABULARY, whose=lambda key: b"me"),
    "/admin/cache/clear": read_clear,
    "/admin/models/load": read_load,
    "/admin/models/unload": read_unload,
    "/admin/models/swap": read_swap,
}

USER: Body = {"role": "user", "content": "hi"}
CHAT: Body = {"model": "m", "messages": [USER]}
TEXT: Body = {"model": "m", "prompt": "hi"}
MESSAGES: Body = {"model": "m", "max_tokens": 9, "messages": [USER]}
EXTENSIONS: Body = {
    "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 1, "stop_token_ids": [7], "ignore_eos": True,
    "cache_salt": "a", "speculative": {"max_draft": 2},
}  # fmt: skip
CHOOSING: Body = {
    "temperature": 0.5, "top_p": 0.9, "frequency_penalty": 0.1, "presence_penalty": 0.1, "logit_bias": {"5": 1},
    "seed": 1, "n": 2, "stop": ["x"], "stream": True, "stream_options": {"include_usage": True},
}  # fmt: skip
CACHING: Body = {
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "implicit", "ttl": "30m"},
    "prompt_cache_retention": "in_memory",
}
PREWARM: Body = {"prompt_cache_options": {"prewarm": True}}
BREAKPOINT: Body = {"prompt_cache_breakpoint": {"mode": "explicit", "ttl": "12h"}}
CONTROL: Body = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}

ITEMS: list[Body] = [
    {
        "type": "message", "id": "msg_1", "status": "completed", "role": "user", "phase": "commentary",
        "content": [{"type": "input_text", "text": "hi", **BREAKPOINT}],
    },
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
    {"type": "function_call", "call_id": "1", "name": "f", "namespace": "n", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "42", **BREAKPOINT}]},
    {"type": "custom_tool_call", "call_id": "2", "name": "g", "input": "x"},
]  # fmt: skip
CONVERSATION: list[Body] = [
    {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "hi", **BREAKPOINT}]},
    {
        "role": "assistant",
        "content": [{"type": "refusal", "refusal": "no"}],
        "reasoning_content": "hm",
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "2", "type": "custom", "custom": {"name": "f", "input": "x"}},
        ],
    },
    {"role": "assistant", "refusal": "no", "reasoning": "hm", "function_call": {"name": "f", "arguments": "{}"}},
    {"role": "tool", "tool_call_id": "1", "content": "42"},
]
SCHEMA: Body = {"name": "s", "schema": {"type": "object"}, "strict": True, "description": "d"}
FORMS: tuple[Body, ...] = (
    {"response_format": {"type": "json_schema", "json_schema": SCHEMA}},
    {"guided_json": {"type": "object"}},
    {"guided_regex": "a+"},
    {"guided_choice": ["a", "b"]},
    {"guided_grammar": 'start: "a"'},
)
GRAMMAR: Body = {"type": "grammar", "grammar": {"syntax": "regex", "definition": "a+"}}
FUNCTION: Body = {"name": "f", "description": "d", "parameters": {"type": "object"}}
TOOLS: list[Body] = [
    {"type": "function", "function": {**FUNCTION, "strict": True}},
    {"type": "custom", "custom": {"name": "c", "description": "d", "format": GRAMMAR}},
]
CHOSEN: list[Body] = [
    {"type": "function", "function": {"name": "f"}},
    {"type": "custom", "custom": {"name": "c"}},
]
BLOCKS: list[Body] = [{"type": "text", "text": "hi", **CONTROL}]

RERANK: Body = {"model": "m", "query": "a", "documents": ["b"]}

HONOURED: Mapping[str, tuple[Body, ...]] = {
    "/v1/batches": (
        {
            "input_file_id": "f", "endpoint": "/v1/responses", "completion_window": "24h", "metadata": {"a": "b"},
            "output_expires_after": {"anchor": "created_at", "seconds": 3600},
        },
    ),
    "/v1/conversations": ({"items": ITEMS, "metadata": {"a": "b"}},),
    "/v1/chat/completions/{id}": ({"metadata": {"a": "b"}},),
    "/v1/conversations/{id}": ({"metadata": {"a": "b"}},),
    "/v1/conversations/{id}/items": ({"items": ITEMS},),
    "/v1/embeddings": (
        {
            "model": "m", "input": ["a"], "encoding_format": "base64", "dimensions": 2, "truncate_prompt_tokens": 9,
            "prompt_name": "query",
        },
    ),
    "/v1/rerank": (
        {
            **RERANK, "documents": ["b", {"text": "c"}], "top_n": 1, "return_documents": True,
            "max_tokens_per_doc": 9, "truncate_prompt_tokens": 9,
        },
    ),
    "/v1/score": ({"model": "m", "text_1": "a", "text_2": ["b"], "truncate_prompt_tokens": 9},),
    "/v1/tokenize": (
        {"model": "m", "prompt": "hi", "add_special_tokens": True, "return_token_strs": True},
        {"content": "hi", "add_special": True, "with_pieces": True},
        {
            "messages": CONVERSATION, "tools": TOOLS, "reasoning_effort": "low", "chat_template_kwargs": {"a": 1},
            "add_generation_prompt": True,
            "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": CHOSEN}},
        },
        *({"messages": [USER], "tools": TOOLS, "tool_choice": chosen} for chosen in CHOSEN),
        {"messages": [USER], "functions": [FUNCTION], "function_call": {"name": "f"}},
        {"messages": [USER, {"role": "assistant", "content": "Well"}], "continue_final_message": True},
    ),
    "/v1/detokenize": ({"model": "m", "tokens": [1, 2]},),
    "/v1/chat/completions": (
        {
            **CHAT, **CHOOSING, **EXTENSIONS, **CACHING,
            "messages": CONVERSATION,
            "max_completion_tokens": 9, "max_tokens": 8, "logprobs": True, "top_logprobs": 2,
            "reasoning_effort": "low", "store": True, "metadata": {"a": "b"},
            "prediction": {"type": "content", "content": [{"type": "text", "text": "hello"}]},
            "chat_template_kwargs": {"a": 1}, "add_generation_prompt": True, "include_reasoning": False,
            "tools": TOOLS, "parallel_tool_calls": False,
            "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": CHOSEN}},
        },
        *({**CHAT, "tools": TOOLS, "tool_choice": chosen} for chosen in CHOSEN),
        {**CHAT, "functions": [FUNCTION], "function_call": {"name": "f"}},
        {**CHAT, "messages": [USER, {"role": "assistant", "content": "Well"}], "continue_final_message": True},
        *({**CHAT, **form} for form in FORMS),
    ),
    "/v1/completions": (
        {**TEXT, **CHOOSING, **EXTENSIONS, **CACHING, "max_tokens": 8, "echo": True},
        {**TEXT, "logprobs": 2, "best_of": 3, "suffix": "x"},
        *({**TEXT, **form} for form in FORMS),
    ),
    "/v1/messages": (
        {
            **MESSAGES, **EXTENSIONS, **CONTROL,
            "messages": [
                {"role": "user", "content": BLOCKS},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "hm"}, {"type": "tool_use", "id": "1", "name": "f", "input": {}},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "1", "content": BLOCKS, "is_error": True},
                ]},
            ],
            "tools": [{"type": "custom", "name": "f", "description": "d", "input_schema": {}, "strict": True}],
            "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
            "system": BLOCKS,
            "stop_sequences": ["x"], "stream": True, "temperature": 0.5, "top_p": 0.9,
            "thinking": {"type": "adaptive"}, "output_config": {"format": {"type": "json_schema", "schema": {}}},
            "frequency_penalty": 0.1, "presence_penalty": 0.1, "logit_bias": {"5": 1}, "seed": 1,
        },
        {**MESSAGES, "output_format": {"type": "json_schema", "schema": {}}},
    ),
    "/v1/responses": (
        {
            **EXTENSIONS, **CACHING,
            "model": "m", "input": "hi", "instructions": "be brief", "previous_response_id": "resp_1", "store": True,
            "background": True, "max_output_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_logprobs": 2,
            "include": ["message.output_text.logprobs"], "stream": True, "stream_options": {"include_usage": True},
            "text": {"verbosity": "low", "format": {"type": "json_schema", **SCHEMA}},
            "reasoning": {"effort": "low", "summary": "auto"},
            "tools": [{"type": "custom", "name": "c"}, {"type": "function", "name": "f"}], "tool_choice": "auto",
            "parallel_tool_calls": True, "max_tool_calls": 1, "truncation": "auto",
            "metadata": {"a": "b"}, "safety_identifier": "x", "user": "me",
            "frequency_penalty": 0.1, "presence_penalty": 0.1, "logit_bias": {"5": 1}, "seed": 1, "stop": "x",
            "prediction": {"type": "content", "content": "x"}, "chat_template_kwargs": {"a": 1},
        },
        {"input": "hi", "conversation": {"id": "conv_1"}, "reasoning": {"generate_summary": "auto"}},
        {"input": ITEMS},
    ),
    "/admin/cache/warm": (
        {"messages": CONVERSATION, "ttl": "1h", "api_key": "k", "cache_salt": "s"},
        {"prompt": "hi"},
    ),
    "/admin/cache/clear": ({"api_key": "k", "cache_salt": "s"},),
    "/admin/models/load": (
        {"model": "m", "wait": False}, {"source": "s", "name": "n", "aliases": ["a"], "pinned": True},
    ),
    "/admin/models/unload": ({"model": "m", "drain": 2.5},),
    "/admin/models/swap": ({"model": "m", "source": "s", "drain": 2.5},),
}  # fmt: skip


def _part(**part: Any) -> Body:
    return {**CHAT, "messages": [{"role": "user", "content": [part]}]}


def _block(**block: Any) -> Body:
    return {**MESSAGES, "messages": [{"role": "user", "content": [block]}]}


FOREIGN = {name: {name: "x"} for name in ("structured_outputs", "grammar", "json_schema")}
CONSTRAINTS = {
    **{name: {name: "x"} for name in ("guided_json", "guided_regex", "guided_choice", "guided_grammar")},
    **FOREIGN,
}


def _media_of(key: str) -> dict[str, Body]:
    """Parts of items that are no text, in both places that have parts."""
    file = "input_file"
    contents: dict[str, Body] = {
        f"{key}[].content[].{name}": {key: [{"role": "user", "content": [{"type": file, name: "x"}]}]} for name in MEDIA
    }
    outputs: dict[str, Body] = {
        f"{key}[].output[].{name}": {
            key: [{"type": "function_call_output", "call_id": "1", "output": [{"type": file, name: "x"}]}]
        }
        for name in MEDIA
    }
    return contents | outputs


REFUSED: Mapping[str, Mapping[str, Body]] = {
    "/v1/batches": {},
    "/v1/conversations": _media_of("items"),
    "/v1/chat/completions/{id}": {},
    "/v1/conversations/{id}": {},
    "/v1/conversations/{id}/items": _media_of("items"),
    "/v1/embeddings": {},
    "/v1/rerank": {
        "rank_fields": {**RERANK, "rank_fields": ["title"]},
        "max_chunks_per_doc": {**RERANK, "max_chunks_per_doc": 3},
    },
    "/v1/score": {},
    "/v1/tokenize": {
        **{
            f"messages[].content[].{name}": {"messages": [{"role": "user", "content": [{"type": name, name: {}}]}]}
            for name in ("image_url", "input_audio", "file")
        },
        "parse_special": {"prompt": "hi", "parse_special": False},
        "chat_template": {"prompt": "hi", "chat_template": "x"},
        "mm_processor_kwargs": {"prompt": "hi", "mm_processor_kwargs": {"a": 1}},
    },
    "/v1/detokenize": {},
    "/v1/chat/completions": {
        "messages[].content[].image_url": _part(type="image_url", image_url={"url": "x"}),
        "messages[].content[].input_audio": _part(type="input_audio", input_audio={"data": "x"}),
        "messages[].content[].file": _part(type="file", file={"file_id": "x"}),
        "modalities": {**CHAT, "modalities": ["text", "audio"]},
        "audio": {**CHAT, "audio": {"voice": "x", "format": "wav"}},
        "moderation": {**CHAT, "moderation": {"model": "x"}},
        "web_search_options": {**CHAT, "web_search_options": {}},
        "prompt_cache_options.prewarm": {**CHAT, **PREWARM},
        **{name: {**CHAT, **body} for name, body in FOREIGN.items()},
    },
    "/v1/completions": {
        "prompt_cache_options.prewarm": {**TEXT, **PREWARM},
        **{name: {**TEXT, **body} for name, body in FOREIGN.items()},
    },
    "/v1/messages": {
        "messages[].content[].source": _block(type="image", source={}),
        "messages[].content[].caller": _block(type="server_tool_use", caller={}),
        "messages[].content[].toolset_name": _block(type="server_tool_use", toolset_name="x"),
        **{
            f"messages[].content[].content[].{name}": _block(
                type="tool_result", tool_use_id="1", content=[{"type": "other", name: {}}]
            )
            for name in OTHER_RESULTS
        },
        **{
            f"tools[].{name}": {**MESSAGES, "tools": [{"type": "web_search_20250305", "name": "web_search", name: {}}]}
            for name in OTHER_TOOLS
        },
        "messages[].content[].file_id": _block(type="container_upload", file_id="x"),
        "messages[].content[].context": _block(type="document", context="x"),
        "messages[].content[].title": _block(type="document", title="x"),
        "messages[].content[].transformations": _block(type="image", transformations={}),
        "container": {**MESSAGES, "container": "x"},
        "mcp_servers": {**MESSAGES, "mcp_servers": [{"url": "x"}]},
        **{name: {**MESSAGES, **body} for name, body in CONSTRAINTS.items()},
    },
    "/v1/responses": {
        "prompt": {"input": "hi", "prompt": {"id": "x"}},
        "moderation": {"input": "hi", "moderation": {"model": "x"}},
        **_media_of("input"),
        "prompt_cache_options.prewarm": {"input": "hi", **PREWARM},
        **{name: {"input": "hi", **body} for name, body in CONSTRAINTS.items()},
    },
    "/admin/cache/warm": {
        f"messages[].content[].{name}": {"messages": [{"role": "user", "content": [{"type": name, name: {}}]}]}
        for name in ("image_url", "input_audio", "file")
    },
    "/admin/cache/clear": {},
    "/admin/models/load": {},
    "/admin/models/unload": {},
    "/admin/models/swap": {},
}
