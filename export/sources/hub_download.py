"""Fetches the large files of a hub repository into the hub's cache, each from where an interrupted run has ended.

The hub's own client begins a file anew after an interrupt: it names the part it is writing by chance, and deletes it
when it fails. Here the part is named by the file's digest and kept. Knows the cache's layout, no checkpoint.
"""

from __future__ import annotations

import fcntl
import fnmatch
import hashlib
from pathlib import Path
from typing import BinaryIO

from ortserve.export.errors import ExportError

READ_AT_ONCE = 1 << 22
PART = ".ortserve.incomplete"  # after the digest


def fetch_large_files(hub_id: str, patterns: list[str]) -> None:
    """Into the cache, those of the repository that match and are not there; nothing where the hub cannot be asked.

    Raises what the hub's client raises when a file is not sent to its end; what came is kept. Raises `ExportError` for
    a file that is not what the hub says it is.
    """
    from huggingface_hub import HfApi, constants, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name

    try:
        found = HfApi().model_info(hub_id, files_metadata=True)
    except Exception:  # of whatever client the hub's library uses: it asks again, and says what is wrong
        return
    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=hub_id, repo_type="model") / "blobs"
    for file in found.siblings or ():
        wanted = any(fnmatch.fnmatch(file.rfilename, pattern) for pattern in patterns)
        if wanted and file.lfs is not None:  # the hub stores weights so, and large tokenizers
            url = hf_hub_url(hub_id, file.rfilename, revision=found.sha)
            _fetch(url, blobs, file.lfs.sha256, file.lfs.size)


def _fetch(url: str, blobs: Path, sha256: str, size: int) -> None:
    blob = blobs / sha256  # where the client looks before it downloads
    if blob.exists():
        return
    blobs.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(sha256 + PART)
    with part.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # of two processes one fetches, the other waits
        if blob.exists():
            part.unlink(missing_ok=True)
            return
        _complete(url, file, size)
        if _digest(file) != sha256:
            part.unlink(missing_ok=True)
            raise ExportError(f"{url} is not what the hub says it is: run the command again to download it anew")
        part.rename(blob)


def _complete(url: str, file: BinaryIO, size: int) -> None:
    """Ask for what the file lacks."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, not in __all__

    have = file.seek(0, 2)
    if have > size:
        file.truncate(0)
        have = 0
    if have < size:
        http_get(url, file, resume_size=have, headers=build_hf_headers(), expected_size=size)
        file.flush()


def _digest(file: BinaryIO) -> str:
    file.seek(0)
    digest = hashlib.sha256()
    while data := file.read(READ_AT_ONCE):
        digest.update(data)
    return digest.hexdigest()
