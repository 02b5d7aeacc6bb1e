"""Markdown -> its blocks, and a page's blocks run from top to bottom as a reader runs them.

A block of ``sh`` or ``python`` is run, unless the line before it says why not: ``<!-- not run: needs a GPU -->``. The ``sh`` blocks of
a page are run in their order, then its ``python`` blocks as one program, all in one folder. ``python -m qwen3_jax serve ...`` is started at
its place, waited for, and ended as an operator ends it, after everything else; the page's port 8000 becomes a free one.
"""

import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from qwen3_jax.audio.samples import write_wav

ROOT = Path(__file__).parent.parent
LIMIT = 900.0  # seconds; for hangs
RUN = ("sh", "python")
_BLOCK = re.compile(r"(?:<!-- not run: (?P<why>[^>]*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
_SERVE = re.compile(r"^(?:\w+=\S+ )*python -m qwen3_jax serve\b.*$", re.M)
_WRITTEN = re.compile(r"""(?:\s-o |\.save\(")([\w./-]+)""")  # files that the page says it makes
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_TARGETS = re.compile(r"```.*?```|`[^`\n]*`", re.S)  # where brackets are no links


class Block(NamedTuple):
    """A fenced block. ``why``: why it is not run; None if it is."""

    language: str
    text: str
    why: str | None


def pages() -> list[Path]:
    """Every Markdown file of the repository."""
    ours = (path for path in ROOT.rglob("*.md") if not any(part.startswith(".") for part in path.relative_to(ROOT).parts))
    return sorted(path for path in ours if path.relative_to(ROOT).parts[0] != "shared")


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    found = _BLOCK.finditer(page.read_text("utf-8"))
    return [Block(match["language"], match["text"], match["why"]) for match in found]


def links(page: Path) -> list[str]:
    """Where a page's links lead, but for addresses."""
    found = _LINK.findall(_TARGETS.sub("", page.read_text("utf-8")))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """What ``#...`` may name in a page: its headings as GitHub spells them."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
    made: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        made.add(name if name not in made else f"{name}-1")
    return made


def environment(**more: str) -> dict[str, str]:
    """Ours, without what would change the commands' meaning; ``python`` is the one that runs the tests."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TTS_")}
    return kept | {"PATH": path, "PYTHONPATH": str(ROOT)} | more


def furnish(folder: Path, checkpoint: Path) -> Path:
    """The files that pages take for granted: a recording, a voice, a checkpoint in both layouts, a golden file."""
    samples = np.random.default_rng(0).normal(0, 0.1, 72000).astype(np.float32)
    (folder / "voices" / "NAME").mkdir(parents=True)
    (folder / "docs" / "samples").mkdir(parents=True)
    for place in (folder, folder / "voices" / "NAME"):
        write_wav(place / "reference.wav", samples)
    (folder / "voices" / "NAME" / "transcript.txt").write_text("What it says.", "utf-8")
    (folder / "Qwen3-TTS-12Hz-0.6B-Base").symlink_to(checkpoint)
    (folder / "golden.safetensors").symlink_to(ROOT / "tests" / "golden" / "base.safetensors")
    return folder


def run(folder: Path, command: str, **variables: str) -> str:
    """stdout of a command of bash that succeeds."""
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder, env=environment(**variables), capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def run_blocks(found: Iterable[Block], folder: Path) -> str:
    """Run them in the folder, see the module's docstring. Returns what they print; fails if a file that they say they make is not there."""
    wanted = [block for block in found if block.language in RUN and block.why is None]
    shell = [block.text for block in wanted if block.language == "sh"]
    program = "\n".join(block.text for block in wanted if block.language == "python")
    serving = [line for text in shell for line in _SERVE.findall(text)]
    assert len(serving) <= 1, "a page has one server"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])

    def here(text: str) -> str:
        return text.replace("8000", port) if serving else text

    printed = ""
    with ExitStack() as stack:
        for text in shell:
            for line in _SERVE.findall(text):
                stack.enter_context(server(line, folder, port))
            printed += run(folder, here(_SERVE.sub("", text)))
        if program:
            (folder / "program.py").write_text(here(program), "utf-8")
            printed += run(folder, "python program.py")
    for text in (*shell, program):
        for name in _WRITTEN.findall(text):
            assert (folder / name).is_file() and (folder / name).stat().st_size > 0, f"{name} was not written"
    return printed


@contextmanager
def server(command: str, folder: Path, port: str) -> Iterator[None]:
    """A server while it is needed; SIGTERM is a normal end."""
    variables = environment(TTS_PORT=port, TTS_WARMUP="first")
    with subprocess.Popen(["bash", "-c", f"exec env {command}"], cwd=folder, env=variables) as process:
        try:
            wait_until_ready(process, f"http://127.0.0.1:{port}/readyz")
            yield
        finally:
            process.terminate()
        assert process.wait(LIMIT) == 0


def wait_until_ready(process: "subprocess.Popen[bytes]", url: str) -> None:
    """Ask until the model is warm; a server that ends, or takes too long, fails the test."""
    for _ in range(int(LIMIT / 0.5)):
        try:
            with urllib.request.urlopen(url, timeout=LIMIT):
                return
        except (urllib.error.URLError, ConnectionError):
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
    pytest.fail("the server was not ready in time")


MakeCheckpoint = Callable[[str], Path]
