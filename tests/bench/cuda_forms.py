"""What each way to compute the same step costs on a GPU: spellings of the graph, kernels, ONNX Runtime's options.

    python -m tests.bench.cuda_forms --out forms.json --folder DIR --shape llama-3.2-1b --layers 8

A model of real layers, but of few of them, is exported in every spelling and loaded in every way that is compared;
recorded steps of plain decodes are timed back to back, and prompts of one chunk eagerly. A way that fails is recorded
as that.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

from ortserve.export.publish import export_checkpoint
from ortserve.export.recipes.precisions import CUDA_FORMS, Forms
from ortserve.export.toys.shapes import SHAPES
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.manifest import Manifest, read_manifest
from tests.bench.cuda_engine import GREEDY, Bench, make_checkpoint

OLD = Forms(gate="two", gate_up="apart", head="float")
ONE_GRAPH = {"ortserve.runtime.pages.parts.ROOM_FOR_MORE": float("inf")}
ALWAYS_MANY = {"ortserve.runtime.pages.runner.MANY_TOKENS": 0}
HEAD_ALONE = {"ortserve.runtime.pages.single.WIDE": 100_000}


@dataclass(frozen=True, slots=True)
class Way:
    """One way to compute a step."""

    name: str
    precision: str
    forms: Forms = CUDA_FORMS
    environment: Mapping[str, str] = field(default_factory=dict)  # that ONNX Runtime reads
    patches: Mapping[str, Any] = field(default_factory=dict)


WAYS = (
    Way("as it was", "fp16", OLD),
    Way("gate in one pass", "fp16"),
    Way("no cuDNN", "fp16", environment={"ORT_ENABLE_CUDNN_FLASH_ATTENTION": "0"}),
    Way("gate in one pass", "bf16"),
    Way("as it was", "int4", OLD, patches=ONE_GRAPH),
    Way("gate in one pass, head of 8 bits", "int4", replace(CUDA_FORMS, gate_up="apart"), patches=ONE_GRAPH),
    Way("and gate and up stacked", "int4", patches=ONE_GRAPH),
    Way("and three graphs", "int4"),
    Way("codes at the head alone for one token", "int4", patches=HEAD_ALONE),
    Way("as for many tokens, but for one", "int4", patches=ALWAYS_MANY),
    Way("head of 4 bits, three graphs", "int4", replace(CUDA_FORMS, head="int4")),
)


@contextmanager
def applied(way: Way) -> Iterator[None]:
    """What of a way is not in the graph, while a model is loaded and runs."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, way.environment))
        for target, value in way.patches.items():
            stack.enter_context(mock.patch(target, value))
        yield


def export(folder: Path, checkpoint: Path, way: Way, max_context: int) -> tuple[Path, Manifest]:
    """The graph in the way's spelling, once."""
    forms = way.forms
    name = "-".join((checkpoint.name, way.precision, forms.gate, forms.gate_up, forms.head))
    target = folder / name
    if not target.exists():
        export_checkpoint(
            checkpoint,
            target,
            precision=way.precision,
            device="cuda",
            max_context=max_context,
            progress=False,
            verify=False,
            forms=forms,
        )
    return target, read_manifest(target)


def measure(way: Way, folder: Path, checkpoint: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of the device for decodes of every width, and for prompts of one chunk."""
    target, manifest = export(folder, checkpoint, way, arguments.max_context)
    widths = arguments.widths
    config = EngineConfig(
        max_context=arguments.max_context,
        max_rows=max(widths),
        kv_memory=arguments.kv_memory,
        prompt_cache="none",
        swap_memory=0,
    )
    with applied(way):
        begun = time.perf_counter()
        bench = Bench(target, manifest, config)
        found: dict[str, Any] = {"load_s": time.perf_counter() - begun, "weight_bytes": manifest.weight_bytes}
        for width in widths:
            figures = bench.decode(width, arguments.context, GREEDY, steps=20)
            found[f"decode {width}"] = figures
            if width == widths[0]:
                found["kernels"] = dict(bench.nodes.most_common())
        for length in arguments.prompts:
            found[f"prompt {length}"] = bench.prefill(length)
        bench.engine.close()
    return found


def table(results: Mapping[str, Any], widths: list[int], prompts: list[int]) -> str:
    """Milliseconds, in Markdown."""
    heads = ["way", "kernels", *(f"decode {width}" for width in widths), *(f"prompt {length}" for length in prompts)]
    rows = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, found in results.items():
        if "error" in found:
            rows.append(f"| {name} | failed: {found['error'][:80]} |" + " |" * (len(heads) - 2))
            continue
        decodes = [found[f"decode {width}"] for width in widths]
        cells = [name, str(decodes[0]["num_kernels"])]
        cells += [f"{figures['model_and_head_ms']:.3f} ({figures['step_ms']:.3f})" for figures in decodes]
        cells += [f"{found[f'prompt {length}']['cold'] * 1e3:.2f}" for length in prompts]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n\nOf the device (of a step of the engine), in milliseconds; prompts eagerly.\n"


def main() -> None:
    """Arguments, all ways, JSON and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON; the table lies beside it")
    parser.add_argument("--folder", type=Path, required=True, help="where models are made and kept")
    parser.add_argument("--shape", default="llama-3.2-1b", choices=tuple(SHAPES))
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--precisions", default="fp16,bf16,int4", type=lambda text: text.split(","))
    parser.add_argument("--only", default="", help="ways whose name holds this (all)")
    parser.add_argument("--repeat", type=int, default=1, help="rounds over all ways, whose order may matter")
    parser.add_argument("--widths", default="1,8,32,64,128", type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--prompts", default="200,500,2000", type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--max-context", type=int, default=4096)
    parser.add_argument("--kv-memory", type=int, default=2 << 30)
    arguments = parser.parse_args()
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    shape = f"{arguments.shape}-of-{arguments.layers}"
    with mock.patch.dict(SHAPES, {shape: replace(SHAPES[arguments.shape], num_layers=arguments.layers)}):
        checkpoint = make_checkpoint(folder, shape)
    results: dict[str, Any] = {}
    for number, way in product(range(arguments.repeat), WAYS):
        name = f"{way.precision} {way.name}" + (f" ({number + 1})" if number else "")
        if way.precision not in arguments.precisions or arguments.only not in name:
            continue
        begun = time.perf_counter()
        try:
            results[name] = measure(way, folder, checkpoint, arguments)
        except Exception as error:  # the next way may well work
            results[name] = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()[-1500:]}
        sys.stdout.write(f"{time.perf_counter() - begun:6.1f} s  {name}: {json.dumps(results[name])[:300]}\n")
        sys.stdout.flush()
        arguments.out.write_text(json.dumps(results, indent=1))
        arguments.out.with_suffix(".md").write_text(table(results, arguments.widths, arguments.prompts))
    sys.stdout.write(table(results, arguments.widths, arguments.prompts))


if __name__ == "__main__":
    main()
