"""What a client of ``/api/v1/listen`` cannot make grow, or keep: judgements, turns without a text, a session after its client has gone."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.listen.base import RATE
from server.listen.process import RecogniserBehind, RecogniserProcess
from tests.hearing import hear_until, listening, send, sound, start
from tests.serving import client, say, until

WORD = sound((0, 0.32), (0.5, 0.32), (0, 0.64))  # a turn, as frames of 32 ms


async def test_only_the_newest_pause_is_judged_and_only_its_last_8_s(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, under_way, go = list[int](), list[int](), asyncio.Event()
    now = 0

    async def turn_over(pcm: np.ndarray, owner: str) -> float:
        nonlocal now
        now += 1
        lengths.append(len(pcm))
        under_way.append(now)
        try:
            await go.wait()
        finally:
            now -= 1
        return 0.9

    async with listening(voices) as server, client(server.url) as connection:
        monkeypatch.setattr(server.context.ears.process, "turn_over", turn_over)
        await start(connection, turnDetection={"type": "semantic", "eagerness": "low"})
        await send(connection, sound((0.5, 10.0), (0, 0.256), (0.5, 0.32), (0, 0.256), (0.5, 0.32), (0, 0.256)))
        await until(lambda: len(lengths) == 3)
        assert under_way == [1, 1, 1]
        assert lengths == [8 * RATE] * 3
        go.set()
        heard = [message["type"] for message in await hear_until(connection, "final")]
        assert heard.count("turnPredicted") == 1


async def test_judgements_and_speech_that_waits_for_the_process_are_bounded() -> None:
    process = RecogniserProcess([sys.executable, "-c", "import time; time.sleep(60)"], 3.0)
    speech: Any = np.zeros(2 * RATE, np.float32)
    judged = asyncio.create_task(process.turn_over(speech, "a"))
    heard = asyncio.create_task(process.hear(speech, "", "a", final=True))
    await until(lambda: process.queued_seconds > 0)
    with pytest.raises(RecogniserBehind, match="this pause is not judged"):
        await process.turn_over(speech, "a")
    with pytest.raises(RecogniserBehind, match="this turn is lost"):
        await process.hear(speech, "", "a", final=True)
    others = asyncio.create_task(process.turn_over(speech, "b"))
    for task in (judged, heard, others):
        task.cancel()
    await asyncio.wait({judged, heard, others})
    assert process.queued_seconds == 0
    await process.close()


async def test_turns_that_are_too_many_have_no_text_and_a_client_that_vanishes_is_noticed(
    voices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.ws.finals.MOST_PENDING", 2)
    async with listening(voices, "hold") as server, client(server.url) as connection:
        await start(connection)
        await send(connection, WORD)
        await until(lambda: server.context.ears.queued_seconds > 0)
        for _ in range(3):  # two fit
            await send(connection, WORD)
        error = (await hear_until(connection, "error"))[-1]
        assert (error["code"], error["recoverable"]) == ("OVERLOADED", True)
        assert error["message"].startswith("2 turns wait for their texts")
        for _ in range(40):  # more than the queue of frames that are not read
            await say(connection, type="commit")
        connection.transport.abort()
        await until(lambda: not server.context.sessions)
