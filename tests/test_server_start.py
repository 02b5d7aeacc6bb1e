"""From ``python -m server`` to the line that says ready, and to the end by a signal, in processes of their own; what its help says."""

import asyncio
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from qwen3_jax import cli
from server import health, reference
from server.app import create_app
from server.environment import odd_variables
from server.ops import signals
from server.ops.address import WILDCARDS, is_loopback, listen, url_of
from server.settings import Settings
from server.transport import serve
from tests.fake_engine import LIMIT, FakeEngine
from tests.serving import closed, connect, hear, running, say, until

ROOT = Path(__file__).parent.parent
BLOCKED = """
import threading
from server import run
from server.engines import qwen3

def load(settings):
    print("loading", flush=True)
    threading.Event().wait()  # as a native compile: nothing can end it

qwen3.load = load
run.main()
"""
HUNG = """
import threading
from server.__main__ import serve
from server.engines import qwen3
from server.voices.store import VoiceStore

hung, look = threading.Event(), VoiceStore.refresh

def refresh(store, *, now=False):  # as a bucket, or a file system, that does not answer any more
    if threading.current_thread() is threading.main_thread():
        return look(store, now=now)
    print("hung", flush=True)
    hung.set()
    threading.Event().wait()

def load(settings):
    hung.wait()
    raise ValueError("no such model")

VoiceStore.refresh, qwen3.load = refresh, load
serve()
"""
SPEAKING = """
import asyncio
from server import app, run
from tests.fake_engine import FakeEngine

class Held(FakeEngine):  # one frame, and then none for ever
    def load(self):
        self.gate = self.gate or asyncio.Semaphore(1)
        loaded = super().load()
        print("serving", flush=True)
        return loaded

run.create_app = lambda settings: app.create_app(settings, Held())
run.main()
"""
STARTING = """
import signal
from server.ops import signals

signals.while_starting()
print("started", flush=True)
while True:
    signal.pause()
"""


def environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("TTS_")} | more


def hangup(how: str) -> str:
    """The first line of a program: SIGHUP as under nohup (IGN), or as usual (DFL), and SIGINT as usual, however the tests were started."""
    return f"import signal; signal.signal(signal.SIGHUP, signal.SIG_{how}); signal.signal(signal.SIGINT, signal.SIG_DFL)\n"


def begin(program: str, **more: str) -> "subprocess.Popen[str]":
    command, given = [sys.executable, "-c", hangup("DFL") + program], environment(**more)
    return subprocess.Popen(command, cwd=ROOT, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def ready(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    """The fields of the lines that say so."""
    return [
        record.fields
        for record in caplog.records
        if record.getMessage() in ("ready", "listening; the model is loaded when a client speaks")
    ]


async def test_one_line_says_ready_and_where(voices: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "server")
    engine, stop = FakeEngine(hold_loading=True), asyncio.Event()
    settings = Settings(voices_dir=voices, shipped_voices=False, port=0, model_id="fake")
    serving = asyncio.create_task(serve(create_app(settings, engine), settings, stop=stop))
    await until(lambda: engine.loaded is not None)
    assert ready(caplog) == []
    engine.load().set_result(None)
    await until(lambda: ready(caplog) != [])
    [fields] = ready(caplog)
    url = str(fields.pop("url"))
    assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d*", url)
    assert float(str(fields.pop("seconds"))) > 0
    assert fields == {"on_every_address": None, "model": "fake", "voices": 2, "default_voice": "makima", "slots": 10}
    async with httpx.AsyncClient(timeout=LIMIT) as http:
        assert (await http.get(f"{url}/readyz")).status_code == 200
    stop.set()
    await asyncio.wait_for(serving, LIMIT)


async def test_a_model_that_loads_late_is_told_of_twice(voices: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "server")
    async with running(voices, FakeEngine(), wait=False, load="lazy") as server:
        await until(lambda: len(ready(caplog)) == 1)
        async with connect(server.url) as connection:
            await hear(connection)
            await say(connection, type="speak", text="Hello.")
            await until(lambda: len(ready(caplog)) == 2)
    first, second = ready(caplog)
    assert first["url"] == second["url"] and "slots" not in first


async def test_a_model_that_cannot_be_loaded_is_never_ready(voices: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "server")
    with pytest.raises(ValueError, match="no such model"):
        async with running(voices, FakeEngine(loading_error=ValueError("no such model"))):
            pass
    assert ready(caplog) == []


@pytest.mark.parametrize(
    ("name", "url"),
    [
        (("127.0.0.1", 80), "http://127.0.0.1:80"),
        (("0.0.0.0", 80), "http://127.0.0.1:80"),
        (("::1", 80, 0, 0), "http://[::1]:80"),
        (("::", 80, 0, 0), "http://[::1]:80"),
    ],
)
def test_addresses_can_be_clicked(name: tuple[str, int], url: str) -> None:
    assert url_of(name) == url


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.0.0.2", True), ("[::1]", True), ("::1", True), ("0:0:0:0:0:0:0:1", True), ("::ffff:127.0.0.1", True),
        ("localhost", True), ("LocalHost", True), ("0.0.0.0", False), ("::", False), ("[::]", False), ("10.0.0.1", False),
        ("128.0.0.1", False), ("localhost.example", False),
    ],
)  # fmt: skip
def test_loopback_needs_no_key(host: str, loopback: bool) -> None:
    if loopback:
        assert is_loopback(Settings(host=host).host)
    else:
        with pytest.raises(ValueError, match="can be reached from other machines and there is no key"):
            Settings(host=host)
        assert not is_loopback(Settings(host=host, auth="off").host)


@pytest.mark.parametrize("host", ["127.0.0.1:9000", "[::1]:9000", "http://localhost", "1:2"])
def test_a_host_is_no_address_with_a_port(host: str) -> None:
    with pytest.raises(ValueError, match="the port is TTS_PORT's"):
        Settings(host=host)


def test_an_address_that_cannot_be_had_is_named_with_its_setting() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(OSError, match=r"^port \d+ of 127.0.0.1 is in use: .* TTS_PORT"):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(OSError, match="TTS_HOST = '192.0.2.1': this machine has no such address"):  # TEST-NET-1 is nobody's
        listen("192.0.2.1", 0)
    with pytest.raises(OSError, match="TTS_HOST = 'no.such.host.invalid': no such host"):
        listen("no.such.host.invalid", 0)


def test_a_port_in_use_ends_the_start_before_the_model_is_loaded(voices: Path) -> None:
    """And a start tells what it was given, in JSON lines but for the last one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        given = environment(TTS_PORT=str(port), TTS_VOICES_DIR=str(voices), TTS_SLOT="3", TTS_JWT_SECRET="hidden", TTS_LOG_FORMAT="json")
        command = [sys.executable, "-m", "server"]
        ended = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=LIMIT)
    *lines, last = ended.stderr.splitlines()
    assert ended.returncode == 1 and last.startswith("error: ") and f"port {port} of 127.0.0.1 is in use" in last
    messages = [json.loads(line)["message"] for line in lines]
    assert messages == [
        "TTS_SLOT=3: no such setting; did you mean TTS_SLOTS?",
        f"settings: TTS_VOICES_DIR={voices} TTS_PORT={port} TTS_JWT_SECRET=********** TTS_LOG_FORMAT=json",
    ]


def test_variables_that_are_no_settings() -> None:
    ours = {f"TTS_{name.upper()}": "1" for name in Settings.model_fields} | {
        "tts_port": "1",
        "SUPABASE_URL": "x",
        "PATH": "x",
        "TTS_EMPTY": "",
    }
    assert list(odd_variables(ours)) == []
    assert list(odd_variables({"TTS_MAX_CHUNKS": "9", "tts_max_inbound": "64", "TTS_MAX_UNAUTHORIZED": "1", "TTS_START_TIMEOUT": "5"})) == [
        "TTS_MAX_CHUNKS=9: no setting any more; it is TTS_MAX_BUFFER_MS now, in milliseconds; unset it",
        "TTS_MAX_UNAUTHORIZED: no setting any more; two fifths of TTS_MAX_SESSIONS, at least 40, wait for a token; unset it",
        "TTS_START_TIMEOUT=5: no setting any more; start or speak has to come within 60 s; unset it",
        "tts_max_inbound=64: no setting any more; 32 messages wait at a socket; unset it",
    ]
    assert list(odd_variables({"TTS_API_KEY": "a secret", "TTS_ZZ": "1", "tts_slot": "x" * 99 + "\n"})) == [
        "TTS_API_KEY: no such setting; did you mean TTS_API_KEYS?",
        "TTS_ZZ=1: no such setting; python -m server --help lists all",
        f"tts_slot={'x' * 80}... (100 characters): no such setting; did you mean TTS_SLOTS?",
    ]


def test_a_kubernetes_service_called_tts(monkeypatch: pytest.MonkeyPatch) -> None:
    links = {"TTS_PORT": "tcp://10.0.0.1:8000", "TTS_SERVICE_HOST": "10.0.0.1", "TTS_SERVICE_PORT": "8000", "TTS_SERVICE_PORT_HTTP": "8000"}
    links |= {f"TTS_PORT_8000_TCP{name}": "tcp" for name in ("", "_ADDR", "_PORT", "_PROTO")}
    links |= {"TTS_API_PORT": "udp://10.0.0.2:53", "TTS_API_SERVICE_HOST": "10.0.0.2"}
    [line] = odd_variables(links)
    assert "Kubernetes" in line
    for name, value in links.items():
        monkeypatch.setenv(name, value)
    assert Settings().port == 8000
    monkeypatch.setenv("TTS_PORT", "http://10.0.0.1")
    with pytest.raises(ValueError, match="integer"):
        Settings()


@pytest.mark.parametrize(
    ("chosen", "asked"),
    [
        ({}, ("127.0.0.1", 8000)),
        ({"TTS_PORT": "9000", "TTS_HOST": "0.0.0.0"}, ("127.0.0.1", 9000)),
        ({"TTS_PORT": "", "TTS_HOST": "::"}, ("::1", 8000)),
        ({"tts_port": "9001", "TTS_HOST": "[::1]"}, ("::1", 9001)),
        ({"TTS_PORT": "tcp://10.0.0.1:8000", "TTS_HOST": "127.0.0.2"}, ("127.0.0.2", 8000)),
    ],
)
def test_the_health_check_asks_where_the_server_listens(
    chosen: dict[str, str], asked: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    settings = Settings(auth="off")
    assert health.place(chosen) == asked == (WILDCARDS.get(settings.host, settings.host), settings.port)


async def test_the_health_check_of_a_container(voices: Path) -> None:
    """A process, without JAX, and not by the proxy that the environment names."""

    async def check(port: str, **more: str) -> tuple[int, str]:
        command = (sys.executable, "-X", "importtime", "-m", "server", "health")
        given = environment() | {"TTS_PORT": port, "http_proxy": "http://127.0.0.1:1", **more}
        made = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=given, stderr=asyncio.subprocess.PIPE)
        _, said = await asyncio.wait_for(made.communicate(), LIMIT)
        assert made.returncode is not None and not re.search(r"\b(jax|numpy|pydantic)\b", said.decode())
        return made.returncode, said.decode().splitlines()[-1]

    async with running(voices, FakeEngine, wait=False, allowed_hosts=("tts.example",)) as server:
        assert (await check(str(server.port)))[0] == 0
    status, line = await check(str(server.port))
    assert status == 1 and line.startswith(f"error: http://127.0.0.1:{server.port}/healthz does not answer: ")
    assert await check("0") == (1, "error: TTS_PORT = 0: the health check needs a port that is known; set it")


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"TTS_PORT": "http"}, "TTS_PORT = 'http': must be a whole number from 0 to 65535"),
        ({"TTS_PORT": "-1"}, "TTS_PORT = '-1': must be a whole number from 0 to 65535"),
        ({"TTS_PORT": "65536"}, "TTS_PORT = '65536': must be a whole number from 0 to 65535"),
        ({"TTS_HOST": "localhost:8000"}, "TTS_HOST = 'localhost:8000': must be a name, an IPv4 address"),
    ],
)
def test_the_health_check_names_the_setting_that_is_wrong(chosen: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        health.place(chosen)


def test_the_settings_are_described_once() -> None:
    assert (ROOT / "docs" / "settings.md").read_text("utf-8") == reference.markdown(), "python -m server settings > docs/settings.md"
    assert all(field.description for field in Settings.model_fields.values())
    entries = [entry for _, group in reference.groups() for entry in group]
    assert len(entries) == len(Settings.model_fields)
    assert {name for entry in entries for name in entry.names if name.startswith("TTS_")} == {
        f"TTS_{name.upper()}" for name in Settings.model_fields
    }
    assert [title for title, _ in reference.groups()] == list(reference.GROUPS.values())


@pytest.mark.parametrize("command", ["--help", "settings"])
def test_a_reader_that_has_seen_enough_is_no_error(command: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "server", command],
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as made:  # fmt: skip
        made.stdout.close()
        assert (made.stderr.read(), made.wait(LIMIT)) == ("", 0)


def test_help() -> None:
    command = [sys.executable, "-m", "server", "--help"]
    told = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=LIMIT, check=True).stdout
    for name in Settings.model_fields:
        assert f"TTS_{name.upper()}=" in told or f"TTS_{name.upper()} or " in told, name
    assert "TTS_PORT=8000\n      The TCP port" in told
    assert "python -m server --help" in " ".join(CliRunner().invoke(cli.app, ["serve", "--help"]).stdout.split())


async def test_a_signal_ends_a_server_that_loads(voices: Path) -> None:
    """The model is never loaded, and its thread never ends: the clients are told, and the status is 0, however often the signal comes."""

    async def one(number: signal.Signals) -> str:
        port = free_port()
        with begin(BLOCKED, TTS_PORT=str(port), TTS_VOICES_DIR=str(voices)) as process:
            try:
                assert process.stdout is not None and process.stderr is not None
                assert await asyncio.to_thread(process.stdout.readline) == "loading\n", process.stderr.read()
                async with connect(f"ws://127.0.0.1:{port}/api/v1/speak") as connection:
                    assert (await hear(connection))["type"] == "ready"
                    process.send_signal(number)
                    assert await hear(connection) == {"type": "stopped", "reason": "server_shutdown"}
                    assert await closed(connection) == 1012
                async with asyncio.timeout(LIMIT):
                    while process.poll() is None:
                        process.send_signal(signal.SIGTERM)
                        await asyncio.sleep(0.005)  # so that one comes in every part of the end
                assert process.returncode == 0, number
                return process.stderr.read()
            finally:
                process.kill()

    for said in await asyncio.gather(*map(one, signals.ENDING)):
        assert "leaving without it" in said and "Traceback" not in said


@pytest.mark.parametrize(("when", "status"), [("lazy", 0), ("start", 1)])
def test_a_thread_that_never_ends_does_not_hold_the_end_up(when: str, status: int, voices: Path) -> None:
    """Neither that of a signal nor that of an error, which is told."""
    with begin(HUNG, TTS_PORT="0", TTS_VOICES_DIR=str(voices), TTS_LOAD=when) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            assert process.stdout.readline() == "hung\n", process.stderr.read()
            if when == "lazy":
                process.terminate()
            assert process.wait(LIMIT) == status
            last = process.stderr.read().splitlines()[-1]
            assert "leaving without it" in last if status == 0 else last == "error: no such model"
        finally:
            process.kill()


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
async def test_ctrl_c_while_going_down_ends_at_once(voices: Path, first: signal.Signals) -> None:
    """A text that is spoken may take all of the grace; after another Ctrl-C nobody waits for it."""
    port = free_port()
    with begin(SPEAKING, TTS_PORT=str(port), TTS_VOICES_DIR=str(voices), TTS_GRACE="3600") as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            assert await asyncio.to_thread(process.stdout.readline) == "serving\n", process.stderr.read()
            async with connect(f"ws://127.0.0.1:{port}/api/v1/speak") as connection:
                assert (await hear(connection))["type"] == "ready"
                await say(connection, type="speak", text="Hello.")
                assert isinstance(await asyncio.wait_for(connection.recv(), LIMIT), bytes)
                process.send_signal(first)
                while "going down" not in (line := await asyncio.to_thread(process.stderr.readline)):
                    assert line
                assert "Ctrl-C ends the process at once" in line and process.poll() is None
                process.send_signal(signal.SIGTERM)  # supervisors do; it is no hurry
                process.send_signal(signal.SIGINT)
                assert await asyncio.to_thread(process.wait, LIMIT) == signals.AT_ONCE == 130
            said = process.stderr.read()
            assert "Ctrl-C while going down: ending at once" in said and "Traceback" not in said
        finally:
            process.kill()


def test_a_signal_ends_a_server_that_starts_and_nohup_counts() -> None:
    for ignored in (False, True):
        command = [sys.executable, "-c", hangup("IGN" if ignored else "DFL") + STARTING]
        with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"started\n"
            process.send_signal(signal.SIGHUP)
            if ignored:
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.3)
                process.terminate()
            assert process.wait(LIMIT) == 0
