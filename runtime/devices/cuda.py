"""One NVIDIA GPU as a `Device`: the CUDA runtime called through ctypes, on one stream. Knows no model and no tensors.

Everything of an engine is enqueued on this stream: ONNX Runtime gets its handle, so copies, model and sampling need no
events between them, and all of it can be recorded as CUDA graphs. Source: CUDA Runtime API 13.0.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import byref, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from weakref import finalize

import numpy as np
import structlog

from ortserve.runtime.devices.cuda_library import load_runtime_library
from ortserve.runtime.devices.device import Bytes, Launch, Strided
from ortserve.runtime.errors import DeviceError, MemoryBudgetError
from ortserve.runtime.sizes import shown_bytes

_TO_DEVICE, _TO_HOST, _BY_ADDRESS = 1, 2, 4  # cudaMemcpyKind
_NON_BLOCKING = 1  # cudaStreamNonBlocking: no order with the default stream
_RELAXED = 2  # cudaStreamCaptureModeRelaxed: other threads may call CUDA while one records
_NO_TIMES = 2  # cudaEventDisableTiming
_NUM_EVENTS = 4  # marks that may be waited for at once: two are
_OLDEST_DRIVER = 13_000


class CudaDevice:
    """Not thread-safe, but for `copy_now`. Memory lives as long as the process."""

    kind = "cuda"

    def __init__(self, index: int = 0) -> None:
        """Raises `DeviceError` when there is no such device, driver or library."""
        self._library = load_runtime_library()
        self.index = index
        driver, count = c_int(), c_int()
        self._check(self._library.cudaDriverGetVersion(byref(driver)), "ask for the driver's version")
        if driver.value < _OLDEST_DRIVER:
            raise DeviceError(
                f"the NVIDIA driver knows CUDA {driver.value // 1000} and ONNX Runtime needs 13: install driver 580 or"
                " newer, or use --device cpu"
            )
        self._check(self._library.cudaGetDeviceCount(byref(count)), "count the GPUs")
        if index >= count.value:
            raise DeviceError(f"--device cuda:{index} does not exist: this machine has {count.value} GPUs")
        self._check(self._library.cudaSetDevice(index), f"use cuda:{index}")
        stream = c_void_p()
        self._check(self._library.cudaStreamCreateWithFlags(byref(stream), _NON_BLOCKING), "make a stream")
        self._stream = stream
        self._can_record = True
        self._events = [c_void_p() for _ in range(_NUM_EVENTS)]
        self._num_marks = 0
        for event in self._events:
            status = self._library.cudaEventCreateWithFlags(byref(event), c_uint(_NO_TIMES))
            self._check(status, "make an event")

    @property
    def stream(self) -> int:
        """Part of `Device`."""
        return int(self._stream.value or 0)

    def allocate(self, num_bytes: int) -> int:
        """Part of `Device`."""
        address = c_void_p()
        if self._library.cudaMalloc(byref(address), c_size_t(max(num_bytes, 1))):
            self._library.cudaGetLastError()
            raise MemoryBudgetError(
                f"cuda:{self.index} has no {shown_bytes(num_bytes)} free: lower --kv-memory, or free its memory"
            )
        self._check(
            self._library.cudaMemsetAsync(address, c_int(0), c_size_t(max(num_bytes, 1)), self._stream), "clear memory"
        )
        return int(address.value or 0)

    def host_array(self, num_bytes: int) -> Bytes:
        """Part of `Device`: page-locked memory."""
        address = c_void_p()
        if self._library.cudaMallocHost(byref(address), c_size_t(max(num_bytes, 1))):
            self._library.cudaGetLastError()
            raise MemoryBudgetError(f"{shown_bytes(num_bytes)} of host memory cannot be locked: free memory")
        buffer = (ctypes.c_uint8 * max(num_bytes, 1)).from_address(int(address.value or 0))
        return np.frombuffer(memoryview(buffer), np.uint8)

    def upload(self, target: int, source: Bytes) -> None:
        """Part of `Device`."""
        self._library.cudaSetDevice(self.index)  # a thread's own state, and a step begins with an upload
        self._copy(target, int(source.ctypes.data), source.nbytes, _TO_DEVICE)

    def download(self, target: Bytes, source: int) -> None:
        """Part of `Device`."""
        self._copy(int(target.ctypes.data), source, target.nbytes, _TO_HOST)

    def copy(self, target: Strided, source: Strided, *, width: int, height: int) -> None:
        """Part of `Device`."""
        pieces = _pieces(target, source, width, height)
        self._check(self._library.cudaMemcpy2DAsync(*pieces, self._stream), "copy blocks")

    def copy_now(self, target: Strided, source: Strided, *, width: int, height: int) -> None:
        """Part of `Device`: on the default stream, which has no order with the engine's."""
        self._library.cudaSetDevice(self.index)
        self._check(self._library.cudaMemcpy2D(*_pieces(target, source, width, height)), "copy blocks")

    def synchronize(self) -> None:
        """Part of `Device`."""
        self._check(self._library.cudaStreamSynchronize(self._stream), "finish a step")

    def mark(self) -> Callable[[], None]:
        """Part of `Device`: an event of a few that take turns."""
        event = self._events[self._num_marks % len(self._events)]
        self._num_marks += 1
        self._check(self._library.cudaEventRecord(event, self._stream), "mark a step")
        return lambda: self._check(self._library.cudaEventSynchronize(event), "finish a step")

    def record(self, enqueue: Callable[[], None]) -> Launch | None:
        """Part of `Device`: a CUDA graph of what `enqueue` puts on the stream."""
        if not self._can_record:
            return None
        graph, executable = c_void_p(), c_void_p()
        self._check(self._library.cudaStreamBeginCapture(self._stream, c_int(_RELAXED)), "record a graph")
        try:
            enqueue()
            status = self._library.cudaStreamEndCapture(self._stream, byref(graph))
            self._check(status, "record a graph")
            self._check(self._library.cudaGraphInstantiate(byref(executable), graph, c_ulonglong(0)), "make a graph")
        except Exception as error:  # whatever ONNX Runtime's kernels raise: the work runs unrecorded instead
            self._library.cudaStreamEndCapture(self._stream, byref(graph))
            self._library.cudaGetLastError()
            self._can_record = False
            structlog.get_logger("ortserve.cuda").warning("no CUDA graphs: steps run eagerly", reason=str(error))
            return None
        self._library.cudaGraphDestroy(graph)

        def launch() -> None:
            self._check(self._library.cudaGraphLaunch(executable, self._stream), "launch a graph")

        # One that still runs is freed once it is done. At exit the driver may be gone before.
        finalize(launch, self._library.cudaGraphExecDestroy, executable).atexit = False
        return launch

    def free_bytes(self) -> int:
        """Part of `Device`."""
        free, total = c_size_t(), c_size_t()
        self._check(self._library.cudaMemGetInfo(byref(free), byref(total)), "ask for free memory")
        return free.value

    def _copy(self, target: int, source: int, num_bytes: int, direction: int) -> None:
        status = self._library.cudaMemcpyAsync(
            c_void_p(target), c_void_p(source), c_size_t(num_bytes), c_int(direction), self._stream
        )
        self._check(status, "copy")

    def _check(self, status: int, action: str) -> None:
        if status:
            self._library.cudaGetErrorString.restype = ctypes.c_char_p
            reason = self._library.cudaGetErrorString(status).decode()
            raise DeviceError(f"cuda:{self.index} cannot {action}: {reason} (CUDA error {status})")


def _pieces(target: Strided, source: Strided, width: int, height: int) -> tuple[c_void_p | c_size_t | c_int, ...]:
    return (
        c_void_p(target.address),
        c_size_t(target.pitch),
        c_void_p(source.address),
        c_size_t(source.pitch),
        c_size_t(width),
        c_size_t(height),
        c_int(_BY_ADDRESS),
    )
