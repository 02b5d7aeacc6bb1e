"""What Ray Serve costs beside plain hypercorn, and what the end of a replica means (extra ``ray``); and both beside benchmarks/capacity.py.

usage: python -m benchmarks.ray_serve [--sessions 60] [--replicas 0,1,2] [--seconds 30] [--think 8] [--step 20] [--kill 200] [--json OUT]

The same server, with an engine that takes a device's time and computes nothing (tests/timed_engine.py), is asked by the same sessions:
alone under hypercorn (0 replicas), and as so many replicas on Ray Serve. A session hears an utterance to its end, thinks for an
exponential time, and asks for the next one; utterances are as long as those of benchmarks/capacity.py, in whole words.

    first audio  from ``speak`` to the first frame, ms
    cores        processor time of the processes that have the sockets (proxy) and that speak (replica), over the seconds of audio that they
                 sent: what one utterance takes of a core while it is spoken, with what those processes take anyhow
    others       processor time of Ray's other processes over the time that has passed: cores
    simulated    first audio of so many sessions and replicas, by benchmarks/capacity.py, whose host takes no time

``--kill N``: N sessions, one replica is killed (SIGKILL): when its sessions know, when they speak again, and what the others hear.
Clients and server share the machine.
"""

import argparse
import asyncio
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage

from benchmarks.capacity import LONGEST, MEDIAN, SHORTEST, SIGMA, FirstAudio, Replica, Talk, cluster, placed
from qwen3_jax.engine.options import FRAME_SECONDS
from tests.serve_ray import times_of
from tests.serving import make_voices
from tests.timed_engine import FRAMES_A_WORD, mark

READY_SECONDS, WAIT = 300.0, 120.0
BYTES_A_SECOND = 48_000
SETTINGS = {"TTS_AUTH": "off", "TTS_MAX_SESSIONS": "1000", "TTS_MAX_CONNECTIONS": "4000"} | {
    f"TTS_LIMIT_{what}": "100000000" for what in ("SESSIONS", "UTTERANCES", "CHARACTERS", "CONNECTS")
}


@dataclass
class CallerFigures:
    """What all sessions of an arm heard; seconds."""

    first: list[float] = field(default_factory=list)
    audio: float = 0.0
    gaps: int = 0


@contextmanager
def server(replicas: int, step: float) -> Iterator[tuple[int, psutil.Process]]:
    """A server that is ready: its port and process. 0 replicas: without Ray."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "said").open("wb") as said:
        voices = make_voices(Path(folder) / "voices")
        command = [sys.executable, "-m", "tests.serve_ray", str(port), str(voices), str(replicas), str(step)]
        process = subprocess.Popen(command, env=os.environ | SETTINGS, stdin=subprocess.PIPE, stdout=said, stderr=said)
        try:
            _wait(port, process, Path(folder) / "said")
            yield port, psutil.Process(process.pid)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            if not replicas:
                process.terminate()
            process.wait(WAIT)


def _wait(port: int, process: "subprocess.Popen[bytes]", said: Path) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)  # between two questions; the deadline is above
    raise RuntimeError(f"the server was not ready: {said.read_text('utf-8', 'replace')[-2000:]}")


def processor_seconds(server: psutil.Process) -> Counter[str]:
    """By kind of process: proxy, replica, rest; of a server without Ray all is replica."""
    spent: Counter[str] = Counter()
    children = server.children(recursive=True)
    for process in (server, *children):
        try:
            name, times = " ".join(process.cmdline()[:1]), process.cpu_times()
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        kind = "proxy" if "ProxyActor" in name else "replica" if "ServeReplica" in name or not children else "rest"
        spent[kind] += times.user + times.system
    return spent


class Caller:
    """One client."""

    def __init__(self, port: int, seed: int) -> None:
        self.url, self.draw = f"ws://127.0.0.1:{port}/api/v1/speak", np.random.default_rng(seed)
        self.mark = 0  # of the process that it hears

    async def connect(self) -> None:
        self.connection: ClientConnection = await connect(self.url, compression=None, open_timeout=WAIT, ping_timeout=WAIT)
        await self.connection.recv()  # ready
        await self.connection.send(json.dumps({"type": "start", "language": "English"}))
        await self.connection.recv()  # started

    async def converse(self, talk: Talk, end: float, figures: CallerFigures) -> None:
        """Until ``end``."""
        await asyncio.sleep(float(self.draw.uniform(0, talk.think + talk.spoken)))
        while time.monotonic() < end:
            seconds = min(LONGEST, max(SHORTEST, self.draw.lognormal(math.log(MEDIAN), SIGMA)))
            await self.speak(max(1, round(seconds / FRAME_SECONDS / FRAMES_A_WORD)), figures)
            await asyncio.sleep(min(self.draw.exponential(talk.think), max(0.0, end - time.monotonic())))
        await self.connection.close()

    async def speak(self, words: int, figures: CallerFigures) -> None:
        """Ask, and hear it to its end. Raises ConnectionClosed."""
        asked = time.monotonic()
        await self.connection.send(json.dumps({"type": "speak", "text": " ".join(["word"] * words)}))
        until, gap = 0.0, 0.0
        while isinstance(data := await asyncio.wait_for(self.connection.recv(), WAIT), bytes):
            now, seconds = time.monotonic(), len(data) / BYTES_A_SECOND
            if not until:
                figures.first.append(now - asked)
                self.mark = int.from_bytes(data[:2], "little", signed=True)
                until = now
            gap += max(0.0, now - until)
            until = max(until, now) + seconds
            figures.audio += seconds
        if (message := json.loads(data))["type"] != "complete":
            raise RuntimeError(f"an utterance ended with {message}")
        figures.gaps += gap > 0.02
        await asyncio.sleep(max(0.0, until - time.monotonic()))


async def load(port: int, process: psutil.Process, sessions: int, talk: Talk) -> dict[str, float]:
    """One arm's figures."""
    figures, clients = CallerFigures(), [Caller(port, number) for number in range(sessions)]
    for one in clients:
        await one.connect()
    before, begun = processor_seconds(process), time.monotonic()
    await asyncio.gather(*(one.converse(talk, begun + talk.seconds, figures) for one in clients))
    spent, taken = processor_seconds(process), time.monotonic() - begun
    proxy, replica, others = (spent[kind] - before[kind] for kind in ("proxy", "replica", "rest"))
    cores = {"proxy": proxy / figures.audio, "replica": replica / figures.audio, "others": others / taken, "spoken": figures.audio / taken}
    return first_audio(figures) | cores


def first_audio(heard: CallerFigures | FirstAudio) -> dict[str, float]:
    """In milliseconds, and utterances with a gap."""
    p50, p95 = (1000 * float(np.quantile(heard.first, share)) for share in (0.5, 0.95))
    return {"first_p50_ms": p50, "first_p95_ms": p95, "utterances": len(heard.first), "gaps": heard.gaps}


async def kill(port: int, process: psutil.Process, sessions: int) -> dict[str, float]:
    """One replica dies. Seconds until its sessions know, and until they have heard something again."""
    figures, clients, room = CallerFigures(), [Caller(port, number) for number in range(sessions)], asyncio.Semaphore(12)

    async def greet(one: Caller) -> None:
        async with room:
            await one.connect()
            await one.speak(1, figures)

    await asyncio.gather(*map(greet, clients))
    marks = {mark(child.pid): child for child in process.children(recursive=True)}
    victim = clients[0].mark
    lost, others = ([one for one in clients if (one.mark == victim) is dies] for dies in (True, False))
    beside, know = CallerFigures(), []
    speaking = asyncio.gather(*(one.speak(20, beside) for one in others[:8]))
    listening = [asyncio.create_task(one.connection.wait_closed()) for one in lost]
    await asyncio.sleep(1.0)  # in the middle of their speech
    killed = time.monotonic()
    for task in listening:
        task.add_done_callback(lambda _: know.append(time.monotonic() - killed))
    marks[victim].send_signal(signal.SIGKILL)
    await asyncio.gather(*listening)
    again: list[float] = []

    async def come_back(one: Caller) -> None:
        while True:
            try:
                await greet(one)
            except (ConnectionClosed, InvalidHandshake, InvalidMessage, OSError):
                await asyncio.sleep(0.05)  # as a client would
                continue
            again.append(time.monotonic() - killed)
            return

    await asyncio.gather(*map(come_back, lost))
    await speaking
    await asyncio.gather(*(one.speak(1, CallerFigures()) for one in others))
    return {
        "sessions": sessions,
        "lost": len(lost),
        "know_p50_s": float(np.quantile(know, 0.5)),
        "know_most_s": max(know),
        "first_again_s": min(again),
        "all_again_s": max(again),
        "others": len(others),
        "others_gaps": beside.gaps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=60)
    parser.add_argument("--replicas", default="0,1,2", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--think", type=float, default=8.0)
    parser.add_argument("--step", type=float, default=20.0, help="milliseconds of a frame of ten slots")
    parser.add_argument("--kill", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    talk, replica = Talk(given.think, 0.3, given.seconds), Replica(times_of(given.step / 1000), Talk(given.think, 0.3, 300.0))
    table = Table("", "first audio p50, p95", "simulated", "with a gap", "spoken at once", "cores each: proxy", "replica", "others")
    table.title = f"{given.sessions} sessions, {talk.duty:.0%} of the time they are spoken to; steps of {given.step:g} ms for ten slots"
    results: dict[str, object] = {}
    for count in given.replicas:
        name = f"Ray Serve, {count} replica{'s'[: count > 1]}" if count else "hypercorn"
        with server(count, given.step) as (port, process):
            found = asyncio.run(load(port, process, given.sessions, talk))
            if given.kill and count > 1:
                results["kill"] = asyncio.run(kill(port, process, given.kill))
        expected = first_audio(cluster(replica, placed(given.sessions, max(1, count))))
        results[name] = {"served": found, "simulated": expected}
        times = [f"{of['first_p50_ms']:.0f}, {of['first_p95_ms']:.0f} ms" for of in (found, expected)]
        shares = (f"{found[key]:.4f}" for key in ("proxy", "replica", "others"))
        table.add_row(name, *times, f"{found['gaps']:.0f} of {found['utterances']:.0f}", f"{found['spoken']:.1f}", *shares)
    console = Console(width=140)
    console.print(table)
    if "kill" in results:
        console.print(results["kill"])
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
