"""Low-rank adapters: per adapted matrix W [O I] a pair a [R I], b [O R]; what speaks is W + SCALE * b a.

They stand at every projection of attention and MLP, of the talker's layers and of the predictor's. The sum is taken inside the training
step, in the dtype that computes, so the loss is that of the checkpoint that a merge writes, and the modules know of no adapters.
Source: arXiv 2106.09685; ``b`` starts at zero, so training starts from the base itself.
"""

import re
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_jax.checkpoint.mapping import flatten, unflatten

ADAPTED = re.compile(r"(code_predictor\.)?model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight")
SCALE = 2.0  # the usual alpha / rank
Adapters = dict[str, dict[str, Any]]  # dotted path below ``talker.`` -> {"a", "b"}, float32


def begin(talker: dict[Any, Any], rank: int, seed: int) -> Adapters:
    """Adapters that change nothing yet.

    Args:
        talker: the base's tree; leaves have a ``shape``.
        rank: R.
        seed: of ``a``.

    Raises:
        ValueError: a rank below 1, or one that is no saving.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(talker).items() if ADAPTED.fullmatch(path)}
    most = min(min(shape) for shape in shapes.values())
    if not 1 <= rank < most:
        raise ValueError(f"lora rank {rank}: must be from 1 to {most - 1} (the narrowest adapted matrix has {most} rows or columns)")
    made: Adapters = {}
    for path, (outputs, inputs) in shapes.items():
        noise = np.random.default_rng([seed, zlib.crc32(path.encode())])
        a = noise.standard_normal((rank, inputs)) / np.sqrt(inputs)
        made[path] = {"a": jnp.asarray(a, jnp.float32), "b": jnp.zeros((outputs, rank), jnp.float32)}
    return made


def merge(talker: dict[Any, Any], adapters: Adapters) -> dict[Any, Any]:
    """The tree that speaks: adapted matrices in float32, all others as they are."""
    flat = flatten(talker)
    for path, pair in adapters.items():
        flat[path] = flat[path].astype(jnp.float32) + SCALE * jnp.matmul(pair["b"], pair["a"], precision=jax.lax.Precision.HIGHEST)
    return unflatten(flat, talker)
