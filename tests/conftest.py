"""Tiny random checkpoints, made once per run, the same as those behind tests/golden."""

import atexit
import os
import platform
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

# Nothing of this machine's user: neither voices nor prompts. The tests' own processes have these folders too.
os.environ["XDG_CACHE_HOME"] = os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="qwen3-jax-tests-")
os.environ.setdefault("MPLCONFIGDIR", str(Path(__file__).parents[1] / ".pytest_cache" / "matplotlib"))  # its fonts are listed once

# Before JAX reads it: the tests' own processes (CLI, notebook, README) and later runs share what is compiled.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

# Sizes and dtypes that do not match are errors, here and in the tests' own processes.
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")

import jax
import jax.numpy as jnp
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings

from tests import shape_checks

shape_checks.install()  # before the product is imported

from qwen3_jax.kernels import build as building
from qwen3_jax.kernels import library
from qwen3_jax.model.model import Model, load
from qwen3_jax.runtime.compilation import use_persistent_cache
from qwen3_jax.testing import GOLDEN_SEEDS, write_checkpoint

use_persistent_cache()  # entries are written whole: other processes of these tests read them
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
settings.register_profile("whatever the machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("whatever the machine")

X86_SETS = ("AVX-512 VNNI", "AVX2", "plain C++")
INSTRUCTION_SETS = {"x86_64": X86_SETS, "aarch64": ("NEON",), "arm64": ("NEON",)}.get(platform.machine(), ("plain C++",))

# Files that take a minute and more, the longest first: none of them is left to one process at the end, and two that compile the same
# programs (test_engine_device and test_service) do not do it side by side.
LONGEST = ["soak", "devices", "training_codec", "docs", "five_types", "benchmark_compare", "tts", "engine_device", "int8", "embedded"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files in the order of LONGEST, then the others as they are."""
    place = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="module", autouse=True)
def _training_may_promote(request: pytest.FixtureRequest) -> Iterator[None]:
    """The training, and Optax in fine-tuning, add axes and mix dtypes silently; ``test_fusions`` runs their steps."""
    if not request.module.__name__.startswith(("tests.test_training_", "tests.test_finetune", "tests.test_fusions")):
        yield
        return
    with pytest.MonkeyPatch.context() as patch, jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        patch.delenv("JAX_NUMPY_RANK_PROMOTION")
        patch.delenv("JAX_NUMPY_DTYPE_PROMOTION")
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """kind -> a folder in the published layout. Not to be written to."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = write_checkpoint(tmp_path_factory.mktemp("checkpoints") / kind, kind, GOLDEN_SEEDS[kind])
        return made[kind]

    return get


@pytest.fixture(scope="session")
def model(checkpoint: Callable[[str], Path]) -> Callable[[str], Model]:
    """kind -> that checkpoint in float32."""
    made: dict[str, Model] = {}

    def get(kind: str) -> Model:
        if kind not in made:
            made[kind] = load(checkpoint(kind), dtype=jnp.dtype(jnp.float32))
        return made[kind]

    return get


@pytest.fixture(scope="session")
def kernel_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the kernels' sources, library and record, built for these tests."""
    folder = tmp_path_factory.mktemp("kernels")
    for name in building.SOURCES:
        (folder / name).write_bytes((building.FOLDER / name).read_bytes())
    try:
        building.build(folder, folder)
    except building.CannotBuild as why:
        pytest.skip(f"no kernels here: {why}")
    return folder


@pytest.fixture(params=INSTRUCTION_SETS)
def instructions(request: pytest.FixtureRequest, kernel_library: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The compiled kernels under names of their own, with one instruction set."""
    monkeypatch.setattr(library, "_PREFIX", "tests")
    try:
        found = library.load(kernel_library, request.param)
    except ValueError:
        pytest.skip(f"this processor lacks {request.param}")
    assert found.instructions == request.param, found.why_not
    monkeypatch.setattr(library, "_found", found)
    return str(request.param)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A ``tests.serving.Clock`` by which the pace of audio goes, and its figures."""
    from tests.serving import SPEAKERS, Clock

    clock = Clock()
    for module in SPEAKERS:
        monkeypatch.setattr(f"server.ws.{module}.monotonic", clock)
    return clock


@pytest.fixture
def voices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two voices for a server, one with a transcript; the test has a cache and a data folder of its own."""
    from tests.serving import make_voices

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return make_voices(tmp_path / "voices")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Any]:
    """A browser for a module's tests, which share its event loop; its fake microphone beeps."""
    from tests.browser import browser

    async with browser() as started:
        yield started
