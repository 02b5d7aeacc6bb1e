"""A server whose ears are fakes, and a client's half of ``/api/v1/listen``, for the tests. Sound is levels; .06 and more is speech."""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quart import Quart
from websockets.asyncio.client import ClientConnection

from server.contracts import contract
from server.listen.process import RecogniserProcess
from server.ws import listen
from tests.fake_engine import LIMIT, FakeEngine
from tests.serving import Message, Server, hear, running


class FakeVoiceActivity:
    """A window is speech if it is louder than .05."""

    def feed(self, window: np.ndarray) -> float:
        return float(np.abs(window).mean() > 0.05)


@asynccontextmanager
async def listening(
    voices: Path, behaviour: str = "", most_seconds: float = 60.0, *, stalls: float = LIMIT, **chosen: Any
) -> AsyncIterator[Server]:
    """A running server with ``tests.fake_recogniser``. A frame that comes late, as on a loaded machine, ends a turn after ``stalls`` s."""

    def change(app: Quart) -> None:
        ears = app.extensions["context"].ears

        async def voice_activity() -> FakeVoiceActivity:
            return FakeVoiceActivity()

        ears.voice_activity = voice_activity
        ears._turn_file = Path("fake")
        command = [sys.executable, "-m", "tests.fake_recogniser", str(voices.parent), behaviour]
        ears.__dict__["process"] = RecogniserProcess(command, most_seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listen, "STALLS_SECONDS", stalls)
        patch.setattr(contract, "HELD_SECONDS", LIMIT)
        async with running(voices, FakeEngine(), change=change, **chosen) as server:
            server.url = server.url.replace("speak", "listen")
            yield server


def sound(*pieces: tuple[float, float], rate: int = 16000, encoding: str = "pcm16") -> bytes:
    """(level, seconds) one after another, as bytes: levels with changing signs, which survive resampling."""
    samples = np.concatenate([np.full(round(seconds * rate), level, np.float32) for level, seconds in pieces])
    if encoding == "pcm32f":
        return samples.astype("<f4").tobytes()
    return np.round(samples * 32767).astype("<i2").tobytes()


async def send(connection: ClientConnection, data: bytes, size: int = 32000) -> None:
    """Audio in frames of ``size`` bytes."""
    for start in range(0, len(data), size):
        await connection.send(data[start : start + size])


async def hear_until(connection: ClientConnection, kind: str) -> list[Message]:
    """Messages up to the first of that type."""
    heard = [await hear(connection)]
    while heard[-1]["type"] != kind:
        assert heard[-1]["type"] != "error" or kind == "error", heard[-1]
        heard.append(await hear(connection))
    return heard


async def start(connection: ClientConnection, **fields: Any) -> Message:
    """``started``."""
    await connection.send(json.dumps({"type": "start", **fields}))
    return (await hear_until(connection, "started"))[-1]
