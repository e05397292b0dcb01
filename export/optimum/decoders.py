"""From a checkpoint of any decoder that optimum exports to a finished model folder, or to none at all.

The graph and its configuration stay as optimum wrote them; what is added is what every folder of ours has.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ortserve.export.families import READERS
from ortserve.export.folder.new_folder import new_folder
from ortserve.export.folder.versions import version_of
from ortserve.export.imported.description import describe_graph
from ortserve.export.imported.layout import Layout, read_layout
from ortserve.export.imported.outside import check_data_files, read_outside
from ortserve.export.optimum.process import run_worker
from ortserve.export.optimum.reference import optimum_reference
from ortserve.export.progress import show_progress
from ortserve.export.proof.padded_run import open_session
from ortserve.export.proof.report import check_proved, check_replacement, make_report, write_report
from ortserve.export.proof.verify import compare_with
from ortserve.export.sources.checkpoint import GENERATION, TOKENIZER_FILES, Checkpoint
from ortserve.export.sources.source_facts import describe_folder
from ortserve.export.sources.templates import check_templates
from ortserve.runtime.manifest import MANIFEST_NAME, Manifest, manifest_json
from ortserve.runtime.parity import ParityReport

WORK = ".work"  # below the new folder while it is made
KEPT = ("config.json", GENERATION)  # what optimum's own class for such graphs reads


def export_decoder(
    checkpoint: Checkpoint,
    destination: Path,
    *,
    max_context: int | None = None,
    progress: bool = True,
    verify: bool = True,
    force: bool = False,
    allow_unproven: bool = False,
) -> Manifest:
    """Export a checkpoint that `open_for_optimum` opened, in float32, into the new folder `destination`.

    Raises as `export_checkpoint` does, and `ExportError` where there is no environment for optimum, or it cannot
    export the model or the engine cannot run its graph.
    """
    check_templates(checkpoint)
    with new_folder(destination, force=force, marker=MANIFEST_NAME) as folder:
        made = folder / WORK / "optimum"
        made.parent.mkdir()
        with show_progress(f"export {checkpoint.name} through optimum", None, wanted=progress):
            done = run_worker(checkpoint.folder, made, "decoder", progress=progress)
        layout = _take_files(made, folder, checkpoint, done["libraries"])
        manifest = _describe(folder, layout, checkpoint, done["libraries"], max_context)
        proof: ParityReport | None = None
        if verify:
            reference = optimum_reference(checkpoint.folder, manifest, progress=progress)
            with show_progress(f"prove {checkpoint.name}", None, wanted=progress):
                proof = compare_with(folder, manifest, layout.checkpoint, reference)
        shutil.rmtree(folder / WORK)
        (folder / MANIFEST_NAME).write_bytes(manifest_json(manifest))
        report = make_report(
            folder, manifest, proof, source=describe_folder(checkpoint.folder), optimum_versions=done["libraries"]
        )
        write_report(folder, manifest, report)
        if verify and not allow_unproven:
            check_replacement(report, destination)
    if verify and not allow_unproven:
        check_proved(report, destination)
    return manifest


def is_through_optimum(manifest: Manifest) -> bool:
    """Whether `export_decoder` made it: an outside graph in a folder of ours."""
    return manifest.padded is not None and not manifest.imported


def _take_files(made: Path, folder: Path, checkpoint: Checkpoint, libraries: Mapping[str, str]) -> Layout:
    """Move graph, weights and configuration; the tokenizer is the checkpoint's own, where it has a tokenizer.json."""
    found = read_layout(made)
    outside = read_outside(made / found.graph, found.names)
    check_data_files(made / found.graph, outside)
    has_tokenizer = checkpoint.tokenizer_file("tokenizer.json").is_file()
    for name in (found.graph, *outside.data_files, *KEPT, *(() if has_tokenizer else TOKENIZER_FILES)):
        if (made / name).is_file():
            (made / name).rename(folder / Path(name).name)
    if has_tokenizer:
        checkpoint.copy_tokenizer(folder)
    exporter = ", ".join(f"{name} {number}" for name, number in libraries.items())
    layout = read_layout(folder, name=checkpoint.name)
    described = replace(layout.checkpoint, source=checkpoint.source, generation_config=checkpoint.generation_config)
    return replace(layout, checkpoint=described, exporter=f"ortserve {version_of('ortserve')}, {exporter}")


def _describe(
    folder: Path, layout: Layout, checkpoint: Checkpoint, libraries: Mapping[str, str], max_context: int | None
) -> Manifest:
    named = [str(name) for name in checkpoint.config.get("architectures") or []]
    shown = ", ".join(named) or f"model_type {checkpoint.config.get('model_type')!r}"
    known = next((name for name in named if name in READERS), None)
    reason = f"ortserve has no builder for {shown}"
    if known is not None:
        reason = f"--via optimum asked for it, although ortserve builds {known} itself"
    graph = folder / layout.graph
    return describe_graph(
        folder,
        layout,
        read_outside(graph, layout.names),
        open_session(graph),
        max_context=max_context,
        path=(
            f"exported by optimum {libraries['optimum']}, because {reason}: run in padded batches, its keys and values"
            " copied in and out"
        ),
        imported=False,
    )
