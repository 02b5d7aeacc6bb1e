"""Milliseconds of talker, predictor and codec, each alone; the bytes and operations that they need; what of each bound is reached."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.table import Table

from benchmarks.compare.machine import median_seconds
from benchmarks.compare.work import reached, works
from qwen3_jax.codec import init_state
from qwen3_jax.engine.inline import FRAMES
from qwen3_jax.model.cache import empty
from qwen3_jax.model.decode import decode
from qwen3_jax.model.model import Model
from qwen3_jax.model.talker import Talker

PARTS = ("talker", "predictor", "codec")
COLUMNS, POSITION = 256, 100  # of the talker's KV cache, and where in it the step is


def parts(model: Model, bandwidth: float, peak: float) -> dict[str, dict[str, float]]:
    """Of each part: ``ms`` a frame, ``bytes``, ``operations``, ``of_memory``, ``of_arithmetic``."""
    config = model.config.talker_config
    dtype = model.params["talker"]["model"]["norm"]["weight"].dtype  # of the arithmetic: matrices may be kept in another

    @functools.partial(jax.jit, donate_argnames=("cache",))  # as in the engine: else the whole cache is copied
    def step(params: Any, x: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        talker: Talker = nnx.merge(model.graphs.talker, params)
        hidden, cache = talker.model(x, cache, jnp.full(1, POSITION))
        return talker.codec_head(hidden), cache

    @jax.jit
    def predict(params: Any, hidden: jax.Array) -> jax.Array:
        talker: Talker = nnx.merge(model.graphs.talker, params)
        return talker.code_predictor.predict(hidden, hidden, lambda logits, _: jnp.argmax(logits, axis=-1).astype(jnp.int32))

    talker: Talker = nnx.merge(model.graphs.talker, model.params["talker"])
    layers, kv_heads, head_dim = talker.kv_shape
    cache = empty(layers, 1, kv_heads, COLUMNS, head_dim, dtype)
    x = jnp.ones((1, 1, config.hidden_size), dtype)
    codes = np.zeros((FRAMES, 1, config.num_code_groups), np.int32)
    decoder = model.params["codec"]["decoder"]

    def codec() -> jax.Array:
        return decode(model.graphs.codec_decoder, decoder, codes, init_state(model.codec_config.decoder_config, 1))[0]

    def talk() -> jax.Array:
        nonlocal cache
        logits, cache = step(model.params["talker"], x, cache)
        return logits

    seconds = {
        "talker": median_seconds(talk),
        "predictor": median_seconds(lambda: predict(model.params["talker"], x[:, 0])),
        "codec": median_seconds(codec) / FRAMES,
    }
    needed = works(model, cache, (POSITION + 1) / COLUMNS, FRAMES)
    return {
        name: {"ms": 1e3 * taken, **needed[name]._asdict(), **reached(needed[name], taken, bandwidth, peak)}
        for name, taken in seconds.items()
    }


def table(rows: dict[str, dict[str, dict[str, float]]]) -> Table:
    """Rows of ``parts``, by what the weights are kept in."""
    found = Table("weights", "part", "ms a frame", "GB read", "of memory's bound", "GFLOP", "of arithmetic's bound")
    for kept, row in rows.items():
        for name in PARTS:
            part = row[name]
            found.add_row(
                kept, name, f"{part['ms']:.1f}", f"{part['bytes'] / 1e9:.3f}", f"{part['of_memory']:.2f}",
                f"{part['operations'] / 1e9:.2f}", f"{part['of_arithmetic']:.2f}",
            )  # fmt: skip
    return found
