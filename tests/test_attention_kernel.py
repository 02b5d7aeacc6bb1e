"""The compiled attention of one query: it gives what XLA gives, in every instruction set, and each row gives what it gives alone."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.kernels import attention as kernel
from qwen3_jax.kernels import library
from qwen3_jax.model.cache import causal_mask
from qwen3_jax.model.layers import attend, mix_on_cpu
from tests.processes import process

# Rows, key/value heads, heads of a group, columns, head size.
SHAPES = [
    (1, 1, 1, 1, 16),
    (3, 2, 1, 63, 32),
    (2, 1, 2, 64, 64),
    (4, 2, 3, 65, 48),
    (2, 3, 8, 130, 32),
    (1, 8, 2, 256, 128),
    (8, 8, 2, 200, 128),
    (9, 1, 5, 300, 16),
]
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def given(rows: int, groups: int, heads: int, columns: int, size: int, seed: int = 0) -> Arrays:
    """q [B 1 A D], k and v [B J S D], and a mask: the first row sees one column, the last one all, those between something else."""
    random = np.random.RandomState(seed)
    q = random.standard_normal((rows, 1, groups * heads, size)).astype(np.float32)
    k, v = random.standard_normal((2, rows, groups, columns, size)).astype(np.float32)
    positions = random.randint(0, columns, rows).astype(np.int32)
    positions[0], positions[-1] = 0, columns - 1
    return q, k, v, np.asarray(causal_mask(jnp.asarray(positions), 1, columns))


def compiled(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(lambda *arrays: attend(*arrays))(q, k, v, mask))  # a function of its own: traced anew


def exact(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """In float64: [B 1 A*D]."""
    rows, groups, _, size = k.shape
    scores = np.einsum("bjgd,bjsd->bjgs", q.reshape(rows, groups, -1, size).astype(np.float64), k) / np.sqrt(size)
    scores = np.where(mask[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.asarray(np.einsum("bjgs,bjsd->bjgd", weights, v).reshape(rows, 1, -1))


def by_xla(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> np.ndarray:
    rows, groups, _, size = k.shape
    return np.asarray(jax.jit(mix_on_cpu)(q.reshape(rows, groups, -1, 1, size), k, v, mask)).reshape(rows, 1, -1)


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Relative, of the RMS."""
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(np.asarray(expected, np.float64) ** 2)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_gives_what_xla_gives(instructions: str, shape: tuple[int, ...]) -> None:
    arrays = given(*shape)
    found = compiled(*arrays)
    assert found.dtype == np.float32 and difference(found, by_xla(*arrays)) < 1e-6
    assert difference(found, exact(*arrays)) < 1e-6


def test_any_mask_is_kept(instructions: str) -> None:
    """A sliding window, and columns with holes between them."""
    q, k, v, _ = given(3, 2, 2, 200, 64)
    distance = 150 - np.arange(200)
    holes = np.random.RandomState(1).random(200) < 0.3
    holes[64:128] = False
    mask = np.stack([(distance >= 0) & (distance < 72), holes, np.arange(200) == 199])[:, None]
    k[0, :, :79], v[0, :, :79] = np.nan, np.inf  # nothing outside is read
    found = compiled(q, k, v, mask)
    k[0, :, :79], v[0, :, :79] = 0, 0
    assert difference(found, exact(q, k, v, mask)) < 1e-6


@pytest.mark.parametrize("size", [1e-20, 1e3, 1e18])
def test_the_size_of_the_scores_is_no_matter(instructions: str, size: float) -> None:
    """Equal weights, one column that takes all, and scores near the end of float32; ascending, so that the largest comes last."""
    q, k, v, mask = given(2, 1, 2, 150, 32)
    q *= np.float32(size)
    k[:] = k[:, :, np.argsort((k[0, 0] * q[0, 0, 0]).sum(axis=-1))]
    assert difference(compiled(q, k, v, mask), exact(q, k, v, mask)) < (1e-6 if size < 1 else 1e-4)


def test_a_row_does_not_depend_on_its_company(instructions: str) -> None:
    """Nor on the columns that come after those it sees, nor on the number of threads: one row of these is too little for two."""
    q, k, v, mask = given(8, 4, 2, 256, 64)
    mask = mask.copy()
    mask[0, 0] = np.arange(256) < 100
    whole = compiled(q, k, v, mask)
    for rows in (1, 2, 5):
        np.testing.assert_array_equal(compiled(q[:rows], k[:rows], v[:rows], mask[:rows]), whole[:rows])
    np.testing.assert_array_equal(compiled(q[:1], k[:1, :, :101], v[:1, :, :101], mask[:1, :, :101]), whole[:1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["q", "k", "v"])
def test_a_row_that_is_not_finite_stays_alone(instructions: str, place: str, value: float) -> None:
    arrays = given(4, 2, 2, 70, 32)
    whole = compiled(*arrays)
    damaged = dict(zip("qkv", arrays, strict=False))[place]
    damaged[-1, ..., 5] = value
    found = compiled(*arrays)
    assert not np.isfinite(found[-1]).all()
    np.testing.assert_array_equal(found[:-1], whole[:-1])


def test_it_works_in_loops_under_vmap_and_has_a_derivative(instructions: str) -> None:
    q, k, v, mask = map(jnp.asarray, given(6, 2, 2, 40, 16))
    expected = compiled(*map(np.asarray, (q, k, v, mask)))
    mapped = jax.jit(jax.vmap(lambda *arrays: attend(*arrays)))(*(x.reshape(3, 2, *x.shape[1:]) for x in (q, k, v, mask)))
    np.testing.assert_array_equal(mapped.reshape(expected.shape), expected)
    turns = jax.jit(lambda q: jax.lax.fori_loop(0, 3, lambda _, q: attend(q, k, v, mask).reshape(q.shape), q))(q)
    by_hand = np.asarray(q)
    for _ in range(3):
        by_hand = compiled(by_hand, np.asarray(k), np.asarray(v), np.asarray(mask)).reshape(q.shape)
    np.testing.assert_array_equal(turns, by_hand)

    def gradients() -> list[np.ndarray]:
        total = jax.grad(lambda q, k, v: jnp.sum(jnp.sin(attend(q, k, v, mask))), argnums=(0, 1, 2))
        return [np.asarray(x) for x in jax.jit(total)(q, k, v)]

    found = gradients()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "_found", library.Kernels(None))
        for one, other in zip(found, gradients(), strict=True):
            assert np.abs(other).max() > 0 and difference(one, other) < 1e-5


def calls(*shapes: tuple[int, ...], dtype: type = jnp.float32) -> int:
    """How often the kernel is in the program of `attend` for q, k, v of these shapes."""
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    mask = jax.ShapeDtypeStruct((shapes[0][0], shapes[0][1], shapes[1][2]), jnp.bool_)
    return str(jax.jit(lambda *given: attend(*given)).lower(*arrays, mask).as_text()).count("custom_call @tests_attention")


def test_what_the_kernel_does_not_take_is_computed_by_xla(instructions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = (2, 1, 40, 16)
    assert calls((2, 1, 2, 16), cache, cache) == 1
    assert calls((2, 3, 2, 16), cache, cache) == 0, "several queries"
    assert calls((2, 1, 2, 16), cache, cache, dtype=jnp.bfloat16) == 0
    assert calls((2, 1, 2, 24), (2, 1, 40, 24), (2, 1, 40, 24)) == 0, "no multiple of a vector"
    assert calls((2, 1, kernel.LARGEST_GROUP + 1, 16), cache, cache) == 0
    assert calls((2, 1, kernel.LARGEST_GROUP, 16), cache, cache) == 1
    monkeypatch.setattr(library, "_found", library.Kernels(None))
    assert calls((2, 1, 2, 16), cache, cache) == 0


THREADS = """
import sys
from pathlib import Path
import jax, numpy as np
from qwen3_jax.kernels import library
from qwen3_jax.model.layers import attend
library.FOLDER = Path(sys.argv[1])
random = np.random.RandomState(0)
q, k = random.standard_normal((8, 1, 8, 128)).astype(np.float32), random.standard_normal((8, 4, 300, 128)).astype(np.float32)
mask = np.arange(300) <= random.randint(0, 300, (8, 1, 1))
found = jax.jit(attend)(q, k, k, mask)
print(library.in_use().instructions, np.asarray(found).tobytes().hex())
"""


def test_the_number_of_threads_is_no_matter(kernel_library: Path) -> None:
    """XLA's pool has as many as NPROC says."""
    found = [process(THREADS, str(kernel_library), **{library.VARIABLE: "", "NPROC": threads}) for threads in ("1", "2", "5")]
    assert found[0] == found[1] == found[2] and not found[0].startswith("None")


@pytest.mark.slow
def test_the_codes_are_those_of_xla(tmp_path: Path, checkpoint: Callable[[str], Path], kernel_library: Path) -> None:
    """Greedy, in float32, of two texts of one batch: each in a process of its own, for programs stay compiled."""
    program = """
import sys
from pathlib import Path
import numpy as np
from qwen3_jax.kernels import library
library.FOLDER = Path(sys.argv[2])
from qwen3_jax import Qwen3TTS
tts = Qwen3TTS.from_pretrained(sys.argv[1], device="cpu", dtype="float32")
greedy = dict(do_sample=False, subtalker_dosample=False, max_frames=5, language="English")
np.save(sys.argv[3], [speech.frames for speech in tts.generate(["Hello there.", "Good morning."], voice="ryan", **greedy)])
print(library.in_use().instructions)
"""
    found = []
    for word in ("", "off"):
        path = tmp_path / f"{word}.npy"
        used = process(program, str(checkpoint("custom_voice")), str(kernel_library), str(path), **{library.VARIABLE: word})
        assert (used.strip() == "None") == (word == "off")
        found.append(np.load(path))
    np.testing.assert_array_equal(*found)
