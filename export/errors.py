"""The one error export raises on purpose. Knows no exit statuses: the command line maps it to 2."""

from __future__ import annotations

from ortserve.runtime.errors import ModelError


class ExportError(ModelError):
    """The checkpoint or the destination cannot be used; one line: what, where, what to do."""
