"""The verbs export, verify and inspect: arguments and what is printed. Import, toy and widen lie with their work.

For each verb a pair: `configure_*` describes its arguments, `run_*` does it and returns the exit status, 0 done or 1 a
check failed. Bad input is raised as an `OrtserveError` of one line, which the console script maps to 2. NumPy and ONNX
are imported where work is done, so that `ortserve --help` is fast.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ortserve.export.arguments import add_force, add_json, add_reference, describe
from ortserve.export.bundled import bundled_draft, bundled_model, resolve_source
from ortserve.export.encoders.cli import (
    add_encoder_arguments,
    is_encoder,
    run_encoder_export,
    run_encoder_inspect,
    run_encoder_verify,
)
from ortserve.export.errors import CheckFailedError, ExportError
from ortserve.export.imported.cli import configure_import, run_import
from ortserve.export.optimum.cli import add_via_argument, run_via_optimum
from ortserve.export.options import DEFAULTS, choose_way
from ortserve.export.printing import print_failure, print_json, print_text, print_verdict, run_and_print
from ortserve.export.recipes.precisions import (
    ACTIVATIONS,
    BLOCK_SIZES,
    CUDA_BLOCK_SIZE,
    DEFAULT_BLOCK_SIZE,
    DEVICES,
    KV_PRECISIONS,
    PRECISIONS,
    Device,
    KvPrecision,
)
from ortserve.export.toys.cli import configure_toy, configure_widen, run_toy, run_widen

if TYPE_CHECKING:
    from ortserve.export.sources.checkpoint import Checkpoint

__all__ = [
    "bundled_draft",
    "bundled_model",
    "configure_export",
    "configure_import",
    "configure_inspect",
    "configure_toy",
    "configure_verify",
    "configure_widen",
    "ensure_exported",
    "resolve_source",
    "run_export",
    "run_import",
    "run_inspect",
    "run_toy",
    "run_verify",
    "run_widen",
]


def ensure_exported(
    source: str | Path,
    cache_folder: Path,
    *,
    precision: str | None,
    progress: bool,
    device: Device = "cpu",
    kv: KvPrecision = "float",
) -> Path:
    """See `ortserve.export.first_use`: the exported folder for `source`, made now if the cache lacks it."""
    from ortserve.export import first_use

    return first_use.ensure_exported(source, cache_folder, precision=precision, progress=progress, device=device, kv=kv)


def configure_export(parser: ArgumentParser) -> None:
    """`ortserve export SRC DST`."""
    describe(
        parser,
        "Turn a Hugging Face checkpoint into a quantized ONNX model, and prove it against an independent reference.",
        "ortserve export HuggingFaceTB/SmolLM2-135M-Instruct smollm2 --precision int8",
    )
    parser.add_argument("source", metavar="SRC", help="checkpoint folder, GGUF file, hub id, or pocket")
    parser.add_argument("destination", metavar="DST", type=Path, help="folder to make; complete or not at all")
    parser.add_argument(
        "--device", choices=DEVICES, default=DEFAULTS["device"], help="what it will run on (default: cpu)"
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of the weights; cpu: int8 (default), int4, fp32; cuda: bf16 (default), fp16, int4",
    )
    parser.add_argument(
        "--block-size",
        type=int,
        choices=BLOCK_SIZES,
        metavar="N",
        help=f"int4 only: weights per scale (default: {DEFAULT_BLOCK_SIZE}; cuda: {CUDA_BLOCK_SIZE})",
    )
    parser.add_argument("--max-context", type=int, metavar="N", help="tokens (default: the model's own limit)")
    parser.add_argument(
        "--activations",
        choices=ACTIVATIONS,
        default=DEFAULTS["activations"],
        help="calibrated: scales and outliers measured on text, per layer; token: one scale per token",
    )
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE", help="UTF-8 text to calibrate by (default: text that is bundled)"
    )
    parser.add_argument(
        "--kv",
        choices=KV_PRECISIONS,
        default=DEFAULTS["kv"],
        help="keys and values in the cache; int8: a quarter of the memory (half on cuda), slower attention of prompts;"
        " fp8: cuda only (default: float)",
    )
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="LoRA adapter (PEFT) to merge into the weights")
    parser.add_argument(
        "--requantize",
        action="store_true",
        help="AWQ and GPTQ checkpoints: quantize their values anew instead of taking their integers over",
    )
    add_encoder_arguments(parser)
    add_via_argument(parser)
    add_force(parser)
    add_reference(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print plan, sizes, and about how much memory and time; write nothing"
    )
    parser.add_argument("--no-verify", action="store_true", help="skip the proof; the folder is marked unverified")
    parser.add_argument(
        "--allow-unproven",
        action="store_true",
        help="status 0 even if the proof fails; the folder is marked unverified",
    )
    add_json(parser)


def run_export(arguments: Namespace) -> int:
    """Prints the report, or with --json manifest and report; 1 when the proof fails."""
    way = choose_way(arguments)
    if way == "encoder":
        return run_encoder_export(arguments)
    if way == "optimum":
        return run_via_optimum(arguments)
    if arguments.dry_run:
        return _run_dry(arguments)
    from ortserve.export.open_source import open_source
    from ortserve.export.publish import export_checkpoint

    def export() -> None:
        with open_source(resolve_source(arguments.source), arguments.adapter) as checkpoint:
            export_checkpoint(
                checkpoint,
                arguments.destination,
                precision=arguments.precision,
                device=arguments.device,
                block_size=arguments.block_size,
                max_context=arguments.max_context,
                activations=arguments.activations,
                calibration_text=arguments.calibration,
                requantize=arguments.requantize,
                kv=arguments.kv,
                verify=not arguments.no_verify,
                force=arguments.force,
                allow_unproven=arguments.allow_unproven,
                reference=arguments.reference,
            )

    return run_and_print(export, arguments.destination, as_json=arguments.json)


def _run_dry(arguments: Namespace) -> int:
    """Prints the forecast."""
    from ortserve.export.forecast import describe_forecast, forecast
    from ortserve.export.open_source import preview_source
    from ortserve.export.recipes.planned import ExportOptions

    options = ExportOptions(
        arguments.precision,
        arguments.device,
        arguments.block_size,
        arguments.max_context,
        arguments.activations,
        arguments.calibration,
        arguments.requantize,
        arguments.kv,
    )
    with preview_source(resolve_source(arguments.source), arguments.adapter) as (checkpoint, download_bytes):
        found = forecast(checkpoint, options, verify=not arguments.no_verify, download_bytes=download_bytes)
    return print_json(found) if arguments.json else print_text(describe_forecast(found))


def configure_verify(parser: ArgumentParser) -> None:
    """`ortserve verify DIR`."""
    describe(
        parser,
        "Check that an exported model is what its report says; with --against, measure it again and renew the report.",
        "ortserve verify smollm2 --against HuggingFaceTB/SmolLM2-135M-Instruct",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="exported model")
    parser.add_argument("--against", metavar="SRC", help="checkpoint folder, GGUF file or hub id it was exported from")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="LoRA adapter that was merged")
    add_reference(parser)
    add_json(parser)


def run_verify(arguments: Namespace) -> int:
    """Prints the report and the verdict, which is the exit status."""
    if is_encoder(arguments.folder):
        return run_encoder_verify(arguments)
    from ortserve.export.verifying import verify_folder

    if arguments.adapter is not None and arguments.against is None:
        raise ExportError("--adapter is compared with --against: name the base model too")
    try:
        if arguments.against is None:
            report = verify_folder(arguments.folder, None)
        else:
            with _open_against(arguments) as checkpoint:
                report = verify_folder(arguments.folder, checkpoint, reference=arguments.reference)
    except CheckFailedError as error:
        return print_failure(error)
    return print_verdict(arguments.folder, report, measured=arguments.against is not None, as_json=arguments.json)


def _open_against(arguments: Namespace) -> AbstractContextManager[Checkpoint]:
    """The checkpoint that is compared with, opened as its export opened it."""
    from ortserve.export.open_source import open_source
    from ortserve.export.optimum.decoders import is_through_optimum
    from ortserve.export.optimum.source import open_for_optimum
    from ortserve.runtime.manifest import read_manifest

    source = resolve_source(arguments.against)
    if not is_through_optimum(read_manifest(arguments.folder)):
        return open_source(source, arguments.adapter)
    if arguments.adapter is not None or arguments.reference == "numpy":
        raise ExportError(
            f"{arguments.folder} came through optimum: it holds no adapter and is compared with transformers alone:"
            " leave out --adapter and --reference"
        )
    return nullcontext(open_for_optimum(source))


def configure_inspect(parser: ArgumentParser) -> None:
    """`ortserve inspect DIR`."""
    describe(
        parser,
        "Draw what an exported model is: structure, sizes and recipes layer by layer, graph, report, and the error of"
        " each layer.",
        "ortserve inspect smollm2 --plot errors.png",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="exported model")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw the errors and sizes of the layers (PNG)")
    add_json(parser)


def run_inspect(arguments: Namespace) -> int:
    """Prints the facts as aligned lines, or with --json all of them."""
    if is_encoder(arguments.folder):
        if arguments.plot is not None:
            raise ExportError("--plot draws the layers of models that generate: leave it out")
        return run_encoder_inspect(arguments)
    from ortserve.export.inspect.inspection import describe_model, inspect_model

    try:
        facts = inspect_model(arguments.folder)
    except CheckFailedError as error:
        return print_failure(error)
    if arguments.plot is not None:
        from ortserve.export.inspect.error_plot import write_error_plot

        write_error_plot(arguments.plot, f"{facts.manifest.name} in {facts.manifest.precision}", facts.parts)
    return print_json(facts) if arguments.json else print_text(describe_model(facts))
