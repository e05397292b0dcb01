"""Counts of a call's tokens in OpenAI's nesting. Knows no generation."""

from __future__ import annotations

import msgspec

from ortserve.gateway.replies.generation import TokenUsage


class PromptDetails(msgspec.Struct, frozen=True):
    """How the prompt's tokens were obtained."""

    cached_tokens: int
    cache_write_tokens: int
    audio_tokens: int = 0


class CompletionDetails(msgspec.Struct, frozen=True):
    """Output tokens that drafts guessed right, and guesses that were computed for nothing (not part of the output)."""

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class UsageReply(msgspec.Struct, frozen=True):
    """Token counts of one call."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


def usage_reply(usage: TokenUsage) -> UsageReply:
    """Counts in OpenAI's nesting."""
    return UsageReply(
        prompt_tokens=usage.num_prompt_tokens,
        completion_tokens=usage.num_output_tokens,
        total_tokens=usage.num_prompt_tokens + usage.num_output_tokens,
        prompt_tokens_details=PromptDetails(usage.num_cached_tokens, usage.num_cache_write_tokens),
        completion_tokens_details=CompletionDetails(
            reasoning_tokens=usage.num_reasoning_tokens,
            accepted_prediction_tokens=usage.num_accepted_tokens,
            rejected_prediction_tokens=usage.num_rejected_tokens,
        ),
    )
