"""The only place that imports onnxruntime at run time: sessions with the options this project measured to be right.

Knows no sequences. Sources of the options: onnxruntime_session_options_config_keys.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from ortserve.runtime.errors import DeviceError, ModelError
from ortserve.runtime.host.machine import usable_cores

_SPIN_MICROSECONDS = 50  # as fast as endless spinning, and other threads get the cores


def runtime_version() -> str:
    """Version of the installed ONNX Runtime."""
    return str(ort.__version__)


def require_version(least: str) -> None:
    """Raise `DeviceError` when the installed ONNX Runtime is older than `least` ("1.32")."""
    if _numbers(runtime_version()) >= _numbers(least):
        return
    remedy = f"pip install 'onnxruntime>={least}'"
    if "CUDAExecutionProvider" in available_providers():
        # The GPU wheel comes later than the CPU's, and both unpack into one folder.
        remedy = f"pip uninstall -y onnxruntime-gpu && {remedy}, or export the model with --device cuda"
    raise DeviceError(f"the model needs ONNX Runtime {least} or newer, installed is {runtime_version()}: {remedy}")


def available_providers() -> list[str]:
    """Execution providers this build was compiled with."""
    return list(ort.get_available_providers())


def default_num_threads() -> int:
    """Cores this process may use: its affinity mask's, within the CPU quota of its cgroup.

    Threads beyond a quota make all of them stand still for the rest of each period, those that hold a lock as well.
    """
    return usable_cores()


class Session:
    """One graph loaded for the CPU. Not thread-safe: one thread runs it."""

    def __init__(
        self,
        model: Path | bytes,
        *,
        num_threads: int | None = None,
        profile_prefix: str | None = None,
        turn: AbstractContextManager[object] | None = None,
    ) -> None:
        """Load a graph from its path, or from bytes for small ones. Bindings that share a `turn` never run at once.

        Raises `ModelError` when ONNX Runtime refuses it.
        """
        self._turn = turn
        options = ort.SessionOptions()
        options.intra_op_num_threads = num_threads or default_num_threads()
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_MICROSECONDS))
        options.add_session_config_entry("session.x64quantprecision", int8_precision_mode())
        options.log_severity_level = 3
        if profile_prefix is not None:
            options.enable_profiling = True
            options.profile_file_prefix = profile_prefix
        source = str(model) if isinstance(model, Path) else model
        try:
            self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises a family of its own that it does not export
            name = model if isinstance(model, Path) else "the graph"
            raise ModelError(f"ONNX Runtime {ort.__version__} cannot load {name}: {_first_line(error)}") from error

    def run(
        self, feeds: Mapping[str, npt.NDArray[np.generic]], outputs: list[str] | None = None
    ) -> list[npt.NDArray[np.generic]]:
        """Run without binding: these outputs, or all in graph order, as new arrays.

        Raises `ModelError` with what ONNX Runtime says.
        """
        try:
            return [np.asarray(value) for value in self._session.run(outputs, dict(feeds))]
        except Exception as error:  # onnxruntime raises a family of its own that it does not export
            raise ModelError(_first_line(error)) from error

    def binding(self) -> Binding:
        """A new binding of this session."""
        return Binding(self._session, self._turn)

    def end_profiling(self) -> Path:
        """Stop profiling and return the JSON file it wrote."""
        return Path(self._session.end_profiling())


class Binding:
    """Inputs and outputs fixed to memory; what is bound stays bound from run to run."""

    def __init__(self, session: ort.InferenceSession, turn: AbstractContextManager[object] | None = None) -> None:
        self._session = session
        self._turn: AbstractContextManager[object] = turn or Lock()
        self._binding = session.io_binding()
        self._held: dict[str, npt.NDArray[np.generic]] = {}  # bound memory must outlive the run

    def bind_input(self, name: str, array: npt.NDArray[np.generic]) -> None:
        """Bind a C-contiguous array without copying it."""
        self._held[name] = array
        self._binding.bind_cpu_input(name, array)

    def bind_shared(self, past: str, present: str, address: int, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> None:
        """Bind one buffer as input and output, so that it is updated in place. The caller keeps it alive."""
        self._binding.bind_input(past, "cpu", 0, dtype, shape, address)
        self._binding.bind_output(present, "cpu", 0, dtype, shape, address)

    def bind_output(self, name: str, array: npt.NDArray[np.floating]) -> None:
        """Have an output written into a C-contiguous array."""
        self._held[name] = array
        self._binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def run(self) -> None:
        """Run the graph over what is bound; the interpreter lock is released meanwhile."""
        with self._turn:
            self._session.run_with_iobinding(self._binding)


def check_int8_kernels() -> None:
    """Raise `DeviceError` when 8-bit products are wrong here in every mode: int8 graphs would be silently wrong."""
    if not _is_exact(int8_precision_mode()):
        raise DeviceError(
            "the int8 matrix kernels of this ONNX Runtime give wrong results on this CPU:"
            " export with --precision int4 or fp32 instead"
        )


@cache
def int8_precision_mode() -> str:
    """Value of `session.x64quantprecision`: "0" where the plain uint8 x int8 kernels are exact, else "1".

    Without VNNI the plain kernels saturate pairs of products silently, and "1" takes kernels that do not. Where they
    are exact "1" must not be set: it turns the weights unsigned, and AMX tiles are wired to signed weights alone
    (onnxruntime/core/mlas/lib/platform.cpp). So the kernels are asked, not the CPU's flags.
    """
    return "0" if _is_exact("0") else "1"


def _is_exact(precision_mode: str) -> bool:
    """Products of full-range weights in the shapes of all kernels (one row, a few, full tiles) are exact integers."""
    generator = np.random.default_rng(1)
    activations = generator.integers(0, 256, (48, 192), np.uint8)
    weights = generator.choice(np.array([-127, -126, 126, 127], np.int8), (192, 64))
    activations[0], weights[:, 0] = 255, 127  # the worst case for saturating pair sums
    expected = (activations.astype(np.int32) - 128) @ weights.astype(np.int32)
    return all(
        np.array_equal(int8_products(activations[:num_rows], weights, precision_mode), expected[:num_rows])
        for num_rows in (1, 3, 48)
    )


def int8_products(
    activations: npt.NDArray[np.uint8], weights: npt.NDArray[np.int8], precision_mode: str
) -> npt.NDArray[np.int32]:
    """`activations - 128 [rows, inputs]` times `weights [inputs, outputs]`, as the kernels of one mode compute it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", precision_mode)
    session = ort.InferenceSession(_product_graph(weights), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"a": activations})[0])


def _product_graph(weights: npt.NDArray[np.int8]) -> bytes:
    num_inputs, num_outputs = weights.shape
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b", "zero"], ["c"])],
        "int8_check",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, ["rows", num_inputs])],
        [helper.make_tensor_value_info("c", TensorProto.INT32, ["rows", num_outputs])],
        [
            onnx.numpy_helper.from_array(weights, "b"),
            onnx.numpy_helper.from_array(np.asarray(128, np.uint8), "zero"),
        ],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    return bytes(model.SerializeToString())


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+", maxsplit=1)[0].split(".") if part.isdigit())
