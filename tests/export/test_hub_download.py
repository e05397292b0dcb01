"""A download that breaks off goes on where it ended, by the real client of the hub against a hub on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, file_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from ortserve.export.errors import ExportError
from ortserve.export.publish import export_checkpoint
from ortserve.export.sources.checkpoint import open_checkpoint
from tests.export.checkpoints import Tiny, write_checkpoint
from tests.export.hub_server import Hub, serve_hub

HUB_ID, WEIGHTS = "org/model", "model.safetensors"
HALF = 4096  # bytes; a multiple of what is written at a time


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub(HUB_ID, write_checkpoint(tmp_path / "remote")) as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 512)
        monkeypatch.setattr(
            file_download, "time", SimpleNamespace(sleep=lambda _: None)
        )  # between the client's retries
        yield hub


def _weights(hub: Hub) -> list[tuple[str | None, int]]:
    """Ranges asked for and bytes sent, since the last look."""
    found = [(asked, count) for name, asked, count in hub.sent if name == WEIGHTS]
    hub.sent.clear()
    return found


def test_a_rerun_asks_for_the_rest_alone_and_exports(hub: Hub, tmp_path: Path) -> None:
    size = (hub.folder / WEIGHTS).stat().st_size
    hub.break_off(WEIGHTS, after=HALF)
    with pytest.raises(ExportError, match=r"org/model is no local folder and could not be downloaded \(.*503"):
        export_checkpoint(HUB_ID, tmp_path / "out", precision="fp32", verify=False, progress=False)
    assert _weights(hub) == [(None, HALF)]
    assert not (tmp_path / "out").exists()
    hub.mend()
    manifest = export_checkpoint(HUB_ID, tmp_path / "out", precision="fp32", verify=False, progress=False)
    assert _weights(hub) == [(f"bytes={HALF}-", size - HALF)]
    assert manifest.source == HUB_ID
    checkpoint = open_checkpoint(HUB_ID)
    assert (checkpoint.folder / WEIGHTS).read_bytes() == (hub.folder / WEIGHTS).read_bytes()
    assert _weights(hub) == []
    assert not list((tmp_path / "hub").rglob("*.incomplete"))


def test_a_part_of_another_file_is_found_by_its_digest(hub: Hub, tmp_path: Path) -> None:
    hub.break_off(WEIGHTS, after=HALF)
    with pytest.raises(ExportError):
        open_checkpoint(HUB_ID)
    (part,) = (tmp_path / "hub").rglob("*.incomplete")
    part.write_bytes(bytes(HALF))
    hub.mend()
    with pytest.raises(ExportError, match="is not what the hub says it is: run the command again"):
        open_checkpoint(HUB_ID)
    assert open_checkpoint(HUB_ID).read("model.norm.weight").any()
    assert _weights(hub)[-1] == (None, (hub.folder / WEIGHTS).stat().st_size)


def test_shards_that_are_whole_are_not_asked_for_again(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.folder = write_checkpoint(tmp_path / "sharded", Tiny(num_shards=2))
    first, second = sorted(path.name for path in hub.folder.glob("*.safetensors"))
    hub.break_off(second, after=HALF)
    with pytest.raises(ExportError):
        open_checkpoint(HUB_ID)
    hub.sent.clear()
    hub.mend()
    assert len(open_checkpoint(HUB_ID).tensors) > 2
    assert [(name, asked) for name, asked, _ in hub.sent if name in (first, second)] == [(second, f"bytes={HALF}-")]


def test_why_the_client_alone_is_not_enough(hub: Hub) -> None:
    """When this fails the hub's library resumes by itself, and `hub_download.py` can go."""
    hub.break_off(WEIGHTS, after=HALF)
    with pytest.raises(HfHubHTTPError):
        snapshot_download(HUB_ID)
    hub.mend()
    hub.sent.clear()
    snapshot_download(HUB_ID)
    assert _weights(hub) == [(None, (hub.folder / WEIGHTS).stat().st_size)]
