"""The codec decoder: parity with the published package, and what carried state promises."""

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

from qwen3_jax.codec import DecoderState, decoder, init_state
from qwen3_jax.codec.snake import sin_squared
from qwen3_jax.model.model import Model, load

GOLDEN = load_file(Path(__file__).parent / "golden" / "base.safetensors")
SAMPLES = 1920
CHUNK, FRAMES = 6, GOLDEN["dec_codes"].shape[1]  # 30 frames: more than twice the tiny model's window of 12
TOLERANCE = 5e-5  # of the wave's RMS; random weights amplify float32 rounding, which alone makes 2e-5
TRACES: list[tuple[int, ...]] = []

# Every test decodes two rows, 1, 6 or 30 frames at a time: each further shape would cost seconds of compilation.


@functools.partial(jax.jit, static_argnums=0)
def decode(
    graph: Any, params: Any, codes: np.ndarray, state: DecoderState, valid: np.ndarray | None = None
) -> tuple[jax.Array, DecoderState]:
    TRACES.append((*codes.shape, valid is None))
    return nnx.merge(graph, params)(codes, state, valid)


@pytest.fixture
def run(model: Callable[[str], Model]) -> Callable[..., tuple[np.ndarray, DecoderState]]:
    base = model("base")

    def call(codes: np.ndarray, state: DecoderState | None = None, valid: Any = None) -> tuple[np.ndarray, DecoderState]:
        state = init_state(base.codec_config.decoder_config, len(codes)) if state is None else state
        valid = None if valid is None else np.asarray(valid, np.int32)
        pcm, state = decode(base.graphs.codec_decoder, base.params["codec"]["decoder"], codes.astype(np.int32), state, valid)
        return np.asarray(pcm), state

    return call


@pytest.fixture
def codes() -> np.ndarray:
    """The golden's row, and a random neighbour."""
    return np.concatenate([GOLDEN["dec_codes"], np.random.default_rng(3).integers(0, 2048, (1, FRAMES, 16))])


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """RMS of the difference over RMS of the wave."""
    assert found.shape == wanted.shape
    return float(np.sqrt(np.mean(np.square(found - wanted, dtype=np.float64)) / np.mean(np.square(wanted, dtype=np.float64))))


@pytest.mark.parametrize("size", [FRAMES, pytest.param(CHUNK, marks=pytest.mark.slow), 1])
def test_equals_published_package(run: Callable[..., Any], codes: np.ndarray, size: int) -> None:
    state, pieces = None, []
    for start in range(0, FRAMES, size):
        pcm, state = run(codes[:, start : start + size], state)
        pieces.append(pcm[0])
    assert relative(np.concatenate(pieces), GOLDEN["dec_wav_full"]) < TOLERANCE


@pytest.fixture
def prepared(model: Callable[[str], Model], checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Model:
    """The checkpoint in int8, as if its codec were wide enough for prepared blocks."""
    monkeypatch.setattr(decoder, "LEAST_CHANNELS", 1)
    return load(checkpoint("base"), stored=jnp.dtype(jnp.int8), lean=True)


def blocks(model: Model) -> list[str]:
    """The decoder's, by what computes them."""
    return [type(block).__name__ for block in nnx.merge(model.graphs.codec_decoder, model.params["codec"]["decoder"]).decoder][1:5]


def test_without_int8_the_codec_is_computed_as_published(prepared: Model, checkpoint: Callable[[str], Path]) -> None:
    assert blocks(prepared) == ["UpsamplingBlock", *["PreparedBlock"] * 3]
    assert blocks(load(checkpoint("base"), lean=True)) == ["UpsamplingBlock"] * 4


def test_prepared_blocks_make_the_same(run: Callable[..., Any], prepared: Model, codes: np.ndarray) -> None:
    """As published, and as whole: rows advance by their own count, too."""
    graph, params = prepared.graphs.codec_decoder, prepared.params["codec"]["decoder"]
    whole, end = run(codes)
    state, pieces, at = init_state(prepared.codec_config.decoder_config, 2), ([], []), [0, 0]
    for step in [[6, 0], [6, 3], *[[6, 6]] * 3, [0, 6], [0, 3]]:
        chunk = np.stack([np.resize(codes[row, at[row] : at[row] + CHUNK], (CHUNK, 16)) for row in range(2)])
        pcm, state = decode(graph, params, chunk.astype(np.int32), state, np.array(step, np.int32))
        for row in range(2):
            pieces[row].append(np.asarray(pcm[row, : step[row] * SAMPLES]))
            at[row] += step[row]
    assert at == [FRAMES, FRAMES]
    assert relative(np.concatenate(pieces[0]), GOLDEN["dec_wav_full"]) < TOLERANCE
    assert relative(np.stack([np.concatenate(row) for row in pieces]), whole) < TOLERANCE
    for found, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(end), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * max(1.0, float(np.abs(wanted).max())))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_any_chunking_equals_whole(run: Callable[..., Any], codes: np.ndarray, seed: int) -> None:
    whole, end = run(codes)
    rng = np.random.default_rng(seed)
    state, pieces, start = None, [], 0
    while start < FRAMES:
        size = int(rng.choice([1, CHUNK])) if start + CHUNK <= FRAMES else 1
        pcm, state = run(codes[:, start : start + size], state)
        assert pcm.shape == (2, size * SAMPLES)
        pieces.append(pcm)
        start += size
    assert relative(np.concatenate(pieces, axis=1), whole) < TOLERANCE
    for found, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(end), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * max(1.0, float(np.abs(wanted).max())))


def test_prefix_does_not_depend_on_what_follows(run: Callable[..., Any], codes: np.ndarray) -> None:
    other = codes.copy()
    other[:, 20:] = (other[:, 20:] + 1000) % 2048
    first, second = run(codes)[0], run(other)[0]
    assert relative(second[:, : 20 * SAMPLES], first[:, : 20 * SAMPLES]) < TOLERANCE
    assert relative(second[:, 20 * SAMPLES :], first[:, 20 * SAMPLES :]) > 0.1


def test_row_does_not_depend_on_its_neighbour(run: Callable[..., Any], codes: np.ndarray) -> None:
    first, second = run(codes)[0], run(np.stack([codes[0], codes[1, ::-1]]))[0]
    assert relative(second[0], first[0]) < TOLERANCE
    assert relative(second[1], first[1]) > 0.1


def test_row_can_be_reset_alone(run: Callable[..., Any], model: Callable[[str], Model], codes: np.ndarray) -> None:
    whole, _ = run(codes)
    _, state = run(codes[:, :CHUNK])
    fresh = init_state(model("base").codec_config.decoder_config, 1)
    state = jax.tree.map(lambda array, initial: array.at[1].set(initial[0]), state, fresh)
    assert np.asarray(state.position).tolist() == [CHUNK, 0]
    pcm, _ = run(np.stack([codes[0, CHUNK : 2 * CHUNK], codes[1, :CHUNK]]), state)
    assert relative(pcm[0], whole[0, CHUNK * SAMPLES : 2 * CHUNK * SAMPLES]) < TOLERANCE
    assert relative(pcm[1], whole[1, : CHUNK * SAMPLES]) < TOLERANCE


def test_state_stops_after_the_valid_frames(run: Callable[..., Any], codes: np.ndarray) -> None:
    """Rows advance by their own count, none at all included; the pcm of their valid frames joins up without a seam."""
    whole, _ = run(codes)
    at, state, pieces = [0, 0], None, ([], [])
    for step in ([6, 0], [6, 3], [1, 6], [5, 6], [6, 4]):
        chunk = np.stack([np.resize(codes[row, at[row] : at[row] + CHUNK], (CHUNK, 16)) for row in range(2)])
        pcm, state = run(chunk, state, valid=step)
        for row in range(2):
            pieces[row].append(pcm[row, : step[row] * SAMPLES])
            at[row] += step[row]
    assert np.asarray(state.position).tolist() == at == [24, 19]
    for row in range(2):
        assert relative(np.concatenate(pieces[row]), whole[row, : at[row] * SAMPLES]) < TOLERANCE


def test_padding_codes_count_as_zero(run: Callable[..., Any], codes: np.ndarray) -> None:
    padded, zeros = codes[:, :CHUNK].copy(), codes[:, :CHUNK].copy()
    padded[1, 3:], zeros[1, 3:] = -1, 0
    np.testing.assert_array_equal(run(padded)[0], run(zeros)[0])


def test_pcm_is_clamped(run: Callable[..., Any], model: Callable[[str], Model], codes: np.ndarray) -> None:
    base = model("base")
    params = base.params["codec"]["decoder"]
    last = {**params["decoder"][6], "conv": {name: 1000 * value for name, value in params["decoder"][6]["conv"].items()}}
    loud = {**params, "decoder": {**params["decoder"], 6: last}}
    state = init_state(base.codec_config.decoder_config, 2)
    pcm, _ = decode(base.graphs.codec_decoder, loud, codes[:, :CHUNK].astype(np.int32), state)
    assert float(np.min(pcm)) == -1.0
    assert float(np.max(pcm)) == 1.0


def test_one_trace_per_shape(run: Callable[..., Any], codes: np.ndarray) -> None:
    _, state = run(codes[:, :CHUNK])
    before = len(TRACES)
    for start in range(CHUNK, FRAMES, CHUNK):
        _, state = run(codes[:, start : start + CHUNK], state)
    assert before
    assert len(TRACES) == before


@pytest.mark.parametrize("limit", [4.0, 300.0, 1e5])
def test_sin_squared_is_exact_to_float32(limit: float) -> None:
    x = np.linspace(-limit, limit, 200_001, dtype=np.float32)
    np.testing.assert_allclose(jax.jit(sin_squared)(x), np.square(np.sin(x.astype(np.float64))), rtol=0, atol=4e-7)


def test_a_sample_that_is_not_finite_is_nan_in_its_own_row(run: Callable[..., tuple[np.ndarray, DecoderState]], codes: np.ndarray) -> None:
    """Infinity too, which would be clipped to a loud sample."""
    whole, state = run(codes[:, :CHUNK])
    last_conv = np.array(state.last_conv)
    last_conv[0] = np.inf
    expected, _ = run(codes[:, CHUNK : 2 * CHUNK], jax.tree.map(np.asarray, state))
    pcm, _ = run(codes[:, CHUNK : 2 * CHUNK], jax.tree.map(np.asarray, state)._replace(last_conv=last_conv))
    assert np.isnan(pcm[0, :6]).all() and np.isfinite(whole).all()
    np.testing.assert_array_equal(pcm[1], expected[1])
