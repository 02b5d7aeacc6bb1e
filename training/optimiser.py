"""What all of the training shares: the optimiser, its rate by step, and the running average of the weights."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

Flat = dict[str, Any]


def rate_at(step: jax.Array, peak: float, warm: int = 100, flat: int = 1500) -> jax.Array:
    """Learning rate: up to ``peak`` in ``warm`` steps, level to ``flat``, then falling as 1 / sqrt(step). It needs no last step."""
    step = jnp.asarray(step, jnp.float32)
    return peak * jnp.minimum(1.0, (step + 1) / warm) * jax.lax.rsqrt(jnp.maximum(1.0, step / flat))


def optimiser(second: float = 0.99, decay: float = 1e-3) -> optax.GradientTransformation:
    """AdamW without its learning rate, which the step passes. Gradients are clipped to length 1."""
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.scale_by_adam(0.8, second), optax.add_decayed_weights(decay), optax.scale(-1.0)
    )


def running_average(average: Any, params: Any, step: jax.Array) -> Any:
    """Of parameters in any tree, over the last thousand steps; over fewer at the beginning."""
    keep = jnp.minimum(0.999, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, average, params)
