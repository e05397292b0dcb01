"""Lists what a recorded step launches: kernels by name and number, copies and fills. Measures no time.

Reads CUDA graphs through the driver's API while `CudaDevice` records them. Source: CUDA Driver API 13.0.
"""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, Structure, byref, c_char_p, c_int, c_size_t, c_uint, c_void_p
from unittest import mock

from ortserve.runtime.devices.cuda import CudaDevice

_KERNEL = 0  # CUgraphNodeType
_KINDS = {1: "(copy)", 2: "(fill)", 4: "(graph)", 5: "(empty)", 6: "(wait for an event)", 7: "(event)"}


class _KernelParameters(Structure):
    """CUDA_KERNEL_NODE_PARAMS_v2."""

    _fields_ = (
        ("function", c_void_p),
        ("grid", c_uint * 3),
        ("block", c_uint * 3),
        ("shared_bytes", c_uint),
        ("parameters", c_void_p),
        ("extra", c_void_p),
        ("kernel", c_void_p),
        ("context", c_void_p),
    )


@contextmanager
def recorded_nodes(device: CudaDevice) -> Iterator[list[Counter[str]]]:
    """Names and numbers of the nodes of every graph that is recorded meanwhile, in order of recording."""
    destroy = device._library.cudaGraphDestroy
    found: list[Counter[str]] = []

    def see(graph: c_void_p) -> int:
        found.append(_nodes(graph))
        return int(destroy(graph))

    with mock.patch.object(device._library, "cudaGraphDestroy", see):
        yield found


def _nodes(graph: c_void_p) -> Counter[str]:
    driver = ctypes.CDLL("libcuda.so.1")
    count = c_size_t()
    _check(driver.cuGraphGetNodes(graph, None, byref(count)), "count nodes")
    nodes = (c_void_p * count.value)()
    _check(driver.cuGraphGetNodes(graph, nodes, byref(count)), "list nodes")
    return Counter(_name(driver, c_void_p(node)) for node in nodes)


def _name(driver: ctypes.CDLL, node: c_void_p) -> str:
    kind = c_int()
    _check(driver.cuGraphNodeGetType(node, byref(kind)), "ask for a node's type")
    if kind.value != _KERNEL:
        return _KINDS.get(kind.value, f"(type {kind.value})")
    parameters, name = _KernelParameters(), c_char_p()
    ask = driver.cuGraphKernelNodeGetParams_v2
    ask.argtypes = (c_void_p, POINTER(_KernelParameters))
    _check(ask(node, byref(parameters)), "ask for a kernel")
    status = 1
    if parameters.function:
        status = driver.cuFuncGetName(byref(name), c_void_p(parameters.function))
    if status and parameters.kernel:
        status = driver.cuKernelGetName(byref(name), c_void_p(parameters.kernel))
    return "(kernel)" if status or name.value is None else short_name(name.value.decode())


def short_name(mangled: str) -> str:
    """The last names of a C++ function, without most of its types."""
    if not mangled.startswith("_Z"):
        return mangled[:60]
    found, place = [], 0
    while (match := re.search(r"\d+", mangled[place:])) is not None:
        begin = place + match.end()
        word = mangled[begin : begin + int(match[0])]
        if re.fullmatch(r"[A-Za-z_]\w*", word):
            found.append(word)
            place = begin + len(word)
        else:
            place = begin
    words = [word for word in found if len(word) > 2 and word not in ("onnxruntime", "contrib", "cuda", "std")]
    return "::".join(words[:3])[:100]


def _check(status: int, action: str) -> None:
    if status:
        raise OSError(f"the CUDA driver cannot {action} (CUresult {status})")
