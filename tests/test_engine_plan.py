"""The memory plan counts what is really allocated, and refuses with the numbers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

from qwen3_jax.checkpoint.mapping import flatten
from qwen3_jax.engine import programs
from qwen3_jax.engine.plan import plan, require
from qwen3_jax.model.model import Model


def test_the_plan_is_what_is_allocated(model: Callable[[str], Model]) -> None:
    base = model("base")
    planned = plan(base, 4, 128)
    graphs, params = base.graphs, base.params
    state = programs.start(graphs.talker, params["talker"], graphs.codec_decoder, params["codec"]["decoder"], rows=4, columns=128, text=128)
    numbers = [leaf for leaf in jax.tree.leaves(state) if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    keys = 4 * 8
    assert planned.cache + planned.codec + planned.other == sum(leaf.nbytes for leaf in numbers) + keys
    assert planned.cache == 2 * 3 * 4 * 2 * 128 * 16 * 4, "2 x layers x slots x heads x positions x size x 4 bytes"
    assert planned.weights == {"float32": sum(leaf.nbytes for leaf in jax.tree.leaves(params))}
    twice = plan(base, 8, 128)
    assert twice.cache == 2 * planned.cache and twice.codec == 2 * planned.codec and twice.work == 2 * planned.work
    assert "4 slots x 128 positions, float32" in str(planned)


def test_what_cannot_fit_is_refused(model: Callable[[str], Model]) -> None:
    base = model("base")
    small = plan(base, 64, 1024, available=10**9)
    require(small)
    tight = small._replace(available=int(small.total / 0.9) - 1000)
    with pytest.raises(ValueError, match=r"64 slots do not fit: .* KV cache .* 63 slots of this length would fit"):
        require(tight)
    with pytest.raises(ValueError, match="the weights alone leave no room for a slot"):
        require(small._replace(available=1000))


def test_widened_weights_are_counted(model: Callable[[str], Model]) -> None:
    base = model("base")
    narrow = jax.tree.map(lambda leaf: leaf.astype("bfloat16") if leaf.ndim > 1 else leaf, base.params["talker"])
    mixed = base._replace(params={**base.params, "talker": narrow})
    alone, many = plan(mixed, 1, 128), plan(mixed, 2, 128)
    tables = sum(leaf.nbytes for path, leaf in flatten(narrow).items() if "embedding" in path)  # read by rows, never widened
    assert tables and many.weights["float32"] - alone.weights["float32"] == 2 * (alone.weights["bfloat16"] - tables)
