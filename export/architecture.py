"""What a decoder is made of, as export understands it: sizes, tensor names, options of a layer. Knows no precision.

The values describe a function, not a graph: `decoder` builds the graph from them, `reference` computes with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Positions divided by `factor`."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Frequencies scaled by wavelength, as in Llama 3.1's release."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_context: int


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """Low frequencies divided by `factor`, high ones kept, a ramp between (https://arxiv.org/abs/2309.00071)."""

    factor: float
    original_context: int
    beta_fast: float = 32.0  # pairs that turn more often than this within the original context are kept
    beta_slow: float = 1.0  # pairs that turn less often are divided
    truncate: bool = True  # the ramp begins and ends at whole pairs


@dataclass(frozen=True, slots=True)
class LongRope:
    """One divisor for each pair (https://arxiv.org/abs/2402.13753); requests beyond `original_context` take others."""

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_context: int


@dataclass(frozen=True, slots=True)
class DynamicScaling:
    """Plain frequencies within `original_context`; beyond it the base grows with the length of the request.

    Known as NTK-aware scaling: at s times the original context the base is multiplied by
    (factor s - factor + 1)^(d / (d - 2)), d components being rotated.
    """

    factor: float
    original_context: int


Scaling = LinearScaling | Llama3Scaling | YarnScaling | LongRope | DynamicScaling


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding (https://arxiv.org/abs/2104.09864) and how its frequencies are stretched."""

    theta: float
    rotary_dim: int  # leading components of a head that rotate; even
    scaling: Scaling | None = None
    attention_factor: float = 1.0  # cosines and sines are multiplied by it

    def bounds(self, max_context: int) -> tuple[int, ...]:
        """Tokens that a request may have, prompt and reply, without rotating otherwise: rising, up to `max_context`.

        Dynamic scaling has as many angles as lengths. Requests share those of the next power of two times the original
        context: the angles of a request never change while it grows, so its length is rounded up instead.
        """
        found: list[int] = []
        match self.scaling:
            case LongRope(original_context=bound) if bound < max_context:
                found = [bound]
            case DynamicScaling(original_context=bound):
                while bound < max_context:
                    found.append(bound)
                    bound *= 2
        return (*found, max_context)


@dataclass(frozen=True, slots=True)
class Linear:
    """One matrix product: checkpoint tensors `[rows, columns]` stacked by rows, and their biases."""

    weights: tuple[str, ...]
    biases: tuple[str, ...] = ()  # empty, or one `[rows]` tensor per weight
    rows: tuple[int, int] | None = None  # first and end row of a fused tensor, then the only one; None: all rows
    scale: float = 1.0  # the product, bias included, is multiplied by it


@dataclass(frozen=True, slots=True)
class Norm:
    """RMS norm (https://arxiv.org/abs/1910.07467): the normed value is multiplied by `offset + weight`."""

    weight: str
    width: int
    epsilon: float
    offset: float = 0.0  # Gemma stores weights around 0


@dataclass(frozen=True, slots=True)
class QueryKeyNorm:
    """Norms of queries and keys before they rotate; their widths say whether of a head or of the whole projection."""

    query: Norm
    key: Norm


@dataclass(frozen=True, slots=True)
class Attention:
    """Grouped-query attention (https://arxiv.org/abs/2305.13245)."""

    qkv: Linear  # query, key, value stacked
    output: Linear
    scale: float  # of the scores
    rope: Rope | None  # None: this layer sees no positions
    window: int | None = None  # tokens a query may look back on, itself included
    softcap: float | None = None  # scores s become softcap * tanh(s / softcap)
    norm: QueryKeyNorm | None = None


@dataclass(frozen=True, slots=True)
class Mlp:
    """down(activation(gate(x)) * up(x)) (https://arxiv.org/abs/2002.05202)."""

    gate: Linear
    up: Linear
    down: Linear
    activation: Activation = "silu"


@dataclass(frozen=True, slots=True)
class Experts:
    """Every token goes to the few experts that a router scores highest for it (https://arxiv.org/abs/2101.03961).

    What they compute is summed by the router's probabilities, a softmax over all experts or over the chosen ones.
    """

    router: Linear  # to one score for each expert
    experts: tuple[Mlp, ...]
    intermediate_size: int  # of each expert
    num_active: int  # experts of a token
    normalized: bool  # the probabilities of the chosen experts sum to one


@dataclass(frozen=True, slots=True)
class Layer:
    """Attention, then MLP or experts, each added to the residual stream; norms of what they read and what they add."""

    attention_norm: Norm | None
    attention: Attention
    attention_post_norm: Norm | None
    mlp_norm: Norm | None
    mlp: Mlp | Experts
    mlp_post_norm: Norm | None

    @property
    def mlps(self) -> tuple[Mlp, ...]:
        """The MLP, or all experts."""
        return self.mlp.experts if isinstance(self.mlp, Experts) else (self.mlp,)

    def norms(self) -> Iterator[Norm]:
        """Every norm of the layer, in order of use."""
        of_heads = self.attention.norm
        candidates = (
            self.attention_norm,
            *((of_heads.query, of_heads.key) if of_heads is not None else ()),
            self.attention_post_norm,
            self.mlp_norm,
            self.mlp_post_norm,
        )
        yield from (norm for norm in candidates if norm is not None)


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder of RMS norms, grouped-query attention and gated MLPs or experts."""

    family: str
    hidden_size: int
    intermediate_size: int  # of layers without experts
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int  # rows of the embedding
    max_context: int
    embedding: str
    layers: tuple[Layer, ...]
    final_norm: Norm
    lm_head: str  # equals `embedding` when tied
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None  # scaled logits x become softcap * tanh(x / softcap)

    @property
    def tied(self) -> bool:
        """The embedding is also the output matrix."""
        return self.lm_head == self.embedding

    @property
    def query_size(self) -> int:
        """Components of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Components of all key heads, and of all value heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def num_layer_weights(self) -> int:
        """Components of all matrices in the layers, biases apart."""
        attention = 2 * self.hidden_size * (self.query_size + self.key_size)
        sizes = (
            layer.mlp.intermediate_size * len(layer.mlp.experts)
            if isinstance(layer.mlp, Experts)
            else self.intermediate_size
            for layer in self.layers
        )
        return sum(attention + 3 * self.hidden_size * size for size in sizes)

    @property
    def final_scale(self) -> float:
        """What the last norm can take over: the scale of the logits, and their division by the cap."""
        return self.logit_scale if self.logit_softcap is None else self.logit_scale / self.logit_softcap

    def norms(self) -> Iterator[Norm]:
        """Every norm, in order of use."""
        for layer in self.layers:
            yield from layer.norms()
        yield self.final_norm

    def ropes(self) -> tuple[Rope, ...]:
        """The different rotary embeddings of its layers, in order of first use."""
        return tuple(dict.fromkeys(layer.attention.rope for layer in self.layers if layer.attention.rope is not None))

    def rotary_bounds(self, max_context: int) -> tuple[int, ...]:
        """Where any of its rotary embeddings changes with the length of a request, and `max_context`: rising."""
        bounds = {bound for rope in self.ropes() for bound in rope.bounds(max_context)}
        return tuple(sorted({*bounds, max_context}))
