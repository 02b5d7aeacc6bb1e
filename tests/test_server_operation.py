"""What an operator sees: health, readiness, metrics, settings, logs, and a process that goes down as it should."""

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from qwen3_jax.runtime.extras import MissingExtra
from server.listen.ears import Ears
from server.ops import logs
from server.run import settings_of
from server.settings import Settings
from tests.fake_engine import LIMIT, FakeEngine
from tests.serving import Clock, audio, client, closed, connect, hear, running, say, utterance

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("missing", [None, "the extra listen is missing"])
async def test_health_and_readiness(voices: Path, monkeypatch: pytest.MonkeyPatch, missing: str | None) -> None:
    def check(ears: Ears) -> None:
        if missing:
            raise MissingExtra(missing)

    monkeypatch.setattr(Ears, "check", check)
    engine = FakeEngine(hold_loading=True)
    async with running(voices, engine, wait=False) as server, server.http_client() as http:
        assert (await http.get("/healthz")).json() == {"status": "ok"}
        answer = await http.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (503, "loading") and answer.json()["loadingSeconds"] >= 0
        engine.load().set_result(None)
        answer = await http.get("/readyz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ready", "listen": missing})
        server.context.draining.set()
        answer = await http.get("/readyz")
        assert (answer.status_code, answer.json()) == (503, {"status": "draining", "listen": missing})


async def test_metrics(voices: Path) -> None:
    engine = FakeEngine()
    async with running(voices, engine) as server, server.http_client() as http, client(server.url) as connection:
        await say(connection, type="speak", text="Hello.")
        await utterance(connection)
        await say(connection, type="speak", text="fail")
        await utterance(connection)
        engine.gate = asyncio.Semaphore(1)
        await say(connection, type="speak", text="Hello.")
        await audio(connection)
        page = (await http.get("/metrics")).text
        assert "tts_active_slots 1.0" in page
        await say(connection, type="cancel")
        await hear(connection)
        answer = await http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in (
        "tts_ttfa_seconds_count 3.0",
        "tts_inter_chunk_seconds_count 2.0",
        "tts_rtf_count 1.0",
        "tts_underrun_seconds_total ",
        'tts_utterances_total{finish_reason="eos"} 1.0',
        'tts_errors_total{code="SYNTHESIS_ERROR"} 1.0',
        'tts_errors_total{code="CANCELLED"} 1.0',
        "tts_cancellations_total 1.0",
        "tts_active_slots 0.0",
        "tts_slots 10.0",
        "tts_queue_depth 0.0",
        "tts_runaway_retries 2.0",
        "tts_engine_restarts 1.0",
        "tts_not_finite 3.0",
        "tts_sessions 1.0",
        "tts_ready 1.0",
    ):
        assert line in answer.text, line


async def test_underruns_are_counted(voices: Path, clock: Clock) -> None:
    engine = FakeEngine(frames=2, gate=asyncio.Semaphore(1))
    async with running(voices, engine) as server, client(server.url) as connection:
        await say(connection, type="speak", text="Hello.")
        await audio(connection)
        clock.now = 0.3
        assert engine.gate is not None
        engine.gate.release()
        await utterance(connection)
        assert server.context.metrics.underrun._value.get() == pytest.approx(0.3 - 0.08)


def test_settings_come_from_the_environment_and_are_shown_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTS_VOICE_ALIASES", "alloy=makima, nova=anna")
    monkeypatch.setenv("TTS_JWT_SECRET", "not to be shown")
    monkeypatch.setenv("TTS_JWKS", "https://user:secret@a.example/keys?key=secret")
    monkeypatch.setenv("TTS_ALLOWED_ORIGINS", "https://a.example, https://b.example")
    monkeypatch.setenv("TTS_PORT", "9000")
    chosen = settings_of(host=None, model_id="here")
    assert (chosen.port, chosen.model_id, chosen.voice_aliases) == (9000, "here", {"alloy": "makima", "nova": "anna"})
    assert chosen.changed() == (
        "TTS_MODEL_ID=here TTS_VOICE_ALIASES=alloy=makima,nova=anna TTS_PORT=9000 TTS_JWT_SECRET=********** "
        "TTS_JWKS=https://***@a.example/keys?*** TTS_ALLOWED_ORIGINS=https://a.example,https://b.example"
    )
    assert Settings(jwt_secret=None, jwks=None, voice_aliases={}, allowed_origins=(), port=8000).changed() == ""
    monkeypatch.setenv("TTS_PORT", "no")
    with pytest.raises(ValueError, match=r"^TTS_PORT = 'no': "):
        settings_of()
    monkeypatch.setenv("TTS_PORT", "9000")
    monkeypatch.setenv("TTS_VOICE_ALIASES", "alloy")
    with pytest.raises(ValueError, match="alloy=makima"):
        settings_of()


@pytest.mark.parametrize("shown", [False, True])
async def test_logs_have_sessions_and_no_text_unless_asked(voices: Path, shown: bool) -> None:
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = Keep()
    handler.setFormatter(logs.JsonLines())
    handler.addFilter(logs._Context())
    logging.getLogger("server").addHandler(handler)
    logging.getLogger("server").setLevel(logging.INFO)
    try:
        async with running(voices, FakeEngine(), log_texts=shown) as server, connect(server.url) as connection:
            session = (await hear(connection))["sessionId"]
            await say(connection, type="speak", text="A private matter.")
            await utterance(connection)
    finally:
        logging.getLogger("server").removeHandler(handler)
        logging.getLogger("server").setLevel(logging.NOTSET)
    [line] = [json.loads(line) for line in lines if "utterance complete" in line]
    assert (line["session"], line["characters"], line["audio_ms"], line["finish_reason"]) == (session, 17, 240, "eos")
    assert ("A private matter." in "".join(lines)) is shown


def test_text_lines_end_with_their_fields() -> None:
    record = logging.makeLogRecord({"msg": "said %d", "args": (1,), "fields": {"a": 2}, "session": "s", "name": "server"})
    assert logs.TextLines().format(record).endswith("server [s] said 1 a=2")


@pytest.fixture
def process(voices: Path) -> "Iterator[subprocess.Popen[str]]":
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TTS_")}
    made = subprocess.Popen(
        [sys.executable, "-m", "tests.serve_fake", str(port), str(voices), "0.5"],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    made.port = port
    with made:
        try:
            ready(made)
            yield made
        finally:
            made.kill()


def ready(process: "subprocess.Popen[str]") -> None:
    """Return when it is."""
    ends = time.monotonic() + 5 * LIMIT
    while time.monotonic() < ends:
        assert process.poll() is None, process.stderr.read()
        try:
            if httpx.get(f"http://127.0.0.1:{process.port}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    pytest.fail("the server was not ready in time")


@pytest.fixture
def hypercorn(voices: Path) -> "Iterator[subprocess.Popen[str]]":
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TTS_")}
    environment |= {"TTS_VOICES_DIR": str(voices), "TTS_LOAD": "lazy"}
    command = [sys.executable, "-m", "hypercorn", "server:create_app()", "--bind", f"127.0.0.1:{port}"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as made:
        made.port = port
        try:
            ready(made)
            yield made
        finally:
            made.kill()


async def test_hypercorns_own_command_line_serves(hypercorn: "subprocess.Popen[str]") -> None:
    async with client(f"ws://127.0.0.1:{hypercorn.port}/api/v1/speak") as connection:
        await say(connection, type="start")
        assert (await hear(connection))["type"] == "started"
    hypercorn.terminate()
    assert await asyncio.to_thread(hypercorn.wait, LIMIT) == 0


async def test_sigterm_in_mid_utterance(process: "subprocess.Popen[str]") -> None:
    """Speech under way is finished, everybody is told, and the process ends with 0."""
    url = f"ws://127.0.0.1:{process.port}/api/v1/speak"
    async with asyncio.timeout(LIMIT):
        busy, idle = await connect(url), await connect(url)
        for connection in (busy, idle):
            assert (await hear(connection))["type"] == "ready"
        await say(busy, type="speak", text="Hello.")
        await audio(busy)
        process.send_signal(signal.SIGTERM)
        assert await hear(idle) == {"type": "stopped", "reason": "server_shutdown"}
        assert await closed(idle) == 1012
        heard, complete = await utterance(busy)
        assert (len(heard), complete["type"]) == (2 * 2 * 1920, "complete")
        assert (await hear(busy))["reason"] == "server_shutdown"
        assert await closed(busy) == 1012
    assert await asyncio.to_thread(process.wait, LIMIT) == 0
    lines = [json.loads(line) for line in process.stderr.read().splitlines()]
    assert any(line["message"].startswith("going down: 2 sessions; what is spoken may end within ") for line in lines)


def test_the_image_gets_all_that_the_wheel_is_built_from() -> None:
    root = Path(__file__).parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {
        "pyproject.toml",
        project["project"]["readme"],
        "LICENSE",
        "hatch_build.py",  # Hatch's name for the build's own hook
        *wheel["packages"],
        *(path.split("/")[0] for path in wheel["force-include"]),
    }
    copied = [
        line.split()[1:-1]
        for line in (root / "deploy" / "Dockerfile").read_text("utf-8").splitlines()
        if line.startswith("COPY ") and "--from=" not in line
    ]
    assert {path for paths in copied for path in paths} == needed
