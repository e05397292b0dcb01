"""`report.json`: the proof of an exported folder, and the files that it holds for. Knows no checkpoint and no graph.

The exporter writes it beside the manifest; whoever serves the folder asks `find_doubts`. Small files are compared by
content, large ones by size and by pages spread over them, so that a start stays fast; `thorough` reads everything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from ortserve.runtime.errors import ReportError
from ortserve.runtime.manifest import MANIFEST_NAME
from ortserve.runtime.parity import Check, EncoderProof, ParityReport

REPORT_NAME = "report.json"
CARD_NAME = "README.md"
REPORT_VERSION = 1
SMALL_FILE = 32 << 20  # bytes; larger ones are sampled
PAGE, NUM_PAGES = 4096, 256
# What a server reads beside graph and weights: one that the report does not list came later.
READ_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
READ_FOLDER = "additional_chat_templates"


@dataclass(frozen=True, slots=True)
class FileFacts:
    """One file as it was when the report was written."""

    name: str  # below the folder, with slashes
    num_bytes: int
    sha256: str
    sample: str = ""  # sha256 over pages spread over a large file


@dataclass(frozen=True, slots=True)
class Report:
    """Whether a folder does what its checkpoint does, and how that is known."""

    report_version: int
    verified: bool
    findings: tuple[str, ...]  # why it is not; empty when it is
    name: str
    kind: Literal["decoder", "encoder"]
    precision: str
    source: str  # folder name or hub id; never a machine path
    source_digest: str  # of the checkpoint's files, by which it is found again; "": not known
    digest: str  # the manifest's
    num_parameters: int
    weight_bytes: int
    bits_per_weight: float
    versions: Mapping[str, str]  # of the libraries in the process of ortserve
    files: tuple[FileFacts, ...]
    checks: tuple[Check, ...] = ()
    parity: ParityReport | None = None  # of a decoder
    encoder: EncoderProof | None = None
    license: str = ""  # as the checkpoint states it
    path: str = ""  # which way a graph came that ortserve did not build, and why
    optimum_versions: Mapping[str, str] = field(default_factory=dict)  # of those in its environment, where it took part


def read_report(folder: Path) -> Report:
    """Raises `ReportError` when it is missing, damaged or of another version."""
    path = folder / REPORT_NAME
    try:
        report = msgspec.json.decode(path.read_bytes(), type=Report)
    except FileNotFoundError:
        raise ReportError(
            f"{folder} has no {REPORT_NAME}: nothing says that it was proved: ortserve verify DIR --against SRC"
        ) from None
    except (OSError, msgspec.MsgspecError) as error:
        raise ReportError(f"{path} cannot be read ({error}): ortserve verify DIR --against SRC makes another") from None
    if report.report_version != REPORT_VERSION:
        raise ReportError(
            f"{path} has version {report.report_version}, this ortserve reads {REPORT_VERSION}:"
            " ortserve verify DIR --against SRC makes another"
        )
    return report


def is_verified(folder: Path) -> bool:
    """Its report says so; files are not looked at."""
    try:
        return read_report(folder).verified
    except ReportError:
        return False


def find_doubts(folder: Path, *, digest: str, thorough: bool = False) -> list[str]:
    """Why the folder whose manifest has that digest is not what was proved; nothing: it is verified.

    `thorough` reads all of every file.
    """
    try:
        report = read_report(folder)
    except ReportError as error:
        return [str(error)]
    doubts = [] if report.verified else list(report.findings) or [f"{REPORT_NAME} says so"]
    if report.digest != digest:
        doubts.append(f"{REPORT_NAME} belongs to another export")
    return list(dict.fromkeys([*doubts, *_changes(folder, report, thorough=thorough)]))


def list_files(folder: Path, known: Mapping[str, str] | None = None) -> tuple[FileFacts, ...]:
    """Every file of the folder but its report and card; `known` are hexadecimal SHA-256 sums that need no reading."""
    known = known or {}
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    return tuple(
        _facts(path, name, known.get(name))
        for path, name in zip(paths, names, strict=True)
        if name not in (REPORT_NAME, CARD_NAME) and not name.startswith(".")
    )


def hash_file(path: Path) -> str:
    """SHA-256 of the whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sample_file(path: Path) -> str:
    """SHA-256 over the size and over pages spread evenly over the file: tells one file of a size from another."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    last = max(0, size - PAGE)
    with path.open("rb") as file:
        for place in range(NUM_PAGES):
            file.seek(last * place // (NUM_PAGES - 1))
            digest.update(file.read(PAGE))
    return digest.hexdigest()


def report_json(report: Report) -> bytes:
    """The file's content: indented JSON, stable key order."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def _facts(path: Path, name: str, sha256: str | None) -> FileFacts:
    size = path.stat().st_size
    return FileFacts(name, size, sha256 or hash_file(path), sample_file(path) if size > SMALL_FILE else "")


def _changes(folder: Path, report: Report, *, thorough: bool) -> Iterator[str]:
    listed = {file.name for file in report.files}
    if MANIFEST_NAME not in listed:
        yield f"{REPORT_NAME} does not name {MANIFEST_NAME}"
    for file in report.files:
        path = folder / file.name
        try:
            size = path.stat().st_size
            if size != file.num_bytes:
                yield f"{file.name} has {size:,} bytes, and {file.num_bytes:,} were proved"
            elif not _is_same(path, file, thorough=thorough):
                yield f"{file.name} changed since it was proved"
        except FileNotFoundError:
            yield f"{file.name} is missing"
        except OSError as error:
            yield f"{file.name} cannot be read ({error.strerror})"
    templates = (path.relative_to(folder).as_posix() for path in sorted((folder / READ_FOLDER).glob("*.jinja")))
    for name in (*READ_FILES, *templates):
        if name not in listed and (folder / name).exists():
            yield f"{name} was added since it was proved"


def _is_same(path: Path, file: FileFacts, *, thorough: bool) -> bool:
    if thorough or file.num_bytes <= SMALL_FILE or not file.sample:
        return hash_file(path) == file.sha256
    return sample_file(path) == file.sample
