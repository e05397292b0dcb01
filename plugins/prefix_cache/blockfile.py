"""One block in one file: header, tokens, bytes, and checksums over all of it. Knows no folders beyond the file's own.

Layout, little-endian: magic, version, payload bytes, seconds, CRC-32 of the payload, then 32 bytes each of model
(SHA-256 of its digest), root, key and parent; the packed tokens; SHA-256 of everything so far; the payload. CRC-32
because reading a prefix must stay an order of magnitude faster than computing it also where SHA-256 has no
instructions; whoever can write into the folder is trusted with the server's memory anyway.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ortserve.plugins.prefix_cache.keys import block_key

VERSION = 1
SUFFIX = ".kv"
TEMPORARY = ".tmp"
_MAGIC = b"ORTKVBLK"
_HEADER = struct.Struct("<8sIQdI32s32s32s32sI")  # the last: bytes of packed tokens
_SEAL_BYTES = 32
_MOST_TOKEN_BYTES = 1 << 20
_NAME = re.compile(r"([0-9a-f]{64})-([0-9a-f]{64})\.kv")


class BadBlockError(Exception):
    """The file does not hold what its name says; `is_ours` tells whether it is a damaged file of this model."""

    def __init__(self, reason: str, *, is_ours: bool) -> None:
        super().__init__(reason)
        self.is_ours = is_ours


@dataclass(frozen=True, slots=True)
class BlockName:
    """Everything a block file says about itself."""

    model: bytes
    root: bytes
    key: bytes
    parent: bytes
    packed: bytes
    seconds: float = 0.0

    @property
    def file_name(self) -> str:
        """Where it lies in its folder."""
        return file_name(self.key, self.parent)


def file_name(key: bytes, parent: bytes) -> str:
    """Key and parent, so that a listing alone shows the tree."""
    return f"{key.hex()}-{parent.hex()}{SUFFIX}"


def model_name(digest: str) -> bytes:
    """What stands for a model's digest in files and folder names."""
    return sha256(digest.encode()).digest()


def parse_file_name(name: str) -> tuple[bytes, bytes] | None:
    """Key and parent, or None for a file that is not one of a block."""
    match = _NAME.fullmatch(name)
    return None if match is None else (bytes.fromhex(match[1]), bytes.fromhex(match[2]))


def write_block(folder: Path, name: BlockName, payload: memoryview, mtime: float, serial: int) -> int:
    """Write under a temporary name, then rename. Returns the size. Raises `OSError`, and leaves nothing behind then."""
    head = _HEADER.pack(
        _MAGIC,
        VERSION,
        len(payload),
        name.seconds,
        zlib.crc32(payload),
        name.model,
        name.root,
        name.key,
        name.parent,
        len(name.packed),
    )
    head += name.packed
    head += sha256(head).digest()
    temporary = folder / f"{name.key.hex()}.{os.getpid()}.{serial}{TEMPORARY}"
    try:
        with temporary.open("xb", buffering=0) as file:
            _write_all(file.write, head)
            _write_all(file.write, payload)
        os.utime(temporary, (mtime, mtime))
        temporary.replace(folder / name.file_name)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return len(head) + len(payload)


def read_block(path: Path, name: BlockName, view: memoryview) -> float:
    """Fill `view` with the block that `name` describes. Returns its seconds.

    Raises `BadBlockError` or `OSError` (`FileNotFoundError` when another process has removed it); `view` may hold
    anything then.
    """
    with path.open("rb", buffering=0) as file:
        head = _read_up_to(file.readinto, _HEADER.size + len(name.packed) + _SEAL_BYTES)
        found, checksum, num_bytes = _parse(head)
        if found.model != name.model:
            raise BadBlockError("it belongs to another model", is_ours=False)
        if (found.root, found.key, found.parent, found.packed) != (name.root, name.key, name.parent, name.packed):
            raise BadBlockError("it holds another block than its name says", is_ours=True)
        if num_bytes != len(view) or os.fstat(file.fileno()).st_size != len(head) + len(view):
            raise BadBlockError("it has another size", is_ours=True)
        position = 0
        while position < len(view):
            count = file.readinto(view[position:])
            if not count:
                raise BadBlockError("it is truncated", is_ours=True)
            position += count
    if zlib.crc32(view) != checksum:
        raise BadBlockError("its bytes are damaged", is_ours=True)
    return found.seconds


def check_block(data: bytes) -> BlockName:
    """What a whole file says about itself. Raises `BadBlockError` if it is not a sound block file."""
    found, checksum, num_bytes = _parse(data)
    payload = memoryview(data)[_HEADER.size + len(found.packed) + _SEAL_BYTES :]
    if len(payload) != num_bytes or zlib.crc32(payload) != checksum:
        raise BadBlockError("its bytes are damaged", is_ours=True)
    if block_key(found.parent, found.packed) != found.key:
        raise BadBlockError("its key is not that of its tokens", is_ours=True)
    return found


def _parse(data: bytes) -> tuple[BlockName, int, int]:
    """The name, the payload's checksum and its size."""
    if len(data) < _HEADER.size:
        raise BadBlockError("it is truncated", is_ours=True)
    magic, version, num_bytes, seconds, checksum, *keys, token_bytes = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise BadBlockError("it is not a block file", is_ours=True)
    if version != VERSION:
        raise BadBlockError("it is of another version", is_ours=False)
    end = _HEADER.size + token_bytes
    if token_bytes > _MOST_TOKEN_BYTES or len(data) < end + _SEAL_BYTES:
        raise BadBlockError("it is truncated", is_ours=True)
    if sha256(data[:end]).digest() != data[end : end + _SEAL_BYTES]:
        raise BadBlockError("its header is damaged", is_ours=True)
    model, root, key, parent = keys
    return BlockName(model, root, key, parent, data[_HEADER.size : end], seconds), checksum, num_bytes


def _write_all(write: Callable[[memoryview], int | None], data: bytes | memoryview) -> None:
    left = memoryview(data)
    while left:
        left = left[write(left) or 0 :]


def _read_up_to(readinto: Callable[[memoryview], int | None], num_bytes: int) -> bytes:
    data = bytearray(num_bytes)
    position = 0
    while position < num_bytes:
        count = readinto(memoryview(data)[position:])
        if not count:
            break
        position += count
    return bytes(data[:position])
