"""The exporters that `export_peers.py` compares: the commands of each, and in which environment they run.

Peers are run as their own documentation says, from the command line of each, in an environment of pinned versions.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ortserve.export.errors import ExportError
from ortserve.export.optimum.environment import default_environments, optimum_python, pinned_python
from tests.bench.measurement import command

GENAI = ("onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "transformers==5.17.0", "torch==2.13.0",
         "onnx==1.23.1", "onnx-ir==1.0.0")  # fmt: skip
SHOWN = ("onnx", "onnxruntime", "torch", "transformers", "optimum", "optimum-onnx", "onnxruntime-genai", "onnx-ir")


@dataclass(frozen=True, slots=True)
class Way:
    """How one exporter makes one kind of model."""

    name: str
    exporter: str  # ours, optimum, genai
    precision: str
    says: str  # what is run, for the table

    def steps(self, source: Path, scratch: Path, python: Path) -> list[tuple[str | Path, ...]]:
        """Command lines, one after another; the last one's output is `scratch / "out"`."""
        out = scratch / "out"
        if self.exporter == "ours":
            return [tuple(command("export", source, out, *self.says.split()))]
        if self.exporter == "genai":
            module = (python, "-m", "onnxruntime_genai.models.builder")
            return [(*module, "-i", source, "-o", out, "-p", self.precision, "-e", "cpu", "-c", scratch / "cache")]
        floats = out if self.precision == "fp32" else scratch / "floats"
        program = (python, "-m", "optimum.commands.optimum_cli")
        task = ("--task", "text-generation-with-past", "--dtype", "fp32")
        export = (*program, "export", "onnx", "--model", source, *task, floats)
        if self.precision == "fp32":
            return [export]
        return [export, (*program, "onnxruntime", "quantize", "--onnx_model", floats, "--avx512_vnni", "-o", out)]


WAYS: Mapping[str, Way] = {
    way.name: way
    for way in (
        Way("ours-int8", "ours", "int8", "--precision int8 --reference numpy"),
        Way("ours-int4", "ours", "int4", "--precision int4 --reference numpy"),
        Way("ours-fp32", "ours", "fp32", "--precision fp32 --reference numpy"),
        Way("ours-int8-unproved", "ours", "int8", "--precision int8 --no-verify"),
        Way("ours-fp32-unproved", "ours", "fp32", "--precision fp32 --no-verify"),
        Way("ours-int4-unproved", "ours", "int4", "--precision int4 --no-verify"),
        Way("optimum-int8", "optimum", "int8", "export onnx, then onnxruntime quantize --avx512_vnni (dynamic)"),
        Way("optimum-fp32", "optimum", "fp32", "export onnx"),
        Way("genai-int4", "genai", "int4", "models.builder -p int4 -e cpu"),
        Way("genai-fp32", "genai", "fp32", "models.builder -p fp32 -e cpu"),
    )
}


@dataclass(frozen=True, slots=True)
class Interpreters:
    """Where each exporter runs; a peer without one is not run, for the reason that is given."""

    found: Mapping[str, Path]
    missing: Mapping[str, str]

    def versions(self) -> dict[str, dict[str, str]]:
        """Of every exporter's libraries, by name."""
        return {exporter: _versions(python, environment(exporter)) for exporter, python in self.found.items()}


def _genai_python() -> Path:
    remedy = "connect to a package index, or name one with --genai-python"
    return pinned_python("genai", GENAI, default_environments(), progress=True, remedy=remedy)


def find_interpreters(optimum: Path | None, genai: Path | None, *, make: bool) -> Interpreters:
    """Those named; with `make`, environments for the others, installed on first use."""
    found, missing = {"ours": Path(sys.executable)}, {}
    makers: Mapping[str, tuple[Path | None, Callable[[], Path]]] = {
        "optimum": (optimum, lambda: optimum_python(default_environments(), progress=True)),
        "genai": (genai, _genai_python),
    }
    for exporter, (named, maker) in makers.items():
        if named is not None and os.access(named, os.X_OK):
            found[exporter] = named.absolute()
        elif named is not None:
            missing[exporter] = f"{named} cannot be run"
        elif not make:
            missing[exporter] = f"no environment was named with --{exporter}-python"
        else:
            try:
                found[exporter] = maker()
            except ExportError as error:
                missing[exporter] = str(error)
    return Interpreters(found, missing)


def environment(exporter: str) -> dict[str, str]:
    """No network and no GPU; of our own folders on PYTHONPATH, a peer sees none."""
    variables = dict(os.environ) | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    if exporter != "ours":
        variables.pop("PYTHONPATH", None)
    return variables


def _versions(python: Path, variables: Mapping[str, str]) -> dict[str, str]:
    code = (
        "import sys, platform, importlib.metadata as m\n"
        "print('python', platform.python_version())\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(name, m.version(name))\n"
        "    except m.PackageNotFoundError: pass\n"
    )
    done = subprocess.run([python, "-c", code, *SHOWN], env=dict(variables), capture_output=True, text=True, check=True)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())
