"""Checks of the installation: which ONNX Runtime distributions there are and whether they work. Times nothing.

All distributions of ONNX Runtime unpack into the same folder: with two of them, files of one lie among the other's.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module, metadata

from ortserve.gateway.doctor.findings import Finding, broken, fine, note
from ortserve.runtime.errors import OrtserveError

CPU_WHEEL, GPU_WHEEL = "onnxruntime", "onnxruntime-gpu"
OLDEST_RUNTIME = {CPU_WHEEL: (1, 32), GPU_WHEEL: (1, 31, 1)}
_SAME_FOLDER = (
    *(CPU_WHEEL, GPU_WHEEL, "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn", "onnxruntime-rocm"),
    *("onnxruntime-migraphx", "onnxruntime-silicon", "onnxruntime-training", "ort-nightly", "ort-nightly-gpu"),
)
_NEEDED = (
    *("numpy", "onnx", "tokenizers", "msgspec", "jinja2", "llguidance", "starlette", "hypercorn", "structlog"),
    "huggingface_hub",
)


def installed_runtimes() -> dict[str, str]:
    """Installed distributions that put files into the onnxruntime folder, with their versions."""
    return _installed(_SAME_FOLDER)


def check_wheels(installed: Mapping[str, str]) -> Finding:
    """Exactly one ONNX Runtime, new enough."""
    if not installed:
        return broken("onnxruntime wheel", "none is installed", "pip install 'ortserve[cpu]'")
    names = " and ".join(f"{name} {version}" for name, version in installed.items())
    if len(installed) > 1:
        kept = GPU_WHEEL if GPU_WHEEL in installed else next(iter(installed))
        extra = "cuda" if kept == GPU_WHEEL else "cpu"
        # Removing one deletes files of the other: all go, then one comes back.
        remedy = f"pip uninstall -y {' '.join(installed)} && pip install 'ortserve[{extra}]'"
        return broken("onnxruntime wheel", f"{names} share one folder and overwrite each other", remedy)
    name, version = next(iter(installed.items()))
    oldest = OLDEST_RUNTIME.get(name)
    if oldest is None:
        return note(
            "onnxruntime wheel", f"{names} is not one this project is tested with", "pip install 'ortserve[cpu]'"
        )
    if _release(version) < oldest:
        wanted = ".".join(map(str, oldest))
        return broken("onnxruntime wheel", f"{names} is older than {wanted}", f"pip install '{name}>={wanted}'")
    return fine("onnxruntime wheel", names)


def check_runtime(installed: Mapping[str, str]) -> Finding:
    """ONNX Runtime imports, is the version its wheel claims, and names its execution providers."""
    try:
        session = import_module("ortserve.runtime.session")
        version, providers = str(session.runtime_version()), ", ".join(session.available_providers())
    except (ImportError, AttributeError) as error:  # a half-removed installation imports as an empty package
        return broken("onnxruntime", f"cannot be used: {_line(error)}", _reinstall(installed))
    if installed and all(_release(version) != _release(claimed) for claimed in installed.values()):
        return broken("onnxruntime", f"the imported version {version} is not an installed one", _reinstall(installed))
    return fine("onnxruntime", f"{version}, execution providers: {providers}")


def check_int8() -> Finding:
    """The known-answer test of the int8 kernels."""
    from ortserve.runtime.session import check_int8_kernels

    try:
        check_int8_kernels()
    except OrtserveError as error:
        return broken("int8 kernels", str(error), "export with --precision int4 or fp32")
    return fine("int8 kernels", "full-range weights give the exact integers")


def check_cuda() -> Finding:
    """What the GPU wheel needs of the system: a driver and the CUDA libraries."""
    from ortserve.runtime.devices.cuda_library import has_driver, missing_libraries, pip_command

    if not has_driver():
        return broken("CUDA", "no NVIDIA driver (libcuda.so.1)", "install the NVIDIA driver, 580 or newer")
    missing = list(missing_libraries())
    if missing:
        names = ", ".join(library.file for library in missing)
        is_broken = any(library.is_needed for library in missing)
        return (broken if is_broken else note)("CUDA", f"cannot be loaded: {names}", pip_command(missing))
    return fine("CUDA", "driver and libraries can be loaded")


def check_gpus() -> Finding | None:
    """What `--device cuda:N` may name; nothing on a machine without a GPU."""
    from ortserve.runtime.devices.cuda_devices import cuda_devices

    try:
        devices = cuda_devices()
    except OrtserveError as error:
        return broken("GPUs", str(error), "reinstall the NVIDIA driver, 580 or newer")
    return fine("GPUs", "; ".join(map(str, devices))) if devices else None


def check_libraries() -> Finding:
    """The libraries of the base installation."""
    found = _installed(_NEEDED)
    missing = [name for name in _NEEDED if name not in found]
    if missing:
        return broken("libraries", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return fine("libraries", ", ".join(f"{name} {version}" for name, version in found.items()))


def _installed(names: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _reinstall(installed: Mapping[str, str]) -> str:
    name = next(iter(installed), CPU_WHEEL)
    return f"pip install --force-reinstall --no-deps {name}"


def _release(version: str) -> tuple[int, ...]:
    """The numbers in front: 1.32.0 and 1.32.0.dev1 are (1, 32, 0)."""
    numbers: list[int] = []
    for word in version.split("."):
        if not word.isdigit():
            break
        numbers.append(int(word))
    return tuple(numbers)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
