"""Logs: one JSON object per line on standard error, or text for people. No secret, no key, no vector."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal, TextIO

from recollect_server.observability.line_limit import LineLimit
from recollect_server.observability.redaction import redacted, without_data

FIELDS = (
    "request_id",
    "source",
    "tenant",
    "key_id",
    "method",
    "transport",
    "status",
    "reason",
    "error_id",
    "total_ms",
    "wait_ms",
    "work_ms",
    "calls",
)
"""What a record may carry beside its message, by `extra=`. Anything else in it is left out."""

STRANGERS_LOGGERS = frozenset({"uvicorn.error", "asyncio"})
"""They write a line for whatever comes that is no HTTP, or for each connection too many."""


def configure_logging(
    level: Literal["debug", "info", "warning", "error"],
    log_format: Literal["json", "text"],
    *,
    stream: TextIO | None = None,
    limit: LineLimit | None = None,
) -> None:
    """Sends every log record of the process one way, libraries' records included.

    uvicorn must be started with `log_config=None`, or it undoes this.

    Args:
        level: What is below is left out.
        log_format: "json" for machines, "text" for people.
        stream: Where to; None: standard error.
        limit: For lines of libraries that strangers cause; None: one of its own.
    """
    handler = logging.StreamHandler(stream)
    handler.addFilter(_is_of_the_server)
    handler.addFilter(_Bounded(limit or LineLimit()))
    handler.setFormatter(JsonLines() if log_format == "json" else Text())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # uvicorn, gRPC and others bring handlers of their own, or might.
    for logger in list(logging.Logger.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            logger.handlers.clear()
            logger.propagate = True
    # Its lines would repeat ours, without tenant and request id.
    logging.getLogger("uvicorn.access").disabled = True
    # They tell of their own work at every call.
    for name in ("asyncio", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)


def _is_of_the_server(record: logging.LogRecord) -> bool:
    """False for what gRPC says, with a traceback, of headers that are no text: anybody could fill the log."""
    return record.name != "grpc._cython.cygrpc" or not str(record.msg).startswith("Invalid encoding on")


class _Bounded(logging.Filter):
    """Lets pass what is not of `STRANGERS_LOGGERS`, and so many lines a second of each level of theirs.

    By level, not by text: some of it is a stranger's choice, and a defect must not drown in a flood.
    """

    def __init__(self, limit: LineLimit) -> None:
        super().__init__()
        self._limit = limit

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter.filter`."""
        if record.name not in STRANGERS_LOGGERS:
            return True
        kind = f"{record.name} {record.levelname.lower()}"
        return self._limit.may_write(kind, level=record.levelno)


class _Redacting(logging.Formatter):
    """Gives the parts of a record with nothing secret left in them; the record itself stays as it is."""

    def message_of(self, record: logging.LogRecord) -> str:
        """The message with its arguments."""
        message = str(without_data(record.msg))
        if record.args:
            arguments = (
                {name: without_data(value) for name, value in record.args.items()}
                if isinstance(record.args, Mapping)
                else tuple(without_data(value) for value in record.args)
            )
            try:
                message = message % arguments
            except (TypeError, ValueError, KeyError):
                message = f"{message} (its arguments do not fit)"
        return redacted(message)

    def exception_of(self, record: logging.LogRecord) -> str:
        """The traceback, or ""."""
        if record.exc_info and record.exc_info[0] is not None:
            return redacted(self.formatException(record.exc_info))
        return redacted(record.exc_text or "")

    def fields_of(self, record: logging.LogRecord) -> dict[str, str | int | float]:
        """Those of `FIELDS` that the record has, and that say something."""
        fields: dict[str, str | int | float] = {}
        for name in FIELDS:
            value = getattr(record, name, None)
            if isinstance(value, bool | int | float):
                fields[name] = value
            elif value is not None and value != "":
                fields[name] = redacted(str(without_data(value)))
        return fields


class JsonLines(_Redacting):
    """One object for each record: ts, level, logger, message, then fields, then exception."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        line: dict[str, str | int | float] = {
            "ts": _rfc3339(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self.message_of(record),
            **self.fields_of(record),
        }
        if exception := self.exception_of(record):
            line["exception"] = exception
        # ASCII: no character of a caller's can end the line or hide from who reads it.
        return json.dumps(line, allow_nan=True)


class Text(_Redacting):
    """A line for people; the traceback, if there is one, below it."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        fields = "".join(f" {name}={_printable(str(v))}" for name, v in self.fields_of(record).items())
        message = _printable(self.message_of(record))
        line = f"{_rfc3339(record.created)} {record.levelname:<7} {record.name}: {message}{fields}"
        exception = self.exception_of(record)
        return f"{line}\n{exception}" if exception else line


def _printable(text: str) -> str:
    # What a caller sends must not begin a line of its own, nor colour a terminal.
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
