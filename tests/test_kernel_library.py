"""The library of compiled kernels: built, looked at, loaded; where it cannot be used XLA goes on."""

import json
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qwen3_jax import cli
from qwen3_jax.kernels import build as building
from qwen3_jax.kernels import library
from tests.conftest import INSTRUCTION_SETS
from tests.processes import process
from tests.test_int8_kernel import assert_close, compiled, given

LOOP = """
import sys
import jax, numpy as np
from pathlib import Path
from qwen3_jax.kernels import library
from qwen3_jax.model.int8 import int8_matmul
from qwen3_jax.runtime import compilation
compilation.use_persistent_cache()
library.FOLDER = Path(sys.argv[1])
random = np.random.RandomState(0)
weight, x = random.randint(-128, 128, (96, 96)).astype(np.int8), random.standard_normal((4, 96)).astype(np.float32)
scale = np.full(96, 1e-3, np.float32)
run = jax.jit(lambda x, turns: jax.lax.fori_loop(0, turns, lambda _, x: int8_matmul(x, weight, scale), x))
results = [np.asarray(run(jax.device_put(x, device), 3)) for device in jax.devices()]
assert len(results) == 2 and np.array_equal(*results)
print(library.in_use().instructions, compilation.compiled(), results[0].tobytes().hex())
"""


def test_a_program_from_the_cache_finds_the_kernel(tmp_path: Path, kernel_library: Path) -> None:
    """In another process, and on each of two devices."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    two = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", library.VARIABLE: ""}
    first, second = (process(LOOP, str(kernel_library), **cache, **two).rsplit(maxsplit=2) for _ in range(2))
    assert first[0] == second[0] != "None" and first[2] == second[2]
    assert int(first[1]) > 0 == int(second[1])
    off = process(LOOP, str(kernel_library), **cache, **two | {library.VARIABLE: "off"}).split()
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
        (lambda folder: (folder / building.LIBRARY).unlink(), "^there is no .*: built without a compiler$"),
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
def test_a_library_that_does_not_fit_is_not_loaded(tmp_path: Path, kernel_library: Path, change: Callable[[Path], None], why: str) -> None:
    found = library.load(broken(kernel_library, tmp_path, change))
    assert found.instructions is None
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(found.why_not)


def test_another_version_of_xlas_interface_is_refused(tmp_path: Path, kernel_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def newer(folder: Path) -> None:
        source = folder / building.SOURCES[0]
        source.write_text(source.read_text().replace("XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR}", "7, 0}"))
        building.build(folder, folder)

    monkeypatch.setattr(library, "_PREFIX", "tests_of_another_version")
    found = library.load(broken(kernel_library, tmp_path, newer))
    assert found.instructions is None and "cannot be used" in found.why_not and "version" in found.why_not


def test_what_cannot_be_used_is_said_once_and_xla_goes_on(
    tmp_path: Path, kernel_library: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = broken(kernel_library, tmp_path, lambda folder: rewrite(folder, library="0"))
    monkeypatch.delenv(library.VARIABLE, raising=False)
    monkeypatch.setattr(library, "FOLDER", folder)
    for _ in range(2):
        monkeypatch.setattr(library, "_found", None)
        arrays = given(4, 64, 8)
        assert_close(compiled(*arrays), *arrays)
    [line] = [record.getMessage() for record in caplog.records if "compiled kernels" in record.getMessage()]
    assert "is damaged, or not the one that was built: install qwen3-jax again; XLA computes the same, slower" in line


def test_the_variable_turns_it_off_or_chooses(
    kernel_library: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(library, "_PREFIX", "tests")
    for word in ("off", "OFF", "0"):
        assert library.load(kernel_library, word) == library.Kernels(None, f"{library.VARIABLE} is off")
    assert library.load(kernel_library, f" {INSTRUCTION_SETS[-1].lower()}").instructions == INSTRUCTION_SETS[-1]
    with pytest.raises(ValueError, match=rf"{library.VARIABLE}='MMX': use off, or an instruction set .*: .*{INSTRUCTION_SETS[-1][:4]}"):
        library.load(kernel_library, "MMX")
    monkeypatch.setattr(library, "_found", None)
    monkeypatch.setenv(library.VARIABLE, "off")
    monkeypatch.setattr("sys.argv", ["qwen3-jax", "info"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None) and f"none ({library.VARIABLE} is off)" in capsys.readouterr().out


def test_without_a_compiler_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O9")
    with pytest.raises(building.CannotBuild, match=r"^there is no C\+\+ compiler \(no-such-compiler -O9\)$"):
        building.build(folder=tmp_path)
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(building.CannotBuild, match="^false fails: status 1$"):
        building.build(folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
