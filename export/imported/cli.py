"""The verb import. Knows arguments and what is printed; the work is done elsewhere."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from contextlib import ExitStack
from pathlib import Path

from ortserve.export.arguments import add_json, describe
from ortserve.export.bundled import resolve_source
from ortserve.export.printing import print_export


def configure_import(parser: ArgumentParser) -> None:
    """`ortserve import DIR`."""
    describe(
        parser,
        "Take over a model that another exporter made (onnxruntime-genai's folders, and optimum's layout): write a"
        " manifest and a report beside its files, which stay as they are.",
        "ortserve import phi-3-mini-onnx --source microsoft/Phi-3-mini-4k-instruct",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="what the other exporter wrote")
    parser.add_argument(
        "--source",
        metavar="SRC",
        help="checkpoint folder, GGUF file or hub id it was made from, to prove it against; without one it is only"
        " compared with itself, and stays unverified",
    )
    parser.add_argument("--graph", metavar="FILE", help="which of several, below the folder (default: model.onnx)")
    parser.add_argument("--name", help="what the model is called (default: the folder's name)")
    parser.add_argument("--max-context", type=int, metavar="N", help="tokens (default: what its files say)")
    parser.add_argument("--force", action="store_true", help="replace the manifest of an earlier import")
    add_json(parser)


def run_import(arguments: Namespace) -> int:
    """Prints the report; 1 when a check failed, 0 also where no reference was named."""
    from ortserve.export.imported.publish import import_folder
    from ortserve.export.open_source import open_source

    with ExitStack() as stack:
        source = None
        if arguments.source is not None:
            source = stack.enter_context(open_source(resolve_source(arguments.source)))
        report = import_folder(
            arguments.folder,
            source=source,
            graph=arguments.graph,
            name=arguments.name,
            max_context=arguments.max_context,
            force=arguments.force,
        )
    print_export(arguments.folder, as_json=arguments.json)
    return 0 if all(check.passed for check in report.checks) else 1
