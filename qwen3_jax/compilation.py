"""JAX's persistent compilation cache, on by default in the user's cache folder: a program is compiled once per machine."""

import os
from pathlib import Path

import jax


def use_persistent_cache() -> None:
    """Point JAX at the user's cache folder, unless the user has chosen one (JAX_COMPILATION_CACHE_DIR) already."""
    if jax.config.jax_compilation_cache_dir is None:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(base / "qwen3-jax" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
