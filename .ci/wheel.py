"""What a newcomer gets: the commands of the installed package, in an empty folder, with nothing but the README's first command done.

    python3 .ci/wheel.py VENV

Then the extra ``server`` is installed into VENV, and a server speaks. Ends with status 1 at the first thing that is not as it should be.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import wave
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 900.0  # seconds; for hangs
SPEECH = {"model": "tts-1", "input": "Good evening.", "voice": "makima", "response_format": "wav"}
WHERE = """
import importlib.util, json
found = {name: importlib.util.find_spec(name) for name in ("qwen3_jax", "server", "convert", "quart")}
print(json.dumps({name: spec and spec.origin for name, spec in found.items()}))
"""


def check(right: bool, otherwise: str) -> None:
    """End with status 1 unless it is right."""
    if not right:
        sys.exit(f"FAILED: {otherwise}")


class Newcomer:
    """A folder outside the checkout, and an environment that leads to VENV and to nothing of ours."""

    def __init__(self, venv: Path, folder: Path) -> None:
        self.folder, self.bin = folder, venv / "bin"
        ours = ("TTS_", "PYTHON", "GLIBC_TUNABLES", "VIRTUAL_ENV")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self.environment |= {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "PYTHONSAFEPATH": "1"}
        self.environment |= {"XDG_DATA_HOME": str(folder / "data"), "COLUMNS": "200"}

    def run(self, *command: str, status: int = 0, folder: Path | None = None) -> tuple[str, str]:
        """stdout and stderr of a command of VENV that ends with ``status``."""
        print("+", *(part for part in command if "import " not in part), flush=True)
        began = time.monotonic()
        program = [str(self.bin / command[0]), *command[1:]]
        ended = subprocess.run(
            program,
            cwd=folder or self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        check(ended.returncode == status, f"status {ended.returncode}, expected {status}\n{ended.stdout}\n{ended.stderr}")
        print(f"  {time.monotonic() - began:.1f} s", flush=True)
        return ended.stdout, ended.stderr


def library(newcomer: Newcomer) -> None:
    """The core packages alone."""
    places = json.loads(newcomer.run("python", "-c", WHERE)[0])
    for name in ("qwen3_jax", "server", "convert"):
        place = Path(places[name])
        check(place.is_relative_to(newcomer.bin.parent), f"{name} is imported from {place}: it must be the installed one")
        check((place.parent / "py.typed").is_file(), f"{name} has no py.typed")
    version = newcomer.run("python", "-c", "import importlib.metadata; print(importlib.metadata.version('qwen3-jax'))")[0]
    check(newcomer.run("qwen3-jax", "--version")[0] == f"qwen3-jax {version}", "--version is not the version that is installed")
    newcomer.run("qwen3-jax", "say", "Good evening.", "-o", "x.wav")
    with wave.open(str(newcomer.folder / "x.wav")) as file:
        check(file.getnframes() > 0.3 * file.getframerate(), "x.wav is too short")
    newcomer.run("qwen3-jax", "say", "Good evening.", "-o", "x.mp3")
    head = (newcomer.folder / "x.mp3").read_bytes()[:2]
    check(head == b"ID" or (head[0] == 0xFF and head[1] >= 0xE0), f"x.mp3 begins with {head!r}: it is no MP3")
    listed = newcomer.run("qwen3-jax", "voices")[0]
    check(all(name in listed for name in ("makima", "heart", "shipped")), f"voices that ship are missing:\n{listed}")
    if places["quart"] is None:
        told = newcomer.run("qwen3-jax", "serve", status=2)[1]
        check(told.count("\n") == 1 and "pip install '.[server]'" in told, f"not one line that says what to install:\n{told}")
    else:
        print("not checked: what serve says without the extra server, for this environment has it; remove it and run this again")


def server(newcomer: Newcomer) -> None:
    """The extra ``server``."""
    newcomer.run("python", "-m", "pip", "install", "-q", ".[server]", folder=ROOT)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    print(f"+ qwen3-jax serve --port {port}", flush=True)
    began, log = time.monotonic(), newcomer.folder / "log"
    environment = newcomer.environment | {"TTS_WARMUP": "first"}
    program = [str(newcomer.bin / "qwen3-jax"), "serve", "--port", str(port)]
    with log.open("wb") as told, subprocess.Popen(program, cwd=newcomer.folder, env=environment, stdout=told, stderr=told) as process:
        try:
            wait_until(lambda: process.poll() is None, f"http://127.0.0.1:{port}/readyz", log)
            print(f"  {time.monotonic() - began:.1f} s until /readyz", flush=True)
            asked = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/audio/speech", json.dumps(SPEECH).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(asked, timeout=LIMIT) as answer:
                sound = answer.read()
            check(sound[:4] == b"RIFF" and len(sound) > 15_000, f"{len(sound)} bytes, which begin with {sound[:4]!r}: it is no speech")
            print(f"  {len(sound)} bytes of speech", flush=True)
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
            time.sleep(0.2)


def main() -> None:
    """Try everything."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        newcomer = Newcomer(Path(sys.argv[1]).absolute(), Path(folder))
        library(newcomer)
        server(newcomer)
    print(f"the installed package works: {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
