"""Lines of an engine process in the server's own log. Knows no engine."""

from __future__ import annotations

import structlog

from ortserve.runtime.workers.messages import Logged

_METHODS = ("debug", "info", "warning", "error", "critical")


def show(worker: str, line: Logged) -> None:
    """Log it as this process is configured to, with the name of the process that said it."""
    method = line.level if line.level in _METHODS else "error"  # `exception` brings its traceback as text
    getattr(structlog.get_logger("ortserve.worker"), method)(line.event, **{**line.fields, "worker": worker})
