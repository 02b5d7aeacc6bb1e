"""The hook of tests/shape_checks.py is in force: a wrong rank, size, dtype or field is noticed where it is handed over."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from qwen3_jax.audio.samples import to_pcm16
from qwen3_jax.codec.conv import depthwise
from qwen3_jax.model.cache import LayerCache, causal_mask, write
from qwen3_jax.model.layers import rotate
from tests import shape_checks


def test_a_wrong_rank_is_noticed() -> None:
    with pytest.raises(TypeCheckError, match="'start'"):
        causal_mask(jnp.zeros((2, 1), jnp.int32), 3, 4)


def test_a_wrong_dtype_is_noticed() -> None:
    with pytest.raises(TypeCheckError, match="'start'"):
        causal_mask(jnp.zeros(2, jnp.float32), 3, 4)
    with pytest.raises(TypeCheckError, match="'wave'"):
        to_pcm16(np.zeros(3))


def test_a_letter_has_one_size() -> None:
    with pytest.raises(TypeCheckError, match="'sin'"):
        rotate(jnp.zeros((1, 3, 2, 4)), jnp.zeros((1, 3, 4)), jnp.zeros((1, 2, 4)))
    with pytest.raises(TypeCheckError, match="'weight'"):
        depthwise(jnp.zeros((4, 1, 9)), jnp.zeros((5, 1, 3)))


def test_a_field_is_noticed() -> None:
    row = jnp.zeros((1, 2, 8, 4))
    new = jnp.zeros((1, 3, 2, 4))
    with pytest.raises(TypeCheckError, match="'cache'"):
        write(LayerCache(row, row[:, :, 1:]), new, new, jnp.zeros(1, jnp.int32))


def test_calls_inside_jit_are_checked() -> None:
    with pytest.raises(TypeCheckError):
        jax.jit(lambda start: causal_mask(start, 3, 4))(jnp.zeros((2, 1), jnp.int32))


def test_axes_of_another_rank_are_not_added_silently() -> None:
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.zeros(3) + jnp.zeros((2, 3))


def test_dtypes_are_not_promoted_silently() -> None:
    with pytest.raises(ValueError, match="promotion"):
        jnp.zeros(3, jnp.int32) + jnp.zeros(3)


def test_every_exempt_function_exists() -> None:
    for name in shape_checks.JUDGES:
        module, _, function = name.removesuffix(".__init__").rpartition(".")
        assert hasattr(importlib.import_module(module), function)
