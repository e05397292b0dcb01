"""The errors export raises on purpose. Knows no exit statuses: the command line maps them.

ModelError
└── ExportError           the checkpoint, the destination or an option cannot be used
    ├── UnreadableError   another library cannot read the checkpoint, or not on this machine
    └── CheckFailedError  everything could be read, and a check the caller asked for failed
        └── UnprovenError the exported graph differs from the reference by more than its precision allows
"""

from __future__ import annotations

from pathlib import Path

from ortserve.runtime.errors import ModelError


class ExportError(ModelError):
    """The checkpoint or the destination cannot be used; one line: what, where, what to do."""


class UnreadableError(ExportError):
    """Another library cannot read this checkpoint, or not on this machine."""


class CheckFailedError(ExportError):
    """A model that can be read is not what it should be."""


class UnprovenError(CheckFailedError):
    """The exported graph differs from the reference by more than its precision allows.

    `folder` holds it, marked unverified; None: it was not kept.
    """

    def __init__(self, message: str, folder: Path | None = None) -> None:
        super().__init__(message)
        self.folder = folder
