"""The outside of a graph that another exporter made: what its inputs and outputs are called, and what they want.

Such a graph computes `B` rows of `S` new tokens after `P` stored ones, with padding where rows are shorter:

| input | shape | meaning |
|---|---|---|
| input_ids | [B, S] | new tokens, then padding |
| attention_mask | [B, P + S] | 1 where there is a token |
| position_ids | [B, S] | absolute position of each new token |
| last_places | [B] | tokens of the row after this run, minus one (GroupQueryAttention's seqlens_k) |
| total_length | [] or [1] | P + S |
| past_key, past_value, for each layer | [B, kv_heads, P, head_dim] | what is stored of the row, beside padding |

Outputs: logits `[B, S, vocab_size]`, present_key and present_value `[B, kv_heads, P + S, head_dim]`. Nothing is updated
in place. With attention "concatenated" new tokens follow the P places, so that the padding of a row lies before what it
stores; with "grouped" (GroupQueryAttention) they follow the row's own tokens, and the padding lies behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Attention = Literal["concatenated", "grouped"]


@dataclass(frozen=True, slots=True)
class PaddedGraph:
    """Names of inputs and outputs; None: the graph has no such input. Names of layers hold `{layer}`."""

    attention: Attention
    input_ids: str
    logits: str
    past_key: str
    past_value: str
    present_key: str
    present_value: str
    attention_mask: str | None = None
    position_ids: str | None = None
    last_places: str | None = None
    total_length: str | None = None
    total_length_rank: Literal[0, 1] = 0
    integers: Literal["int32", "int64"] = "int64"  # of ids, mask and positions
    floats: Literal["float32", "float16"] = "float32"  # of past and present; rows store float32 either way
    logit_floats: Literal["float32", "float16"] = "float32"

    @property
    def wants_equal_lengths(self) -> bool:
        """Nothing tells the graph where a row's tokens lie or which positions they have: P is the same for all rows."""
        if self.attention == "grouped":
            return False
        return self.attention_mask is None or self.position_ids is None
