"""Sessions of ONNX Runtime whose inputs and outputs are addresses of a `Device`. Knows no sequences.

Sources of the options: onnxruntime_session_options_config_keys.h, cuda_provider_options.h and the wheel 1.31.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import TensorProto

from ortserve.runtime.devices.device import Device
from ortserve.runtime.errors import DeviceError, ModelError

_TYPES: Mapping[str, int] = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int8": TensorProto.INT8,
    "float8e4m3fn": TensorProto.FLOAT8E4M3FN,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}


class DeviceSession:
    """One graph loaded for a device. Runs enqueue on the device's stream and do not wait for it."""

    def __init__(
        self, model: Path | bytes, device: Device, *, multiplies_codes: bool = True, weights: Path | None = None
    ) -> None:
        """Raises `ModelError` when ONNX Runtime refuses the graph, `DeviceError` when it cannot use the device.

        `multiplies_codes`: matrices in codes meet 16-bit tokens on the tensor cores, which is fast for some tens of
        tokens. Otherwise one token has a kernel of its own, and for many the matrix becomes floats first. `weights` is
        the folder of what a graph in memory keeps in files.
        """
        options = ort.SessionOptions()
        options.log_severity_level = 4 if device.kind == "cpu" else 3
        if weights is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
        providers: list[object] = ["CPUExecutionProvider"]
        if device.kind == "cuda":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            options.add_session_config_entry("ep.cuda.fpa_intb_gemm", str(int(multiplies_codes)))  # off by default
            providers = [("CUDAExecutionProvider", _cuda_options(device))]
        source = str(model) if isinstance(model, Path) else model
        name = model if isinstance(model, Path) else "a graph of the engine"
        try:
            self._session = ort.InferenceSession(source, options, providers=providers)
        except Exception as error:  # onnxruntime raises a family of its own that it does not export
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f"ONNX Runtime {ort.__version__} cannot load {name} on {device.kind}: {reason}") from error
        self._session.disable_fallback()
        if device.kind == "cuda" and self._session.get_providers()[0] != "CUDAExecutionProvider":
            raise DeviceError(
                f"ONNX Runtime {ort.__version__} cannot use CUDA on this machine: ortserve doctor says what is missing"
            )
        self._device = device

    def binding(self) -> DeviceBinding:
        """A new binding of this session."""
        return DeviceBinding(self._session, self._device)


class DeviceBinding:
    """Inputs and outputs fixed to addresses; what is bound stays bound from run to run."""

    def __init__(self, session: ort.InferenceSession, device: Device) -> None:
        self._session = session
        self._device = device
        self._binding = session.io_binding()
        self._held: dict[str, npt.NDArray[np.generic]] = {}
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def bind_input(self, name: str, address: int, dtype: str, shape: tuple[int, ...]) -> None:
        """Read an input from device memory."""
        self._binding.bind_input(name, self._device.kind, self._device.index, _TYPES[dtype], shape, address)

    def bind_output(self, name: str, address: int, dtype: str, shape: tuple[int, ...]) -> None:
        """Write an output into device memory."""
        self._binding.bind_output(name, self._device.kind, self._device.index, _TYPES[dtype], shape, address)

    def bind_host_input(self, name: str, array: npt.NDArray[np.generic]) -> None:
        """Read an input from host memory, at every run anew; recorded work keeps the value of its recording."""
        self._held[name] = array
        self._binding.bind_cpu_input(name, array)

    def run(self) -> None:
        """Enqueue one run. Raises `DeviceError` when ONNX Runtime refuses."""
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:
            reason = str(error).strip().splitlines()[0]
            raise DeviceError(f"the model cannot run on {self._device.kind}: {reason}") from error


def _cuda_options(device: Device) -> dict[str, str]:
    return {
        "device_id": str(device.index),
        "user_compute_stream": str(device.stream),
        "use_tf32": "0",  # 10 bits of mantissa would not do for float32 sums
        "arena_extend_strategy": "kSameAsRequested",  # the KV cache takes what is left
    }
