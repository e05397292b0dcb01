"""A folder of block files as one tar file, and back. Knows no cache: servers may run on the folder meanwhile."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from ortserve.plugins.prefix_cache.blockfile import BadBlockError, BlockName, check_block, parse_file_name

_MOST_FILE_BYTES = 1 << 31  # of one block; a larger member is not one


@dataclass(frozen=True, slots=True)
class Moved:
    """What went over, and what was left out because it is damaged or of another version."""

    num_blocks: int
    num_ignored: int


def export_blocks(folder: Path, archive: Path) -> Moved:
    """Write every sound block below `folder` into `archive`, parents or not. Raises `OSError`."""
    num_blocks = num_ignored = 0
    temporary = archive.with_name(f"{archive.name}.{os.getpid()}.tmp")
    try:
        with tarfile.open(temporary, "w") as tar:
            for data in _files(folder):
                name = _checked(data)
                if name is None:
                    num_ignored += 1
                    continue
                member = tarfile.TarInfo(_member_name(name))
                member.size, member.mode = len(data), 0o600
                tar.addfile(member, BytesIO(data))
                num_blocks += 1
        temporary.replace(archive)
    finally:
        temporary.unlink(missing_ok=True)
    return Moved(num_blocks, num_ignored)


def import_blocks(archive: Path, folder: Path) -> Moved:
    """Add the archive's sound blocks to `folder`, which need not exist.

    A member's path counts for nothing: where a block goes follows from what it says about itself. Raises `OSError`, and
    `ValueError` for a file that is no such archive.
    """
    num_blocks = num_ignored = 0
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isreg() and member.size <= _MOST_FILE_BYTES else None
                data = b"" if file is None else file.read()
                name = _checked(data)
                if name is None:
                    num_ignored += 1
                    continue
                _put(folder / _member_name(name), data)
                num_blocks += 1
    except tarfile.TarError as error:
        raise ValueError(f"{archive} is not an exported prompt cache ({error})") from None
    return Moved(num_blocks, num_ignored)


def _files(folder: Path) -> Iterator[bytes]:
    for path in sorted(folder.glob("*/*/*.kv")):
        if parse_file_name(path.name) is not None:
            try:
                yield path.read_bytes()
            except FileNotFoundError:
                continue  # a server has removed it


def _checked(data: bytes) -> BlockName | None:
    try:
        return check_block(data)
    except BadBlockError:
        return None


def _member_name(name: BlockName) -> str:
    return f"{name.model.hex()}/{name.root.hex()}/{name.file_name}"


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem[:64]}.{os.getpid()}.import.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
