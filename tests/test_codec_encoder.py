"""The codec encoder: parity with the published package, and padding that changes nothing."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from qwen3_jax.codec.rvq import BookEncoder
from qwen3_jax.model.encode import encode_codes, encode_x_vector
from qwen3_jax.model.model import Model

GOLDEN = load_file(Path(__file__).parent / "golden" / "base.safetensors")
BUCKET = 24000


@functools.partial(jax.jit, static_argnums=0)
def encode(graph: Any, params: Any, wave: np.ndarray, valid: np.ndarray) -> jax.Array:
    return nnx.merge(graph, params)(wave, valid)


@pytest.fixture
def run(model: Callable[[str], Model]) -> Callable[..., np.ndarray]:
    base = model("base")

    def call(wave: np.ndarray, valid: list[int]) -> np.ndarray:
        return np.asarray(encode(base.graphs.codec_encoder, base.params["codec"]["encoder"], wave, np.asarray(valid, np.int32)))

    return call


@pytest.fixture
def waves() -> np.ndarray:
    time = np.arange(BUCKET) / 24000
    noise = np.random.default_rng(2).standard_normal((2, BUCKET))
    return (0.3 * np.sin(2 * np.pi * 150 * time) * np.sin(3 * time) + 0.1 * noise).astype(np.float32)


def test_equals_published_package(run: Callable[..., np.ndarray]) -> None:
    wave = GOLDEN["wav"]
    assert len(wave) % 1920  # so the end is padded by the rules
    np.testing.assert_array_equal(run(wave[None], [len(wave)])[0], GOLDEN["codec_codes"])


# an odd and an even number of steps before the last convolution; strides left unfilled by one sample or by all but one
@pytest.mark.parametrize("length", [9 * 1920 - 1, 9 * 1920 + 1, 9 * 1920 + 961])
def test_padded_equals_unpadded(run: Callable[..., np.ndarray], waves: np.ndarray, length: int) -> None:
    frames = -(-length // 1920)
    alone = run(waves[:1, :length], [length])
    assert alone.shape == (1, frames, 16)
    padded = waves.copy()
    padded[:, length:] = 1e3  # even rubbish must not matter
    found = run(padded, [length, BUCKET])
    np.testing.assert_array_equal(found[0, :frames], alone[0])
    assert (found[0, frames:] == -1).all()
    assert (found[1] >= 0).all()


def test_prefix_does_not_depend_on_what_follows(run: Callable[..., np.ndarray], waves: np.ndarray) -> None:
    other = waves.copy()
    other[:, 6 * 1920 :] *= -0.5
    first, second = run(waves, [BUCKET, BUCKET]), run(other, [BUCKET, BUCKET])
    np.testing.assert_array_equal(first[:, :6], second[:, :6])
    assert (first[:, 6:] != second[:, 6:]).any()


def test_each_stage_takes_the_nearest_entry_to_what_is_left() -> None:
    rng = np.random.default_rng(1)
    sums, usage = rng.standard_normal((3, 50, 8)).astype(np.float32), rng.uniform(0.5, 2, (3, 50)).astype(np.float32)
    usage[:, 7] = 0.0  # an entry nobody uses: divided by the floor, so far away
    project = rng.standard_normal((8, 6, 1)).astype(np.float32)
    encoder = BookEncoder(3, 50, 8, 6)
    for param, values in ((encoder.embed_sum, sums), (encoder.cluster_usage, usage), (encoder.input_proj.weight, project)):
        param[...] = jnp.asarray(values)
    x = rng.standard_normal((2, 5, 6)).astype(np.float32)

    rest = x.astype(np.float64) @ project[:, :, 0].T
    wanted = []
    for book in range(3):
        entries = sums[book].astype(np.float64) / np.maximum(usage[book], 1e-5)[:, None]
        nearest = np.argmin(np.linalg.norm(rest[:, :, None] - entries, axis=-1), axis=-1)
        rest = rest - entries[nearest]
        wanted.append(nearest)
    np.testing.assert_array_equal(encoder(jnp.asarray(x)), np.stack(wanted, axis=-1))


def nan_in(tree: Any, *path: Any) -> Any:
    """The same parameters with the first number of one tensor damaged."""
    if path:
        return {**tree, path[0]: nan_in(tree[path[0]], *path[1:])}
    copied = np.array(tree)
    copied.flat[0] = np.nan
    return jax.device_put(copied, tree.sharding)


def test_damaged_weights_make_no_codes(model: Callable[[str], Model], waves: np.ndarray) -> None:
    base, wave = model("base"), waves[0].repeat(2)
    damaged = base._replace(params=nan_in(base.params, "codec", "encoder", "downsample", "conv", "weight"))
    with pytest.raises(FloatingPointError, match="the codec's encoder computed NaN or infinity .* download or convert it again"):
        encode_codes(damaged, wave)
    assert encode_codes(base, wave).min() >= 0
    damaged = base._replace(params=nan_in(base.params, "speaker_encoder", "fc", "weight"))
    with pytest.raises(FloatingPointError, match="the speaker encoder computed NaN or infinity"):
        encode_x_vector(damaged, wave)


@pytest.mark.parametrize(
    "wave",
    [np.full(48000, np.nan, np.float32), np.zeros(0, np.float32), np.zeros((2, 48000), np.float32), np.ones(48000, int), np.full(9, 1e30)],
)
@pytest.mark.parametrize("call", [encode_codes, encode_x_vector])
def test_what_is_no_clip_is_refused_by_name(model: Callable[[str], Model], call: Callable[..., object], wave: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"clip of shape \(.*\), .*: must be \[samples\], finite floats in \[-1, 1\]"):
        call(model("base"), wave)


def test_windows_change_nothing(monkeypatch: pytest.MonkeyPatch, model: Callable[[str], Model], waves: np.ndarray) -> None:
    base = model("base")
    encoder = nnx.merge(base.graphs.codec_encoder, base.params["codec"]["encoder"]).encoder
    wave, valid = jnp.asarray(waves[None]), jnp.array([BUCKET - 700, 5000], jnp.int32)  # the second ends in the first of the windows
    whole, steps = encoder(wave, valid)
    monkeypatch.setattr("qwen3_jax.codec.encoder.WINDOW", 6)
    cut, cut_steps = jax.jit(encoder.in_windows)(wave, valid)
    np.testing.assert_array_equal(cut_steps, steps)
    for row, length in enumerate(steps):
        np.testing.assert_allclose(cut[:, row, :length], whole[:, row, :length], atol=2e-5)
    lowered = jax.jit(encoder.in_windows).lower(wave, valid).as_text()
    assert "while" in lowered  # it was cut
