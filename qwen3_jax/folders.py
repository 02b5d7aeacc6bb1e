"""The user's folders: where caches and data of this package lie. None where this user has none (no HOME, no entry in passwd)."""

import os
from pathlib import Path

OWN = "qwen3-jax"


def cache_folder() -> Path | None:
    """For what can be made again: ``$XDG_CACHE_HOME/qwen3-jax``, else ``~/.cache/qwen3-jax``. It need not exist."""
    return _base("XDG_CACHE_HOME", ".cache")


def data_folder() -> Path | None:
    """For what is the user's: ``$XDG_DATA_HOME/qwen3-jax``, else ``~/.local/share/qwen3-jax``. It need not exist."""
    return _base("XDG_DATA_HOME", ".local/share")


def expand(location: str | os.PathLike[str]) -> str:
    """A path, or an address, with a leading ``~`` or ``~user`` as the shell has it; a user that nobody knows stays as it is."""
    return os.path.expanduser(os.fspath(location))


def home_path(location: str | os.PathLike[str]) -> Path:
    """The same as a Path: the parser of every option that names a file or a folder. The shell leaves ``--option=~/x`` as it is."""
    return Path(expand(location))


def _base(variable: str, below_home: str) -> Path | None:
    chosen = os.environ.get(variable, "")
    if os.path.isabs(chosen):  # the XDG specification: a relative path is to be ignored
        return Path(chosen) / OWN
    home = expand("~")
    return Path(home) / below_home / OWN if os.path.isabs(home) else None
