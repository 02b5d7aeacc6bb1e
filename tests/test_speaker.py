"""The speaker encoder: parity with the published package, and padding that changes nothing."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from qwen3_jax.audio.samples import mel_spectrogram
from qwen3_jax.model.model import Model

GOLDEN = load_file(Path(__file__).parent / "golden" / "base.safetensors")


@functools.partial(jax.jit, static_argnums=0)
def embed(graph: Any, params: Any, mel: np.ndarray, length: np.ndarray) -> jax.Array:
    return nnx.merge(graph, params)(mel, length)


@pytest.fixture
def run(model: Callable[[str], Model]) -> Callable[..., np.ndarray]:
    base = model("base")

    def call(mel: np.ndarray, length: list[int]) -> np.ndarray:
        return np.asarray(embed(base.graphs.speaker_encoder, base.params["speaker_encoder"], mel, np.asarray(length, np.int32)))

    return call


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def test_equals_published_package(run: Callable[..., np.ndarray]) -> None:
    assert relative(run(GOLDEN["mel"][None], [len(GOLDEN["mel"])])[0], GOLDEN["spk"]) < 1e-5


def test_from_wave_equals_published_package(run: Callable[..., np.ndarray]) -> None:
    mel = mel_spectrogram(GOLDEN["wav"])
    assert relative(run(mel[None], [len(mel)])[0], GOLDEN["spk"]) < 1e-4


@pytest.mark.parametrize("length", [40, 93])
def test_padded_equals_unpadded(run: Callable[..., np.ndarray], length: int) -> None:
    mel = GOLDEN["mel"][:length]
    padded = np.full((2, 130, 128), 50.0, np.float32)
    padded[0, :length], padded[1] = mel, GOLDEN["mel"][20:150]
    assert relative(run(padded, [length, 130])[0], run(mel[None], [length])[0]) < 1e-5
