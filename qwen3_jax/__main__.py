"""``qwen3-jax``, ``python -m qwen3_jax``: the command line of cli.py, in large pages."""

import sys

from qwen3_jax.runtime.allocation import KEEPING, TUNABLES, restart_with_large_pages


def main(name: str = "qwen3-jax") -> None:
    """Run the program that is installed as ``qwen3-jax``."""
    try:
        restart_with_large_pages(KEEPING if sys.argv[1:2] == ["finetune"] else TUNABLES)
        from qwen3_jax import cli  # after the restart: see restart_with_large_pages

        cli.main(name)
    except KeyboardInterrupt:  # while packages are imported: the commands have their own line
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main("python -m qwen3_jax")
