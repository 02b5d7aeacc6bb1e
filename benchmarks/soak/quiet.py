"""The quiet principal: a short sentence now and then, and how long it waits for the first audio. The last sessions, too, at SIGTERM."""

import asyncio
import json
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from benchmarks.soak.posters import SPEECH, client
from benchmarks.soak.process import GRACE
from benchmarks.soak.session import session
from benchmarks.soak.site import WAIT, Site
from benchmarks.soak.tally import Broken, Tally

SHORT = ("It is late.", "Good evening.", "The door is open.", "See you tomorrow.")
END_SECONDS = GRACE + 20.0  # from SIGTERM to the end of the process, on a busy machine


@dataclass
class Waits:
    """Seconds from ``speak`` to the first audio."""

    heard: list[float] = field(default_factory=list)  # by the client's clock
    told: list[float] = field(default_factory=list)  # by the server's: ttfaMs


async def sentences(site: Site, key: str, draw: Random, tally: Tally, over: Callable[[], bool]) -> Waits:
    """Until it is over. Raises Broken: something but ``complete`` ends an utterance, or as a session."""
    waits, loop = Waits(), asyncio.get_running_loop()
    async with session(site, tally, key=key) as made:
        while not over():
            begun = loop.time()
            request_id = await made.speak(draw.choice(SHORT))
            while request_id in made.live:
                frame = await made.hear()
            if isinstance(frame, bytes) or frame["type"] != "complete" or made.first is None:
                raise Broken(f"the quiet principal was told {frame!r:.200}")
            waits.heard.append(made.first - begun)
            waits.told.append(frame["ttfaMs"] / 1000)
            await asyncio.sleep(draw.uniform(0.2, 1.0))
    return waits


async def farewell(site: Site, process: "subprocess.Popen[bytes]") -> tuple[float, int | None, list[str]]:
    """SIGTERM while clients of every kind are there. Returns seconds to the end of the process, its status, and what clients missed."""
    texts = {"idle": None, "stranger": None, "short": "Good night.", "long": "There is no end to this story, and none to that one. " * 20}
    there = asyncio.Barrier(len(texts) + 2)
    tasks = [asyncio.create_task(_last(site, name, text, there)) for name, text in texts.items()]
    tasks.append(asyncio.create_task(_last_post(site, there)))
    async with asyncio.timeout(WAIT):
        await there.wait()
    process.send_signal(signal.SIGTERM)
    begun = asyncio.get_running_loop().time()
    try:
        status: int | None = await asyncio.to_thread(process.wait, 2 * END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        status = None
    seconds = asyncio.get_running_loop().time() - begun
    told = await asyncio.gather(*tasks)
    return seconds, status, [one for one in told if one]


async def _last(site: Site, name: str, text: str | None, there: asyncio.Barrier) -> str:
    """A session at the end: what was wrong with it, or nothing. A short text is spoken to its end; ``stopped`` and 1012 always come."""
    headers = {} if name == "stranger" else site.bearer
    seen: list[dict[str, Any]] = []
    async with connect(site.speak, compression=None, additional_headers=headers, open_timeout=WAIT, ping_timeout=WAIT) as connection:
        await connection.recv()  # ready
        if text is not None:
            await connection.send(json.dumps({"type": "speak", "text": text}))
            await connection.recv()  # the first audio
        await there.wait()
        try:
            async with asyncio.timeout(WAIT):
                async for frame in connection:
                    if isinstance(frame, str):
                        seen.append(json.loads(frame))
        except ConnectionClosed:
            pass
        kinds = [message["type"] for message in seen]
        wanted = {"short": [["complete", "stopped"]], "long": [["stopped"], ["error", "stopped"]]}.get(name, [["stopped"]])
        if kinds in wanted and seen[-1]["reason"] == "server_shutdown" and connection.close_code == 1012:
            return ""
        return f"session {name}: {seen!r:.300}, close code {connection.close_code}"


async def _last_post(site: Site, there: asyncio.Barrier) -> str:
    """A short text by HTTP: it is spoken to its end."""
    body = {"input": "Good night.", "voice": "makima", "response_format": "pcm"}
    async with client(site) as http, http.stream("POST", SPEECH, json=body) as answer:
        await there.wait()
        try:
            number = len(await answer.aread())
        except httpx.HTTPError as error:
            return f"HTTP speech: {error!r}"
    return "" if answer.status_code == 200 and number else f"HTTP speech: status {answer.status_code}, {number} bytes"
