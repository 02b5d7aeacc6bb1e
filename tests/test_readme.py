"""What the README says works: its commands and programs run as they stand, on a tiny checkpoint; its settings are all there are."""

import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qwen3_jax.audio import write_wav
from server.settings import Settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()]
INSTALL = [line for line in SHELL if line.startswith("python3 -m venv")]
SERVE = "python -m qwen3_jax serve --model checkpoint"
LIBRARY, MANY, CLIENT = re.findall(r"```python\n(.*?)```", README, re.S)
LIMIT = 900.0  # seconds; for hangs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]) -> Path:
    """A working folder with the files that the README's commands name."""
    folder = tmp_path_factory.mktemp("readme")
    samples = np.random.default_rng(0).normal(0, 0.1, 84000).astype(np.float32)
    (folder / "voices" / "NAME").mkdir(parents=True)
    for place in (folder, folder / "voices" / "NAME"):
        write_wav(place / "reference.wav", samples)
    (folder / "voices" / "NAME" / "transcript.txt").write_text("What it says.", "utf-8")
    (folder / "Qwen3-TTS-12Hz-0.6B-Base").symlink_to(checkpoint("base"))
    (folder / "golden.safetensors").symlink_to(ROOT / "tests" / "golden" / "base.safetensors")
    run(folder, next(line for line in SHELL if " convert " in line))
    return folder


def environment(**more: str) -> dict[str, str]:
    """Ours, without what would change the commands' meaning; ``python`` is the one that runs the tests."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TTS_")}
    return kept | {"PATH": path, "PYTHONPATH": str(ROOT)} | more


def run(folder: Path, command: str) -> str:
    result = subprocess.run(["bash", "-c", command], cwd=folder, env=environment(), capture_output=True, text=True, timeout=LIMIT)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def test_ci_runs_the_two_commands() -> None:
    """`.ci/run` takes them out of the README with these very patterns."""
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    say, test = INSTALL
    for command, pattern in ((say, r"^python3 -m venv .* say "), (test, r"^python3 -m venv .* pytest$")):
        assert f"grep -m1 -E '{pattern}' README.md" in script
        assert re.search(pattern, command)
    assert "&& .venv/bin/python -m pytest" in test
    assert 'slow=".venv/bin/python -m pytest -m slow"' in script, "what is left out by default"
    assert (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8").count("run: .ci/run") == 1


@pytest.mark.parametrize("command", [line for line in SHELL if line not in INSTALL and line != SERVE and " convert Qwen3" not in line])
def test_command(command: str, folder: Path) -> None:
    assert command.startswith("python -m "), "every command is run"
    run(folder, command)


def test_library_program(folder: Path) -> None:
    (folder / "library.py").write_text(LIBRARY, "utf-8")
    assert re.match(r"NAME emma george heart makima\n(eos|length) \(\d+, 16\)\n(\d+\n)+$", run(folder, "python library.py"))
    assert soundfile.info(folder / "hello.mp3").duration > 2


def test_many_voices_program(folder: Path) -> None:
    assert "narrator.safetensors" in LIBRARY, "that program makes the voice"
    (folder / "library.py").write_text(LIBRARY, "utf-8")
    run(folder, "python library.py")
    (folder / "many.py").write_text(MANY, "utf-8")
    assert re.match(r"(\d+\n)*\d+ (eos|length)\n$", run(folder, "python many.py"))


def test_serving_and_the_client(folder: Path) -> None:
    assert SERVE in SHELL
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    (folder / "client.py").write_text(CLIENT.replace("8000", port), "utf-8")
    with subprocess.Popen(SERVE.split(), cwd=folder, env=environment(TTS_PORT=port, TTS_WARMUP="first")) as server:
        try:
            wait_until_ready(server, f"http://127.0.0.1:{port}/readyz")
            heard = run(folder, "python client.py")
        finally:
            server.terminate()
        assert server.wait(LIMIT) == 0, "SIGTERM is a normal end"
    kinds = re.findall(r'"type":"(\w+)"', heard)
    assert kinds == ["ready", "started", "complete"]
    assert (folder / "served.wav").stat().st_size > 44


def wait_until_ready(server: "subprocess.Popen[bytes]", url: str) -> None:
    """Ask until the model is warm; a server that ends, or takes too long, fails the test."""
    for _ in range(int(LIMIT / 0.5)):
        try:
            with urllib.request.urlopen(url, timeout=LIMIT):
                return
        except (urllib.error.URLError, ConnectionError):
            with pytest.raises(subprocess.TimeoutExpired):
                server.wait(0.5)
    pytest.fail("the server was not ready in time")


def test_every_setting_is_documented() -> None:
    documented = set(re.findall(r"`TTS_(\w+)`", README))
    assert {name.upper() for name in Settings.model_fields} == documented


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
