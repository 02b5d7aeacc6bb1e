"""Ray Serve (deploy/ray): how many replicas there should be; and, on a local cluster, what the end of a replica means for sessions."""

import asyncio
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage

from server.settings import Settings
from tests.serving import make_voices
from tests.timed_device import SAMPLES
from tests.timed_engine import frames_of, mark

ROOT = Path(__file__).parent.parent
LIMIT = 120.0  # seconds; for hangs
SESSIONS, SPEAK_AT_ONCE = 200, 12
SHORT, LONG = "Yes.", " ".join(["word"] * 25)  # 0.3 and 8 s
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra ray is not installed")
imports_ray = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own classes


class Cluster:
    """A process of tests/serve_ray.py, with two replicas."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.port = taken.getsockname()[1]
        chosen = {"TTS_AUTH": "off", "TTS_MAX_SESSIONS": "300", "TTS_LIMIT_SESSIONS": "1000", "TTS_LIMIT_CONNECTS": "10000"}
        chosen |= {"TTS_LIMIT_UTTERANCES": "100000", "TTS_LIMIT_CHARACTERS": "10000000", "TTS_SEND_TIMEOUT": "60"}
        self.said = folder / "said"
        command = [sys.executable, "-m", "tests.serve_ray", str(self.port), str(make_voices(folder / "voices")), "2"]
        with self.said.open("wb") as file:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | chosen, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT
            )

    def replicas(self) -> list[psutil.Process]:
        """Processes of replicas, those that start or stop included."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::ServeReplica"):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found

    def wait_until_ready(self) -> None:
        end = time.monotonic() + LIMIT
        while time.monotonic() < end and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=LIMIT):
                    return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)  # between two questions
        pytest.fail(f"no replica was ready: {self.said.read_text('utf-8', 'replace')[-2000:]}")

    def scale(self, replicas: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"scale {replicas}\n".encode())
        self.process.stdin.flush()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(LIMIT)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("ray"))
    try:
        made.wait_until_ready()
        yield made
    finally:
        made.close()


class Session:
    """A client that knows by which replica it is served: what it hears says so."""

    def __init__(self, cluster: Cluster) -> None:
        self._url = f"ws://127.0.0.1:{cluster.port}/api/v1/speak"
        self.connection: ClientConnection | None = None
        self.mark = 0
        self.last: dict[str, Any] = {}  # the message that was heard last

    async def connect(self) -> None:
        """Connect, and hear something. Tries until that has worked: a replica that has just died may still be asked."""
        while True:
            try:
                self.connection = await connect(self._url, compression=None, open_timeout=LIMIT, ping_timeout=LIMIT)
                await self.message()
                await self.say(type="start", language="English")
                await self.message()
                self.mark = 0
                await self.speak(SHORT)
                return
            except (ConnectionClosed, InvalidHandshake, InvalidMessage, OSError):
                await asyncio.sleep(0.1)  # between two tries; the test's own limit ends them

    async def say(self, **message: Any) -> None:
        assert self.connection is not None
        await self.connection.send(json.dumps(message))

    async def message(self) -> dict[str, Any]:
        assert self.connection is not None
        data = await self.connection.recv()
        assert isinstance(data, str), "audio where a message was expected"
        self.last = json.loads(data)
        return self.last

    async def speak(self, text: str) -> None:
        """Hear all of an utterance, from one replica. Raises ConnectionClosed."""
        assert self.connection is not None
        await self.say(type="speak", text=text)
        heard: Counter[int] = Counter()
        while isinstance(data := await self.connection.recv(), bytes):
            heard.update(np.frombuffer(data, "<i2").tolist())
        self.last = json.loads(data)
        assert self.last["type"] == "complete", self.last
        assert self.mark in (0, *heard)
        (self.mark,) = heard
        assert heard.total() == frames_of(text) * SAMPLES

    async def closed(self) -> int | None:
        """Listen to the end; the close code."""
        assert self.connection is not None
        try:
            while True:
                if isinstance(data := await self.connection.recv(), str):
                    self.last = json.loads(data)
        except ConnectionClosed:
            return self.connection.close_code

    async def leave(self) -> None:
        if self.connection is not None:
            await self.connection.close()


async def opened(cluster: Cluster, count: int) -> list[Session]:
    """Sessions that have heard something, a dozen at a time."""
    room, sessions = asyncio.Semaphore(SPEAK_AT_ONCE), [Session(cluster) for _ in range(count)]

    async def begin(session: Session) -> None:
        async with room:
            await session.connect()

    await asyncio.gather(*map(begin, sessions))
    return sessions


async def speak_all(sessions: list[Session], text: str) -> None:
    """Each hears a text, a dozen at a time."""
    room = asyncio.Semaphore(SPEAK_AT_ONCE)

    async def speak(session: Session) -> None:
        async with room:
            await session.speak(text)

    await asyncio.gather(*map(speak, sessions))


@pytest.mark.slow
@needs_ray
async def test_who_is_served_by_a_replica_that_is_killed_is_told_and_goes_on_elsewhere_and_nobody_else_notices(cluster: Cluster) -> None:
    async with asyncio.timeout(LIMIT):
        sessions = await opened(cluster, SESSIONS)
        served = Counter(session.mark for session in sessions)
        processes = {mark(process.pid): process for process in cluster.replicas()}
        assert set(served) == set(processes) and len(served) == 2
        victim = sessions[0].mark
        lost, others = ([one for one in sessions if (one.mark == victim) is dies] for dies in (True, False))
        speaking = asyncio.gather(*(one.speak(LONG) for one in others[:6]))
        cut = [asyncio.create_task(one.speak(LONG)) for one in lost[:6]]
        told = [asyncio.create_task(one.closed()) for one in lost[6:]]
        await asyncio.wait({*cut, *told}, timeout=1.0)
        assert not any(task.done() for task in (*cut, *told))
        processes[victim].send_signal(signal.SIGKILL)
        codes = await asyncio.gather(*told)
        assert 1000 not in codes
        assert all(isinstance(error, ConnectionClosed) for error in await asyncio.gather(*cut, return_exceptions=True))
        again = [Session(cluster) for _ in lost[:40]]
        await asyncio.gather(*(one.connect() for one in again))
        assert victim not in {one.mark for one in again}
        await speaking
        await speak_all(others, SHORT)
        assert {one.mark for one in others} == set(served) - {victim}
        await asyncio.gather(*(one.leave() for one in (*again, *others)))


@pytest.mark.slow
@needs_ray
async def test_a_replica_that_is_not_needed_any_more_finishes_what_it_speaks_and_says_goodbye(cluster: Cluster) -> None:
    async with asyncio.timeout(LIMIT):
        sessions: list[Session] = []
        while len({one.mark for one in sessions}) < 2:  # until there are two replicas again
            await asyncio.gather(*(one.leave() for one in sessions))
            sessions = await opened(cluster, 8)
        speaking = [asyncio.create_task(one.speak(LONG)) for one in sessions]
        cluster.scale(1)
        await asyncio.gather(*speaking)
        ends = {asyncio.create_task(one.closed()): one for one in sessions}
        closed: set[asyncio.Task[int | None]] = set()
        while not closed or {ends[task].mark for task in ends.keys() - closed} & {ends[task].mark for task in closed}:
            done, _ = await asyncio.wait(ends.keys() - closed, return_when=asyncio.FIRST_COMPLETED)
            closed |= done
        assert {task.result() for task in closed} == {1012}
        assert {ends[task].last["type"] for task in closed} == {"stopped"}
        stayed = [one for task, one in ends.items() if task not in closed]
        for task in ends.keys() - closed:
            task.cancel()
        assert stayed
        await speak_all(stayed, SHORT)
        await asyncio.gather(*(one.leave() for one in stayed))


@needs_ray
@imports_ray
def test_the_config_file_names_settings_that_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import yaml
    from ray.serve.schema import ServeDeploySchema

    from deploy.ray import app

    read = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / "deploy" / "ray" / "serve.yaml").read_text("utf-8")))
    (one,) = read.applications
    assert one.import_path == f"{app.__name__}:{app.app.__name__}"
    variables = one.runtime_env["env_vars"]
    assert {name.removeprefix("TTS_").lower() for name in variables if name.startswith("TTS_")} <= set(Settings.model_fields)
    (tmp_path / "keys").touch()
    for name, value in (variables | {"TTS_API_KEYS": str(tmp_path / "keys")}).items():
        monkeypatch.setenv(name, value)
    assert app.app(app.Arguments.model_validate(one.args)) is not None


@needs_ray
@imports_ray
def test_without_a_key_nothing_is_deployed_because_serve_may_listen_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    from deploy.ray import app

    with pytest.raises(ValueError, match="TTS_AUTH=off"):
        app.app(app.Arguments())
    monkeypatch.setenv("TTS_AUTH", "off")
    assert app.app(app.Arguments()) is not None


def look(taken: list[int], slots: int = 10, sessions: float = 0, target: int = 2) -> Any:
    """What Serve shows of replicas with so many slots taken."""
    reported = {"slots": dict(enumerate([slots] * len(taken))), "taken": dict(enumerate(taken))}
    config = SimpleNamespace(target_ongoing_requests=80)
    return SimpleNamespace(aggregated_metrics=reported, total_num_requests=sessions, target_num_replicas=target, config=config)


@needs_ray
@imports_ray
@pytest.mark.parametrize(
    ("seen", "wanted"),
    [
        (look([0]), 0),  # Serve keeps min_replicas
        (look([7]), 1),
        (look([8]), 2),
        (look([10, 10]), 3),
        (look([3, 3, 0]), 1),
        (look([25]), 4),  # of these 15 wait
        (look([1, 1], sessions=161), 3),  # open and silent: they need memory, not slots
        (look([], target=2), 2),  # nobody has said anything yet
        (look([0], slots=0, target=3), 3),  # the model is still being loaded
    ],
)
def test_replicas_follow_the_slots_that_are_taken(seen: Any, wanted: int) -> None:
    from deploy.ray.autoscaling import slots_in_use

    assert slots_in_use(seen) == (wanted, {})
