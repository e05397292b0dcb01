"""Structured logs: one JSON object per line on stderr. Knows no request; callers never pass prompts or replies."""

from __future__ import annotations

import logging
import sys
from typing import Any

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
        logger_factory=lambda *_: structlog.WriteLogger(sys.stderr),  # the one of now: it may be replaced later
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[_ToStructlog()], force=True)


def log() -> Any:
    """The process's logger; its fields include the request id bound by the outermost layer."""
    return structlog.get_logger()


class _ToStructlog(logging.Handler):
    """Lines of other libraries (Hypercorn, asyncio) as JSON."""

    def emit(self, record: logging.LogRecord) -> None:
        log().log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info or None)
