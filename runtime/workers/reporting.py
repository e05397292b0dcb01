"""Sends what an engine process logs to its server, whose configuration decides what becomes of it. Knows no engine."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any, NoReturn

import structlog

from ortserve.runtime.workers.channel import Channel
from ortserve.runtime.workers.messages import Logged, encode


def report_logs(channel: Channel) -> None:
    """Of structlog everything, of `logging` what other libraries warn of."""

    def send(_: Any, method: str, event: MutableMapping[str, Any]) -> NoReturn:
        text = str(event.pop("event", ""))
        channel.send(encode(Logged(method, text, dict(event))))
        raise structlog.DropEvent

    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.format_exc_info, send],
        wrapper_class=structlog.BoundLogger,
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_ToStructlog()], force=True)


class _ToStructlog(logging.Handler):
    """Lines of other libraries."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        method = log.error if record.levelno >= logging.ERROR else log.warning
        method(record.getMessage(), logger=record.name, exc_info=record.exc_info or None)
