"""What only training needs: linear maps from the talker's states to what it should know there, and their errors.

    hint        from a row's hidden state: main components of the frame that the row's label names (latents/quantiser.py)
    sound       the same, from the predictor's state when it has read book 0
    spelling    from the row where a word of the text ends, before the first guided layer: the word's phonemes
    timing      from a row, after the last guided layer: the phonemes of the frame's quarters, and of the next two frames'

None of them is exported.
"""

from typing import Any

import jax
import jax.numpy as jnp

from qwen3_jax.finetune.teacher_forcing import cross_entropy, masked_mean
from qwen3_jax.shapes import F32, I32, Array, Bool, Float
from training.latents.phonemes import QUARTERS

PHONEMES = 12  # of a word, at most
SYMBOLS = 64  # phonemes that are told apart; 0 is the end of a word
SPELLING = PHONEMES * SYMBOLS  # numbers of the map from a row to its word's phonemes
AHEAD = 3  # frames whose phonemes are told apart at a row
TIMING = QUARTERS * AHEAD * SYMBOLS  # numbers of that map
Params = dict[str, Any]


def phoneme_loss(x: Float[Array, "B T H"], map_: Params, phonemes: I32[Array, "B T S"]) -> jax.Array:
    """Mean cross-entropy of what the map finds at the rows, where phonemes are known."""
    there = phonemes >= 0
    guess = (x @ map_["weight"] + map_["bias"]).reshape(*phonemes.shape, -1).astype(jnp.float32)
    return masked_mean(cross_entropy(guess, phonemes), there)


def component_weights(size: int) -> F32[Array, " D"]:
    """What each number of a whitened latent counts for: the first components most."""
    falling = 1.0 / (4.0 + jnp.arange(size, dtype=jnp.float32))
    return falling / falling.sum()


def component_loss(x: Float[Array, "... H"], map_: Params, latent: F32[Array, "... D"], there: Bool[Array, "..."]) -> jax.Array:
    """Mean error of the components that the map finds, where ``there`` says so."""
    off = jnp.square(x @ map_["weight"] + map_["bias"] - latent) @ component_weights(latent.shape[-1])
    return masked_mean(off, there)


def begin_map(width: int, size: int) -> Params:
    """A map of `losses` before the first step; ``size``: of a latent, `SPELLING` or `TIMING`."""
    return {"weight": jnp.zeros((width, size)), "bias": jnp.zeros((size,))}
