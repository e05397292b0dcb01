"""From a checkpoint of an encoder to a proven model folder, or to none at all. Knows the order of work."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ortserve.export.encoders.bridge import OptimumExport, export_through_optimum
from ortserve.export.encoders.graph import SourceGraph, take_over
from ortserve.export.encoders.modules import SentenceModules, read_classifier, read_modules
from ortserve.export.encoders.pooling import activate, add_dense, normalize, pool
from ortserve.export.encoders.proof import prove, with_float_proof
from ortserve.export.encoders.proof_texts import PAIRS, TEXTS
from ortserve.export.errors import ExportError
from ortserve.export.folder.new_folder import new_folder
from ortserve.export.folder.versions import version_of
from ortserve.export.graph.builder import GraphBuilder
from ortserve.export.graph.data_file import DataFile
from ortserve.export.proof.integrity import DATA_NAME, GRAPH_NAME, file_digest, join_digests
from ortserve.export.proof.report import check_proved, check_replacement, make_report, write_report
from ortserve.export.sources.checkpoint import foreign_folder
from ortserve.export.sources.source_facts import describe_folder
from ortserve.runtime.encoders.manifest import EncoderManifest, EncoderTask
from ortserve.runtime.manifest import FORMAT_VERSION, MANIFEST_NAME, manifest_json
from ortserve.runtime.parity import EncoderProof

PRECISIONS = ("fp32", "int8")
TASKS: tuple[EncoderTask, ...] = ("embeddings", "rerank")
MIN_ONNXRUNTIME = "1.20"
TOKENIZER_NAMES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
SCORE_ACTIVATIONS = ("Identity", "Sigmoid")


@dataclass(frozen=True, slots=True)
class EncoderPlan:
    """What is to be written, before anything is."""

    name: str
    source: str
    task: EncoderTask
    precision: str
    modules: SentenceModules
    activation: str  # of scores


def export_encoder(
    source: str | Path,
    destination: Path,
    *,
    task: EncoderTask,
    precision: str,
    name: str | None = None,
    dimensions: Sequence[int] = (),
    progress: bool = True,
    force: bool = False,
    allow_unproven: bool = False,
) -> EncoderManifest:
    """Export a checkpoint, its folder or hub id, into the new folder `destination` and prove it.

    Raises `ExportError` for an unusable checkpoint or environment. When the proof fails, the folder is marked
    unverified and `UnprovenError` is raised, unless `allow_unproven`.
    """
    if precision not in PRECISIONS:
        raise ExportError(f"precision {precision!r} is not for encoders: choose {' or '.join(PRECISIONS)}")
    folder, own_name = foreign_folder(source)
    shown = own_name if Path(source).is_dir() else str(source)
    plan = plan_encoder(
        folder, name=name or own_name, source=shown, task=task, precision=precision, dimensions=dimensions
    )
    with TemporaryDirectory(prefix="ortserve-optimum-") as scratch:
        made = export_through_optimum(
            folder,
            Path(scratch),
            task,
            texts=TEXTS if task == "embeddings" else (),
            pairs=PAIRS if task == "rerank" else (),
            progress=progress,
        )
        return publish_encoder(
            plan, folder, made, destination, texts=TEXTS, pairs=PAIRS, force=force, allow_unproven=allow_unproven
        )


def publish_encoder(
    plan: EncoderPlan,
    checkpoint: Path,
    made: OptimumExport,
    destination: Path,
    *,
    texts: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    force: bool = False,
    allow_unproven: bool = False,
) -> EncoderManifest:
    """The model folder from what optimum gave: all that happens outside its environment. Raises as `export_encoder`."""
    against = f"sentence-transformers {made.libraries.get('sentence-transformers', '?')} in float32"
    compare = partial(prove, reference=made.reference, texts=texts, pairs=pairs, against=against)
    with new_folder(destination, force=force, marker=MANIFEST_NAME) as folder:
        manifest = _write_model(folder, plan, checkpoint, made)
        proof = compare(folder, manifest)
        if plan.precision != "fp32":
            proof = with_float_proof(proof, _prove_in_float(plan, checkpoint, made, compare))
        (folder / MANIFEST_NAME).write_bytes(manifest_json(manifest))
        report = make_report(
            folder, manifest, proof, source=describe_folder(checkpoint), optimum_versions=made.libraries
        )
        write_report(folder, manifest, report)
        if not allow_unproven:
            check_replacement(report, destination)
    if not allow_unproven:
        check_proved(report, destination)
    return manifest


def _prove_in_float(
    plan: EncoderPlan, checkpoint: Path, made: OptimumExport, compare: Callable[[Path, EncoderManifest], EncoderProof]
) -> EncoderProof:
    """The same graph before its weights are rounded: what int8's wider limits would let pass does not pass here."""
    with TemporaryDirectory(prefix="ortserve-float-") as scratch:
        folder = Path(scratch)
        return compare(folder, _write_model(folder, replace(plan, precision="fp32"), checkpoint, made))


def plan_encoder(
    folder: Path, *, name: str, source: str, task: EncoderTask, precision: str, dimensions: Sequence[int] = ()
) -> EncoderPlan:
    """Read what the checkpoint says of itself; `dimensions` are added to those it states. Raises `ExportError`."""
    if task == "embeddings":
        modules = read_modules(folder)
        modules = replace(modules, dimensions=tuple(sorted({*modules.dimensions, *dimensions})))
        return EncoderPlan(name, source, task, precision, modules, "Identity")
    modules, activation = read_classifier(folder)
    if activation not in SCORE_ACTIVATIONS:
        raise ExportError(f"{folder} puts its scores through {activation}; known: {', '.join(SCORE_ACTIVATIONS)}")
    return EncoderPlan(name, source, task, precision, modules, activation)


def _write_model(folder: Path, plan: EncoderPlan, checkpoint: Path, made: OptimumExport) -> EncoderManifest:
    source = SourceGraph(made.graph)
    modules = plan.modules
    with DataFile(folder / DATA_NAME, progress=lambda _: None) as data:
        graph = GraphBuilder(data)
        output, width = _build(graph, source, plan, made)
        graph.output(output, np.float32, ["batch", width])
        data_digest, weight_bytes = data.sha256, data.num_bytes
    model = graph.model(name=plan.name, producer_version=version_of("ortserve"), opset=source.opset)
    serialized = model.SerializeToString()
    (folder / GRAPH_NAME).write_bytes(serialized)
    for name in TOKENIZER_NAMES:
        if (checkpoint / name).exists():
            shutil.copyfile(checkpoint / name, folder / name)
    wrong = [size for size in modules.dimensions if not 0 < size <= width]
    if wrong:
        raise ExportError(f"{plan.name} has embeddings of {width} numbers: {wrong[0]} cannot be cut from them")
    graph_digest, tokenizer_digest = hashlib.sha256(serialized).digest(), file_digest(folder / "tokenizer.json")
    libraries = ", ".join(f"{name} {number}" for name, number in made.libraries.items())
    return EncoderManifest(
        format_version=FORMAT_VERSION,
        kind="encoder",
        task=plan.task,
        name=plan.name,
        family=modules.family,
        precision="int8" if plan.precision == "int8" else "fp32",
        digest=join_digests(graph_digest, data_digest, tokenizer_digest),
        graph=GRAPH_NAME,
        min_onnxruntime=MIN_ONNXRUNTIME,
        inputs=source.inputs,
        output_name=output,
        num_outputs=width,
        vocab_size=modules.vocab_size,
        max_length=modules.max_length,
        pad_token_id=modules.pad_token_id,
        pooling=", ".join(modules.pooling) if plan.task == "embeddings" else plan.activation,
        normalized=modules.normalized,
        dimensions=tuple(size for size in modules.dimensions if size < width),
        prompts=modules.prompts,
        default_prompt=modules.default_prompt,
        num_parameters=source.num_parameters,
        weight_bytes=weight_bytes,
        via=f"optimum ({libraries}): encoders have no builder here",
        source=plan.source,
        exporter=", ".join(f"{name} {version_of(name)}" for name in ("ortserve", "onnx", "onnxruntime")),
        notes=modules.notes,
    )


def _build(graph: GraphBuilder, source: SourceGraph, plan: EncoderPlan, made: OptimumExport) -> tuple[str, int]:
    """The whole graph; name and width of its output."""
    hidden = take_over(graph, source, plan.precision)
    if plan.task == "rerank":
        if source.width != 1:
            raise ExportError(f"{plan.name} gives {source.width} logits, and a reranker gives one")
        active = activate(graph, hidden, plan.activation, "scores.active")
        return graph.node("Identity", [active], "scores"), 1
    value = pool(graph, plan.modules.pooling, hidden, "attention_mask")
    width = source.width * len(plan.modules.pooling)
    if len(made.dense) != plan.modules.num_dense:
        raise ExportError(f"{plan.name} lists {plan.modules.num_dense} Dense modules, {len(made.dense)} were read")
    for place, dense in enumerate(made.dense):
        value, width = add_dense(graph, value, dense, f"dense.{place}"), int(dense.weight.shape[0])
    if plan.modules.normalized:
        value = normalize(graph, value)
    return graph.node("Identity", [value], "embeddings"), width
