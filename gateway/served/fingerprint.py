"""`system_fingerprint`: what a reply depends on besides the request. Knows no request."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib import metadata

from ortserve.gateway.schema.sampling import SamplingDefaults
from ortserve.runtime.manifest import Manifest

ENGINES = ("ortserve", "onnxruntime", "onnxruntime-gpu")


def installed_versions() -> tuple[str, ...]:
    """Of this program and of the kernels, as `name version`."""
    return tuple(_versions(ENGINES))


def system_fingerprint(manifest: Manifest, defaults: SamplingDefaults, versions: Iterable[str]) -> str:
    """Changes whenever the same request and seed may give another reply: with weights, recipe, defaults or engine."""
    text = f"{manifest.digest} {manifest.precision} {manifest.exporter} {defaults} {' '.join(versions)}"
    return f"fp_{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _versions(names: Iterable[str]) -> Iterable[str]:
    for name in names:
        try:
            yield f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
