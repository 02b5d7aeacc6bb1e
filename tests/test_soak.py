"""benchmarks/soak: it finds what it looks for; and a server stands three minutes of it (SOAK_MINUTES: more, or fewer)."""

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.soak import rude
from benchmarks.soak.conditions import MORE_THREADS, RATIO, SoakFigures, as_json, judge
from benchmarks.soak.process import Look, log_of, metrics_of
from benchmarks.soak.quiet import END_SECONDS, Waits
from benchmarks.soak.session import Session
from benchmarks.soak.site import Site
from benchmarks.soak.tally import Broken, Tally

LOG = "2026-11-29 19:50:04,123 INFO server.ws.playback [5] utterance complete characters=4\n"
LOOK = Look(slots=0, queue=0, sessions=0, connections=1, threads=20, descriptors=30, memory=700.0, voices=("prompts/a",), temporary=())


def figures(**more: Any) -> SoakFigures:
    """Those of a run in which everything holds: 9 utterances began, 2 of them were left, 1 was meant to fail."""
    tally = Tally()
    for end, number in {"completed": 4, "cancelled": 2, "failed": 1, "refused": 3, "unclear": 1, "gone": 3}.items():
        tally.ended(end, number)
    page = "tts_utterances_begun_total 9.0\n"
    for end, number in {"completed": 4, "cancelled": 2, "failed": 1, "left": 2}.items():
        page += f'tts_utterances_ended_total{{end="{end}"}} {number}.0\n'
    page += "tts_engine_restarts 0.0\ntts_not_finite 0.0\ntts_voice_failures 0.0\n" + 'tts_errors_total{code="CANCELLED"} 2.0\n'
    good: dict[str, Any] = {
        "minutes": 1.0,
        "tally": tally,
        "metrics": metrics_of(page),
        "before": LOOK,
        "after": LOOK,
        "memory": [(0.0, 700.0), (60.0, 760.0), (90.0, 784.0), (120.0, 780.0)],
        "alone": Waits([0.1, 0.2]),
        "beside": Waits([0.1, 0.2]),
        "log": log_of(LOG),
        "end_seconds": 3.0,
        "status": 0,
        "untold": [],
    }
    return SoakFigures(**good | more)


def tally_with(**more: Any) -> Tally:
    return replace(figures().tally, **more)


def metrics_with(**more: float) -> dict[str, float]:
    names = {end: f'tts_utterances_ended_total{{end="{end}"}}' for end in ("completed", "cancelled", "failed", "left")}
    return figures().metrics | {names.get(name, name): value for name, value in more.items()}


@pytest.mark.parametrize(
    ("more", "failed"),
    [
        ({}, set()),
        ({"metrics": metrics_with(tts_utterances_begun_total=10)}, {"the server's tally"}),
        ({"metrics": metrics_with(completed=3, left=3)}, {"completed: server and clients"}),
        (
            {"metrics": metrics_with(completed=8, cancelled=1, failed=0, left=0)},
            {f"{end}: server and clients" for end in ("completed", "cancelled", "failed")},
        ),
        ({"metrics": metrics_with(cancelled=3, left=1)}, {"cancelled: server and clients"}),
        ({"tally": tally_with(asked=15, ends=figures().tally.ends + Counter(lost=1))}, {"utterances without an end"}),
        ({"metrics": metrics_with(failed=3, left=0)}, set()),  # two of those that left had waited too long before
        ({"metrics": metrics_with(failed=6, left=0, tts_utterances_begun_total=12)}, {"failed: server and clients"}),
        ({"metrics": metrics_with(left=4, tts_utterances_begun_total=11)}, {"left: server and clients"}),
        ({"metrics": metrics_with(**{'tts_errors_total{code="SYNTHESIS_ERROR"}': 1})}, {"errors that are the server's fault"}),
        ({"metrics": metrics_with(tts_engine_restarts=1)}, {"tts_engine_restarts"}),
        ({"tally": tally_with(asked=15)}, {"the clients' tally"}),
        ({"tally": tally_with(faults=1, wrong=["audio came and no utterance is live"])}, {"faults that clients saw"}),
        ({"after": replace(LOOK, slots=1, sessions=1, connections=2)}, {"slots", "sessions", "connections"}),
        ({"after": replace(LOOK, threads=LOOK.threads + MORE_THREADS + 1, descriptors=35)}, {"threads", "descriptors"}),
        ({"after": replace(LOOK, threads=LOOK.threads + MORE_THREADS, descriptors=34, memory=820.0)}, set()),
        ({"after": replace(LOOK, memory=830.0)}, {"memory"}),
        ({"memory": [(0.0, 500.0), (60.0, 760.0), (90.0, 816.0), (120.0, 830.0)]}, {"memory, from the second minute of load on"}),
        ({"memory": [(0.0, 500.0), (60.0, 760.0), (90.0, 900.0), (120.0, 770.0)]}, set()),
        ({"memory": [(0.0, 500.0), (55.0, 560.0), (60.0, 900.0)]}, set()),
        ({"after": replace(LOOK, voices=("prompts/a", "v/reference.wav"), temporary=("x",))}, {"files: voices", "files: temporary"}),
        ({"beside": Waits([0.1, 0.4])}, {"first audio of the quiet one, p95"}),
        ({"alone": Waits()}, {"first audio of the quiet one, p95"}),
        ({"log": log_of(LOG * 500)}, {"size of the log"}),
        ({"log": log_of(LOG + "Traceback (most recent call last):\n")}, {"errors in the log"}),
        ({"end_seconds": END_SECONDS + 1}, {"the end by SIGTERM"}),
        ({"status": -9}, {"the end by SIGTERM"}),
        ({"untold": ["session idle"]}, {"clients that were told of it"}),
    ],
)
def test_what_does_not_hold_is_found(more: dict[str, Any], failed: set[str]) -> None:
    conditions = judge(figures(**more))
    assert {one.name for one in conditions if not one.holds} == failed
    assert [one.name for one in conditions if one.strict] == ["first audio of the quiet one, p95"], RATIO


def test_figures_are_json() -> None:
    made = json.loads(json.dumps(as_json(figures(), judge(figures()))))
    assert made["tally"]["ends"]["completed"] == 4 and made["before"]["threads"] == 20


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        (LOG, False),
        (LOG.replace("INFO", "WARNING"), False),
        (LOG.replace("INFO", "ERROR"), True),
        (LOG.replace("utterance complete", "Task was destroyed but it is pending!"), True),
        (LOG.replace("utterance complete", "Task exception was never retrieved"), True),
        ('  File "server/app.py", line 1\n', True),
        ("python: malloc(): corrupted top size\n", True),
    ],
)
def test_a_log_has_records_and_no_errors(line: str, bad: bool) -> None:
    assert bool(log_of(LOG + line).bad) == bad


class Script:
    """A connection that says what it is told to."""

    def __init__(self, *frames: dict[str, Any] | bytes) -> None:
        self.frames = list(frames)
        self.sent: list[dict[str, Any]] = []

    async def send(self, frame: str) -> None:
        self.sent.append(json.loads(frame))

    async def recv(self) -> str | bytes:
        frame = self.frames.pop(0)
        return frame if isinstance(frame, bytes) else json.dumps(frame)


def complete(request_id: str, audio_ms: int) -> dict[str, Any]:
    return {"type": "complete", "requestId": request_id, "audioLengthMs": audio_ms}


def error(code: str, request_id: str, message: str = "", *, final: bool = True) -> dict[str, Any]:
    return {"type": "error", "code": code, "requestId": request_id, "message": message, "final": final}


def chunk(request_id: str, number: int, *, final: bool = False) -> dict[str, Any]:
    return {"type": "audioChunk", "requestId": request_id, "sequenceNumber": number, "isFinal": final, "data": "AAAA"}


PCM, CANCELLED, NOTHING = bytes(4800), error("CANCELLED", "u1"), error("CANCELLED", "u1", "there was nothing to cancel")


@pytest.mark.parametrize(
    ("transport", "frames", "broken"),
    [
        ("binary", [PCM, complete("u1", 100)], None),
        ("binary", [error("VOICE_NOT_FOUND", "u1", final=False), PCM, complete("u1", 100)], None),
        ("binary", [PCM, CANCELLED], None),
        ("binary", [PCM, complete("u1", 100), NOTHING], None),
        ("binary", [PCM, CANCELLED, PCM], "audio came and no utterance is live"),
        ("binary", [PCM, complete("u1", 200)], "100 ms of audio came, 200 ms were made"),
        ("binary", [PCM, complete("u1", 100), complete("u1", 100)], "two ends"),
        ("binary", [PCM, complete("u1", 100), CANCELLED], "two ends"),
        ("binary", [NOTHING, NOTHING, PCM, complete("u1", 100)], "a cancel that was not sent"),
        ("binary", [error("SYNTHESIS_ERROR", "u1")], "failed"),
        ("json", [chunk("u1", 1), chunk("u1", 2, final=True), complete("u1", 0)], None),
        ("json", [chunk("u1", 1), chunk("u1", 3, final=True), complete("u1", 0)], "chunk 3 came after 1"),
        ("json", [chunk("u1", 1), complete("u1", 0)], "no chunk was the last one"),
        ("json", [chunk("u1", 1), CANCELLED, chunk("u1", 2)], "which has ended"),
        ("json", [PCM], "binary frame"),
    ],
)
async def test_a_client_notices_what_must_not_be(transport: str, frames: list[Any], broken: str | None) -> None:
    tally, script = Tally(), Script(*frames)
    made = Session(script, tally, transport, 48_000)
    await made.speak("Hello.")
    await made.cancel("u1")

    async def hear_all() -> None:
        while script.frames:
            await made.hear()

    if broken is not None:
        with pytest.raises(Broken, match=broken):
            await hear_all()
        return
    await hear_all()
    assert tally.asked == tally.ends.total() == 1


async def test_a_client_that_reads_nothing_counts_all_that_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    sent, ended = bytearray(), asyncio.StreamReader()
    ended.feed_eof()
    transport = SimpleNamespace(pause_reading=lambda: None, resume_reading=lambda: None)

    @asynccontextmanager
    async def upgraded(*given: Any, **more: Any) -> AsyncIterator[tuple[asyncio.StreamReader, Any]]:
        yield ended, SimpleNamespace(write=sent.extend, transport=transport)

    class Draw(Random):
        def uniform(self, a: float, b: float) -> float:
            return 0.0  # seconds

        def random(self) -> float:
            return 0.0  # a session

    monkeypatch.setattr(rude, "upgraded", upgraded)
    tally = Tally()
    await rude.slow_reader(Site(1, "key"), Draw(1), tally)
    assert sent.count(b'"speak"') == tally.asked == tally.ends["gone"] > 0


@pytest.mark.slow
def test_a_server_stands_it(tmp_path: Path) -> None:
    """The waits of the quiet principal do not count: no test is to depend on the machine's speed."""
    minutes = os.environ.get("SOAK_MINUTES", "3")
    command = [sys.executable, "-m", "benchmarks.soak", "--minutes", minutes, "--alone", "5", "--out", str(tmp_path / "out")]
    ran = subprocess.run(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
