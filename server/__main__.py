"""``python -m server``: serve with the settings of the environment, in large pages."""

import sys

from qwen3_jax.allocation import restart_with_large_pages

if __name__ == "__main__":
    restart_with_large_pages()
    from server.run import main

    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
