"""Restriction and drawing against a plain NumPy account of transformers' processors; one row at a time there, batched here."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.model.config import GenerationConfig
from qwen3_jax.model.sampling import LEAST_TOP_P, MOST_TOP_K, PENALTIES, TEMPERATURES, Draws, Sampling, _filter, greedy_at_zero, restrict
from qwen3_jax.model.sampling import draw as eager_draw
from qwen3_jax.model.sampling import rules as host_rules

VOCAB, EOS = 3072, 2150
filtered, draw = jax.jit(_filter), jax.jit(eager_draw)  # else each call compiles its branches anew


def rules(rows: list[Sampling]) -> Any:
    """On the device, as a compiled step has them."""
    return jax.tree.map(jnp.asarray, host_rules(rows))


def reference_filter(logits: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """TopKLogitsWarper, then TopPLogitsWarper (ascending order, cumulative mass at or below 1 - p removed)."""
    logits = logits.astype(np.float64).copy()
    if top_k > 0:
        logits[logits < np.sort(logits)[-min(top_k, len(logits))]] = -np.inf
    if top_p < 1:
        order = np.argsort(logits, kind="stable")
        mass = np.exp(logits[order] - logits.max())
        removed = np.cumsum(mass / mass.sum()) <= 1 - top_p
        removed[-1] = False
        logits[order[removed]] = -np.inf
    return logits


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 40), st.floats(0.05, 1.0), st.floats(0.2, 3.0))
def test_filter_keeps_what_transformers_keeps(seed: int, top_k: int, top_p: float, temperature: float) -> None:
    logits = np.random.default_rng(seed).standard_normal(64).astype(np.float32) * 3 / np.float32(temperature)
    ours = np.asarray(filtered(jnp.asarray(logits)[None], jnp.array([top_k]), jnp.array([top_p], jnp.float32)))[0]
    expected = reference_filter(logits, top_k, top_p)
    differing = np.isinf(ours) != np.isinf(expected)
    if differing.any():  # only a token on the very edge of the mass may fall on either side, by rounding
        order = np.sort(np.exp(reference_filter(logits, top_k, 1.0) - logits.max()))[::-1]
        edges = np.cumsum(order / order.sum())
        assert differing.sum() == 1 and np.abs(edges - top_p).min() < 1e-6


def test_ties_with_the_kth_stay() -> None:
    kept = filtered(jnp.array([[3.0, 1.0, 2.0, 2.0, 0.0]]), jnp.array([2]), jnp.array([1.0]))
    assert np.isfinite(np.asarray(kept[0])).tolist() == [True, False, True, True, False]


def test_penalty_divides_positive_and_multiplies_negative_once() -> None:
    logits = jnp.zeros((1, VOCAB)).at[0, :3].set(jnp.array([2.0, -2.0, 2.0]))
    seen = jnp.zeros((1, VOCAB), bool).at[0, :2].set(True)
    out = restrict(logits, seen, jnp.array([5]), jnp.array([1.25]), EOS)
    np.testing.assert_allclose(out[0, :3], [1.6, -2.5, 2.0], rtol=1e-6)


def test_control_ids_are_suppressed_and_eos_waits_two_frames() -> None:
    out = np.asarray(restrict(jnp.zeros((3, VOCAB)), jnp.zeros((3, VOCAB), bool), jnp.array([0, 1, 2]), jnp.ones(3), EOS))
    allowed = np.isfinite(out)
    assert allowed[:, :2048].all()
    assert allowed[:, EOS].tolist() == [False, False, True]
    assert allowed[:, 2048:].sum() == 1  # row 2's eos and nothing else


def one_rule(rows: int, **changes: object) -> Draws:
    return rules([Sampling(**changes)] * rows).talker


def test_greedy_rows_take_the_likeliest_whatever_their_neighbours_do() -> None:
    logits = jax.random.normal(jax.random.key(0), (4, 50))
    mixed = rules([Sampling(do_sample=row % 2 == 0) for row in range(4)]).talker
    ids = draw(logits, jax.random.split(jax.random.key(1), 4), mixed)
    assert ids[1] == jnp.argmax(logits[1]) and ids[3] == jnp.argmax(logits[3])


def test_a_row_draws_the_same_alone_and_in_a_batch() -> None:
    logits, keys = jax.random.normal(jax.random.key(0), (5, 300)), jax.random.split(jax.random.key(1), 5)
    batch = draw(logits, keys, one_rule(5))
    alone = [int(draw(logits[row : row + 1], keys[row : row + 1], one_rule(1))[0]) for row in range(5)]
    assert batch.tolist() == alone


def test_draws_follow_the_distribution() -> None:
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    count = 4000
    ids = draw(jnp.broadcast_to(logits, (count, 4)), jax.random.split(jax.random.key(3), count), one_rule(count, temperature=1.0, top_k=3))
    shares = np.bincount(np.asarray(ids), minlength=4) / count
    assert shares[3] == 0
    np.testing.assert_allclose(shares[:3], np.array([0.5, 0.3, 0.15]) / 0.95, atol=0.03)


def test_defaults_come_from_the_checkpoint() -> None:
    assert Sampling.defaults(GenerationConfig(temperature=0.7, subtalker_top_k=7)) == Sampling(temperature=0.7, subtalker_top_k=7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature = 0.0: must be above 0.*do_sample=False"),
        ({"subtalker_temperature": -1.0}, "subtalker_temperature = -1.0.*subtalker_dosample=False"),
        ({"top_k": -1}, "top_k = -1: must be 0"),
        ({"top_p": 0.0}, "top_p = 0.0: must be above 0"),
        ({"subtalker_top_p": 1.5}, "subtalker_top_p = 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty = 0.0"),
        ({"do_sample": "no"}, "do_sample = 'no': must be True or False"),
        ({"subtalker_dosample": 1}, "subtalker_dosample = 1: must be True or False"),
        ({"top_k": 2**31}, "top_k = 2147483648: must be 0 .off. or more, an integer of at most 2147483647"),
        ({"subtalker_top_k": 1.5}, "subtalker_top_k = 1.5: must be .* an integer"),
    ],
)
def test_bad_values_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**changes)


@pytest.mark.parametrize(
    ("given", "means"),
    [
        ({"temperature": 0, "top_k": 5}, {"do_sample": False, "subtalker_dosample": False, "top_k": 5}),
        ({"temperature": np.float32(0)}, {"do_sample": False, "subtalker_dosample": False}),
        ({"temperature": 0.0, "subtalker_temperature": 0.5}, {"do_sample": False, "subtalker_temperature": 0.5}),
        ({"temperature": 0.5, "subtalker_temperature": 0}, {"temperature": 0.5, "subtalker_dosample": False}),
        ({"temperature": 0, "subtalker_dosample": True}, {"do_sample": False, "subtalker_dosample": True}),
        ({"temperature": 0.5}, {"temperature": 0.5}),
        ({"temperature": False}, {"temperature": False}),
    ],
)
def test_a_temperature_of_0_is_greedy_decoding(given: dict, means: dict) -> None:
    assert greedy_at_zero(given) == means


@pytest.mark.parametrize("name", ["temperature", "subtalker_temperature", "top_p", "subtalker_top_p", "repetition_penalty"])
@pytest.mark.parametrize("value", [1e-39, 1e-46, 5e-324, 1e39, float("inf"), float("nan"), "1", None, True])
def test_what_float32_does_not_hold_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{name} = .*: must be above 0, a number from 1e-[12]0 to .*, for float32"):
        Sampling(**{name: value})


_restrict, _draw = jax.jit(restrict, static_argnums=4), jax.jit(draw)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([*TEMPERATURES, 1e-3, 1.0]), st.sampled_from([LEAST_TOP_P, 1e-3, 0.9, 1.0]), st.sampled_from([*PENALTIES, 1.0]),
    st.sampled_from([0, 1, 50, MOST_TOP_K]), st.floats(1e-3, 1e4), st.integers(0, 2**31),
)  # fmt: skip
def test_whatever_is_allowed_draws_an_id_that_is_not_banned(
    temperature: float, top_p: float, penalty: float, top_k: int, spread: float, seed: int
) -> None:
    noise = np.random.RandomState(seed)
    logits = jnp.asarray(spread * noise.standard_normal((2, VOCAB)).astype(np.float32))
    seen = jnp.asarray(noise.rand(2, VOCAB) < 0.1)
    by = rules([Sampling(temperature=temperature, top_p=top_p, top_k=top_k, repetition_penalty=penalty)] * 2)
    scores = _restrict(logits, seen, jnp.array([5, 0]), by.penalty, EOS)
    assert not np.isnan(scores / temperature).any()
    ids = np.asarray(_draw(scores, jax.random.split(jax.random.key(seed), 2), by.talker))
    assert np.isfinite(np.asarray(scores)[[0, 1], ids]).all(), "neither suppressed, nor -1"
    if temperature == TEMPERATURES[0] or top_p == LEAST_TOP_P or top_k == 1:
        np.testing.assert_array_equal(ids, np.asarray(scores).argmax(axis=1))


@pytest.mark.parametrize("sample", [True, False])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_of_what_is_not_finite_nothing_is_drawn(value: float, sample: bool) -> None:
    """In its own row. -inf is a ban, and stays one."""
    logits = np.random.RandomState(0).standard_normal((3, 9)).astype(np.float32)
    logits[:, 4] = -np.inf
    logits[1, 7] = value
    ids = _draw(jnp.asarray(logits), jax.random.split(jax.random.key(0), 3), rules([Sampling(do_sample=sample)] * 3).talker)
    assert ids[1] == -1 and 0 <= ids[0] != 4 and 0 <= ids[2] != 4
