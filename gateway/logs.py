"""Structured logs: one JSON object per line on stderr. Knows no request; callers never pass prompts or replies.

A server outlives the reader of its log and a disk that has no room for it: lines are lost then, and counted.
"""

from __future__ import annotations

import io
import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO, cast

import structlog

LEVELS = ("debug", "info", "warning", "error")


def configure_logs(level: str) -> None:
    """Set up structlog for this process, and send what libraries log through `logging` the same way."""
    number = getattr(logging, level.upper())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.ExceptionRenderer(),
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: structlog.WriteLogger(_STDERR),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[_ToStructlog()], force=True)


def log() -> Any:
    """The process's logger; its fields include the request id bound by the outermost layer."""
    return structlog.get_logger()


class _Stderr(io.TextIOBase):
    """Standard error as it is when a line comes: it may be replaced, closed, broken or full. Raises nothing.

    structlog writes one line at a time, from any thread.
    """

    def __init__(self) -> None:
        self._num_lost = 0

    def write(self, text: str) -> int:
        file = sys.stderr
        try:
            if file is not None:
                file.write(text if not self._num_lost else self._told() + text)
                file.flush()
                self._num_lost = 0
        except (OSError, ValueError):  # a file that has been closed is a ValueError
            self._num_lost += 1
        return len(text)

    def _told(self) -> str:
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        event = {"lines": self._num_lost, "event": "log_lines_lost", "level": "warning", "timestamp": now}
        return json.dumps(event) + "\n"


_STDERR = cast("TextIO", _Stderr())  # one, for structlog's lock is the file's


class _ToStructlog(logging.Handler):
    """Lines of other libraries (Hypercorn, asyncio) as JSON."""

    def emit(self, record: logging.LogRecord) -> None:
        log().log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info or None)
