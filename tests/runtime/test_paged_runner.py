"""Which of two loaded graphs a step on pages runs on, and that its replies do not depend on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ortserve.export.folder.publish import export_checkpoint
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.devices.device import HostDevice
from ortserve.runtime.devices.session import DeviceBinding, DeviceSession
from ortserve.runtime.manifest import Manifest, MatrixFacts, TakenFacts
from ortserve.runtime.pages.emulation import emulate
from ortserve.runtime.pages.kv import PagedKvStore
from ortserve.runtime.pages.parts import has_codes, open_paged_parts
from ortserve.runtime.pages.runner import MANY_TOKENS, PagedRunner
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
    ("lengths", "is_plain"),
    [((1,), True), ((1, 1), False), ((MANY_TOKENS,), False), ((MANY_TOKENS - 1, 2), True), ((MANY_TOKENS + 1,), True)],
)
def test_steps_of_one_token_and_of_many_run_on_the_plain_graph(
    model: PagedSyntheticModel, lengths: tuple[int, ...], is_plain: bool
) -> None:
    device = HostDevice()
    graph = emulate(model.folder / model.manifest.graph).SerializeToString()
    session, plain = CountedSession(graph, device), CountedSession(graph, device)
    plan = model.plan(EngineConfig(max_rows=4, max_context=256))
    store = PagedKvStore(model.manifest.kv, device, num_blocks=plan.num_blocks, num_host_blocks=0)
    runner = PagedRunner(model.manifest, session, store, device, plan, plain=plain)
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
    assert (session.num_runs, plain.num_runs) == ((0, 1) if is_plain else (1, 0))


def test_only_matrices_in_codes_are_held_twice(model: PagedSyntheticModel) -> None:
    plain: Manifest = replace(model.manifest, matrices=(MatrixFacts("qkv", "fp16", "none", False, None),))
    assert not has_codes(plain)
    assert has_codes(replace(plain, matrices=(*plain.matrices, MatrixFacts("down", "int4", "block", False, None))))
    assert has_codes(replace(plain, taken=TakenFacts("awq", 4, 128, 7)))


@pytest.mark.parametrize(("precision", "memory", "num_graphs"), [("int4", 10, 2), ("int4", 3, 1), ("fp16", 10, 1)])
def test_a_second_graph_is_loaded_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, memory: int, num_graphs: int
) -> None:
    source = write_checkpoint(tmp_path / "source", Tiny(vocab_size=4096))
    manifest = export_checkpoint(
        source, tmp_path / "out", precision=precision, device="cuda", progress=False, verify=False
    )
    loaded: list[bool] = []

    def load(graph: bytes, device: HostDevice, *, multiplies_codes: bool = True) -> DeviceSession:
        loaded.append(multiplies_codes)
        return DeviceSession(graph, device, multiplies_codes=multiplies_codes)

    monkeypatch.setattr("ortserve.runtime.pages.parts.DeviceSession", load)
    config = EngineConfig(max_rows=2, max_context=96, kv_memory=2**22, prompt_cache="none", swap_memory=0)
    open_paged_parts(tmp_path / "out", manifest, config, HostDevice(memory=memory * manifest.weight_bytes))
    assert loaded == [True, False][:num_graphs]
