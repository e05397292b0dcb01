"""Finds and loads the CUDA libraries that ONNX Runtime needs, and says which are missing. Knows no devices.

They come as pip packages (`nvidia-*`), whose folders the system's loader does not search: loaded here first, by path,
they are found by name when ONNX Runtime's CUDA provider asks for them.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from ortserve.runtime.errors import DeviceError

DRIVER = "libcuda.so.1"


@dataclass(frozen=True, slots=True)
class CudaLibrary:
    """One shared library and the pip package that brings it."""

    file: str
    package: str
    is_needed: bool = True  # otherwise things work without it, slower


# In the order they must be loaded: each needs those before it.
LIBRARIES = (
    CudaLibrary("libcudart.so.13", "nvidia-cuda-runtime~=13.0"),
    CudaLibrary("libnvJitLink.so.13", "nvidia-nvjitlink~=13.0", is_needed=False),
    CudaLibrary("libcublasLt.so.13", "nvidia-cublas~=13.0"),
    CudaLibrary("libcublas.so.13", "nvidia-cublas~=13.0"),
    CudaLibrary("libcurand.so.10", "nvidia-curand~=10.0"),
    CudaLibrary("libcudnn.so.9", "nvidia-cudnn-cu13>=9", is_needed=False),  # attention on Hopper and newer
)


@cache
def missing_libraries() -> tuple[CudaLibrary, ...]:
    """Libraries that cannot be loaded; all others are loaded when this returns."""
    return tuple(library for library in LIBRARIES if not _load(library.file))


def has_driver() -> bool:
    """The driver's library can be loaded."""
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return False
    return True


def load_runtime_library() -> ctypes.CDLL:
    """The CUDA runtime. Raises `DeviceError` with the remedy when the driver or a needed library is missing."""
    if not has_driver():
        raise DeviceError("no NVIDIA driver was found (libcuda.so.1): install it (580 or newer), or use --device cpu")
    needed = [library for library in missing_libraries() if library.is_needed]
    if needed:
        raise DeviceError(f"{', '.join(library.file for library in needed)} cannot be loaded: {pip_command(needed)}")
    return ctypes.CDLL(LIBRARIES[0].file)


def pip_command(libraries: list[CudaLibrary]) -> str:
    """What installs them."""
    packages = dict.fromkeys(library.package for library in libraries)
    return "pip install " + " ".join(f"'{package}'" for package in packages)


def _load(file: str) -> bool:
    for path in (*_installed(file), file):
        try:
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return True
    return False


def _installed(file: str) -> list[str]:
    """Paths of a library among the pip packages."""
    spec = find_spec("nvidia")
    folders = [] if spec is None or spec.submodule_search_locations is None else list(spec.submodule_search_locations)
    return [str(path) for folder in folders for path in sorted(Path(folder).glob(f"*/lib/{file}"))]
