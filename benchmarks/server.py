"""Many clients of one server: ``python -m benchmarks.server --streams 10 [--model checkpoint] [--minutes 10] [--json OUT]``.

Each client speaks sentence after sentence over a WebSocket and listens as a player does; every fourth utterance is cancelled in its middle.
The server is a process of its own, on this machine. ``--fake`` puts the tests' engine behind it: what is measured then is the server alone.

OUT: {"streams": {"10": {ttfa_p50_ms, ttfa_p95_ms, gap_p50_ms, gap_p99_ms, underrun_ms, aggregate_x_realtime, cancel_to_silence_p99_ms,
server_cpu_percent_per_stream, rss_mb, rss_slope_mb_per_minute, utterances, errors}}}. A gap is the time between two frames of an utterance;
an underrun is silence that a listener hears inside one, who began at its first frame.
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from websockets.asyncio.client import ClientConnection, connect

SENTENCES = (
    "Good evening, and welcome to the harbour.",
    "The last ferry leaves at nine, so there is time for a walk along the water before we go.",
    "Yes.",
    "Nobody had seen the lighthouse keeper since the storm, and yet his lamp was lit every night at the same hour.",
)
READY_SECONDS, WAIT = 900.0, 120.0  # the first may compile for minutes
BYTES_A_SECOND = 48_000


@dataclass
class ClientFigures:
    """What all clients saw; seconds."""

    ttfa: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    cancels: list[float] = field(default_factory=list)
    underrun: float = 0.0
    underruns: int = 0
    audio: float = 0.0
    utterances: int = 0
    errors: list[str] = field(default_factory=list)


async def client(url: str, number: int, end: float, figures: ClientFigures) -> None:
    """One listener, until ``end``."""
    async with connect(url, compression=None) as connection:
        await connection.recv()  # ready
        await connection.send(json.dumps({"type": "start", "language": "English"}))
        await connection.recv()  # started
        turn = number
        while time.monotonic() < end:
            await speak(connection, SENTENCES[turn % len(SENTENCES)], turn % 4 == 3, figures)
            turn += 1
        await connection.send(json.dumps({"type": "stop"}))


async def speak(connection: ClientConnection, text: str, cancel: bool, figures: ClientFigures) -> None:
    """One utterance, listened to, or cancelled after its second frame."""
    begun = time.monotonic()
    await connection.send(json.dumps({"type": "speak", "text": text, "seed": 1}))
    last = heard_until = 0.0
    frames, cancelled = 0, None
    while True:
        frame = await asyncio.wait_for(connection.recv(), WAIT)
        now = time.monotonic()
        if isinstance(frame, bytes):
            frames += 1
            figures.audio += len(frame) / BYTES_A_SECOND
            if frames == 1:
                figures.ttfa.append(now - begun)
                heard_until = now
            else:
                figures.gaps.append(now - last)
                figures.underrun += max(0.0, now - heard_until)
                figures.underruns += now > heard_until
            last, heard_until = now, max(now, heard_until) + len(frame) / BYTES_A_SECOND
            if cancel and frames == 2:
                cancelled = now
                await connection.send(json.dumps({"type": "cancel"}))
            continue
        message = json.loads(frame)
        figures.utterances += 1
        if cancelled is not None and message.get("code") == "CANCELLED":
            figures.cancels.append(now - cancelled)
        elif message["type"] != "complete":
            figures.errors.append(message.get("code", message["type"]))
        if cancelled is None:
            await asyncio.sleep(max(0.0, heard_until - now))  # he hears it to its end
        elif message["type"] == "complete":
            await connection.recv()  # it was over already; the cancel is answered all the same
        return


async def watch(process: psutil.Process, end: float) -> list[tuple[float, float]]:
    """(seconds, resident MB) each second."""
    seen, begun = [], time.monotonic()
    while (now := time.monotonic()) < end:
        seen.append((now - begun, process.memory_info().rss / 1e6))
        await asyncio.sleep(1)
    return seen


async def measure(url: str, process: psutil.Process, streams: int, minutes: float) -> dict[str, float]:
    """All figures of one number of clients."""
    figures, before, begun = ClientFigures(), process.cpu_times(), time.monotonic()
    end = begun + 60 * minutes
    watching = asyncio.create_task(watch(process, end))
    async with asyncio.TaskGroup() as clients:
        for number in range(streams):
            clients.create_task(client(url, number, end, figures))
    spent, after = time.monotonic() - begun, process.cpu_times()
    memory = np.array(await watching)
    steady = memory[len(memory) // 5 :]  # what comes first fills caches
    busy = after.user + after.system - before.user - before.system
    return {
        "ttfa_p50_ms": percentile(figures.ttfa, 50),
        "ttfa_p95_ms": percentile(figures.ttfa, 95),
        "gap_p50_ms": percentile(figures.gaps, 50),
        "gap_p99_ms": percentile(figures.gaps, 99),
        "underrun_ms": round(1000 * figures.underrun, 1),
        "aggregate_x_realtime": round(figures.audio / spent, 2),
        "cancel_to_silence_p99_ms": percentile(figures.cancels, 99),
        "server_cpu_percent_per_stream": round(100 * busy / spent / streams, 2),
        "rss_mb": round(float(memory[-1, 1]), 1),
        "rss_slope_mb_per_minute": round(60 * float(np.polyfit(steady[:, 0], steady[:, 1], 1)[0]), 3),
        "utterances": figures.utterances,
        "errors": len(figures.errors),
    }


def percentile(values: list[float], which: float) -> float:
    """In milliseconds; NaN of none."""
    return round(1000 * float(np.percentile(values, which)), 1) if values else float("nan")


def start(arguments: argparse.Namespace, port: int, folder: Path) -> "subprocess.Popen[bytes]":
    """The server, ready."""
    voices = arguments.voices
    command = [sys.executable, "-m", "server"]
    if arguments.fake:
        from tests.serving import make_voices

        voices = make_voices(folder / "voices")
        command = [sys.executable, "-m", "tests.serve_fake", str(port), str(voices), "0", "40"]
    options = {"TTS_LIMIT_SESSIONS": "1000", "TTS_MAX_SESSIONS": "1000"}
    if voices is not None:
        options["TTS_VOICES_DIR"] = str(voices)
    if arguments.model:
        options["TTS_MODEL_ID"] = arguments.model
    return launch(command, port, options, folder / "stderr")


def launch(command: list[str], port: int, options: dict[str, str], said: Path) -> "subprocess.Popen[bytes]":
    """A server that is ready, without limits on what a principal asks for in a minute.

    Args:
        options: more variables of its environment.
        said: the file for its log.

    Raises:
        RuntimeError: it ended; has the log's last line.
        TimeoutError: it was not ready in READY_SECONDS.
    """
    limits = {f"TTS_LIMIT_{what}": "100000000" for what in ("UTTERANCES", "CHARACTERS", "CONNECTS", "UPLOADS")}
    with said.open("wb") as file:
        process = subprocess.Popen(command, env={**os.environ, **limits, **options, "TTS_PORT": str(port)}, stderr=file)
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}: {said.read_text().strip().rpartition(chr(10))[2]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                return process
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)  # between two questions; the deadline is above
    process.kill()
    process.wait()
    raise TimeoutError(f"the server was not ready in {READY_SECONDS:.0f} s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="10", help="numbers of clients, separated by commas")
    parser.add_argument("--model", help="a checkpoint (default: the server's own)")
    parser.add_argument("--voices", type=Path, help="a folder of voices (default: the server's own)")
    parser.add_argument("--fake", action="store_true", help="the tests' engine: the server alone")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        process = start(arguments, port, Path(folder))
        try:
            made = {}
            for streams in map(int, arguments.streams.split(",")):
                url = f"ws://127.0.0.1:{port}/api/v1/speak"
                made[str(streams)] = asyncio.run(measure(url, psutil.Process(process.pid), streams, arguments.minutes))
        finally:
            process.terminate()
            process.wait(60)
    for number, figures in made.items():
        print(f"{number} streams")
        for name, value in figures.items():
            print(f"  {name:32} {value:>12}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"streams": made}, indent=1))


if __name__ == "__main__":
    main()
