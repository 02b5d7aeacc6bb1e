"""What deploy/ says: its settings exist, what is written to belongs to whom writes, and the server starts, speaks and takes uploads so."""

import io
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import soundfile

from benchmarks import image
from server.settings import Settings
from tests.test_server_voices import CONSENT, sound, speech

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8").replace("\\\n", " ").splitlines()
UNIT = [line for line in (DEPLOY / "qwen3-tts.service").read_text("utf-8").splitlines() if not line.startswith("#")]
COPIES = [line for line in DOCKERFILE if line.startswith("COPY ") and "--from=" not in line]
WRITTEN = ("TTS_VOICES_DIR", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR", "HF_HOME", "HOME")
OTHERS = {*WRITTEN, "PATH"} - {"TTS_VOICES_DIR"}  # not ours
READY_SECONDS = 900.0  # for hangs


def pairs(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in shlex.split(text, comments=True))


def unit(name: str) -> str:
    return " ".join(line.split("=", 1)[1] for line in UNIT if line.startswith(f"{name}="))


DOCKER = image.read((DEPLOY / "Dockerfile").read_text("utf-8")).environment
SYSTEMD = pairs(unit("Environment")) | pairs((DEPLOY / "qwen3-tts.env").read_text("utf-8"))


@pytest.mark.parametrize("environment", [DOCKER, SYSTEMD], ids=["docker", "systemd"])
def test_every_setting_exists_and_can_be_what_it_is(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert {name for name in environment if not name.startswith("TTS_")} <= OTHERS
    assert {name.removeprefix("TTS_").lower() for name in environment if name.startswith("TTS_")} <= set(Settings.model_fields)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TTS_API_KEYS", str(tmp_path))  # the image has no key
    assert Settings().voices_dir == environment["TTS_VOICES_DIR"]
    commented = re.findall(r"^#(TTS_\w+)=", (DEPLOY / "qwen3-tts.env").read_text("utf-8"), re.M)
    assert {name.removeprefix("TTS_").lower() for name in commented} <= set(Settings.model_fields)


def test_the_image_makes_the_folders_that_its_user_writes_to() -> None:
    [user] = [line.split()[1] for line in DOCKERFILE if line.startswith("USER ")]
    before = "\n".join(DOCKERFILE[: DOCKERFILE.index(f"USER {user}")])
    uid, gid = user.split(":")  # numbers, which Kubernetes' runAsNonRoot can check
    made = re.search(rf"install -d -o {uid} -g {gid} ([^&\n]*)", before)
    assert made is not None and re.search(rf"useradd .*--uid {uid}\b", before) and uid == gid != "0"
    folders = made[1].split()
    assert set(re.findall(r'"(/[^"]+)"', next(line for line in DOCKERFILE if line.startswith("VOLUME")))) == set(folders)
    for name in WRITTEN:
        if name in DOCKER:
            assert any(Path(DOCKER[name]).is_relative_to(folder) for folder in folders), name
    assert not any(Path(DOCKER["TTS_VOICES_DIR"]).is_relative_to(line.split()[1]) for line in DOCKERFILE if line.startswith("WORKDIR"))


def test_the_image_is_told_its_weights() -> None:
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    assert DOCKER["TTS_MODEL_ID"] == "", "the voice that ships"
    given = image.read(text, {"MODEL": "org/name"})
    assert given.environment["TTS_MODEL_ID"] == f"{given.folder}/model"
    assert any(f'python -m convert "${{MODEL}}" {given.folder}/model' in rest for name, rest in given.done if name == "RUN")
    assert image.read(text, {"EXTRAS": "tpu,server"}).stages["build"].arguments["EXTRAS"] == "tpu,server"
    with pytest.raises(ValueError, match="no such ARG"):
        image.read(text, {"MODELS": "org/name"})
    assert given.command == ["python", "-m", "server"]


@pytest.mark.parametrize("line", ["ADD a b", "COPY --from=build a b", "RUN --mount=type=cache a", "COPY --chown=1 a b", 'SHELL ["bash"]'])
def test_a_step_that_cannot_be_proved_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="not known here"):
        image.read(f"FROM python:3.13-slim\n{line}\n")


def test_the_image_has_what_its_stage_with_a_compiler_made() -> None:
    """The wheel's kernel, and no source tree beside it: Python would take that one, which has none."""
    steps = image.read((DEPLOY / "Dockerfile").read_text("utf-8"))
    build = steps.stages["build"]
    assert "g++" in image.STANDS_FOR[build.base][1] and "g++" not in image.STANDS_FOR[steps.base][1]
    [(venv, pip)] = [re.findall(r"-m venv (\S+) && (\S+) install", rest)[0] for name, rest in build.done if name == "RUN"]
    assert pip == f"{venv}/bin/pip" and steps.environment["PATH"].startswith(f"{venv}/bin:")
    assert [rest for name, rest in steps.done if name == "COPY"] == [f"--from=build {venv} {Path(venv).name}"]
    assert str(Path(venv).parent) == steps.folder
    assert [name for name, _ in steps.done].index("ENV") < [name for name, _ in steps.done].index("RUN"), "RUN finds the venv's Python"


def test_the_context_has_what_is_copied_and_nothing_else(tmp_path: Path) -> None:
    ignore = (ROOT / ".dockerignore").read_text("utf-8")
    for name in ("server/a.py", "server/__pycache__/a.pyc", "voices/makima/reference.wav", "voices/mine/reference.wav", "keys"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert image.context(ignore, tmp_path) == {"server/a.py", "voices/makima/reference.wav"}
    copied = {source for line in COPIES for source in line.split()[1:-1]}
    taken = {line.removeprefix("!").split("/")[0] for line in ignore.splitlines() if line.startswith("!")}
    assert copied == taken


def test_systemd_makes_the_folders_that_the_service_writes_to() -> None:
    assert unit("DynamicUser") == "yes" and unit("ProtectSystem") == "strict"
    folders = [f"/var/lib/{name}" for name in unit("StateDirectory").split()] + [
        f"/var/cache/{name}" for name in unit("CacheDirectory").split()
    ]
    assert SYSTEMD["TTS_VOICES_DIR"] in folders, "root would be the owner of one that is made by hand"
    for name in WRITTEN:
        assert any(Path(SYSTEMD[name]).is_relative_to(folder) for folder in folders), name
    assert int(unit("TimeoutStopSec")) > float(SYSTEMD["TTS_GRACE"])
    steps = (DEPLOY / "README.md").read_text("utf-8")
    assert "pip install '.[server]'" in steps and "cp " not in steps, "a source tree in the working directory would hide the kernel"
    for path in (unit("EnvironmentFile"), unit("WorkingDirectory"), SYSTEMD["TTS_API_KEYS"], SYSTEMD["TTS_VOICES_DIR"]):
        assert path in steps, path
    assert unit("ExecStart").startswith(f"{unit('WorkingDirectory')}/.venv/bin/python -m server")


@pytest.mark.slow
@pytest.mark.parametrize(("environment", "arguments"), [(DOCKER, {"TTS_AUTH": "off"}), (SYSTEMD, {})], ids=["docker", "systemd"])
def test_it_starts_speaks_and_takes_uploads(
    environment: dict[str, str], arguments: dict[str, str], tmp_path: Path, checkpoint: Callable[[str], Path]
) -> None:
    """The layout under another root: packages that are only read, no home, and the folders that the files say are made."""
    root, tree = tmp_path / "root", tmp_path / "root" / "opt" / "qwen3-tts"
    packages = tree / "packages"  # for those of the environment, in which these are installed
    packages.mkdir(parents=True)
    for line in COPIES:
        for source in line.split()[1:-1]:
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
            copy(ROOT / source, packages / source)
    shutil.copytree(checkpoint("base"), root / "checkpoint")
    chosen = {name: f"{root}{value}" if value.startswith("/") else value for name, value in environment.items()}
    headers, key_file = {}, chosen.get("TTS_API_KEYS")
    if key_file is not None:
        made = subprocess.run(
            [sys.executable, "-m", "server", "key", "a"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=READY_SECONDS
        )
        Path(key_file).parent.mkdir(parents=True)
        Path(key_file).write_text(made.stdout, "utf-8")
        headers = {"Authorization": f"Bearer {made.stderr.split()[-1]}"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    chosen |= arguments | {"TTS_PORT": str(port), "TTS_HOST": "127.0.0.1", "TTS_MODEL_ID": str(root / "checkpoint")}
    chosen |= {"TTS_SLOTS": "1", "TTS_COLUMNS": "320", "TTS_WARMUP": "first", "PATH": os.environ["PATH"]}
    chosen["PYTHONPATH"] = os.pathsep.join([str(packages), *(path for path in sys.path if "site-packages" in path)])
    chosen.setdefault("HOME", str(root / "nobody"))
    for name in set(WRITTEN) - {"HOME"}:
        Path(chosen[name]).mkdir(parents=True, exist_ok=True)
    chosen["JAX_COMPILATION_CACHE_DIR"] = os.environ["JAX_COMPILATION_CACHE_DIR"]  # the tests' own: compiling proves nothing here
    for folder, _, files in os.walk(tree):
        for path in (folder, *(os.path.join(folder, file) for file in files)):
            os.chmod(path, os.stat(path).st_mode & ~0o222)
    command = [sys.executable, "-m", "server"]
    if os.geteuid() == 0:  # without its capabilities root may write no more than others
        command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *command]
    warm = subprocess.run([*command, "warm"], cwd=tree, env=chosen, capture_output=True, text=True, check=False, timeout=READY_SECONDS)
    assert warm.returncode == 0 and "warm" in warm.stderr.splitlines()[-1], warm.stderr
    said = tmp_path / "said"
    with said.open("wb") as stderr, subprocess.Popen(command, cwd=tree, env=chosen, stderr=stderr) as server:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=READY_SECONDS) as http:
                wait_until_ready(server, http, said)
                listed = {one["id"] for one in http.get("/api/v1/voices").json()["voices"]}
                assert listed == {"emma", "george", "heart", "makima"}
                made_voice = http.post("/api/v1/voices", files={"audio": ("a.wav", sound(speech()))}, data=CONSENT)
                assert made_voice.status_code == 201, made_voice.text + said.read_text()
                voice = made_voice.json()["id"]
                assert (Path(chosen["TTS_VOICES_DIR"]) / voice / "reference.wav").is_file()
                for name in ("makima", voice):
                    answer = http.post("/v1/audio/speech", json={"input": "Hi.", "voice": name, "response_format": "wav", "seed": 1})
                    assert answer.status_code == 200, answer.text + said.read_text()
                    assert soundfile.info(io.BytesIO(answer.content)).samplerate == 24000
                assert len(list((Path(chosen["XDG_CACHE_HOME"]) / "qwen3-jax" / "prompts").iterdir())) == 2
        finally:
            server.terminate()
            os.chmod(tree, 0o755)  # so that it can be removed
        assert server.wait(READY_SECONDS) == 0
    assert "Traceback" not in said.read_text(), said.read_text()


def wait_until_ready(server: "subprocess.Popen[bytes]", http: httpx.Client, said: Path) -> None:
    """Ask until the model is warm; a server that ends, or takes too long, fails the test."""
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        try:
            if http.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        try:
            server.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
        pytest.fail(said.read_text())
    pytest.fail(f"the server was not ready in time: {said.read_text()}")
