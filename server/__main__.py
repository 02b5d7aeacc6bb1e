"""``python -m server``: serve with the settings of the environment, in large pages; ``--help`` lists them and the other commands."""

import os
import sys

from qwen3_jax.messages import shorten
from qwen3_jax.runtime.allocation import restart_with_large_pages
from qwen3_jax.runtime.extras import needed


def make_key(name: str) -> None:
    """Print a fresh key on stderr, once, and the line for the key file on stdout."""
    key, line = needed("server.ops.keys", "server", "python -m server key").new_key(name)
    print(f"the key of {name}, shown this once: {key}", file=sys.stderr)
    print(line)


def serve() -> None:
    """Serve. What the operator can put right ends the process with one line and status 1."""
    from server.ops import signals  # not server.run: its imports take long enough for a signal

    signals.while_starting()
    try:
        needed("server.run", "server", "python -m server").main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def warm() -> None:
    """Compile and download what a start needs. Errors as in ``serve``."""
    try:
        needed("server.warm", "server", "python -m server warm").main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def health() -> None:
    """Status 0 if the server of this environment lives; else one line and status 1."""
    from server.health import main  # light, for it is asked every few seconds

    try:
        main(os.environ)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def demo(*, browser: bool) -> None:
    """Serve the voice that ships, and open its page. Errors as in ``serve``."""
    from server.ops import signals

    signals.while_starting()
    try:
        needed("server.demo", "server", "python -m server demo").main(browser=browser)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def command(arguments: list[str]) -> None:
    """Do what the command line says."""
    if not arguments:
        restart_with_large_pages()
        serve()
    elif arguments == ["help"] or arguments[-1] in ("--help", "-h"):  # of any command
        _print(needed("server.reference", "server", "python -m server --help").help_text() + "\n")
    elif arguments == ["settings"]:
        _print(needed("server.reference", "server", "python -m server settings").markdown())
    elif arguments == ["warm"]:
        restart_with_large_pages()
        warm()
    elif arguments == ["health"]:
        health()
    elif arguments in (["demo"], ["demo", "--no-browser"]):
        restart_with_large_pages()
        demo(browser=len(arguments) == 1)
    elif len(arguments) == 2 and arguments[0] == "key":
        make_key(arguments[1])
    else:
        sys.exit(f"error: {_wrong(arguments)}")


def _print(text: str) -> None:
    """Write it to stdout, as far as its reader goes on reading: ``head`` and ``less`` do not."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush at its end


def _wrong(arguments: list[str]) -> str:
    """What is wrong with a command line that is none of ours, and what there is instead."""
    first = arguments[0]
    if first == "key":
        return "key needs one NAME, of whoever gets the key: python -m server key NAME >> keys"
    if first == "settings":
        return f"settings takes nothing else, and {shorten(' '.join(arguments[1:]))!r} was given: python -m server settings"
    if first == "demo":
        return f"demo takes --no-browser or nothing, and {shorten(' '.join(arguments[1:]))!r} was given: python -m server demo --no-browser"
    if first.startswith("-"):
        name = f"TTS_{first.lstrip('-').partition('=')[0].replace('-', '_').upper()}"
        return (
            f"no option {shorten(first)!r}: settings are environment variables, such as {shorten(name)}; python -m server --help lists them"
        )
    return f"no command {shorten(repr(first))}: there are demo, health, key NAME, settings, warm and --help; without a command it serves"


if __name__ == "__main__":
    try:
        command(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
