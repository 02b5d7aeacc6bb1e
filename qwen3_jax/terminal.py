"""What commands share: lines and cells for a terminal, options that name files, stdin.

What lines and cells repeat is users', so nothing in them is Rich's markup, and no control character gets through.
"""

import sys
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qwen3_jax.checkpoint.folders import home_path
from qwen3_jax.messages import printable
from qwen3_jax.text.files import decode

console, errors = Console(), Console(stderr=True)


def say(line: str) -> None:
    """A line on stdout."""
    _print(console, line)


def tell(line: str, style: str | None = None) -> None:
    """A line on stderr."""
    _print(errors, line, style)


def add_row(table: Table, *cells: str) -> None:
    """A row of a table."""
    table.add_row(*(Text(printable(cell)) for cell in cells))


def path_option(help: str, *names: str, metavar: str = "FILE") -> Any:
    """An option that names a file or a folder, whose ``~`` is expanded."""
    return typer.Option(*names, parser=home_path, metavar=metavar, help=help)


def path_argument(help: str, metavar: str) -> Any:
    """The same of an argument."""
    return typer.Argument(parser=home_path, metavar=metavar, help=help)


def stdin() -> str:
    """All of stdin. Raises ValueError if it is not UTF-8."""
    raw = getattr(sys.stdin, "buffer", None)
    return sys.stdin.read() if raw is None else decode(raw.read(), "stdin")


def _print(where: Console, text: str, style: str | None = None) -> None:
    for line in text.split("\n"):
        where.print(printable(line), style=style, highlight=False, markup=False, emoji=False, soft_wrap=True)
