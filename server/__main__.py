"""``python -m server``: serve with the settings of the environment, in large pages; ``--help`` lists them and the other commands."""

import sys

from qwen3_jax.allocation import restart_with_large_pages
from qwen3_jax.extras import needed


def make_key(name: str) -> None:
    """Print a fresh key on stderr, once, and the line for the key file on stdout."""
    key, line = needed("server.keys", "server", "python -m server key").new_key(name)
    print(f"the key of {name}, shown this once: {key}", file=sys.stderr)
    print(line)


def serve() -> None:
    """Serve. What the operator can put right ends the process with one line and status 1."""
    from server import signals  # not server.run: its imports take long enough for a signal

    signals.while_starting()
    try:
        needed("server.run", "server", "python -m server").main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def command(arguments: list[str]) -> None:
    """Do what the command line says."""
    if not arguments:
        restart_with_large_pages()
        serve()
    elif arguments in (["--help"], ["-h"], ["help"]):
        print(needed("server.reference", "server", "python -m server --help").help_text())
    elif arguments == ["settings"]:
        print(needed("server.reference", "server", "python -m server settings").markdown(), end="")
    elif len(arguments) == 2 and arguments[0] == "key":
        make_key(arguments[1])
    else:
        sys.exit("usage: python -m server, python -m server key NAME >> keys, or python -m server --help, which lists all settings")


if __name__ == "__main__":
    try:
        command(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
