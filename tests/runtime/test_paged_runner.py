"""Which of two loaded graphs a step on pages runs on, and that its replies do not depend on it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ortserve.export.proof.graph_run import RowInput
from ortserve.export.proof.paged_run import PagedGraphRun
from ortserve.export.publish import export_checkpoint
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.devices.device import HostDevice
from ortserve.runtime.devices.session import DeviceBinding, DeviceSession
from ortserve.runtime.errors import ModelError
from ortserve.runtime.manifest import Manifest, MatrixFacts, TakenFacts
from ortserve.runtime.pages.emulation import emulate
from ortserve.runtime.pages.kv import PagedKvStore
from ortserve.runtime.pages.parts import open_paged_parts
from ortserve.runtime.pages.runner import MANY_TOKENS, PagedRunner
from ortserve.runtime.pages.single import spell_for_one_token
from ortserve.runtime.step import Row, Step
from tests.export.checkpoints import Tiny, write_checkpoint
from tests.runtime.paged_synthetic import PagedSyntheticModel, load_paged_synthetic_model


class CountedSession(DeviceSession):
    """Remembers how many runs its bindings had."""

    def __init__(self, graph: bytes, device: HostDevice) -> None:
        super().__init__(graph, device)
        self.num_runs = 0

    def binding(self) -> DeviceBinding:
        binding = super().binding()
        run = binding.run

        def counted() -> None:
            self.num_runs += 1
            run()

        binding.run = counted  # type: ignore[method-assign]
        return binding


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PagedSyntheticModel:
    return load_paged_synthetic_model(tmp_path_factory.mktemp("model"), 512)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((1,), "single"),
        ((1, 1), "some"),
        ((MANY_TOKENS,), "some"),
        ((MANY_TOKENS - 1, 2), "many"),
        ((MANY_TOKENS + 1,), "many"),
    ],
)
def test_a_step_runs_on_the_graph_that_suits_its_number_of_tokens(
    model: PagedSyntheticModel, lengths: tuple[int, ...], expected: str
) -> None:
    device = HostDevice()
    graph = emulate(model.folder / model.manifest.graph).SerializeToString()
    sessions = {name: CountedSession(graph, device) for name in ("some", "single", "many")}
    plan = model.plan(EngineConfig(max_rows=4, max_context=256))
    store = PagedKvStore(model.manifest.kv, device, num_blocks=plan.num_blocks, num_host_blocks=0)
    runner = PagedRunner(
        model.manifest, sessions["some"], store, device, plan, single=sessions["single"], many=sessions["many"]
    )
    per_row = -(-max(lengths) // plan.block_size)
    rows = tuple(
        Row(
            request_id=f"r{place}",
            slot=place,
            start=0,
            tokens=tuple(range(5, 5 + length)),
            num_logits=1,
            blocks=tuple(range(place * per_row, (place + 1) * per_row)),
        )
        for place, length in enumerate(lengths)
    )
    runner.run(Step(0, (), rows))
    assert {name: session.num_runs for name, session in sessions.items() if session.num_runs} == {expected: 1}


def test_only_matrices_in_codes_are_held_three_times(model: PagedSyntheticModel) -> None:
    plain: Manifest = replace(model.manifest, matrices=(MatrixFacts("qkv", "fp16", "none", False, None),))
    assert not plain.has_codes
    assert replace(plain, matrices=(*plain.matrices, MatrixFacts("down", "int4", "block", False, None))).has_codes
    assert replace(plain, taken=TakenFacts("awq", 4, 128, 7)).has_codes


@pytest.mark.parametrize(("precision", "memory", "num_graphs"), [("int4", 20, 3), ("int4", 7, 1), ("fp16", 20, 1)])
def test_more_graphs_are_loaded_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, memory: int, num_graphs: int
) -> None:
    source = write_checkpoint(tmp_path / "source", Tiny(vocab_size=4096))
    manifest = export_checkpoint(
        source, tmp_path / "out", precision=precision, device="cuda", progress=False, verify=False
    )
    loaded: list[dict[str, object]] = []

    def load(graph: bytes, device: HostDevice, **options: Any) -> DeviceSession:
        loaded.append(options)
        return DeviceSession(graph, device, **options)

    monkeypatch.setattr("ortserve.runtime.pages.parts.DeviceSession", load)
    config = EngineConfig(max_rows=2, max_context=96, kv_memory=2**22, prompt_cache="none", swap_memory=0)
    open_paged_parts(tmp_path / "out", manifest, config, HostDevice(memory=memory * manifest.weight_bytes))
    assert loaded == [{}, {"weights": tmp_path / "out"}, {"multiplies_codes": False}][:num_graphs]


def test_zero_points_that_are_written_out_change_nothing(tmp_path: Path) -> None:
    """In CPU operators: the weights are found in the folder of the graph, whose wide products are left alone."""
    source = write_checkpoint(tmp_path / "source", Tiny())
    manifest = export_checkpoint(
        source, tmp_path / "out", precision="int4", device="cuda", progress=False, verify=False
    )
    path = tmp_path / "out" / manifest.graph
    spelt = onnx.load_from_string(spell_for_one_token(path))
    inputs = {node.output[0]: len(node.input) for node in spelt.graph.node if node.op_type == "MatMulNBits"}
    assert set(inputs.values()) == {3, 4}
    assert inputs["lm_head"] == 3
    onnx.load_external_data_for_model(spelt, str(tmp_path / "out"))
    (tmp_path / "spelt").mkdir()
    onnx.save(spelt, str(tmp_path / "spelt" / manifest.graph))
    run = partial(PagedGraphRun, manifest=manifest, num_rows=1, capacity=16)
    plain, written = (run(tmp_path / name).run([RowInput(range(3, 12), 0)])[0] for name in ("out", "spelt"))
    np.testing.assert_array_equal(plain, written)
    device = HostDevice()
    with pytest.raises(ModelError, match="PagedAttention"):  # the files were found: only the operator is CUDA's
        DeviceSession(spell_for_one_token(path), device, weights=tmp_path / "out")
