"""Exporting into a cache on first use: once per checkpoint, precision and recipe, also when two ask at once."""

from __future__ import annotations

import fcntl
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ortserve.export import first_use
from ortserve.export.errors import ExportError
from ortserve.export.first_use import ensure_exported
from ortserve.export.publish import export_checkpoint
from ortserve.export.recipes.precisions import Device
from ortserve.export.sources.checkpoint import Checkpoint
from ortserve.runtime.manifest import Manifest, read_manifest
from tests.export.checkpoints import Tiny, write_checkpoint, write_json
from tests.export.proofs import proof_of
from tests.waiting import PATIENCE_S


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Destinations of all exports made, in order."""
    made: list[Path] = []

    def count(source: Checkpoint, destination: Path, **options: Any) -> Manifest:
        made.append(destination)
        return export_checkpoint(source, destination, **options)

    monkeypatch.setattr(first_use, "export_checkpoint", count)
    return made


def _ensure(source: Path, cache: Path, precision: str = "int8") -> Path:
    return ensure_exported(source, cache, precision=precision, progress=False)


def test_the_second_time_nothing_is_exported(tmp_path: Path, exports: list[Path]) -> None:
    source = write_checkpoint(tmp_path / "model")
    first = _ensure(source, tmp_path / "cache")
    assert first == _ensure(source, tmp_path / "cache")
    assert exports == [first]
    assert first.name.startswith("model-int8-")
    assert proof_of(first).passed  # first use proves too


def test_a_gpu_gets_an_export_of_its_own(tmp_path: Path, exports: list[Path]) -> None:
    source = write_checkpoint(tmp_path / "model")
    wanted: list[tuple[Device, str]] = [("cuda", "pages"), ("cpu", "slots")]
    for device, layout in wanted:
        folder = ensure_exported(source, tmp_path / "cache", precision="int4", progress=False, device=device)
        assert read_manifest(folder).kv.kind == layout
    assert [folder.name.rpartition("-")[0] for folder in exports] == ["model-cuda-int4", "model-int4"]


def test_a_cache_of_codes_is_an_export_of_its_own(tmp_path: Path, exports: list[Path]) -> None:
    source = write_checkpoint(tmp_path / "model")
    plain = _ensure(source, tmp_path / "cache")
    for _ in range(2):
        folder = ensure_exported(source, tmp_path / "cache", precision="int8", progress=False, kv="int8")
        assert read_manifest(folder).kv.dtype == "int8"
    assert exports == [plain, folder]
    assert folder.name.startswith("model-int8-kv-int8-")
    with pytest.raises(ExportError, match="fp8"):
        ensure_exported(source, tmp_path / "cache", precision="int8", progress=False, kv="fp8")


def test_an_exported_folder_is_served_as_it_is(tmp_path: Path, exports: list[Path]) -> None:
    source = write_checkpoint(tmp_path / "model")
    export_checkpoint(source, tmp_path / "out", precision="fp32", verify=False)
    assert _ensure(tmp_path / "out", tmp_path / "cache") == tmp_path / "out"
    assert exports == []
    assert not (tmp_path / "cache").exists()


def _edit_config(source: Path) -> None:
    write_json(source / "generation_config.json", {"temperature": 0.5})


def _touch_weights(source: Path) -> None:
    status = (source / "model.safetensors").stat()
    os.utime(source / "model.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))


@pytest.mark.parametrize("change", [_edit_config, _touch_weights])
def test_a_changed_checkpoint_is_exported_anew(tmp_path: Path, exports: list[Path], change: Any) -> None:
    source = write_checkpoint(tmp_path / "model")
    first = _ensure(source, tmp_path / "cache")
    change(source)
    assert _ensure(source, tmp_path / "cache") != first
    assert len(exports) == 2


def test_precision_recipe_and_checkpoints_of_one_name_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path / "a" / "model")
    other = write_checkpoint(tmp_path / "b" / "model", Tiny(seed=1))
    cache = tmp_path / "cache"
    folders = {_ensure(source, cache), _ensure(source, cache, "fp32"), _ensure(other, cache)}
    monkeypatch.setattr(first_use, "RECIPE", -1)
    folders.add(_ensure(source, cache))
    assert len(folders) == 4


def test_two_at_once_export_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_checkpoint(tmp_path / "model")
    started, made = threading.Event(), []

    def slowly(checkpoint: Checkpoint, destination: Path, **options: Any) -> Manifest:
        started.set()
        made.append(destination)
        waiting.wait(timeout=PATIENCE_S)  # until the other one stands at the lock
        return export_checkpoint(checkpoint, destination, **options)

    waiting = threading.Event()
    flock = fcntl.flock

    def watch(file: Any, operation: int) -> None:
        if operation == fcntl.LOCK_EX:
            waiting.set()
        flock(file, operation)

    monkeypatch.setattr(first_use, "export_checkpoint", slowly)
    monkeypatch.setattr(fcntl, "flock", watch)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(_ensure, source, tmp_path / "cache")
        assert started.wait(timeout=PATIENCE_S)
        two = pool.submit(_ensure, source, tmp_path / "cache")
        assert one.result(timeout=PATIENCE_S) == two.result(timeout=PATIENCE_S)
    assert len(made) == 1
    assert waiting.is_set()


def test_what_a_killed_export_left_is_cleared(tmp_path: Path, exports: list[Path]) -> None:
    source = write_checkpoint(tmp_path / "model")
    destination = _ensure(source, tmp_path / "cache")
    left = destination.with_name(f".{destination.name}.partial-1-dead")
    destination.rename(left)  # as if the process had died before the rename
    assert _ensure(source, tmp_path / "cache") == destination
    assert not left.exists()
    assert len(exports) == 2


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "model")
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=r"the cache folder .*file/cache cannot be written"):
        _ensure(source, tmp_path / "file" / "cache")


def test_a_hub_id_is_downloaded_and_names_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    snapshot = write_checkpoint(tmp_path / "snapshots" / "0123abcd")
    asked: list[str] = []

    def download(hub_id: str, *, allow_patterns: list[str]) -> str:
        asked.extend((hub_id, *allow_patterns))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    folder = ensure_exported("org/Some-Model", tmp_path / "cache", precision="int8", progress=False)
    manifest = read_manifest(folder)
    assert (manifest.name, manifest.source) == ("Some-Model", "org/Some-Model")
    assert folder.name.startswith("Some-Model-int8-")
    assert asked[0] == "org/Some-Model"
    assert not [pattern for pattern in asked if pattern.endswith((".bin", ".py"))]  # no pickles, no code


def test_names_are_safe_for_folders() -> None:
    assert first_use._safe("../Llama 3:8b") == "_Llama_3_8b"
    assert first_use._safe("..") == "model"
