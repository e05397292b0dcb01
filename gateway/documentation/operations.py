"""Every endpoint in one line: what it is for and what it answers. Knows no handler."""

from __future__ import annotations

from dataclasses import dataclass

from ortserve.gateway.answers.admin_models import ManagedModel, ManagedModels
from ortserve.gateway.answers.anthropic import MessageReply, TokenCountReply
from ortserve.gateway.answers.batches import BatchReply
from ortserve.gateway.answers.cache import ClearedReply, EntriesReply, StatsReply, WarmedReply
from ortserve.gateway.answers.chat import ChatReply
from ortserve.gateway.answers.completions import CompletionReply
from ortserve.gateway.answers.conversations import ConversationReply
from ortserve.gateway.answers.deleted import DeletedReply
from ortserve.gateway.answers.embeddings import EmbeddingReply
from ortserve.gateway.answers.files import FileReply
from ortserve.gateway.answers.lists import ListReply
from ortserve.gateway.answers.models import EncoderReply, ModelList, ModelReply
from ortserve.gateway.answers.responses import InputTokensReply, ResponseReply
from ortserve.gateway.answers.scoring import RerankReply, ScoreReply
from ortserve.gateway.answers.tokenizing import DetokenizeReply, TokenizeReply, TokenizerInfoReply


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. `reply` None: any JSON object; a word: that media type."""

    method: str
    path: str
    summary: str
    reply: object = None
    streams: bool = False  # server-sent events, with `stream`


OPERATIONS = (
    Operation("POST", "/v1/chat/completions", "Answer a conversation", ChatReply, streams=True),
    Operation("GET", "/v1/chat/completions", "Kept chat completions", ListReply),
    Operation("GET", "/v1/chat/completions/{id}", "A kept chat completion", ChatReply),
    Operation("POST", "/v1/chat/completions/{id}", "Change its metadata", ChatReply),
    Operation("DELETE", "/v1/chat/completions/{id}", "Forget a chat completion", DeletedReply),
    Operation("GET", "/v1/chat/completions/{id}/messages", "What it answers", ListReply),
    Operation("POST", "/v1/completions", "Continue or judge prompts", CompletionReply, streams=True),
    Operation("POST", "/v1/messages", "Answer a conversation (Anthropic)", MessageReply, streams=True),
    Operation("POST", "/v1/messages/count_tokens", "Count a conversation's tokens (Anthropic)", TokenCountReply),
    Operation("POST", "/v1/responses", "Answer items, and keep the answer", ResponseReply, streams=True),
    Operation("POST", "/v1/responses/input_tokens", "Count the tokens of such a call", InputTokensReply),
    Operation("GET", "/v1/responses/{id}", "A kept response, or its events", ResponseReply, streams=True),
    Operation("DELETE", "/v1/responses/{id}", "Forget a response", DeletedReply),
    Operation("POST", "/v1/responses/{id}/cancel", "End a response in the background", ResponseReply),
    Operation("GET", "/v1/responses/{id}/input_items", "What a response was given", ListReply),
    Operation("POST", "/v1/conversations", "Begin a conversation", ConversationReply),
    Operation("GET", "/v1/conversations/{id}", "A conversation", ConversationReply),
    Operation("POST", "/v1/conversations/{id}", "Change its metadata", ConversationReply),
    Operation("DELETE", "/v1/conversations/{id}", "Forget a conversation", DeletedReply),
    Operation("POST", "/v1/conversations/{id}/items", "Add items", ListReply),
    Operation("GET", "/v1/conversations/{id}/items", "Its items", ListReply),
    Operation("GET", "/v1/conversations/{id}/items/{item_id}", "One item"),
    Operation("DELETE", "/v1/conversations/{id}/items/{item_id}", "Remove an item", ConversationReply),
    Operation("POST", "/v1/files", "Upload a file (multipart/form-data)", FileReply),
    Operation("GET", "/v1/files", "All files", ListReply),
    Operation("GET", "/v1/files/{id}", "A file's record", FileReply),
    Operation("DELETE", "/v1/files/{id}", "Delete a file", DeletedReply),
    Operation("GET", "/v1/files/{id}/content", "A file's bytes", "application/octet-stream"),
    Operation("POST", "/v1/batches", "Run the requests of a file", BatchReply),
    Operation("GET", "/v1/batches", "All batches", ListReply),
    Operation("GET", "/v1/batches/{id}", "A batch", BatchReply),
    Operation("POST", "/v1/batches/{id}/cancel", "Run no more of a batch", BatchReply),
    Operation("POST", "/v1/embeddings", "Embed texts", EmbeddingReply),
    Operation("POST", "/v1/rerank", "Order documents by a query", RerankReply),
    Operation("POST", "/v1/score", "Score pairs of texts", ScoreReply),
    Operation("POST", "/v1/tokenize", "The tokens of a text or a conversation", TokenizeReply),
    Operation("POST", "/v1/detokenize", "The text of tokens", DetokenizeReply),
    Operation("GET", "/v1/tokenizer_info", "Special tokens and chat template", TokenizerInfoReply),
    Operation("GET", "/v1/models", "The served models", ModelList),
    Operation("GET", "/v1/models/{id}", "One model", ModelReply | EncoderReply),
    Operation("GET", "/health", "Whether requests are taken"),
    Operation("GET", "/health/live", "Whether the process need not be restarted"),
    Operation("GET", "/health/ready", "Whether requests are taken"),
    Operation("GET", "/", "Whether requests are taken"),
    Operation("GET", "/metrics", "Counters for Prometheus", "text/plain"),
    Operation("GET", "/openapi.json", "This document"),
    Operation("GET", "/docs", "This document for readers", "text/html"),
    Operation("GET", "/admin/cache/stats", "Counters of the prompt cache", StatsReply),
    Operation("GET", "/admin/cache/entries", "What the prompt cache holds", EntriesReply),
    Operation("POST", "/admin/cache/clear", "Forget cached prefixes", ClearedReply),
    Operation("POST", "/admin/cache/warm", "Compute a prefix and keep it", WarmedReply),
    Operation("GET", "/admin/models", "All models, and the memory they share", ManagedModels),
    Operation("POST", "/admin/models/load", "Load a model", ManagedModel),
    Operation("POST", "/admin/models/unload", "Let go of a model", ManagedModel),
    Operation("POST", "/admin/models/swap", "Put another model in the place of one", ManagedModel),
)


def operation_of(method: str, path: str) -> Operation | None:
    """None for an endpoint that nobody has described."""
    return next((one for one in OPERATIONS if (one.method, one.path) == (method, path)), None)
