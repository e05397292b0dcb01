"""A layer of experts: a token's result is the router's mixture, and never depends on the tokens beside it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from ortserve.export.architecture import Architecture, Experts
from ortserve.export.errors import ExportError
from ortserve.export.families import read_architecture
from ortserve.export.graph.builder import GraphBuilder
from ortserve.export.graph.data_file import DataFile
from ortserve.export.graph.experts import apply_experts
from ortserve.export.graph.matrix import store_matrix
from ortserve.export.proof.graph_run import GraphRun, RowInput
from ortserve.export.publish import export_checkpoint
from ortserve.export.recipes.plan import plan_export
from ortserve.export.sources.checkpoint import open_checkpoint
from tests.export.checkpoints import write_json
from tests.export.family_checkpoints import FOLDER, MAX_CONTEXT, copy_family, expected_logits

HIDDEN, INNER, NUM_EXPERTS, ACTIVE = 256, 128, 12, 3
Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer of experts that are wide enough for every kernel to take its fast path."""
    folder = tmp_path_factory.mktemp("experts") / "source"
    folder.mkdir()
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "moe_intermediate_size": INNER,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "num_experts": NUM_EXPERTS,
        "num_experts_per_tok": ACTIVE,
        "tie_word_embeddings": True,
    }
    write_json(folder / "config.json", config)
    prefix = "model.layers.0."
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (40, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        f"{prefix}input_layernorm.weight": (HIDDEN,),
        f"{prefix}post_attention_layernorm.weight": (HIDDEN,),
        f"{prefix}self_attn.q_proj.weight": (32, HIDDEN),
        f"{prefix}self_attn.k_proj.weight": (16, HIDDEN),
        f"{prefix}self_attn.v_proj.weight": (16, HIDDEN),
        f"{prefix}self_attn.o_proj.weight": (HIDDEN, 32),
        f"{prefix}self_attn.q_norm.weight": (16,),
        f"{prefix}self_attn.k_norm.weight": (16,),
        f"{prefix}mlp.gate.weight": (NUM_EXPERTS, HIDDEN),
    }
    for index in range(NUM_EXPERTS):
        for name, shape in {"gate": (INNER, HIDDEN), "up": (INNER, HIDDEN), "down": (HIDDEN, INNER)}.items():
            shapes[f"{prefix}mlp.experts.{index}.{name}_proj.weight"] = shape
    generator = np.random.default_rng(2)
    tensors = {
        name: (generator.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


def _session(source: Path, folder: Path, precision: str, *, normalized: bool = True) -> ort.InferenceSession:
    """The experts of the layer and nothing else: `value [T, hidden]` to `[T, hidden]`."""
    checkpoint = open_checkpoint(source)
    plan = plan_export(_normalized(read_architecture(checkpoint), normalized), precision=precision)
    layer = plan.layers[0]
    experts = layer.layer.mlp
    assert isinstance(experts, Experts)
    with DataFile(folder / "model.onnx.data", progress=lambda num_bytes: None) as data:
        graph = GraphBuilder(data)
        graph.input("value", np.float32, ["T", HIDDEN])
        graph.input("rows", np.int64, ["T"])
        for matrix in layer.matrices[2:]:
            store_matrix(graph, matrix, checkpoint)
        graph.output(apply_experts(graph, layer, experts, "value", rows="rows"), np.float32, ["T", HIDDEN])
        model = graph.model(name="experts", producer_version="test")
    onnx.save(model, str(folder / "model.onnx"))
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])


def _normalized(architecture: Architecture, normalized: bool) -> Architecture:
    (layer,) = architecture.layers
    assert isinstance(layer.mlp, Experts)
    experts = dataclasses.replace(layer.mlp, normalized=normalized)
    return dataclasses.replace(architecture, layers=(dataclasses.replace(layer, mlp=experts),))


def _run(session: ort.InferenceSession, value: Floats) -> Floats:
    result: Floats = session.run(None, {"value": value, "rows": np.zeros(len(value), np.int64)})[0]
    return result


def _values(count: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((count, HIDDEN)).astype(np.float32)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_a_token_has_the_same_bits_whatever_is_beside_it(source: Path, tmp_path: Path, precision: str) -> None:
    """Alone, in twos and threes, in another order: an expert then has one, a few or many of the tokens."""
    session = _session(source, tmp_path, precision)
    value = _values(30)
    whole = _run(session, value)
    for size in (1, 2, 3, 7):
        pieces = [_run(session, value[start : start + size]) for start in range(0, len(value), size)]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)
    order = np.random.default_rng(1).permutation(len(value))
    np.testing.assert_array_equal(_run(session, value[order]), whole[order])
    np.testing.assert_array_equal(_run(session, np.repeat(value[:1], 9, axis=0)), np.repeat(whole[:1], 9, axis=0))


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_no_tokens_give_no_rows(source: Path, tmp_path: Path, precision: str) -> None:
    """The last layer has none to compute while a long prompt is fed in chunks."""
    assert _run(_session(source, tmp_path, precision), _values(0)).shape == (0, HIDDEN)


@pytest.mark.parametrize("normalized", [True, False])
def test_results_are_mixed_by_the_routers_probabilities(source: Path, tmp_path: Path, normalized: bool) -> None:
    """Token by token and expert by expert, in float64."""
    session, checkpoint = _session(source, tmp_path, "fp32", normalized=normalized), open_checkpoint(source)
    value = _values(11)
    found = _run(session, value)
    router = checkpoint.read("model.layers.0.mlp.gate.weight").astype(np.float64)
    for token, row in zip(value.astype(np.float64), found, strict=True):
        powers = np.exp(router @ token)
        best = sorted(range(NUM_EXPERTS), key=lambda index: -powers[index])[:ACTIVE]
        divisor = sum(powers[index] for index in best) if normalized else powers.sum()
        wanted = np.zeros(HIDDEN)
        for index in best:
            gate, up, down = (
                checkpoint.read(f"model.layers.0.mlp.experts.{index}.{name}_proj.weight").astype(np.float64)
                for name in ("gate", "up", "down")
            )
            inner = gate @ token
            wanted += powers[index] / divisor * (down @ (inner / (1 + np.exp(-inner)) * (up @ token)))
        np.testing.assert_allclose(row, wanted, atol=2e-6)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_calibrated_model_has_the_same_bits_alone_and_beside_others(
    tmp_path: Path, family: str, precision: str
) -> None:
    manifest = export_checkpoint(
        copy_family(family, tmp_path / "source"),
        tmp_path / "out",
        precision=precision,
        block_size=16 if precision == "int4" else None,
        max_context=MAX_CONTEXT,
        progress=False,
    )
    sequences = expected_logits(family).sequences
    alone = GraphRun(tmp_path / "out", manifest, num_rows=1, capacity=64)
    batch = GraphRun(tmp_path / "out", manifest, num_rows=3, capacity=64).run(
        [RowInput(tokens, 0) for tokens in (*sequences, [])]
    )
    for tokens, logits in zip(sequences, batch, strict=False):
        np.testing.assert_array_equal(alone.run([RowInput(tokens, 0)])[0], logits)


def test_experts_are_exported_for_the_cpu_only() -> None:
    architecture = read_architecture(open_checkpoint(FOLDER / "mixtral"))
    with pytest.raises(ExportError, match="mixtral has experts, which are exported for the CPU only"):
        plan_export(architecture, precision="bf16", device="cuda")
