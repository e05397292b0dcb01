"""Llama 2 and 3, SmolLM2, TinyLlama, and Mistral: reads their configuration into an `Architecture`. Knows no graph."""

from __future__ import annotations

from ortserve.export.architecture import Architecture, Layer, Linear, Rope
from ortserve.export.checkpoint import Checkpoint
from ortserve.export.errors import ExportError
from ortserve.export.json_fields import JsonObject, flag, integer, number

ROPE_KINDS = ("default", "linear", "llama3")


def read_llama(checkpoint: Checkpoint) -> Architecture:
    """Source: transformers `LlamaConfig` and `modeling_llama.py`. Raises `ExportError` for what the graph cannot do."""
    return _read(checkpoint, family="llama", sliding_window=None)


def read_mistral(checkpoint: Checkpoint) -> Architecture:
    """Llama with an optional sliding window (transformers `MistralConfig`)."""
    window = checkpoint.config.get("sliding_window")
    return _read(
        checkpoint,
        family="mistral",
        sliding_window=None if window is None else integer(checkpoint.config, "sliding_window"),
    )


def _read(checkpoint: Checkpoint, *, family: str, sliding_window: int | None) -> Architecture:
    config = checkpoint.config
    hidden_size = integer(config, "hidden_size")
    num_heads = integer(config, "num_attention_heads")
    num_kv_heads = integer(config, "num_key_value_heads", num_heads)
    head_dim = integer(config, "head_dim", max(1, hidden_size // num_heads))
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ExportError(f"config.json: hidden_act {activation!r} is not supported: {family} export knows silu")
    if num_heads % num_kv_heads:
        raise ExportError(f"config.json: {num_heads} heads are no multiple of {num_kv_heads} key-value heads")
    if head_dim % 8:
        raise ExportError(f"config.json: head_dim {head_dim} is no multiple of 8, which GroupQueryAttention needs")
    max_context = integer(config, "max_position_embeddings", 2048)
    embedding = "model.embed_tokens.weight"
    tied = flag(config, "tie_word_embeddings", False)
    architecture = Architecture(
        family=family,
        hidden_size=hidden_size,
        intermediate_size=integer(config, "intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=checkpoint.stored(embedding).shape[0],
        max_context=max_context,
        norm_epsilon=number(config, "rms_norm_eps", 1e-6),
        rope=read_rope(config, head_dim=head_dim, max_context=max_context),
        sliding_window=sliding_window,
        embedding=embedding,
        layers=tuple(
            _layer(f"model.layers.{index}.", flag(config, "attention_bias", False), flag(config, "mlp_bias", False))
            for index in range(integer(config, "num_hidden_layers"))
        ),
        final_norm="model.norm.weight",
        lm_head=embedding if tied else "lm_head.weight",
    )
    _check_shapes(checkpoint, architecture)
    return architecture


def read_rope(config: JsonObject, *, head_dim: int, max_context: int) -> Rope:
    """`rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`. Raises `ExportError` for other kinds."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise ExportError(f"config.json: rope scaling is {scaling!r}, expected an object")
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ROPE_KINDS:
        raise ExportError(f"config.json: rope_type {kind!r} is not supported: export knows {', '.join(ROPE_KINDS)}")
    theta = number(scaling, "rope_theta", number(config, "rope_theta", 10000.0))
    rotary_dim = int(head_dim * number(scaling, "partial_rotary_factor", number(config, "partial_rotary_factor", 1.0)))
    if kind == "default":
        return Rope(theta=theta, rotary_dim=rotary_dim)
    factor = number(scaling, "factor")
    if kind == "linear":
        return Rope(theta=theta, rotary_dim=rotary_dim, kind=kind, factor=factor)
    return Rope(
        theta=theta,
        rotary_dim=rotary_dim,
        kind=kind,
        factor=factor,
        low_frequency_factor=number(scaling, "low_freq_factor"),
        high_frequency_factor=number(scaling, "high_freq_factor"),
        original_context=integer(scaling, "original_max_position_embeddings", max_context),
    )


def _layer(prefix: str, attention_bias: bool, mlp_bias: bool) -> Layer:
    def linear(*names: str, bias: bool) -> Linear:
        return Linear(
            tuple(f"{prefix}{name}.weight" for name in names),
            tuple(f"{prefix}{name}.bias" for name in names) if bias else (),
        )

    return Layer(
        attention_norm=f"{prefix}input_layernorm.weight",
        qkv=linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", bias=attention_bias),
        attention_output=linear("self_attn.o_proj", bias=attention_bias),
        mlp_norm=f"{prefix}post_attention_layernorm.weight",
        gate=linear("mlp.gate_proj", bias=mlp_bias),
        up=linear("mlp.up_proj", bias=mlp_bias),
        down=linear("mlp.down_proj", bias=mlp_bias),
    )


def _check_shapes(checkpoint: Checkpoint, architecture: Architecture) -> None:
    """Every tensor the graph will read exists and has the shape the configuration implies."""
    hidden = architecture.hidden_size
    inner = architecture.intermediate_size
    query = architecture.num_heads * architecture.head_dim
    key_value = architecture.num_kv_heads * architecture.head_dim
    expected: dict[str, tuple[int, ...]] = {
        architecture.embedding: (architecture.vocab_size, hidden),
        architecture.lm_head: (architecture.vocab_size, hidden),
        architecture.final_norm: (hidden,),
    }

    def expect(linear: Linear, rows: tuple[int, ...], columns: int) -> None:
        expected.update({name: (size, columns) for name, size in zip(linear.weights, rows, strict=True)})
        if linear.biases:
            expected.update({name: (size,) for name, size in zip(linear.biases, rows, strict=True)})

    for layer in architecture.layers:
        expected |= {layer.attention_norm: (hidden,), layer.mlp_norm: (hidden,)}
        expect(layer.qkv, (query, key_value, key_value), hidden)
        expect(layer.attention_output, (hidden,), query)
        expect(layer.gate, (inner,), hidden)
        expect(layer.up, (inner,), hidden)
        expect(layer.down, (hidden,), inner)
    for name, shape in expected.items():
        found = checkpoint.stored(name).shape
        if found != shape:
            raise ExportError(
                f"{checkpoint.folder}: {name} has shape {list(found)}, config.json implies {list(shape)}:"
                " the files belong to different checkpoints"
            )
