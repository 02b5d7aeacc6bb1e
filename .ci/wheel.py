"""What a newcomer gets: the README's blocks as they stand, with the installed package, in a fresh venv without the extra ``dev``.

    python3 .ci/wheel.py VENV

VENV is what the README's first command makes. The blocks run in a copy of the checkout, from top to bottom; what ``serve`` starts stays
until the end. Ends with status 1 at the first thing that is not as it should be.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import wave
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 900.0  # seconds; for hangs
NOT_COPIED = (".git", ".venv", ".pytest_cache", ".mypy_cache", ".ruff_cache", "__pycache__", "tests")
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.M | re.S)
WRITTEN = re.compile(r"""(?:\s-o |> |\.save\(")(\w[\w.]*)""")  # files that a block says it makes
FIRST = "python3 -m venv"  # the two commands that CI gives itself
WHERE = """
import importlib.util, json
found = {name: importlib.util.find_spec(name) for name in ("qwen3_jax", "server", "convert", "training", "quart")}
print(json.dumps({name: spec and spec.origin for name, spec in found.items()}))
"""


def check(right: bool, otherwise: str) -> None:
    """End with status 1 unless it is right."""
    if not right:
        sys.exit(f"FAILED: {otherwise}")


class Newcomer:
    """A copy of the checkout, and an environment that leads to VENV and to nothing else of ours."""

    def __init__(self, venv: Path, folder: Path) -> None:
        self.folder, self.bin = folder / "qwen3-jax", venv / "bin"
        shutil.copytree(ROOT, self.folder, ignore=shutil.ignore_patterns(*NOT_COPIED))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = str(free.getsockname()[1])
        ours = ("TTS_", "PYTHON", "GLIBC_TUNABLES", "VIRTUAL_ENV")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self.environment |= {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "PYTHONSAFEPATH": "1", "TTS_PORT": self.port}
        self.environment |= {"XDG_DATA_HOME": str(folder / "data"), "COLUMNS": "200"}

    def run(self, *command: str, status: int = 0) -> tuple[str, str]:
        """stdout and stderr of a command that ends with ``status``."""
        print("+", command[-1].rstrip() if command[0] == "bash" else " ".join(command), flush=True)
        began = time.monotonic()
        ended = subprocess.run(
            command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT
        )
        check(ended.returncode == status, f"status {ended.returncode}, expected {status}\n{ended.stdout}\n{ended.stderr}")
        print(f"  {time.monotonic() - began:.1f} s", flush=True)
        return ended.stdout, ended.stderr

    def bash(self, text: str) -> None:
        """A block of the shell."""
        self.run("bash", "-euo", "pipefail", "-c", text.replace("8000", self.port))


def package(newcomer: Newcomer) -> None:
    """The core packages alone, as they are installed."""
    places = json.loads(newcomer.run("python", "-c", WHERE)[0])
    for name in ("qwen3_jax", "server", "convert"):
        place = Path(places[name])
        check(place.is_relative_to(newcomer.bin.parent), f"{name} is imported from {place}: it must be the installed one")
        check((place.parent / "py.typed").is_file(), f"{name} has no py.typed")
    check((Path(places["server"]).parent / "page" / "index.html").is_file(), "the wheel lacks the page: server/page")
    check(places["training"] is None, f"the wheel has training, which is for a checkout only: {places['training']}")
    version = newcomer.run("python", "-c", "import importlib.metadata; print(importlib.metadata.version('qwen3-jax'))")[0]
    check(newcomer.run("qwen3-jax", "--version")[0] == f"qwen3-jax {version}", "--version is not the version that is installed")
    listed = newcomer.run("qwen3-jax", "voices")[0]
    check(all(name in listed for name in ("makima", "heart")), f"voices that ship are missing:\n{listed}")
    compiler = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
    told = newcomer.run("qwen3-jax", "info")[0]
    check(("built without a compiler" in told) != compiler, f"a compiler {'is' if compiler else 'is not'} here, and info says:\n{told}")
    if places["quart"] is None:
        told = newcomer.run("qwen3-jax", "serve", status=2)[1]
        check(told.count("\n") == 1 and "pip install '.[server]'" in told, f"not one line that says what to install:\n{told}")
    else:
        print("not checked: what serve says without the extra server, for this environment has it; remove it and run this again")


def readme(newcomer: Newcomer) -> None:
    """Its blocks, but for the two commands that CI gives itself."""
    text = (ROOT / "README.md").read_text("utf-8")
    with ExitStack() as stack:
        for language, block in BLOCK.findall(text):
            if block.startswith(FIRST):
                continue
            if language == "python":
                (newcomer.folder / "block.py").write_text(block, "utf-8")
                newcomer.run("python", "block.py")
            elif block.rstrip().endswith(" serve"):
                before, _, command = block.rstrip().rpartition(" && ")
                newcomer.bash(before)
                stack.enter_context(server(newcomer, command))
            else:
                newcomer.bash(block)
            for name in WRITTEN.findall(block):
                check_sound(newcomer.folder / name)


def check_sound(path: Path) -> None:
    """A file that a block has made is what its name says, and is no click."""
    check(path.is_file() and path.stat().st_size > 3000, f"{path.name} was not written, or is too short")
    head = path.read_bytes()[:3]
    if path.suffix == ".wav":
        with wave.open(str(path)) as file:
            check(file.getnframes() > 0.3 * file.getframerate(), f"{path.name} is too short")
    elif path.suffix == ".mp3":
        check(head == b"ID3" or (head[0] == 0xFF and head[1] >= 0xE0), f"{path.name} begins with {head!r}: it is no MP3")


@contextmanager
def server(newcomer: Newcomer, command: str) -> Iterator[None]:
    """A server while it is needed; it ends as an operator ends it."""
    print("+", command, flush=True)
    began, log = time.monotonic(), newcomer.folder / "log"
    environment = newcomer.environment | {"TTS_WARMUP": "first", "TTS_SLOTS": "2"}  # what is compiled and timed has tests of its own
    program = ["bash", "-c", f"exec {command}"]
    with log.open("wb") as told, subprocess.Popen(program, cwd=newcomer.folder, env=environment, stdout=told, stderr=told) as process:
        try:
            wait_until(lambda: process.poll() is None, f"http://127.0.0.1:{newcomer.port}/readyz", log)
            print(f"  {time.monotonic() - began:.1f} s until /readyz", flush=True)
            yield
            process.terminate()
            check(process.wait(LIMIT) == 0, f"status {process.returncode} after SIGTERM\n{log.read_text()}")
            print(f"  {time.monotonic() - began:.1f} s, status 0 after SIGTERM", flush=True)
        finally:
            process.kill()


def wait_until(alive: Callable[[], bool], url: str, log: Path) -> None:
    """Ask until the answer is 200."""
    end = time.monotonic() + LIMIT
    while True:
        check(alive(), f"the server ended before it was ready\n{log.read_text()}")
        check(time.monotonic() < end, f"not ready within {LIMIT:.0f} s\n{log.read_text()}")
        try:
            with urllib.request.urlopen(url, timeout=LIMIT):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)  # between two questions; the deadline is above


def main() -> None:
    """Try everything."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        newcomer = Newcomer(Path(sys.argv[1]).absolute(), Path(folder))
        package(newcomer)
        readme(newcomer)
    print(f"the installed package works as the README says: {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
