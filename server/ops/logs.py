"""Log records -> lines, as text or as JSON, each with the id of the session in whose task it was written. No text of users by default.

``extra={"fields": {...}}`` gives a record fields: keys of the JSON line, ``name=value`` at the end of the text line.
Whatever a client sent, a record is one line: control characters are escaped in all of it.
"""

import logging
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from qwen3_jax.messages import printable

session_id: ContextVar[str] = ContextVar("session_id", default="-")


class CutShort(ConnectionAbortedError):
    """Ends an answer in its middle, which is the only way to say so; its line is in the log already."""


class _Context(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.session = session_id.get()
        return not (record.exc_info and isinstance(record.exc_info[1], CutShort))


class JsonLines(logging.Formatter):
    """A record -> one line of JSON: time (UTC), level, logger, session, message, the fields and the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "session": getattr(record, "session", "-"),
            "message": printable(record.getMessage()),
        }
        for name, value in _fields(record):
            line.setdefault(name, printable(value) if isinstance(value, str) else value)
        if record.exc_info:
            line["traceback"] = printable(self.formatException(record.exc_info), "\n")
        return msgspec.json.encode(line, enc_hook=str).decode()


class TextLines(logging.Formatter):
    """A record -> one line of text, and the traceback below it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s [%(session)s] %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        message = " ".join((printable(record.getMessage()), *(f"{name}={_quoted(value)}" for name, value in _fields(record))))
        copy = logging.makeLogRecord({**record.__dict__, "msg": message, "args": ()})
        return super().format(copy)

    def formatException(self, ei: Any) -> str:
        return printable(super().formatException(ei), "\n")


def configure(kind: Literal["text", "json"]) -> None:
    """Send everything to stderr; our own records from INFO, libraries' from WARNING."""
    handler = logging.StreamHandler()
    handler.addFilter(_Context())
    handler.setFormatter(JsonLines() if kind == "json" else TextLines())
    logging.basicConfig(handlers=[handler], force=True)
    for name in ("server", "qwen3_jax"):
        logging.getLogger(name).setLevel(logging.INFO)


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
    """The fields that have a value."""
    return ((name, value) for name, value in getattr(record, "fields", {}).items() if value is not None)


def _quoted(value: object) -> str:
    """A value of a text line, in quotes where it would not read as one word."""
    text = printable(str(value))
    return text if text and not set(text) & set(" \"'=") else repr(text).replace("\\\\", "\\")
