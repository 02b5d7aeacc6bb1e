"""Large shapes on a CPU: a program computes the same, but for rounding, whether or not XLA gives parts of it to YNNPACK.

jaxlib 0.10.2 silently computes wrong numbers where it fuses a product with a sum over it (jax-ml/jax#39103). CONTRIBUTING.md says which
products are wrong. None of our programs has one. These tests fail if a program gets one, or if another jaxlib is wrong elsewhere.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

from qwen3_jax.audio.samples import SAMPLE_RATE, mel_spectrogram
from qwen3_jax.codec import init_state
from qwen3_jax.engine import programs
from qwen3_jax.engine.device import PIECES
from qwen3_jax.finetune import command as finetune
from qwen3_jax.finetune import teacher_forcing
from qwen3_jax.model import encode
from qwen3_jax.model.decode import decode
from qwen3_jax.model.frame import PromptRows
from qwen3_jax.model.model import Model
from qwen3_jax.model.sampling import Sampling, rules
from qwen3_jax.text.prompt import build
from training.codec import phoneme_recogniser

APART = {"xla_cpu_experimental_ynn_fusion_type": ""}  # compiler options: no fusions for YNNPACK
REFERENCE, LONGEST = 30 * SAMPLE_RATE, 2038  # samples of a clip; frames of 163 s
PROMPT = 2048  # rows
GREEDY = Sampling(do_sample=False, subtalker_dosample=False)

pytestmark = [
    pytest.mark.skipif(jax.default_backend() != "cpu", reason="YNNPACK belongs to XLA's CPU compiler"),
    pytest.mark.skipif(next(iter(APART)) in os.environ.get("XLA_FLAGS", ""), reason="XLA_FLAGS chooses the fusions"),
]


def both(lowered: Any, *arguments: Any) -> list[list[np.ndarray]]:
    """The arrays that a program returns: compiled with the fusions, and without them."""
    made = []
    for options in (None, APART):
        own = jax.tree.map(jnp.copy, arguments)  # a program may donate its arguments
        leaves = jax.tree.leaves(lowered.compile(compiler_options=options)(*own))
        made.append([np.asarray(leaf) for leaf in leaves if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)])
    return made


def difference(lowered: Any, *arguments: Any) -> float:
    """The largest difference between the two, relative to the largest value of its array."""
    pairs = zip(*both(lowered, *arguments), strict=True)
    return max(float(np.abs(np.subtract(fused, apart, dtype=np.float64)).max() / max(np.abs(apart).max(), 1e-9)) for fused, apart in pairs)


def test_the_known_fault_is_seen() -> None:
    """`difference` finds the one fault that is known, in jaxlib 0.10.2."""
    noise = np.random.default_rng(0)
    matrix, rows = noise.standard_normal((3, 3), np.float32), noise.standard_normal((40_000, 3), np.float32)
    lengths = jax.jit(lambda matrix, rows: jax.vmap(lambda row: jnp.sum(jnp.square(matrix @ row)))(rows))
    found = difference(lengths.lower(matrix, rows), matrix, rows)
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    if jaxlib.__version__ == "0.10.2" and "avx512f" in flags:  # where it was found; of other CPUs nothing is known
        assert found > 0.01
    elif jaxlib.__version__ != "0.10.2":
        assert found < 1e-5, f"jaxlib {jaxlib.__version__} sums products wrongly: exclude it"


def sound(samples: int) -> np.ndarray:
    """A gliding tone and noise."""
    time = np.arange(samples) / SAMPLE_RATE
    noise = np.random.default_rng(0).standard_normal(samples)
    return (0.3 * np.sin(2 * np.pi * (120 * time + 20 * np.sin(time))) + 0.02 * noise).astype(np.float32)


def x_vector(model: Model) -> float:
    mel = mel_spectrogram(sound(REFERENCE))
    arguments = model.params["speaker_encoder"], mel[None], np.array([len(mel)], np.int32)
    return difference(encode._x_vector.lower(model.graphs.speaker_encoder, *arguments), *arguments)


def codes(model: Model) -> float:
    """The share of codes that differ. Rounding may decide between two entries that are equally near."""
    arguments = model.params["codec"]["encoder"], sound(REFERENCE)[None], np.array([REFERENCE], np.int32)
    (fused,), (apart,) = both(encode._codes.lower(model.graphs.codec_encoder, *arguments), *arguments)
    return float(np.mean(fused != apart))


def prompt_rows(model: Model, length: int) -> tuple[Any, ...]:
    """Arguments of `programs.begin` and `programs.read` for a piece of a random prompt."""
    noise = np.random.default_rng(1)
    spoken = noise.integers(0, 2048, (1, length, 16)).astype(np.int32)
    x_vector = noise.standard_normal((1, model.config.talker_config.hidden_size), np.float32)
    speaker = np.arange(length)[None] == 7
    text = noise.integers(0, 256, (1, length)).astype(np.int32)
    rows = PromptRows(text, spoken, speaker, x_vector, np.array([length], np.int32))
    one = np.zeros(1, np.int32)
    limits = programs.Limits(*([one + 1000] * 4))
    state = init_state(model.codec_config.decoder_config, 1)
    new = programs.NewRow(np.zeros(1, np.uint32), one, rules([GREEDY]), one + 64, np.zeros((1, 256), np.int32), one + 4, limits, state)
    return rows, new


def prefill(model: Model) -> float:
    """A prompt at a stretch, and one more piece of it."""
    graph, talker = model.graphs.talker, model.params["talker"]
    rows, new = prompt_rows(model, PROMPT)
    begun = difference(programs.begin.lower(graph, talker, rows, new, columns=2 * PROMPT), talker, rows, new)
    state = programs.begin(graph, talker, rows, new, columns=2 * PROMPT)
    piece, at = prompt_rows(model, PIECES[-1])[0], np.int32(PROMPT)
    return max(begun, difference(programs.read.lower(graph, talker, state, piece, at), talker, state, piece, at))


def speech(model: Model) -> float:
    """The codec decodes 163 s in one call."""
    drawn = np.random.default_rng(2).integers(0, 2048, (LONGEST, 1, 16)).astype(np.int32)
    arguments = model.params["codec"]["decoder"], drawn, init_state(model.codec_config.decoder_config, 1)
    return difference(decode.lower(model.graphs.codec_decoder, *arguments), *arguments)


def step(model: Model) -> float:
    """The engine's step, 32 slots."""
    talker, decoder = model.params["talker"], model.params["codec"]["decoder"]
    graphs = model.graphs.talker, model.graphs.codec_decoder
    state = programs.start(graphs[0], talker, graphs[1], decoder, rows=32, columns=PROMPT, text=PROMPT)
    state = state._replace(limit=state.limit + 8)
    more = state, np.full(32, 2, np.int32), np.int32(2), np.int32(model.config.tts_pad_token_id)
    return difference(programs.step.lower(graphs[0], talker, graphs[1], decoder, *more, size=2), talker, decoder, *more)


def recogniser(_: Model) -> float:
    """The recogniser's training step. Like other training steps, and unlike generation, it has products fused with sums over them."""
    noise = np.random.default_rng(3)
    columns = noise.standard_normal((phoneme_recogniser.COUNT, 24, 200), np.float32)
    said = noise.integers(0, phoneme_recogniser.HEARS, (24, 200)).astype(np.int32)
    arguments = phoneme_recogniser.begin(columns, 0), columns, said, 0, 1e-3
    return difference(phoneme_recogniser.step.lower(*arguments), *arguments)


def fine_tuning(model: Model) -> float:
    """A training step on a batch of 2 x 1024 rows."""
    noise, config = np.random.default_rng(4), model.config
    turn = np.array([257, 256, 10, *noise.integers(0, 256, 40), 258, 10, 257, 256, 10])
    prompt = build(config, turn, language="auto", x_vector=noise.standard_normal(48, np.float32), streaming_text=False)
    taught = [teacher_forcing.align(prompt, noise.integers(0, 2048, (count, 16)).astype(np.int32), config) for count in (900, 850)]
    stacked = jax.tree.map(lambda leaf: np.asarray(leaf)[None], finetune.assembled([taught])[0])
    arguments = finetune.start(model.params["talker"], 0, 0), None, stacked, 1e-3
    more = {"graph": model.graphs.talker, "eos": config.talker_config.codec_eos_token_id, "dtype": "float32"}
    return difference(finetune.train_step.lower(*arguments, **more), *arguments)


@pytest.mark.parametrize(
    ("program", "rounding"),
    [
        (x_vector, 1e-5),
        (prefill, 1e-5),
        pytest.param(codes, 0.005, marks=pytest.mark.slow),
        pytest.param(speech, 1e-3, marks=pytest.mark.slow),
        pytest.param(step, 1e-3, marks=pytest.mark.slow),
        pytest.param(recogniser, 0.02, marks=pytest.mark.slow),  # products of bfloat16
        pytest.param(fine_tuning, 1e-3, marks=pytest.mark.slow),
    ],
)
def test_fusions_change_nothing_but_rounding(model: Callable[[str], Model], program: Callable[[Model], float], rounding: float) -> None:
    assert program(model("base")) <= rounding
