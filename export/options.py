"""Which options of `ortserve export` each of its ways takes; the others are refused, never ignored. Does no work."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Literal, TypeAlias

from ortserve.export.errors import ExportError

Way: TypeAlias = Literal["ours", "optimum", "encoder"]
GENERATE = "generate"  # the task of everything but encoders
DEFAULTS: Mapping[str, object] = {"activations": "calibrated", "device": "cpu", "kv": "float", "reference": "auto"}
TAKEN: Mapping[tuple[Way, str], object] = {  # besides the default
    ("optimum", "precision"): "fp32",
    ("optimum", "reference"): "transformers",
}
_BUILT = "is for graphs built here: leave it out, or leave out --via optimum"
_GENERATES = "is for models that generate: leave it out, or leave out --task"
_ENCODERS = "is for encoders: leave it out, or add --task embeddings"
REFUSED: Mapping[Way, Mapping[str, str]] = {
    "ours": {"name": _ENCODERS, "dimensions": _ENCODERS},
    "optimum": {
        "name": _ENCODERS,
        "dimensions": _ENCODERS,
        "precision": "is fp32 where --via optimum exports: leave it out",
        "device": "is cpu where --via optimum exports: leave it out",
        "dry_run": "plans graphs built here, optimum has no plan to show: leave it out",
        "reference": "is transformers where --via optimum exports: leave it out",
        "adapter": _BUILT,
        "block_size": _BUILT,
        "calibration": _BUILT,
        "activations": _BUILT,
        "kv": _BUILT,
        "requantize": _BUILT,
    },
    "encoder": {
        "via": "is for models that generate, encoders always go through optimum: leave it out",
        "device": "is cpu for encoders: leave it out",
        "dry_run": "plans models that generate, optimum has no plan to show: leave it out",
        "no_verify": "saves nothing here, since the reference comes with the graph: leave it out",
        "reference": "is sentence-transformers for encoders: leave it out",
        "adapter": _GENERATES,
        "block_size": _GENERATES,
        "max_context": _GENERATES,
        "calibration": _GENERATES,
        "activations": _GENERATES,
        "kv": _GENERATES,
        "requantize": _GENERATES,
    },
}


def choose_way(arguments: Namespace) -> Way:
    """What the arguments ask for. Raises `ExportError` for an option that this way has no use for."""
    way: Way = "encoder" if arguments.task != GENERATE else "optimum" if arguments.via is not None else "ours"
    for option, reason in REFUSED[way].items():
        value = getattr(arguments, option)
        is_absent = value is None or value is False or value == ()
        if not is_absent and value not in (DEFAULTS.get(option), TAKEN.get((way, option))):
            raise ExportError(f"--{option.replace('_', '-')} {reason}")
    return way
