"""Log records -> lines, as text or as JSON, each with the id of the session in whose task it was written. No text of users by default."""

import logging
from contextvars import ContextVar
from typing import Any, Literal

import msgspec

session_id: ContextVar[str] = ContextVar("session_id", default="-")


class _Context(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.session = session_id.get()
        return True


class JsonLines(logging.Formatter):
    """A record -> one line of JSON: time, level, logger, session, message, ``extra={"fields": ...}`` and the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname,
            "logger": record.name,
            "session": getattr(record, "session", "-"),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


class TextLines(logging.Formatter):
    """A record -> text; fields as name=value at its end."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s [%(session)s] %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in getattr(record, "fields", {}).items())
        copy = logging.makeLogRecord({**record.__dict__, "msg": record.getMessage() + fields, "args": ()})
        return super().format(copy)


def configure(kind: Literal["text", "json"]) -> None:
    """Send everything to stderr; our own words from INFO, libraries' from WARNING."""
    handler = logging.StreamHandler()
    handler.addFilter(_Context())
    handler.setFormatter(JsonLines() if kind == "json" else TextLines())
    logging.basicConfig(handlers=[handler], force=True)
    for name in ("server", "qwen3_jax"):
        logging.getLogger(name).setLevel(logging.INFO)
