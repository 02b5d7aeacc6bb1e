"""The compiled product with int8 weights: it gives what XLA gives, in every instruction set."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qwen3_jax.finetune.teacher_forcing import predictor_logits
from qwen3_jax.kernels import library
from qwen3_jax.model.int8 import by_xla, int8_matmul
from qwen3_jax.model.model import load
from tests.processes import LIMIT, process
from tests.test_tts import TEXT


def given(rows: int, inputs: int, outputs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.RandomState(seed)
    weight = random.randint(-128, 128, (outputs, inputs)).astype(np.int8)
    return random.standard_normal((rows, inputs)).astype(np.float32), weight, random.uniform(1e-3, 1, outputs).astype(np.float32)


def compiled(x: np.ndarray, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(lambda *arrays: int8_matmul(*arrays))(x, weight, scale))  # a function of its own: traced anew


def assert_close(found: np.ndarray, x: np.ndarray, weight: np.ndarray, scale: np.ndarray, limit: float = 1e-5) -> None:
    """To ``limit`` of each row's largest result; and XLA's own operations are as close."""
    exact = x.astype(np.float64) @ weight.astype(np.float64).T * scale
    largest = np.abs(exact).max(axis=-1, keepdims=True) + 1e-300
    for computed in (found, np.asarray(jax.jit(by_xla)(x, weight, scale))):
        assert computed.dtype == np.float32
        assert (np.abs(computed - exact) / largest).max() < limit


SHAPES = [
    (1, 1, 1),
    (1, 64, 4),
    (2, 63, 7),
    (3, 65, 5),
    (4, 128, 1),
    (5, 127, 100),
    (8, 1024, 515),
    (16, 200, 33),
    (17, 257, 130),
    (70, 72, 129),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_gives_what_xla_gives(instructions: str, shape: tuple[int, int, int]) -> None:
    arrays = given(*shape)
    assert_close(compiled(*arrays), *arrays)


@pytest.mark.parametrize("size", [1e-42, 1e-35, 1e-20, 1e20, 1e33])
def test_the_size_of_a_row_is_no_matter(instructions: str, size: float) -> None:
    x, weight, scale = given(3, 100, 9)
    x[1] *= np.float32(size)
    found = compiled(x, weight, scale)
    if size > 1e-36:  # below, a result has fewer digits itself
        assert_close(found, x, weight, scale)
    np.testing.assert_allclose(found, x.astype(np.float64) @ weight.T.astype(np.float64) * scale, rtol=2e-2, atol=1e-3)


def test_extreme_values_do_not_overflow(instructions: str) -> None:
    """Every weight -128, and of a row the largest value everywhere: the largest sums there are."""
    weight, scale = np.full((6, 4096), -128, np.int8), np.ones(6, np.float32)
    for value in (1.0, -1.0, np.float32(1) / 3, 2.9999998):
        x = np.full((2, 4096), value, np.float32)
        assert_close(compiled(x, weight, scale), x, weight, scale, 1e-4)  # float32 sums of equal values are all rounded to one side
    spiked = given(2, 4096, 6)[0]
    spiked[:, 17] = 3e4  # one that is far larger than the others
    assert_close(compiled(spiked, weight, scale), spiked, weight, scale)


def test_zeros_give_zeros(instructions: str) -> None:
    x, weight, scale = given(3, 70, 11)
    x[1] = 0
    found = compiled(x, weight, scale)
    assert not found[1].any() and found[0].any()
    assert not compiled(x, weight * np.int8(0), scale).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [3, 40])
def test_a_row_that_is_not_finite_stays_alone(instructions: str, rows: int, value: float) -> None:
    x, weight, scale = given(rows, 130, 24)
    weight[weight == 0] = 1
    whole = compiled(x, weight, scale)
    x[1, 129] = value
    found = compiled(x, weight, scale)
    assert not np.isfinite(found[1]).any()
    np.testing.assert_array_equal(np.delete(found, 1, 0), np.delete(whole, 1, 0))


def test_a_row_does_not_depend_on_its_company(instructions: str) -> None:
    x, weight, scale = given(70, 1000, 700)
    whole = compiled(x, weight, scale)
    for rows in (1, 2, 3, 7, 16, 31):
        np.testing.assert_array_equal(compiled(x[:rows], weight, scale), whole[:rows])


def test_it_works_in_loops_under_vmap_and_in_any_shape(instructions: str) -> None:
    x, weight, scale = map(jnp.asarray, given(12, 64, 64))
    expected = compiled(x, weight, scale)
    shaped = np.asarray(jax.jit(lambda x: int8_matmul(x, weight, scale))(x.reshape(3, 4, 64)))
    np.testing.assert_array_equal(shaped, expected.reshape(3, 4, 64))
    mapped = jax.jit(jax.vmap(lambda x: int8_matmul(x, weight, scale)))(x.reshape(3, 4, 64))
    np.testing.assert_array_equal(mapped, shaped)
    small = scale * 1e-3
    turns = jax.jit(lambda x, turns: jax.lax.fori_loop(0, turns, lambda _, x: int8_matmul(x, weight, small), x))
    by_hand = np.asarray(x)
    for _ in range(3):
        by_hand = compiled(by_hand, weight, small)
    np.testing.assert_array_equal(turns(x, 3), by_hand)
    text = str(jax.jit(lambda x: int8_matmul(x, weight, scale)).lower(x).as_text())
    assert text.count("custom_call @tests_int8_matmul") == 1


def test_calls_at_one_time_do_not_mix(instructions: str) -> None:
    """More of them than there are places for jobs that threads share."""
    arrays = [given(1 + number % 9, 256, 700, number) for number in range(12)]
    run = jax.jit(lambda *arrays: int8_matmul(*arrays))
    expected = [np.asarray(run(*each)) for each in arrays]
    wrong: list[int] = []

    def repeat(number: int) -> None:
        for _ in range(40):
            if not np.array_equal(run(*arrays[number]), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=repeat, args=(number,)) for number in range(len(arrays))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert not wrong and not any(thread.is_alive() for thread in threads)


CODES = """
import sys
import numpy as np
from qwen3_jax import Qwen3TTS
tts = Qwen3TTS.from_pretrained(sys.argv[1], device="cpu", dtype="int8")
greedy = dict(do_sample=False, subtalker_dosample=False, max_frames=5, language="English")
np.save(sys.argv[2], [speech.frames for speech in tts.generate(sys.argv[3:], voice="ryan", **greedy)])
"""


def test_the_predictor_gives_the_same_logits_with_and_without(
    instructions: str, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its books of three frames: five layers and fifteen heads."""
    model = load(checkpoint("base"), stored=jnp.dtype(jnp.int8))
    random, width = np.random.RandomState(0), model.config.talker_config.hidden_size
    hidden, embedding = (jnp.asarray(random.standard_normal((3, width)), jnp.float32) for _ in range(2))
    rest = jnp.asarray(random.randint(0, 64, (3, 15)), jnp.int32)

    def logits() -> np.ndarray:
        def run(params: Any) -> jax.Array:
            return predictor_logits(nnx.merge(model.graphs.talker, params).code_predictor, hidden, embedding, rest)

        return np.asarray(jax.jit(run)(model.params["talker"]))

    found = logits()
    monkeypatch.setattr(library, "_found", library.Kernels(None))
    expected = logits()
    assert 0 < np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.slow  # it compiles an engine's programs twice
def test_an_engine_speaks_the_same_codes_with_and_without(
    tmp_path: Path, kernel_library: Path, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy, of two texts in one batch; without, in a process of its own, for programs stay compiled."""
    texts = (TEXT, "Good morning.")
    process(CODES, str(checkpoint("custom_voice")), str(tmp_path / "off.npy"), *texts, **{library.VARIABLE: "off"})
    program = CODES.replace(
        "import sys\n",
        "import sys\nfrom pathlib import Path\nfrom qwen3_jax.kernels import library\n"
        f"library.FOLDER = Path({str(kernel_library)!r})\nassert library.in_use().instructions\n",
        1,
    )
    process(program, str(checkpoint("custom_voice")), str(tmp_path / "on.npy"), *texts, **{library.VARIABLE: ""})
    np.testing.assert_array_equal(np.load(tmp_path / "on.npy"), np.load(tmp_path / "off.npy"))
