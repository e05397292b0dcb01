"""A Hugging Face checkpoint: configuration files and lazily read tensors. Knows files, no architecture."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ortserve.export.errors import ExportError
from ortserve.export.sources.hub_download import fetch_large_files
from ortserve.export.sources.json_fields import JsonObject, read_json, read_optional_json
from ortserve.export.sources.packed_tensor import Packing
from ortserve.export.sources.quantized_source import OLD_FILES, read_packing, unpacked_names
from ortserve.export.sources.safetensors_file import DTYPES, INTEGERS, read_header
from ortserve.export.sources.safetensors_file import StoredTensor as SafetensorsTensor
from ortserve.runtime.manifest import AdapterFacts

WEIGHTS = "model.safetensors"
CARD = "README.md"
WEIGHTS_INDEX = "model.safetensors.index.json"
RANDOM_WEIGHTS = "ortserve_random_weights"  # true in config.json: written by `ortserve toy`, never trained
GENERATION = "generation_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
FOREIGN_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", CARD]
MORE_TEMPLATES = "additional_chat_templates"  # as transformers names the folder: one file per template
WEIGHT_PATTERNS = ["*.safetensors", "*.safetensors.index.json"]
HUB_PATTERNS = [
    *WEIGHT_PATTERNS, "config.json", GENERATION, *TOKENIZER_FILES, *OLD_FILES, CARD,
    f"{MORE_TEMPLATES}/*.jinja",
]  # fmt: skip


class StoredTensor(Protocol):
    """A tensor on disk, in a safetensors or a GGUF file."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its values; of values stored in blocks, float32."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        ...

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows `[start, stop)` as float32. Raises `ExportError` when they cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What lies in one checkpoint folder; tensors stay on disk until a range of them is read."""

    folder: Path
    name: str  # folder name, or last part of the hub id
    source: str  # folder name or hub id; never a machine path
    config: JsonObject
    generation_config: JsonObject
    tokenizer_config: JsonObject
    tensors: Mapping[str, StoredTensor]
    base_tensors: Mapping[str, StoredTensor] = field(default_factory=dict)  # as they were before an adapter was merged
    packing: Packing | None = None  # of the matrices that are quantized already, which read as floats
    adapter_folder: Path | None = None
    adapter: AdapterFacts | None = None

    def tokenizer_file(self, name: str) -> Path:
        """Where a file of the tokenizer lies: beside the weights, or where config.json says that its own is."""
        named = self.config.get("tokenizer")
        if isinstance(named, str) and not (self.folder / name).exists():
            return self.folder / Path(named).parent / name
        return self.folder / name

    def tokenizer_files(self) -> list[tuple[str, Path]]:
        """All of them that there are, chat templates included: names in an exported folder, and where they lie."""
        templates = sorted(self.tokenizer_file(MORE_TEMPLATES).glob("*.jinja"))
        files = [(name, self.tokenizer_file(name)) for name in TOKENIZER_FILES]
        files += [(f"{MORE_TEMPLATES}/{path.name}", path) for path in templates]
        return [(name, path) for name, path in files if path.is_file()]

    def copy_tokenizer(self, folder: Path) -> None:
        """Write all of them into another folder."""
        for name, path in self.tokenizer_files():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / name)

    def stored(self, name: str) -> StoredTensor:
        """Where a tensor lies. Raises `ExportError` naming the tensor when the checkpoint lacks it."""
        try:
            return self.tensors[name]
        except KeyError:
            raise ExportError(
                f"{self.folder} has no tensor {name}: a shard is missing or config.json belongs to another checkpoint"
            ) from None

    def read(self, name: str) -> NDArray[np.float32]:
        """A whole tensor as float32."""
        return self.stored(name).read()

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `[start, stop)` of a tensor as float32."""
        return self.stored(name).read(start, stop)

    def stacked_chunks(
        self, names: tuple[str, ...], max_elements: int, *, rows: tuple[int, int] | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """The rows of several tensors one after another, in float32 pieces of at most `max_elements` (or one row).

        `rows` is a first and an end row, of every tensor; None: all of them.
        """
        for name in names:
            shape = self.stored(name).shape
            first, end = rows or (0, shape[0])
            num_rows = max(1, max_elements // max(1, int(np.prod(shape[1:]))))
            for start in range(first, end, num_rows):
                yield self.read_rows(name, start, min(start + num_rows, end))


def open_checkpoint(source: str | Path) -> Checkpoint:
    """A local folder, or a hub id such as `org/model`, which is downloaded into the hub's cache.

    Raises `ExportError` when the folder or the download is missing, incomplete or damaged.
    """
    folder = Path(source)
    if folder.is_dir():
        return _read_folder(folder, source=folder.resolve().name)
    if is_hub_id(source):
        return _read_folder(_download(str(source)), source=str(source))
    raise ExportError(f"{source} is neither a checkpoint folder nor a hub id such as org/model: check the path")


def is_hub_id(source: str | Path) -> bool:
    """Such as `org/model`, where there is nothing of that name here."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) is not None and not Path(source).exists()


def foreign_folder(source: str | Path) -> tuple[Path, str]:
    """Folder and name of a checkpoint that another library will read: any format of weights, and nested modules.

    Raises `ExportError` when the folder or the download is missing.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder, folder.resolve().name
    if is_hub_id(source):
        return _download(str(source), FOREIGN_PATTERNS), str(source).rsplit("/", 1)[-1]
    raise ExportError(f"{source} is neither a checkpoint folder nor a hub id such as org/model: check the path")


def cached_checkpoint(hub_id: str) -> Checkpoint | None:
    """What an earlier download of all its files has left in the hub's cache; None: there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=HUB_PATTERNS, local_files_only=True))
        return _read_folder(folder, source=hub_id)
    except (LocalEntryNotFoundError, ExportError):  # nothing, or a download that was interrupted
        return None


def _download(hub_id: str, patterns: list[str] = HUB_PATTERNS) -> Path:
    """Files that are here already are not fetched again, and one that was interrupted is continued."""
    from huggingface_hub import snapshot_download

    with hub_errors(hub_id):
        fetch_large_files(hub_id, patterns)
        return Path(snapshot_download(hub_id, allow_patterns=patterns))


@contextmanager
def hub_errors(hub_id: str) -> Iterator[None]:
    """Whatever the hub's client raises, as an `ExportError` of one line."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        yield
    except RepositoryNotFoundError:
        raise ExportError(f"no folder and no accessible hub repository is called {hub_id}: check the name") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise ExportError(
            f"{hub_id} is no local folder and could not be downloaded ({reason}):"
            " connect to the network, or download it elsewhere and name its folder"
        ) from None


def _read_folder(folder: Path, *, source: str) -> Checkpoint:
    return describe_checkpoint(folder, source=source, tensors=None)


def describe_checkpoint(folder: Path, *, source: str, tensors: Mapping[str, StoredTensor] | None) -> Checkpoint:
    """What a folder's files say; `tensors` stand for those not in it. Raises `ExportError` as `open_checkpoint`."""
    if not (folder / "config.json").exists():
        if (folder / "adapter_config.json").exists():
            raise ExportError(
                f"{folder} is an adapter, which is not served by itself or chosen by request: merge it into its base"
                f" model with ortserve export BASE DST --adapter {folder.name}"
            )
        if (folder / "genai_config.json").exists():
            raise _graphs_already(folder)
        raise ExportError(f"{folder} has no config.json: name the folder of a Hugging Face checkpoint")
    config = read_json(folder / "config.json")
    packing = read_packing(folder, config)
    if packing is not None and tensors is not None:
        raise ExportError(f"{source} is quantized, and its plan depends on its integers: download it first")
    return Checkpoint(
        folder=folder,
        name=source.rsplit("/", 1)[-1],
        source=source,
        config=config,
        generation_config=read_optional_json(folder / GENERATION),
        tokenizer_config=read_optional_json(folder / "tokenizer_config.json"),
        tensors=_read_tensors(folder, packing) if tensors is None else tensors,
        packing=packing,
    )


def _graphs_already(folder: Path) -> ExportError:
    return ExportError(f"{folder} holds ONNX graphs of another exporter: take them over with ortserve import {folder}")


def _read_tensors(folder: Path, packing: Packing | None) -> Mapping[str, StoredTensor]:
    if packing is None:
        return _read_files(folder, DTYPES)
    return unpacked_names(folder, _read_files(folder, {**DTYPES, **INTEGERS}), packing)


def _read_files(folder: Path, dtypes: Mapping[str, np.dtype[Any]]) -> dict[str, SafetensorsTensor]:
    if (folder / WEIGHTS).exists():
        return read_header(folder / WEIGHTS, dtypes)
    if not (folder / WEIGHTS_INDEX).exists():
        if any(folder.glob("*.onnx")) or any(folder.glob("onnx/*.onnx")):
            raise _graphs_already(folder)
        raise ExportError(f"{folder} has no {WEIGHTS} or {WEIGHTS_INDEX}: export reads safetensors only")
    shards = read_json(folder / WEIGHTS_INDEX).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise ExportError(f"{folder / WEIGHTS_INDEX} has no weight_map: download it again")
    tensors: dict[str, SafetensorsTensor] = {}
    for shard in sorted(set(shards.values())):
        if Path(shard).name != shard:
            raise ExportError(f"{folder / WEIGHTS_INDEX} names {shard!r}, which is not a file beside it")
        tensors |= read_header(folder / shard, dtypes)
    missing = sorted(set(shards) - set(tensors))
    if missing:
        raise ExportError(f"{folder}: {missing[0]} is in the index and in no shard: download the checkpoint again")
    return tensors
