"""``python -m server``: serve with the settings of the environment, in large pages. ``python -m server key NAME``: make an API key."""

import sys

from qwen3_jax.allocation import restart_with_large_pages
from qwen3_jax.extras import needed


def make_key(name: str) -> None:
    """Print a fresh key on stderr, once, and the line for the key file on stdout."""
    key, line = needed("server.auth", "server", "python -m server key").new_key(name)
    print(f"the key of {name}, shown this once: {key}", file=sys.stderr)
    print(line)


if __name__ == "__main__":
    try:
        if len(sys.argv) == 3 and sys.argv[1] == "key":
            make_key(sys.argv[2])
        elif len(sys.argv) > 1:
            sys.exit("usage: python -m server, or python -m server key NAME >> keys; everything else is said by TTS_* variables")
        else:
            restart_with_large_pages()
            needed("server.run", "server", "python -m server").main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
