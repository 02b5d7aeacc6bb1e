"""Converted checkpoints: bit-exact round trips, a fingerprint that tells, and a kill that leaves nothing that loads."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax import __version__
from qwen3_jax.checkpoint import converted as checkpoint
from qwen3_jax.checkpoint.converted import TABLE_FILE, NotConverted
from qwen3_jax.checkpoint.mapping import ConversionError, MisshapedTensor, UnfilledTensor, UnmatchedTensor, flatten
from tests.test_published import same

Tree = dict[str, Any]


def params(dtype: Any = jnp.float32) -> Tree:
    noise = np.random.default_rng(0)
    array = lambda *shape: jnp.asarray(noise.standard_normal(shape), dtype)  # noqa: E731
    return {"talker": {"layers": {0: {"w": array(3, 5)}, 1: {"w": array(3, 5)}}}, "codec": {"3": {"w": array(7).astype(jnp.float32)}}}


def abstract(tree: Tree) -> Tree:
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), tree)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "speech_tokenizer").mkdir(parents=True)
    for name in ("config.json", "speech_tokenizer/config.json", "vocab.json", "merges.txt"):
        (folder / name).write_text(f"the {name}")
    return folder


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_round_trip_is_bit_exact(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    monkeypatch.setattr(checkpoint, "_GROUP", 64)  # several groups, and one array per group that is too big for it
    made = params(dtype)
    digest = checkpoint.save(tmp_path / "c", made, source)
    seen: list[str] = []
    loaded = checkpoint.load(tmp_path / "c", abstract(made), progress=lambda path, _: seen.append(path))
    assert same(made, loaded)
    assert loaded["talker"]["layers"].keys() == {0, 1}
    assert loaded["codec"].keys() == {"3"}
    assert sorted(seen) == sorted(flatten(made))
    assert checkpoint.fingerprint(loaded, tmp_path / "c") == digest == checkpoint.describe(tmp_path / "c")["sha256"]
    assert checkpoint.describe(tmp_path / "c")["qwen3_jax"] == __version__
    assert checkpoint.is_converted(tmp_path / "c")
    assert not checkpoint.is_converted(source)


def test_restoring_into_another_dtype(tmp_path: Path, source: Path) -> None:
    made = params(jnp.bfloat16)
    checkpoint.save(tmp_path / "c", made, source)
    wide = jax.tree.map(lambda array: array.astype(jnp.float32), made)
    assert same(wide, checkpoint.load(tmp_path / "c", abstract(wide)))


def test_the_files_that_come_along(tmp_path: Path, source: Path) -> None:
    checkpoint.save(tmp_path / "c", params(), source)
    files = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert len(files) == 4
    assert all((tmp_path / "c" / name).read_text() == f"the {name}" for name in files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "source"]  # no temporary folder is left


def test_the_fingerprint_changes_with_anything(tmp_path: Path, source: Path) -> None:
    made = params()
    digests = {checkpoint.fingerprint(made, source)}
    changed = params()
    changed["codec"]["3"]["w"] = changed["codec"]["3"]["w"].at[6].add(1e-6)
    renamed = {"talker": made["talker"], "codec": {"4": made["codec"]["3"]}}
    reshaped = {"talker": made["talker"], "codec": {"3": {"w": made["codec"]["3"]["w"][None]}}}
    digests |= {checkpoint.fingerprint(tree, source) for tree in (changed, renamed, reshaped)}
    (source / "config.json").write_text("another")
    digests.add(checkpoint.fingerprint(made, source))
    assert len(digests) == 5


def test_an_existing_folder_is_not_overwritten(tmp_path: Path, source: Path) -> None:
    (tmp_path / "c").mkdir()
    checkpoint.save(tmp_path / "c", params(), source)  # empty: taken
    with pytest.raises(ValueError, match="exists and is not an empty folder; remove it"):
        checkpoint.save(tmp_path / "c", params(), source)


@pytest.mark.parametrize("there", [True, False], ids=["of an empty folder", "that leads nowhere"])
def test_a_link_is_refused_before_anything_is_written(tmp_path: Path, source: Path, there: bool) -> None:
    if there:
        (tmp_path / "disk").mkdir()
    (tmp_path / "c").symlink_to(tmp_path / "disk")
    with pytest.raises(ValueError, match=f"c is a link: give the folder that it stands for, {tmp_path}/disk, or remove it"):
        checkpoint.save(tmp_path / "c", params(), source)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_disk_without_room_is_named_before_anything_is_written(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(array.nbytes for array in jax.tree.leaves(params()))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=size - 1))
    with pytest.raises(ValueError, match="MB free, and the weights take .* MB: make room, or choose another disk"):
        checkpoint.save(tmp_path / "c", params(), source)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=size))
    checkpoint.save(tmp_path / "c", params(), source)


def test_other_arrays_than_wanted_are_named(tmp_path: Path, source: Path) -> None:
    made = params()
    checkpoint.save(tmp_path / "c", made, source)
    more = abstract(made) | {"extra": {"w": jax.ShapeDtypeStruct((1,), jnp.float32)}}
    with pytest.raises(UnfilledTensor, match=r"'extra\.w' \[1\]"):
        checkpoint.load(tmp_path / "c", more)
    with pytest.raises(UnmatchedTensor, match=r"'codec\.3\.w'"):
        checkpoint.load(tmp_path / "c", {"talker": abstract(made)["talker"]})
    other = abstract(made) | {"codec": {"3": {"w": jax.ShapeDtypeStruct((8,), jnp.float32)}}}
    with pytest.raises(MisshapedTensor, match=r"'codec\.3\.w': expected \[8\], found \[7\]"):
        checkpoint.load(tmp_path / "c", other)


@pytest.mark.parametrize(
    ("content", "words"), [(None, "has no fingerprint.json"), ("{", "cannot be read"), ('{"format": 1}', "cannot be read")]
)
def test_an_incomplete_folder_does_not_load(tmp_path: Path, source: Path, content: str | None, words: str) -> None:
    checkpoint.save(tmp_path / "c", params(), source)
    file = tmp_path / "c" / "fingerprint.json"
    file.unlink() if content is None else file.write_text(content)
    assert checkpoint.is_converted(tmp_path / "c")  # and not mistaken for the published layout
    with pytest.raises(NotConverted, match=words):
        checkpoint.load(tmp_path / "c", abstract(params()))


@pytest.mark.parametrize("part", ["weights", TABLE_FILE])
def test_weights_that_are_not_whole_are_named(tmp_path: Path, source: Path, part: str) -> None:
    made, folder = params() | {"talker": {"model": {"text_embedding": {"weight": jnp.ones((9, 5))}}}}, tmp_path / "c"
    checkpoint.save(folder, made, source)
    files = [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] == part]
    file = max(files, key=lambda path: path.stat().st_size)
    data = file.read_bytes()
    for cut in (len(data) - 1, len(data) // 2, 0, None):
        file.unlink() if cut is None else file.write_bytes(data[:cut])
        words = rf"{file.name} (has {cut} bytes|is missing), and was written with {len(data)}: .*; copy the folder or convert again"
        with pytest.raises(ConversionError, match=words):
            checkpoint.load(folder, abstract(made), map_table=True)
    file.write_bytes(data)
    assert same(made, checkpoint.load(folder, abstract(made), map_table=True))


@pytest.mark.parametrize("shape", [(1,), (300, 2000)], ids=["in the index", "in a file of its own"])
def test_no_part_of_a_folder_without_sizes_becomes_zeros(tmp_path: Path, source: Path, shape: tuple[int, ...]) -> None:
    """As earlier versions wrote them. Files that hold none of the arrays may be cut."""
    made, folder, refused = {"w": jnp.ones(shape), "zeros": jnp.zeros(shape)}, tmp_path / "c", list[str]()
    checkpoint.save(folder, made, source)
    about = checkpoint.describe(folder)
    del about["files"]
    (folder / "fingerprint.json").write_text(json.dumps(about))
    for file in [path for path in (folder / "weights").rglob("*") if path.is_file()]:
        data = file.read_bytes()
        for cut in (len(data) - 1, len(data) // 2, 0, None):
            file.unlink() if cut is None else file.write_bytes(data[:cut])
            try:
                assert same(made, checkpoint.load(folder, abstract(made)))
            except NotConverted as error:
                refused.append(str(error))
        file.write_bytes(data)
    assert len(refused) >= 8, "the manifest and the arrays themselves"
    assert all(re.search(r"cannot be read \(.+\); copy the folder or convert again", error) for error in refused)
    assert same(made, checkpoint.load(folder, abstract(made)))


@pytest.mark.parametrize(
    "change",
    [
        {"format": True},
        {"sha256": 5},
        {"arrays": []},
        {"arrays": {"w": 5}},
        {"arrays": {"w": ["float32"]}},
        {"arrays": {"w": ["int3", [1]]}},
        {"arrays": {"w": ["float32", ["1"]]}},
        {"files": []},
        {"files": None},
        {"files": {"weights/d": "5"}},
    ],
    ids=str,
)
def test_a_fingerprint_that_was_edited_is_named(tmp_path: Path, change: dict) -> None:
    about = {"format": 2, "sha256": "0", "arrays": {"w": ["float32", [1]]}, "files": {}}
    file = tmp_path / "fingerprint.json"
    file.write_text(json.dumps(about))
    assert checkpoint.describe(tmp_path) == about
    file.write_text(json.dumps(about | change))
    with pytest.raises(NotConverted, match=r"fingerprint.json cannot be read \(.+`\$\..+\); remove the folder and convert again"):
        checkpoint.describe(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "speech_tokenizer/config.json"])
@pytest.mark.parametrize("there", [True, False], ids=["changed", "missing"])
def test_a_config_that_is_not_that_of_the_conversion_is_named(tmp_path: Path, source: Path, name: str, there: bool) -> None:
    checkpoint.save(tmp_path / "c", params(), source)
    file = tmp_path / "c" / name
    file.write_text("rope_theta is another") if there else file.unlink()
    said = f"{name} was changed after the conversion: copy" if there else f"{name} is missing: copy"
    with pytest.raises(NotConverted, match=said):
        checkpoint.load(tmp_path / "c", abstract(params()))


def test_how_to_draw_may_be_edited_and_must_be_there(tmp_path: Path, source: Path) -> None:
    (source / "generation_config.json").write_text("temperature 0.9")
    checkpoint.save(tmp_path / "c", params(), source)
    file = tmp_path / "c" / "generation_config.json"
    file.write_text("temperature 0.5")
    assert same(params(), checkpoint.load(tmp_path / "c", abstract(params())))
    file.unlink()
    with pytest.raises(NotConverted, match="generation_config.json is missing: copy"):
        checkpoint.load(tmp_path / "c", abstract(params()))


def test_another_format_does_not_load(tmp_path: Path, source: Path) -> None:
    checkpoint.save(tmp_path / "c", params(), source)
    file = tmp_path / "c" / "fingerprint.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))
    with pytest.raises(NotConverted, match="has format 99, this version reads 1 and 2; convert"):
        checkpoint.load(tmp_path / "c", abstract(params()))


# Saves, but stops in the middle of it: in `stage`, after the weights are written and before the folder is complete.
KILLED = """
import sys
from pathlib import Path
from qwen3_jax.checkpoint import atomic, converted as checkpoint
from tests.test_checkpoint import params
def stop(*_):
    print("there", flush=True)
    sys.stdin.read()
module, name = sys.argv[1].split(".")
setattr({"atomic": atomic, "checkpoint": checkpoint}[module], name, stop)
checkpoint.save(sys.argv[2], params(), Path(sys.argv[3]))
"""


@pytest.mark.parametrize("stage", ["checkpoint.fingerprint", "atomic._sync"])
def test_a_killed_save_leaves_nothing_that_loads(tmp_path: Path, source: Path, stage: str) -> None:
    folder = tmp_path / "c"
    command = [sys.executable, "-c", KILLED, stage, str(folder), str(source)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        command, cwd=Path(__file__).parent.parent, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        (leftover,) = tmp_path.glob(".c.partial-*")
        checkpoint.save(tmp_path / "d", params(), source)
        with pytest.raises(OSError, match="Resource temporarily unavailable"):  # its writer lives: locked, and so left alone
            _lock(leftover)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=300)
    assert leftover.is_dir()
    assert not checkpoint.is_converted(folder)
    with pytest.raises(NotConverted, match=r"/c is not a complete converted checkpoint"):
        checkpoint.load(folder, abstract(params()))
    checkpoint.save(folder, params(), source)
    assert same(params(), checkpoint.load(folder, abstract(params())))
    assert not list(tmp_path.glob(".c.partial-*"))


def _lock(folder: Path) -> None:
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(handle)


def test_a_failed_save_removes_its_folder(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "fingerprint", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(tmp_path / "c", params(), source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
