"""What is missing here, said in one line: packages that only some commands need, by their extra of pyproject.toml.

needed("quart", "server", "serve")    the module, or MissingExtra: serve needs the extra server (quart is not installed): ...
"""

import sys
from importlib import import_module
from typing import Any

OWN = ("qwen3_jax", "server", "convert")  # the wheel's top-level names


class NotHere(ValueError, ImportError):
    """Something that cannot be imported here; the message says what to do."""


class MissingExtra(NotHere):
    """A package of an extra that is not installed."""


def needed(module: str, extra: str | None, what: str, also: str = "") -> Any:
    """Import a module, ours or another's, that needs more than the core packages.

    Args:
        module: its full name.
        extra: the extra that has its packages; None if the core ones are enough.
        what: the command, option or setting that needs it, for the message.
        also: a further step of the installation, for the message.

    Raises:
        MissingExtra: a package of the extra is not installed.
        NotHere: another's module has the name of one of ours.
        ModuleNotFoundError: any other module is not there.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package in OWN[1:] and (other := getattr(sys.modules.get(package), "__file__", None)):
            raise NotHere(
                f"{what} needs the package {package} that is installed with qwen3-jax, but {other} has its name: "
                "rename that, or give the command qwen3-jax in another folder"
            ) from error
        if package in OWN or extra is None:
            raise
        raise MissingExtra(f"{what} needs the extra {extra} ({error.name} is not installed): {how_to_install(extra, also)}") from error


def how_to_install(extra: str, also: str = "") -> str:
    """The command that adds an extra, and the one that does in a checkout."""
    step = f", and then {also}" if also else ""
    return f"pip install 'qwen3-jax[{extra}]', in a checkout pip install '.[{extra}]'{step}"
