"""Compiled programs on the disk: what a kill, a power loss or a full disk leaves of them, and where they lie without a home."""

import os
import stat
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from qwen3_jax.checkpoint import folders
from qwen3_jax.runtime import compilation, compiled_entries
from tests.fake_engine import LIMIT

ROOT = Path(__file__).parent.parent
OPTIONS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
PROGRAM = jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x.T) + 0.123)
HOMELESS = """
import os, pwd, sys

def unknown(*_):
    raise KeyError("getpwuid(): uid not found")

pwd.getpwuid = pwd.getpwnam = unknown
{program}
"""
SHELL = 'from qwen3_jax.cli import main; sys.argv = ["qwen3-jax", "say", "Hi", "-o", "hi.wav", "--voice", "nobody"]; main()'
LIBRARY = """
from qwen3_jax import Qwen3TTS

print([voice.name for voice in Qwen3TTS.from_pretrained().voices])
"""
SERVER = """
from server.voices.store import VoiceStore
from qwen3_jax.voices.layers import VoiceLayers
from qwen3_jax.runtime.compilation import use_persistent_cache

store = VoiceStore(VoiceLayers.of())
use_persistent_cache()
print(list(store.voices), store.layers.destination)
"""


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of this test's own, as the user would have chosen it; nothing has been told of it."""
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    monkeypatch.setattr(folders, "_said", set())
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "xla"))
    reset_cache()
    compilation.use_persistent_cache()
    yield tmp_path / "xla"
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()


def compiles() -> int:
    """Programs that a new process would compile to run one."""
    jax.clear_caches()
    before = compilation.compiled()
    PROGRAM(jax.numpy.ones((30, 5))).block_until_ready()
    return compilation.compiled() - before


def scrambled(entry: bytes) -> bytes:
    middle = len(entry) // 2
    return entry[:middle] + bytes([entry[middle] ^ 255]) + entry[middle + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda entry: entry[: len(entry) // 2],
    "empty": lambda entry: b"",
    "scrambled": scrambled,
    "zeros": lambda entry: bytes(len(entry)),
    "the end of another": lambda entry: entry[len(entry) // 2 :],
    "an XLA that does not read it": lambda entry: zlib.compress(zlib.decompress(entry)[:4] + b"of another version" * 100),
    "less than a head": lambda entry: zlib.compress(b"abc"),
}


def test_what_cannot_be_read_is_removed_and_compiled_once(kept: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Warnings are errors here, so JAX gives none."""
    assert compiles() > 0
    (kept / "jit_f-of-another-jax-cache").write_bytes(b"its own")
    entries = {path: path.read_bytes() for path in kept.glob("jit__lambda*")}
    assert len(entries) == 1 and compiles() == 0
    for name, damage in DAMAGE.items():
        for path, entry in entries.items():
            path.write_bytes(damage(entry))
        assert compiles() == 1, name
        assert compiles() == 0, f"{name}: it is there again"
    assert (kept / "jit_f-of-another-jax-cache").read_bytes() == b"its own", "what nobody reads is left alone"
    [line] = caplog.messages
    assert str(kept) in line and line.endswith("they are removed and compiled again")


def test_an_entry_is_there_whole_or_not_at_all(kept: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    sizes: list[int] = []

    def full(partial: Path, path: Path) -> None:
        sizes.append(partial.stat().st_size)
        assert not path.exists()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compiled_entries.os, "replace", full)
    assert compiles() == len(sizes) > 0 and all(sizes)
    assert list(kept.iterdir()) == []
    [line] = caplog.messages
    assert "No space left on device" in line and "JAX_COMPILATION_CACHE_DIR" in line


def test_what_a_killed_process_has_left_goes(kept: Path) -> None:
    kept.mkdir(exist_ok=True)
    for name, age in ((".old.partial", 2 * compiled_entries.STALE_SECONDS), (".new.partial", 0.0)):
        (kept / name).write_bytes(b"half")
        os.utime(kept / name, (time.time() - age,) * 2)
    assert compiles() > 0
    assert {path.name for path in kept.glob(".*")} == {".new.partial"}


def test_a_chosen_folder_that_cannot_be_used_is_not(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "file" / "xla"))
    reset_cache()
    compilation.use_persistent_cache()
    assert compilation.folder() == tmp_path / "mine" / "qwen3-jax" / "xla"
    assert compiles() > 0 and compiles() == 0
    [line] = caplog.messages
    assert "file/xla cannot be made (Not a directory)" in line


# Without a home


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of a user whose cache folder cannot be made."""
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(folders, "_said", set())
    return tmp_path / "tmp"


def test_the_cache_is_this_users_alone_in_the_temporary_folder(temporary: Path, caplog: pytest.LogCaptureFixture) -> None:
    spare = temporary / f"qwen3-jax-{os.geteuid()}"
    assert folders.cache_folder() == folders.cache_folder() == spare
    assert stat.S_IMODE(spare.stat().st_mode) == 0o700
    [line] = caplog.messages
    assert str(spare) in line and "set XDG_CACHE_HOME" in line


@pytest.mark.parametrize("of", ["everybody", "another user", "a link", "a file"])
def test_what_others_may_have_made_is_not_taken(
    of: str, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spare = temporary / f"qwen3-jax-{os.geteuid()}"
    if of == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        spare.symlink_to(tmp_path / "elsewhere")
    elif of == "a file":
        spare.write_bytes(b"")
    else:
        spare.mkdir(mode=0o700)
        if of == "everybody":
            spare.chmod(0o777)
        else:
            somebody = os.geteuid() + 1
            spare.rename(temporary / f"qwen3-jax-{somebody}")
            monkeypatch.setattr(os, "geteuid", lambda: somebody)
    assert folders.cache_folder() is folders.cache_folder() is None
    [line] = caplog.messages
    assert "are not kept" in line and "set XDG_CACHE_HOME" in line


@pytest.mark.parametrize("home", [None, "/dev/null"])
@pytest.mark.parametrize("program", [SHELL, LIBRARY, SERVER], ids=["shell", "library", "server"])
def test_without_a_home_one_line_says_so(program: str, home: str | None, tmp_path: Path) -> None:
    hidden = ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "JAX_COMPILATION_CACHE_DIR")
    given = {name: value for name, value in os.environ.items() if name not in hidden and not name.startswith("TTS_")}
    given |= {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)} | ({} if home is None else {"HOME": home})
    command = [sys.executable, "-c", HOMELESS.format(program=program)]
    ended = subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True, timeout=LIMIT)
    line, *others = ended.stderr.splitlines()
    assert f"are kept in {tmp_path}/qwen3-jax-{os.geteuid()}; set XDG_CACHE_HOME" in line
    if program == SHELL:
        assert ended.returncode == 2 and len(others) == 1 and "'nobody'" in others[0], ended.stderr
    else:
        assert ended.returncode == 0 and others == [] and "makima" in ended.stdout
    if program == SERVER:
        assert ended.stdout.strip().endswith("None" if home is None else f"{home}/.local/share/qwen3-jax/voices")
