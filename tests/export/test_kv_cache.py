"""Keys and values in 8 bits: scales that hold at every position, graphs that compute it, proofs that see it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from ortserve import runtime
from ortserve.export.errors import ExportError, UnprovenError
from ortserve.export.families import read_architecture
from ortserve.export.proof.graph_run import GraphRun, RowInput
from ortserve.export.proof.verify import check_parity
from ortserve.export.publish import export_checkpoint
from ortserve.export.recipes import kv_scales as scales_module
from ortserve.export.recipes.kv_scales import KvScales, measure_kv_ranges
from ortserve.export.recipes.plan import plan_export
from ortserve.export.sources.checkpoint import open_checkpoint
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.devices.device import HostDevice
from ortserve.runtime.errors import DeviceError
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.opening import open_engine, open_paged_engine
from ortserve.runtime.parity import ParityReport
from ortserve.runtime.report import read_report
from ortserve.runtime.request import Request, SamplingParams
from tests.export.family_checkpoints import MAX_CONTEXT, copy_family, every_family, expected_logits
from tests.runtime.synthetic import run_to_end, whole


def exported(tmp_path: Path, family: str, precision: str = "fp32", **options: object) -> Manifest:
    fields: dict[str, object] = {"max_context": MAX_CONTEXT, "progress": False, "kv": "int8", **options}
    source = tmp_path / "source"
    if not source.exists():
        copy_family(family, source, eos_token_id=None)
    return export_checkpoint(source, tmp_path / "out", precision=precision, **fields)  # type: ignore[arg-type]


def parity_of(folder: Path) -> ParityReport:
    parity = read_report(folder).parity
    assert parity is not None
    return parity


@every_family
def test_every_family_passes_its_proof_with_an_int8_cache(tmp_path: Path, family: str) -> None:
    manifest = exported(tmp_path, family)
    assert (manifest.kv.dtype, manifest.kv.bytes_per_token) == (
        "int8",
        replace(manifest.kv, dtype="float32").bytes_per_token // 4,
    )
    parity = parity_of(tmp_path / "out")
    assert parity.passed
    # float matrices: beside a reference with the same codes nothing is left but the noise of float32
    assert parity.stored is not None
    assert parity.stored.median_kl < 1e-11


@pytest.mark.parametrize(
    ("family", "kv"), [("llama", "int8"), ("qwen3", "fp8"), ("phi4_mini", "int8"), ("gemma2", "fp8")]
)
def test_paged_graphs_pass_their_proof_with_8_bit_pages(tmp_path: Path, family: str, kv: str) -> None:
    manifest = exported(tmp_path, family, "fp16", device="cuda", kv=kv)
    parity = parity_of(tmp_path / "out")
    assert parity.passed
    assert max(case.mean_kl for case in parity.cases) > 1e-6  # more than the weights' rounding: codes were used
    kinds = {"int8": onnx.TensorProto.INT8, "fp8": onnx.TensorProto.FLOAT8E4M3FN}
    graph = onnx.load(str(tmp_path / "out" / manifest.graph), load_external_data=False).graph
    stored = [value for value in (*graph.input, *graph.output) if value.name.startswith(("past.", "present."))]
    assert {value.type.tensor_type.elem_type for value in stored} == {kinds[kv]}
    nodes = [node for node in graph.node if node.op_type == "PagedAttention"]
    assert len(nodes) == manifest.kv.num_layers
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for index, node in enumerate(nodes):
        options = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert (options["k_quant_type"], options["v_quant_type"]) == (b"PER_CHANNEL", b"PER_CHANNEL")
        assert list(node.input[14:16]) == [f"layers.{index}.key_scale", f"layers.{index}.value_scale"]
        assert all(shapes[name] == [manifest.kv.num_kv_heads, 1, manifest.kv.head_dim] for name in node.input[14:16])


def test_keys_keep_their_codes_at_every_position(tmp_path: Path) -> None:
    """A pair turns as it moves: its scale is that of its length, which no position exceeds."""
    source = open_checkpoint(copy_family("phi4_mini", tmp_path / "source"))
    architecture = read_architecture(source)
    ranges = measure_kv_ranges(source, architecture)
    half = architecture.ropes()[0].rotary_dim // 2
    for seen in ranges.values():
        np.testing.assert_array_equal(seen.key[:, :half], seen.key[:, half : 2 * half])
        assert (seen.key[:, 2 * half :] != seen.key[:, :1]).any()  # what does not turn has a range of its own
    assert len(ranges) == len(architecture.layers)


def test_scales_follow_the_divisors_of_the_output_projection(tmp_path: Path) -> None:
    source = open_checkpoint(copy_family("llama", tmp_path / "source"))
    architecture = read_architecture(source)
    ranges = measure_kv_ranges(source, architecture)
    divisor = np.exp2(np.arange(architecture.key_size) % 5).astype(np.float32)
    plain = scales_module.kv_scales(architecture, ranges, "int8", [None] * len(architecture.layers))
    divided = scales_module.kv_scales(architecture, ranges, "int8", [divisor] * len(architecture.layers))
    for one, other in zip(plain, divided, strict=True):
        np.testing.assert_array_equal(one.key, other.key)
        np.testing.assert_allclose(one.value.reshape(-1) / divisor, other.value.reshape(-1), rtol=1e-6)


def test_the_proof_catches_wrong_scales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(scales: KvScales) -> KvScales:
        return KvScales(scales.key / np.float32(4), scales.value)  # most keys are cut off

    right = scales_module.kv_scales
    monkeypatch.setattr(
        "ortserve.export.recipes.plan.kv_scales", lambda *arguments: tuple(map(planted, right(*arguments)))
    )
    with pytest.raises(UnprovenError):
        exported(tmp_path, "mistral")


def test_the_proof_catches_a_cache_that_is_read_by_other_scales(tmp_path: Path) -> None:
    """Of one layer's values by two percent: too little for the limits of rounding, not for the stored comparison."""
    manifest = exported(tmp_path, "llama")
    path = tmp_path / "out" / manifest.graph
    model = onnx.load(str(path), load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "GroupQueryAttention")
    model.graph.node.insert(0, onnx.helper.make_node("Mul", [node.input[13], "planted"], ["planted.scale"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1.02, np.float32), "planted"))
    node.input[13] = "planted.scale"
    path.write_bytes(model.SerializeToString())
    checkpoint = open_checkpoint(tmp_path / "source")
    report = check_parity(tmp_path / "out", manifest, read_architecture(checkpoint), checkpoint)
    assert not report.passed
    assert all(case.mean_kl <= report.max_mean_kl for case in report.cases)


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_row_has_the_same_bits_alone_and_beside_others(tmp_path: Path, family: str, precision: str) -> None:
    manifest = exported(tmp_path, family, precision, verify=False)
    sequences = expected_logits(family).sequences
    alone = GraphRun(tmp_path / "out", manifest, num_rows=1, capacity=64)
    together = GraphRun(tmp_path / "out", manifest, num_rows=3, capacity=64)
    batch = together.run([RowInput(tokens, 0) for tokens in (*sequences, [])])
    for tokens, logits in zip(sequences, batch, strict=False):
        np.testing.assert_array_equal(alone.run([RowInput(tokens, 0)])[0], logits)


def test_deterministic_replies_are_equal_bit_for_bit_cached_and_cold(tmp_path: Path) -> None:
    """Few blocks: some requests are copied out and back, and the cache gives way to them."""
    manifest = exported(tmp_path, "llama", "int8", verify=False)
    tokens = expected_logits("llama").sequences[0]
    sampling = SamplingParams(temperature=1.0, seed=3, max_tokens=12, num_logprobs=2)
    requests = [Request(str(place), tuple(tokens[: 8 + 3 * place]), sampling) for place in range(6)]
    config = EngineConfig(max_rows=3, deterministic=True, prompt_cache="prefix", max_chunk_tokens=128)
    engine, plan = open_engine(tmp_path / "out", manifest, config)
    assert plan.bytes_per_block == plan.block_size * manifest.kv.bytes_per_token
    assert "keys and values in int8: more tokens fit" in str(plan)
    together = {name: whole(deltas) for name, deltas in run_to_end(engine, requests).items()}
    again = {name: whole(deltas) for name, deltas in run_to_end(engine, requests).items()}
    cold, _ = open_engine(tmp_path / "out", manifest, replace(config, prompt_cache="none", max_rows=1))
    for request in requests:
        alone = whole(run_to_end(cold, [request])[request.id])
        for reply in (together[request.id], again[request.id]):
            assert (reply.token_ids, reply.logprobs) == (alone.token_ids, alone.logprobs)
        assert again[request.id].usage.num_cached_tokens > 0
    engine.close()
    cold.close()


def test_deterministic_mode_is_refused_where_the_kernels_do_not_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = exported(tmp_path, "llama", verify=False)
    monkeypatch.setattr("ortserve.runtime.slots.kv_kernels._is_exact", lambda *shape: False)
    with pytest.raises(DeviceError, match="--deterministic cannot be kept with an int8 KV cache on this CPU"):
        open_engine(tmp_path / "out", manifest, EngineConfig(deterministic=True))
    open_engine(tmp_path / "out", manifest, EngineConfig())[0].close()


def test_pages_of_codes_are_served(tmp_path: Path) -> None:
    manifest = exported(tmp_path, "llama", "fp16", device="cuda", verify=False)
    tokens = expected_logits("llama").sequences[0]
    requests = [
        Request(str(place), tuple(tokens[: 8 + 3 * place]), SamplingParams(temperature=0, max_tokens=6))
        for place in range(4)
    ]
    config = EngineConfig(max_rows=4, prompt_cache="prefix", kv_memory=2**24, swap_memory=0)
    engine, _ = open_paged_engine(tmp_path / "out", manifest, config, HostDevice())
    together = run_to_end(engine, requests)
    for request in requests:
        engine, _ = open_paged_engine(tmp_path / "out", manifest, replace(config, prompt_cache="none"), HostDevice())
        alone = run_to_end(engine, [request])
        assert whole(together[request.id]).token_ids == whole(alone[request.id]).token_ids


def test_what_a_device_cannot_store_is_refused(tmp_path: Path) -> None:
    architecture = read_architecture(open_checkpoint(copy_family("llama", tmp_path / "source")))
    with pytest.raises(ExportError, match="--kv fp8 is not for cpu: choose float, int8, or another --device"):
        plan_export(architecture, precision="int8", kv="fp8")
    plain = plan_export(architecture, precision="int8")
    quantized = plan_export(architecture, precision="int8", kv="int8")
    assert quantized.num_bytes - plain.num_bytes == 2 * len(architecture.layers) * architecture.key_size * 4


def test_the_plan_holds_four_times_the_tokens(tmp_path: Path) -> None:
    manifest = exported(tmp_path, "llama", verify=False)
    config = EngineConfig(max_rows=1000, kv_memory=2**20, prompt_cache="none")
    plans = [
        runtime.plan.plan_engine(replace(manifest, kv=replace(manifest.kv, dtype=dtype)), config, available_bytes=2**30)
        for dtype in ("float32", "int8")
    ]
    assert plans[1].resident_tokens == 4 * plans[0].resident_tokens
