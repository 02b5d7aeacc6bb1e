"""``python -m qwen3_jax``: the command line of cli.py, in large pages."""

from qwen3_jax.allocation import restart_with_large_pages

if __name__ == "__main__":
    restart_with_large_pages()
    from qwen3_jax.cli import main

    main()
