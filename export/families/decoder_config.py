"""Reads what the families have in common: sizes, tensor names in Llama's layout, kinds of layers, checked shapes.

A family's own file says what differs. Source: transformers `configuration_*.py` and `modeling_*.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ortserve.export.architecture import (
    Activation,
    Architecture,
    Attention,
    DynamicScaling,
    Experts,
    Layer,
    Linear,
    Mlp,
    Norm,
    Rope,
)
from ortserve.export.errors import ExportError
from ortserve.export.families.rope_settings import LAYER_KINDS, LayerKind, read_rope
from ortserve.export.sources.checkpoint import Checkpoint
from ortserve.export.sources.json_fields import JsonObject, flag, integer, number

EMBEDDING = "model.embed_tokens.weight"
SILU_NAMES = ("silu", "swish")
GELU_TANH_NAMES = ("gelu_pytorch_tanh",)


@dataclass(frozen=True, slots=True)
class Sizes:
    """The numbers every family states."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_context: int
    norm_epsilon: float


def read_sizes(
    config: JsonObject, *, head_dim: int | None = None, max_context: int = 2048, norm_epsilon: float = 1e-6
) -> Sizes:
    """From config.json; the options are what the family assumes where it is silent (None: hidden size by heads).

    Raises `ExportError` for missing or impossible values.
    """
    hidden_size = integer(config, "hidden_size")
    num_heads = integer(config, "num_attention_heads")
    num_kv_heads = integer(config, "num_key_value_heads", num_heads)
    size = integer(config, "head_dim", head_dim or max(1, hidden_size // num_heads))
    if num_heads % num_kv_heads:
        raise ExportError(f"config.json: {num_heads} heads are no multiple of {num_kv_heads} key-value heads")
    if size % 8:
        raise ExportError(f"config.json: head_dim {size} is no multiple of 8, which GroupQueryAttention needs")
    return Sizes(
        hidden_size=hidden_size,
        intermediate_size=integer(config, "intermediate_size"),
        num_layers=integer(config, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=size,
        max_context=integer(config, "max_position_embeddings", max_context),
        norm_epsilon=number(config, "rms_norm_eps", norm_epsilon),
    )


def check_activation(config: JsonObject, family: str, *, known: Iterable[str], key: str = "hidden_act") -> None:
    """Raises `ExportError` when the MLP is none the family's graph has; absent means the family's own."""
    names = tuple(known)
    activation = config.get(key) or names[0]
    if activation not in names:
        raise ExportError(f"config.json: {key} {activation!r} is not supported: {family} export knows {names[0]}")


def linear(prefix: str, *names: str, bias: bool = False, scale: float = 1.0) -> Linear:
    """Tensors `{prefix}{name}.weight`, and `.bias`, stacked."""
    return Linear(
        weights=tuple(f"{prefix}{name}.weight" for name in names),
        biases=tuple(f"{prefix}{name}.bias" for name in names) if bias else (),
        scale=scale,
    )


def norm(sizes: Sizes, tensor: str, *, width: int | None = None, offset: float = 0.0) -> Norm:
    """Of the residual stream, or of `width` components."""
    return Norm(tensor, width or sizes.hidden_size, sizes.norm_epsilon, offset)


def llama_attention(config: JsonObject, sizes: Sizes, index: int, rope: Rope | None) -> Attention:
    """Separate projections, with `attention_bias` in all of them."""
    prefix = f"model.layers.{index}.self_attn."
    bias = flag(config, "attention_bias", False)
    return Attention(
        qkv=linear(prefix, "q_proj", "k_proj", "v_proj", bias=bias),
        output=linear(prefix, "o_proj", bias=bias),
        scale=sizes.head_dim**-0.5,
        rope=rope,
    )


def llama_mlp(config: JsonObject, index: int, activation: Activation = "silu") -> Mlp:
    """Separate projections, with `mlp_bias` in all of them."""
    prefix, bias = f"model.layers.{index}.mlp.", flag(config, "mlp_bias", False)
    return Mlp(
        gate=linear(prefix, "gate_proj", bias=bias),
        up=linear(prefix, "up_proj", bias=bias),
        down=linear(prefix, "down_proj", bias=bias),
        activation=activation,
    )


def llama_layer(config: JsonObject, sizes: Sizes, index: int, rope: Rope | None) -> Layer:
    """Norms before attention and before the MLP, none after."""
    return Layer(
        attention_norm=norm(sizes, f"model.layers.{index}.input_layernorm.weight"),
        attention=llama_attention(config, sizes, index, rope),
        attention_post_norm=None,
        mlp_norm=norm(sizes, f"model.layers.{index}.post_attention_layernorm.weight"),
        mlp=llama_mlp(config, index),
        mlp_post_norm=None,
    )


def unchanged(layer: Layer, _: int) -> Layer:
    """What a family without differences from its parent makes of a layer."""
    return layer


def plain_rope(config: JsonObject, sizes: Sizes, default_theta: float = 10000.0) -> Rope:
    """The one rotary embedding of all layers."""
    return read_rope(config, head_dim=sizes.head_dim, max_context=sizes.max_context, default_theta=default_theta)


def layer_kinds(config: JsonObject, sizes: Sizes, default: Callable[[int], LayerKind]) -> tuple[LayerKind, ...]:
    """`layer_types` where it is written, else what the family's older settings say of each layer.

    Raises `ExportError` for other kinds of layers or the wrong number of them.
    """
    written = config.get("layer_types")
    if written is None:
        return tuple(default(index) for index in range(sizes.num_layers))
    if not isinstance(written, list) or len(written) != sizes.num_layers:
        raise ExportError(f"config.json: layer_types is no list of {sizes.num_layers} kinds, one for each layer")
    for kind in written:
        if kind not in LAYER_KINDS:
            known = ", ".join(LAYER_KINDS)
            raise ExportError(f"config.json: layer type {kind!r} is not supported: export knows {known}")
    return tuple(written)


def window_of(config: JsonObject, kind: LayerKind) -> int | None:
    """The sliding window of a layer of this kind. Raises `ExportError` when it slides and no window is written."""
    return integer(config, "sliding_window") if kind == "sliding_attention" else None


def describe(
    checkpoint: Checkpoint,
    family: str,
    sizes: Sizes,
    layer: Callable[[int], Layer],
    *,
    tied: bool,
    norm_offset: float = 0.0,
    embedding_scale: float = 1.0,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
) -> Architecture:
    """The whole decoder; `tied` is the family's default. Raises `ExportError` when tensors are missing or misshapen."""
    tied = flag(checkpoint.config, "tie_word_embeddings", tied)
    layers = tuple(layer(index) for index in range(sizes.num_layers))
    architecture = Architecture(
        family=family,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_heads=sizes.num_heads,
        num_kv_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim,
        vocab_size=checkpoint.stored(EMBEDDING).shape[0],
        max_context=_reach(sizes, layers),
        embedding=EMBEDDING,
        layers=layers,
        final_norm=norm(sizes, "model.norm.weight", offset=norm_offset),
        lm_head=EMBEDDING if tied else "lm_head.weight",
        embedding_scale=embedding_scale,
        logit_scale=logit_scale,
        logit_softcap=logit_softcap,
    )
    _check_shapes(checkpoint, architecture)
    return architecture


def _reach(sizes: Sizes, layers: Iterable[Layer]) -> int:
    """The context; dynamic scaling of every rotary embedding stretches it by its factor."""
    ropes = [layer.attention.rope for layer in layers if layer.attention.rope is not None]
    factors = [rope.scaling.factor if isinstance(rope.scaling, DynamicScaling) else 1.0 for rope in ropes]
    return int(sizes.max_context * min(factors, default=1.0))


def _check_shapes(checkpoint: Checkpoint, architecture: Architecture) -> None:
    """Every tensor the graph will read exists and has the shape the configuration implies."""
    hidden, inner = architecture.hidden_size, architecture.intermediate_size
    query, key = architecture.query_size, architecture.key_size
    whole = (architecture.vocab_size, hidden)
    expected: dict[str, tuple[int, ...]] = {architecture.embedding: whole, architecture.lm_head: whole}

    def expect(matrix: Linear, *parts: int, columns: int) -> None:
        # a fused tensor holds all parts; of several tensors each holds its own
        rows = parts if len(matrix.weights) == len(parts) else (sum(parts),)
        expected.update({name: (size, columns) for name, size in zip(matrix.weights, rows, strict=True)})
        if matrix.biases:
            expected.update({name: (size,) for name, size in zip(matrix.biases, rows, strict=True)})

    for layer in architecture.layers:
        expect(layer.attention.qkv, query, key, key, columns=hidden)
        expect(layer.attention.output, hidden, columns=query)
        size = inner
        if isinstance(layer.mlp, Experts):
            size = layer.mlp.intermediate_size
            expect(layer.mlp.router, len(layer.mlps), columns=hidden)
        for mlp in layer.mlps:
            for part in (mlp.gate, mlp.up):
                expect(part, size if part.rows is None else 2 * size, columns=hidden)
            expect(mlp.down, hidden, columns=size)
    expected.update({found.weight: (found.width,) for found in architecture.norms()})
    for name, shape in expected.items():
        found = checkpoint.stored(name).shape
        if found != shape:
            raise ExportError(
                f"{checkpoint.folder}: {name} has shape {list(found)}, config.json implies {list(shape)}:"
                " the files belong to different checkpoints"
            )
