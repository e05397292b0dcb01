"""Checks of the host: Python, processor, memory, open files, port. Knows no ONNX Runtime."""

from __future__ import annotations

import os
import platform
import resource
import socket
import sys

from ortserve.gateway.doctor.findings import Finding, broken, fine, note
from ortserve.runtime.host.machine import CpuFacts, MemoryFacts

OLDEST_PYTHON = (3, 11)
_SMALL_MEMORY = 1 << 30
_FEW_FILES = 4096  # a stream holds one descriptor
_GIBIBYTE = 1 << 30


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> Finding:
    """The interpreter's version."""
    detail = f"{platform.python_implementation()} {platform.python_version()}"
    if version < OLDEST_PYTHON:
        return broken("python", detail, "install Python 3.11 or newer and make the environment again with it")
    return fine("python", detail)


def check_processor(cpu: CpuFacts) -> Finding:
    """Model, cores and the instructions that 8-bit kernels need to be fast."""
    detail = f"{cpu.model}, {cpu.architecture}, features: {' '.join(cpu.features) or 'none known'}"
    if cpu.has_amx:
        return fine("processor", f"{detail} (8-bit matrix tiles: int8 is fastest for many streams and prefill)")
    if cpu.has_vnni:
        return fine("processor", f"{detail} (8-bit dot products)")
    return note("processor", f"{detail} (no 8-bit dot products: int8 and int4 run on slower, still exact kernels)")


def check_cores(cpu: CpuFacts) -> Finding:
    """How many of them this process may use, and how many threads a model gets under a CPU quota."""
    detail = f"{cpu.num_usable} of {cpu.num_cores} usable"
    if cpu.cgroup_cores is None:
        return fine("cores", detail)
    return fine("cores", f"{detail}, CPU quota {cpu.cgroup_cores:g}: {cpu.num_whole} threads for models")


def check_memory(memory: MemoryFacts) -> Finding:
    """What a model and its KV cache can still take."""
    detail = f"{_gibibytes(memory.available)} available of {_gibibytes(memory.total)}"
    if memory.cgroup_limit is not None:
        detail += f", cgroup limit {_gibibytes(memory.cgroup_limit)}"
    if memory.available < _SMALL_MEMORY:
        return note(
            "memory", detail, "free memory or raise the limit: a 0.5B model in int8 takes about 1 GiB with its KV cache"
        )
    return fine("memory", detail)


def check_open_files(limits: tuple[int, int] | None = None) -> Finding:
    """The limit on open descriptors. The server raises the soft limit to the hard one by itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE) if limits is None else limits
    detail = f"limit {_limit(soft)}, can be raised to {_limit(hard)}"
    if hard != resource.RLIM_INFINITY and hard < _FEW_FILES:
        return note("open files", detail, f"raise the hard limit (ulimit -Hn {_FEW_FILES}): each stream takes one")
    return fine("open files", detail)


def check_port(host: str, port: int) -> Finding:
    """Whether a server could listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        return broken(
            "port", f"{host}:{port} cannot be used: {reason}", "stop what listens there, or serve with --port"
        )
    return fine("port", f"{host}:{port} is free")


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def _gibibytes(count: int) -> str:
    return f"{count / _GIBIBYTE:.1f} GiB"
