"""The compiled kernel for int8 weights: it gives what XLA gives, in every instruction set, and where it cannot be used XLA goes on."""

import json
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qwen3_jax import cli
from qwen3_jax.finetune.teacher_forcing import predictor_logits
from qwen3_jax.kernels import build as building
from qwen3_jax.kernels import int8_matmul as kernel
from qwen3_jax.model.int8 import by_xla, int8_matmul
from qwen3_jax.model.model import load
from tests.test_tts import TEXT

ROOT = Path(__file__).parents[1]
SETS = {"x86_64": ("AVX-512 VNNI", "AVX2", "plain C++"), "aarch64": ("NEON",), "arm64": ("NEON",)}.get(platform.machine(), ("plain C++",))
LIMIT = 300.0  # seconds; for hangs


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sources, library and record, built for these tests."""
    folder = tmp_path_factory.mktemp("kernel")
    for name in building.SOURCES:
        (folder / name).write_bytes((building.FOLDER / name).read_bytes())
    try:
        building.build(folder, folder)
    except building.CannotBuild as why:
        pytest.skip(f"no kernel here: {why}")
    return folder


@pytest.fixture(params=SETS)
def instructions(request: pytest.FixtureRequest, library: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernel under a name of its own, with one instruction set."""
    monkeypatch.setattr(kernel, "_TARGET", "tests_int8_matmul")
    try:
        found = kernel.load(library, request.param)
    except ValueError:
        pytest.skip(f"this processor lacks {request.param}")
    assert found.instructions == request.param, found.why_not
    monkeypatch.setattr(kernel, "_kernel", found)
    return str(request.param)


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


def process(program: str, *arguments: str, **environment: str) -> str:
    """stdout of a Python program that ends well, in an environment with these variables."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=LIMIT
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


LOOP = """
import sys
import jax, numpy as np
from pathlib import Path
from qwen3_jax.kernels import build, int8_matmul as kernel
from qwen3_jax.model.int8 import int8_matmul
from qwen3_jax.runtime import compilation
compilation.use_persistent_cache()
kernel.FOLDER = Path(sys.argv[1])
random = np.random.RandomState(0)
weight, x = random.randint(-128, 128, (96, 96)).astype(np.int8), random.standard_normal((4, 96)).astype(np.float32)
scale = np.full(96, 1e-3, np.float32)
run = jax.jit(lambda x, turns: jax.lax.fori_loop(0, turns, lambda _, x: int8_matmul(x, weight, scale), x))
results = [np.asarray(run(jax.device_put(x, device), 3)) for device in jax.devices()]
assert len(results) == 2 and np.array_equal(*results)
print(kernel.in_use().instructions, compilation.compiled(), results[0].tobytes().hex())
"""


def test_a_program_from_the_cache_finds_the_kernel(tmp_path: Path, library: Path) -> None:
    """In another process, and on each of two devices."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    two = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", kernel.VARIABLE: ""}
    first, second = (process(LOOP, str(library), **cache, **two).rsplit(maxsplit=2) for _ in range(2))
    assert first[0] == second[0] != "None" and first[2] == second[2]
    assert int(first[1]) > 0 == int(second[1])
    off = process(LOOP, str(library), **cache, **two | {kernel.VARIABLE: "off"}).split()
    assert off[0] == "None"
    found, expected = (np.frombuffer(bytes.fromhex(each), np.float32) for each in (second[2], off[2]))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def broken(folder: Path, tmp_path: Path, change: Callable[[Path], None]) -> Path:
    copied = tmp_path / "broken"
    copied.mkdir()
    for name in (*building.SOURCES, building.LIBRARY, building.RECORD):
        (copied / name).write_bytes((folder / name).read_bytes())
    change(copied)
    return copied


def rewrite(folder: Path, **changes: str) -> None:
    record = json.loads((folder / building.RECORD).read_text())
    (folder / building.RECORD).write_text(json.dumps(record | changes))


def replace(folder: Path, content: bytes) -> None:
    """Another library, with a record that says it is right."""
    (folder / building.LIBRARY).write_bytes(content)
    rewrite(folder, library=building.digest(folder / building.LIBRARY))


FOREIGN = bytearray(b"\x7fELF\x02\x01\x01" + bytes(57))
FOREIGN[16:20] = b"\x03\x00\x08\x00"  # a shared object for MIPS


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda folder: (folder / building.LIBRARY).unlink(), "^built without a compiler$"),
        (lambda folder: (folder / building.LIBRARY).write_bytes((folder / building.LIBRARY).read_bytes()[:9000]), "is damaged"),
        (lambda folder: (folder / building.RECORD).unlink(), "has no record that can be read"),
        (lambda folder: (folder / building.RECORD).write_text("[]"), "has no record that can be read"),
        (lambda folder: (folder / building.SOURCES[1]).write_text("//"), "is made of other sources: install qwen3-jax again"),
        (lambda folder: rewrite(folder, machine="vax"), f"is made for vax, not {platform.machine()}"),
        (lambda folder: replace(folder, b"no library"), "cannot be used"),
        (lambda folder: replace(folder, bytes(FOREIGN)), "cannot be used"),
        (lambda folder: replace(folder, Path(np.linalg._umath_linalg.__file__).read_bytes()), "cannot be used .*undefined symbol"),
    ],
    ids=["missing", "cut off", "no record", "another record", "stale", "another machine", "no library", "foreign", "without the function"],
)
def test_a_library_that_does_not_fit_is_not_loaded(tmp_path: Path, library: Path, change: Callable[[Path], None], why: str) -> None:
    found = kernel.load(broken(library, tmp_path, change))
    assert found.instructions is None
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(found.why_not)


def test_another_version_of_xlas_interface_is_refused(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def newer(folder: Path) -> None:
        source = folder / building.SOURCES[0]
        source.write_text(source.read_text().replace("XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR}", "7, 0}"))
        building.build(folder, folder)

    monkeypatch.setattr(kernel, "_TARGET", "tests_of_another_version")
    found = kernel.load(broken(library, tmp_path, newer))
    assert found.instructions is None and "cannot be used" in found.why_not and "version" in found.why_not


def test_what_cannot_be_used_is_said_once_and_xla_goes_on(
    tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = broken(library, tmp_path, lambda folder: rewrite(folder, library="0"))
    monkeypatch.delenv(kernel.VARIABLE, raising=False)
    monkeypatch.setattr(kernel, "FOLDER", folder)
    for _ in range(2):
        monkeypatch.setattr(kernel, "_kernel", None)
        arrays = given(4, 64, 8)
        assert_close(compiled(*arrays), *arrays)
    [line] = [record.getMessage() for record in caplog.records if "int8 kernel" in record.getMessage()]
    assert "is damaged, or not the one that was built: install qwen3-jax again; XLA computes its products" in line


def test_the_variable_turns_it_off_or_chooses(library: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(kernel, "_TARGET", "tests_int8_matmul")
    for word in ("off", "OFF", "0"):
        assert kernel.load(library, word) == kernel.Int8Kernel(None, f"{kernel.VARIABLE} is off")
    with pytest.raises(ValueError, match=rf"{kernel.VARIABLE}='MMX': use off, or an instruction set .*: .*{SETS[-1][:4]}"):
        kernel.load(library, "MMX")
    monkeypatch.setattr(kernel, "_kernel", None)
    monkeypatch.setenv(kernel.VARIABLE, "off")
    monkeypatch.setattr("sys.argv", ["qwen3-jax", "info"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None) and f"none ({kernel.VARIABLE} is off)" in capsys.readouterr().out


def test_without_a_compiler_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O9")
    with pytest.raises(building.CannotBuild, match=r"^there is no C\+\+ compiler \(no-such-compiler -O9\)$"):
        building.build(folder=tmp_path)
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(building.CannotBuild, match="^false fails: status 1$"):
        building.build(folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


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
    monkeypatch.setattr(kernel, "_kernel", kernel.Int8Kernel(None))
    expected = logits()
    assert 0 < np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.slow  # it compiles an engine's programs twice
def test_an_engine_speaks_the_same_codes_with_and_without(
    tmp_path: Path, library: Path, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy, of two texts in one batch; without, in a process of its own, for programs stay compiled."""
    texts = (TEXT, "Good morning.")
    process(CODES, str(checkpoint("custom_voice")), str(tmp_path / "off.npy"), *texts, **{kernel.VARIABLE: "off"})
    monkeypatch.setattr(kernel, "FOLDER", library)
    monkeypatch.setattr(kernel, "_kernel", None)
    program = CODES.replace(
        "import sys\n",
        "import sys\nfrom pathlib import Path\nfrom qwen3_jax.kernels import int8_matmul as kernel\n"
        f"kernel.FOLDER = Path({str(library)!r})\nassert kernel.in_use().instructions\n",
        1,
    )
    process(program, str(checkpoint("custom_voice")), str(tmp_path / "on.npy"), *texts, **{kernel.VARIABLE: ""})
    np.testing.assert_array_equal(np.load(tmp_path / "on.npy"), np.load(tmp_path / "off.npy"))
