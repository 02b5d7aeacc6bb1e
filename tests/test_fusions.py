"""Large shapes on a CPU: a program computes the same whether or not XLA gives parts of it to YNNPACK.

jaxlib 0.10.2 fuses a product and the sum over it wrongly where the product has more than 32768 columns, 2 or 3 rows, and 3 numbers in each
sum (jax-ml/jax#39103), and says nothing. None of our programs has such a product; these tests see it if one comes to have it, and if
another jaxlib is wrong elsewhere.
"""

import platform
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

from qwen3_jax import encode, generate
from qwen3_jax.audio import SAMPLE_RATE, mel_spectrogram
from qwen3_jax.codec import init_state
from qwen3_jax.engine import programs
from qwen3_jax.model import Model
from qwen3_jax.prompt import Prompt, build
from qwen3_jax.sampling import Sampling, rules
from qwen3_jax.session import decode
from qwen3_jax.train import ear, finetune, narrator

APART = {"xla_cpu_experimental_ynn_fusion_type": ""}  # no fusions for YNNPACK
REFERENCE, LONGEST = 30 * SAMPLE_RATE, 2038  # samples of a clip; frames of 163 s
PROMPT = 2048  # rows
GREEDY = Sampling(do_sample=False, subtalker_dosample=False)

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="YNNPACK is of XLA's CPU compiler")


def both(lowered: Any, *arguments: Any) -> list[list[np.ndarray]]:
    """What a program computes with the fusions, and without them."""
    made = []
    for options in (None, APART):
        own = jax.tree.map(jnp.copy, arguments)  # a program may take them for its results
        leaves = jax.tree.leaves(lowered.compile(compiler_options=options)(*own))
        made.append([np.asarray(leaf) for leaf in leaves if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)])
    return made


def difference(lowered: Any, *arguments: Any) -> float:
    """The largest difference that the fusions make, in units of the largest number of its array."""
    pairs = zip(*both(lowered, *arguments), strict=True)
    return max(float(np.abs(np.subtract(fused, apart, dtype=np.float64)).max() / max(np.abs(apart).max(), 1e-9)) for fused, apart in pairs)


def test_the_known_fault_is_seen() -> None:
    """Where these tests cannot see the one fault that is known, they see nothing."""
    noise = np.random.default_rng(0)
    matrix, rows = noise.standard_normal((3, 3), np.float32), noise.standard_normal((40_000, 3), np.float32)
    lengths = jax.jit(lambda matrix, rows: jax.vmap(lambda row: jnp.sum(jnp.square(matrix @ row)))(rows))
    found = difference(lengths.lower(matrix, rows), matrix, rows)
    if jaxlib.__version__ == "0.10.2" and platform.machine() == "x86_64":
        assert found > 0.01
    else:
        assert found < 1e-5, f"jaxlib {jaxlib.__version__} computes sums of products wrongly: take another one"


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
    """The share of codes that differ: rounding decides between entries that are equally near."""
    arguments = model.params["codec"]["encoder"], sound(REFERENCE)[None], np.array([REFERENCE], np.int32)
    (fused,), (apart,) = both(encode._codes.lower(model.graphs.codec_encoder, *arguments), *arguments)
    return float(np.mean(fused != apart))


def asked(model: Model, count: int, rows: int) -> tuple[Any, ...]:
    """What `generate.prefill` is given for random prompts of these many rows."""
    noise = np.random.default_rng(1)
    width = model.config.talker_config.hidden_size

    def prompt(length: int) -> Prompt:
        spoken = noise.integers(0, 2048, (length, 16)).astype(np.int32)
        x_vector = noise.standard_normal(width, np.float32)
        return Prompt(noise.integers(0, 256, length).astype(np.int32), spoken, np.arange(length) == 7, x_vector, np.zeros(4, np.int32))

    return (
        model.params["talker"],
        generate.stack([prompt(rows - 3 * number) for number in range(count)], width),
        jax.random.split(jax.random.key(0), count),
        rules([GREEDY] * count),
        np.full(count, 64, np.int32),
        np.int32(model.config.tts_pad_token_id),
    )


def prefill(model: Model) -> float:
    arguments = asked(model, 2, PROMPT)
    return difference(generate.prefill.lower(model.graphs.talker, *arguments, columns=2 * PROMPT), *arguments)


def speech(model: Model) -> float:
    """163 s at once."""
    drawn = np.random.default_rng(2).integers(0, 2048, (LONGEST, 1, 16)).astype(np.int32)
    arguments = model.params["codec"]["decoder"], drawn, init_state(model.codec_config.decoder_config, 1)
    return difference(decode.lower(model.graphs.codec_decoder, *arguments), *arguments)


def step(model: Model) -> float:
    """The engine's, 32 slots."""
    talker, decoder = model.params["talker"], model.params["codec"]["decoder"]
    graphs = model.graphs.talker, model.graphs.codec_decoder
    state = programs.start(graphs[0], talker, graphs[1], decoder, slots=32, columns=PROMPT)
    state = state._replace(limit=state.limit + 8)
    more = state, np.full(32, 2, np.int32), np.int32(2), np.int32(model.config.tts_pad_token_id)
    return difference(programs.step.lower(graphs[0], talker, graphs[1], decoder, *more, size=2), talker, decoder, *more)


def recogniser(_: Model) -> float:
    """The training step of ear.py: products in one fusion with the sums over them, as in no program that speaks."""
    noise = np.random.default_rng(3)
    columns = noise.standard_normal((ear.COUNT, 24, 200), np.float32)
    said = noise.integers(0, ear.HEARS, (24, 200)).astype(np.int32)
    arguments = ear.begin(columns, 0), columns, said, 0, 1e-3
    return difference(ear.step.lower(*arguments), *arguments)


def fine_tuning(model: Model) -> float:
    """A step on batches of 1024 rows."""
    noise, config = np.random.default_rng(4), model.config
    turn = np.array([257, 256, 10, *noise.integers(0, 256, 40), 258, 10, 257, 256, 10])
    prompt = build(config, turn, language="auto", x_vector=noise.standard_normal(48, np.float32), streaming_text=False)
    taught = [narrator.teach(prompt, noise.integers(0, 2048, (count, 16)).astype(np.int32), config) for count in (900, 850)]
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
