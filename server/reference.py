"""Settings -> what an operator reads: the help of ``python -m server``, and docs/settings.md."""

import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import AliasChoices

from server.settings import Settings, spelled

GROUPS = {  # the first setting of each group
    "engine": "Model",
    "voices_dir": "Voices",
    "host": "Address",
    "max_sessions": "Limits",
    "recogniser": "Listening",
    "turn_timeout": "Time limits",
    "interrupt_ms": "Conversations",
    "auth": "Who may ask",
    "responder_url": "The answer to what is heard",
    "log_format": "Log and metrics",
}
USAGE = """\
python -m server             serve, with the settings below
python -m server demo        serve the voice that ships on this machine, and open the page (--no-browser: only print its address)
python -m server key NAME    make an API key: the key goes to stderr, its line for the file of TTS_API_KEYS to stdout
python -m server settings    print docs/settings.md
python -m server warm        download and compile what a start needs, and end
python -m server health      status 0 if the server of these settings lives, else 1: a container's health check

Every setting is an environment variable. What follows its name is the default."""


class Entry(NamedTuple):
    """One setting. ``names`` as the environment has them, ``default`` empty where there is none."""

    names: tuple[str, ...]
    default: str
    allowed: str
    meaning: str


def groups() -> Iterator[tuple[str, list[Entry]]]:
    """(title, settings), in their order."""
    title, entries = "", list[Entry]()
    shapes = Settings.model_json_schema(by_alias=False)["properties"]
    for name, field in Settings.model_fields.items():
        if name in GROUPS:
            if entries:
                yield title, entries
            title, entries = GROUPS[name], []
        alias = field.validation_alias
        others = [choice for choice in alias.choices if str(choice).isupper()] if isinstance(alias, AliasChoices) else []
        names = tuple(map(str, others)) or (f"TTS_{name.upper()}",)
        default = "" if field.default in (None, (), {}) else spelled(field.default)
        entries.append(Entry(names, default, _allowed(shapes[name]), " ".join((field.description or "").split())))
    yield title, entries


def help_text(width: int = 100) -> str:
    """For a terminal."""
    lines = [USAGE]
    for title, entries in groups():
        lines += ["", title]
        for entry in entries:
            about = f"{entry.meaning} ({entry.allowed})" if entry.allowed else entry.meaning
            lines.append(f"  {' or '.join(entry.names)}={entry.default}")
            lines += textwrap.wrap(about.replace("`", ""), width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def markdown() -> str:
    """docs/settings.md."""
    lines = [
        "# Settings of the server",
        "",
        "Made by `python -m server settings > docs/settings.md` from [server/settings.py](../server/settings.py); "
        "`python -m server --help` prints the same. Every setting is an environment variable; an empty one counts as unset. The server "
        "logs at start what differs "
        "from the defaults, and names `TTS_*` variables that are no settings.",
    ]
    for title, entries in groups():
        lines += ["", f"## {title}", "", "| setting | default | allowed | |", "|---|---|---|---|"]
        for entry in entries:
            names, default = ", ".join(f"`{name}`" for name in entry.names), f"`{entry.default}`" if entry.default else ""
            lines.append(" ".join(f"| {cell}".rstrip() for cell in (names, default, entry.allowed, entry.meaning)) + " |")
    return "\n".join(lines) + "\n"


def allowed_words(variable: str) -> str:
    """What a setting may be, as an error says it; empty where that is not known."""
    name = variable.removeprefix("TTS_").lower()
    shape = Settings.model_json_schema(by_alias=False)["properties"].get(name, {})
    allowed = _allowed(shape)
    if not allowed:
        return ""
    kinds = {one.get("type") for one in shape.get("anyOf", [shape])}
    kind = "a whole number " if "integer" in kinds else "a number " if "number" in kinds else "one of "
    between = "from " if " to " in allowed else "of " if allowed[0].isdigit() and kind != "one of " else ""
    return f"must be {kind}{between}{allowed}"


def _allowed(shape: dict[str, Any]) -> str:
    """A JSON schema -> words; empty where any text will do."""
    shape = next((one for one in shape.get("anyOf", [shape]) if {"enum", "minimum"} & one.keys()), shape)
    if shape.get("type") == "boolean" or {"type": "boolean"} in shape.get("anyOf", []):
        return "true, false"
    if "enum" in shape:
        return ", ".join(shape["enum"])
    lowest, highest = shape.get("minimum", shape.get("exclusiveMinimum")), shape.get("maximum")
    if lowest is None:
        return ""
    begin = f"more than {lowest:g}" if "exclusiveMinimum" in shape else f"{lowest:g}"
    words = f"{begin} or more" if highest is None else f"{begin}, at most {highest:g}" if begin[0] == "m" else f"{begin} to {highest:g}"
    return f"{words}, a multiple of {shape['multipleOf']:g}" if "multipleOf" in shape else words
