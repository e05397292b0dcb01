"""Opens what a model is exported from, a checkpoint folder, a hub id or a GGUF file, for as long as it is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ortserve.export.errors import ExportError
from ortserve.export.gguf.file import read_gguf
from ortserve.export.gguf.model import gguf_config, gguf_tensors
from ortserve.export.gguf.tokenizer import gguf_eos_ids, write_gguf_tokenizer
from ortserve.export.sources.adapter import merge_adapter
from ortserve.export.sources.checkpoint import Checkpoint, cached_checkpoint, is_hub_id, open_checkpoint
from ortserve.export.sources.hub_preview import preview_checkpoint
from ortserve.export.sources.json_fields import read_optional_json


@contextmanager
def open_source(source: str | Path, adapter: Path | None = None) -> Iterator[Checkpoint]:
    """With `adapter`, a PEFT folder, merged into it. Raises `ExportError` when it is missing, incomplete or damaged.

    A GGUF file's metadata lies in a temporary folder as the files of a checkpoint; its weights stay in place.
    """
    with ExitStack() as stack:
        if Path(source).suffix == ".gguf" and not Path(source).is_dir():
            folder = stack.enter_context(TemporaryDirectory(prefix="ortserve-gguf-"))
            checkpoint = _open_gguf(Path(source), Path(folder))
        else:
            checkpoint = open_checkpoint(source)
        yield checkpoint if adapter is None else merge_adapter(checkpoint, adapter)


@contextmanager
def preview_source(source: str | Path, adapter: Path | None = None) -> Iterator[tuple[Checkpoint, int]]:
    """The same for a plan, and the bytes that would be downloaded: of a hub id that is not here, headers alone."""
    if is_hub_id(source) and cached_checkpoint(str(source)) is None:
        if adapter is not None:
            raise ExportError(f"{source} is not here, and an adapter is planned beside its base: download it first")
        with preview_checkpoint(str(source)) as found:
            yield found
        return
    with open_source(source, adapter) as checkpoint:
        yield checkpoint, 0


def _open_gguf(path: Path, folder: Path) -> Checkpoint:
    file = read_gguf(path)
    config = {**gguf_config(file), "eos_token_id": gguf_eos_ids(file), "license": file.metadata.get("general.license")}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_gguf_tokenizer(file, folder)
    return Checkpoint(
        folder=folder,
        name=path.stem,
        source=path.name,
        config=config,
        generation_config={},
        tokenizer_config=read_optional_json(folder / "tokenizer_config.json"),
        tensors=gguf_tensors(file),
    )
