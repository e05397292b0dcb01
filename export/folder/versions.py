"""Which versions of the libraries took part. Knows distributions, no work."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

ONNXRUNTIME = ("onnxruntime", "onnxruntime-gpu")
LIBRARIES = ("ortserve", "onnx", "numpy", "tokenizers")


def version_of(distribution: str) -> str:
    """`unknown` for what is not installed as a distribution."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"


def library_versions() -> dict[str, str]:
    """Of everything that every export and proof uses."""
    runtime = next((name for name in ONNXRUNTIME if version_of(name) != "unknown"), ONNXRUNTIME[0])
    versions = {name: version_of(name) for name in (*LIBRARIES, runtime)}
    return {"python": platform.python_version(), **versions}
