"""Sessions: graphs that cannot be loaded, versions, the check of the int8 kernels, binding in place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from onnx import TensorProto, helper

from ortserve.runtime.errors import DeviceError, ModelError
from ortserve.runtime.session import (
    Session,
    available_providers,
    check_int8_kernels,
    int8_precision_mode,
    require_version,
    runtime_version,
)


def graph(operator: str = "Add") -> bytes:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("a", "b", "c")]
    nodes = [helper.make_node(operator, ["a", "b"], ["c"])]
    model = helper.make_model(
        helper.make_graph(nodes, "small", values[:2], values[2:]),
        ir_version=10,
        opset_imports=[helper.make_opsetid("", 21)],
    )
    return bytes(model.SerializeToString())


def test_a_graph_runs_from_bytes_and_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(graph())
    feeds = {"a": np.array([1, 2], np.float32), "b": np.array([3, 4], np.float32)}
    for source in (graph(), tmp_path / "model.onnx"):
        (found,) = Session(source, num_threads=1).run(feeds)
        assert found.tolist() == [4, 6]


@pytest.mark.parametrize("content", [b"", b"not a graph", graph()[:-9], graph("Inventory")])
def test_a_graph_that_cannot_be_loaded_is_one_line_with_its_path(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"^ONNX Runtime [\d.]+ cannot load .*model\.onnx: .") as error:
        Session(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_a_missing_graph_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot load .*gone\.onnx") as error:
        Session(tmp_path / "gone.onnx")
    assert "\n" not in str(error.value)


def test_a_small_graph_in_memory_has_no_path_to_name() -> None:
    with pytest.raises(ModelError, match="cannot load the graph"):
        Session(b"not a graph")


@pytest.mark.parametrize("installed", ["1.32.0", "1.32.1", "1.40.0", "2.0.0", "1.32.0+cpu", "1.33.0.dev20260101"])
def test_a_runtime_that_is_new_enough_is_accepted(monkeypatch: pytest.MonkeyPatch, installed: str) -> None:
    monkeypatch.setattr("onnxruntime.__version__", installed)
    require_version("1.32")
    require_version("1.32.0")


@pytest.mark.parametrize("installed", ["1.31.9", "1.4.0", "0.99.0"])
def test_a_runtime_that_is_too_old_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch, installed: str) -> None:
    monkeypatch.setattr("onnxruntime.__version__", installed)
    with pytest.raises(
        DeviceError, match=rf"needs ONNX Runtime 1\.32\.0 or newer, installed is {installed}: pip install"
    ):
        require_version("1.32.0")


def test_the_installed_runtime_runs_on_the_cpu_and_suits_this_version() -> None:
    require_version("1.32")
    assert "CPUExecutionProvider" in available_providers()
    assert runtime_version()[0].isdigit()


def test_this_machines_int8_kernels_are_right() -> None:
    check_int8_kernels()


def saturating(activations: npt.NDArray[np.uint8], weights: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
    """What pair sums in 16 bits give: products of two neighbours are added with saturation (VPMADDUBSW)."""
    products = activations.astype(np.int32)[:, :, None] * weights.astype(np.int32)[None]
    pairs = np.clip(products[:, 0::2] + products[:, 1::2], -(2**15), 2**15 - 1)
    corrected: npt.NDArray[np.int32] = pairs.sum(axis=1) - 128 * weights.astype(np.int32).sum(axis=0)
    return corrected


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Modes whose kernels saturate; the others are exact."""
    saturated: set[str] = set()

    def products(activations: npt.NDArray[np.uint8], weights: npt.NDArray[np.int8], mode: str) -> npt.NDArray[np.int32]:
        if mode in saturated:
            return saturating(activations, weights)
        exact: npt.NDArray[np.int32] = (activations.astype(np.int32) - 128) @ weights.astype(np.int32)
        return exact

    monkeypatch.setattr("ortserve.runtime.session.int8_products", products)
    int8_precision_mode.cache_clear()
    yield saturated
    int8_precision_mode.cache_clear()


def test_the_mode_that_widens_is_taken_only_where_the_plain_kernels_saturate(kernels: set[str]) -> None:
    assert int8_precision_mode() == "0"
    int8_precision_mode.cache_clear()
    kernels.add("0")
    assert int8_precision_mode() == "1"
    check_int8_kernels()


def test_kernels_that_always_saturate_are_refused_with_the_remedy(kernels: set[str]) -> None:
    kernels |= {"0", "1"}
    with pytest.raises(
        DeviceError, match=r"int8 matrix kernels .* wrong results .* export with --precision int4 or fp32"
    ):
        check_int8_kernels()


def test_what_is_bound_is_read_and_written_in_place() -> None:
    binding = Session(graph(), num_threads=1).binding()
    state = np.array([1.0, 2.0], np.float32)
    binding.bind_shared("a", "c", state.ctypes.data, np.float32, state.shape)
    binding.bind_input("b", np.array([10.0, 20.0], np.float32))
    binding.run()
    binding.run()
    assert state.tolist() == [21.0, 42.0]


def test_an_output_of_another_size_can_be_bound_for_each_run() -> None:
    binding = Session(graph(), num_threads=1).binding()
    for size in (3, 1, 5):
        binding.bind_input("a", np.arange(size, dtype=np.float32))
        binding.bind_input("b", np.ones(size, np.float32))
        out = np.zeros(size, np.float32)
        binding.bind_output("c", out)
        binding.run()
        assert out.tolist() == [place + 1 for place in range(size)]
