"""What clients send -> structs, one reading for REST and WebSocket: strict in what matters, lenient in what is harmless.

``null`` is absent; numbers may come as strings; names of formats are in any case; a byte order mark is dropped, before a message and before
a text; unknown keys are ignored. What is left is checked against the struct's types and limits.
"""

import re
from typing import Any, TypeVar

import msgspec

from qwen3_jax.messages import shorten
from server.admission.allowed import fields_of, words

BAD = (msgspec.DecodeError, UnicodeError, RecursionError)  # msgspec.ValidationError is one of the first; a lone surrogate cannot be encoded
FOLDED = frozenset({"response_format", "stream_format", "encoding", "transport", "priority", "interruption"})  # their values have no case
NAMES = frozenset({"voice", "language", "model"})  # blanks around them mean nothing, and an empty one is none
NUMBERS = frozenset({"speed", "seed", "temperature", "topK", "topP", "sampleRate", "ms", "playedMs", "audioEndMs"})
TEXTS = frozenset({"text", "input"})
BOM = "\ufeff"
T = TypeVar("T")
_PLACE = re.compile(r"missing required field `(?P<missing>\w+)`$|at `\$\.(?P<field>\w+)")


class WrongField(msgspec.ValidationError):
    """A field is missing, or has a value that is not allowed; the message says which, and what is."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


def decode(data: str | bytes) -> Any:
    """JSON -> what it holds, without what is null. Raises one of BAD."""
    text = data if isinstance(data, str) else data.decode()
    value = msgspec.json.decode(text.removeprefix(BOM))
    return _without_nulls(value) or {} if isinstance(value, dict) else value


def convert(value: Any, kind: Any) -> Any:
    """What ``decode`` gave -> a struct, or one of a union. Raises one of BAD."""
    if isinstance(value, dict):
        value = {name: tidied for name, one in value.items() if (tidied := _tidy(name, one)) is not None}
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        raise explained(error, value, kind) from error


def said(error: BaseException) -> str:
    """What is told of one of BAD."""
    if str(error) == "Input data was truncated":  # the decoder's words for both
        return "the JSON is cut short, or holds half of a surrogate pair, such as \\ud83d alone"
    if isinstance(error, RecursionError):
        return "the JSON is nested too deep: no field has more than an object in it"
    return str(error) if isinstance(error, WrongField) else shorten(str(error))


def explained(error: msgspec.ValidationError, value: Any, kind: Any) -> msgspec.ValidationError:
    """msgspec's error in words; itself where it is not about a field that is known."""
    if not isinstance(value, dict):
        return msgspec.ValidationError(f"{shorten(repr(value))} is no JSON object: send one in braces, with each field by its name")
    found = _PLACE.search(str(error))
    if found is None:
        return error
    name = found["missing"] or found["field"]
    meant = fields_of(kind, value.get("type")).get(name)
    if meant is None:
        return error
    given = f"is missing: {name}" if name not in value else shorten(repr(value[name]))
    return WrongField(f"{name} {given} must be {words(meant)}", name)


def _without_nulls(value: Any) -> Any:
    """An object of which nothing but nulls is left is one, too; one that was sent empty is not."""
    if not isinstance(value, dict):
        return value
    kept = {name: bare for name, one in value.items() if (bare := _without_nulls(one)) is not None}
    return kept if kept or not value else None


def _tidy(name: str, value: Any) -> Any:
    if name == "requestId" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        return value
    if name in FOLDED:
        return value.strip().casefold() or None
    if name in NAMES | NUMBERS:
        return value.removeprefix(BOM).strip() or None
    return value.removeprefix(BOM) if name in TEXTS else value


def message(value: Any, kind: Any, known: frozenset[str]) -> Any:
    """What JSON has -> the message of its ``type``; None for a type that is not ``known``. Raises one of BAD."""
    if isinstance(value, dict) and isinstance(value.get("type"), str) and value["type"] not in known:
        return None
    return convert(value, kind)
