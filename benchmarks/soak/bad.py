"""A client whose messages and requests are wrong, each in its own way; the server says of each what is wrong, and goes on."""

import asyncio
import json
from random import Random
from typing import Any

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from benchmarks.soak.posters import SPEECH, VOICES, client
from benchmarks.soak.session import Session, session
from benchmarks.soak.site import WAIT, Site
from benchmarks.soak.tally import Broken, Tally

MARKS = "a" + "\u0301\u0316" * 5000  # more combining marks in a row than any letter has
TOO_LONG = "word " * 1000
BAD_TEXTS = (TOO_LONG, MARKS, "", "   ")
BEGINS = ("...", "🙂", "\u200b")  # texts of which only the engine finds out that they say nothing

BAD_FRAMES: tuple[str | bytes, ...] = (
    "",
    "{",
    "[]",
    "null",
    '"speak"',
    "[" * 20_000,
    b"",
    b"\x00\x01",
    '{"type": 1}',
    '{"text": "no type"}',
    '{"type": "speak"}',
    '{"type": "speak", "text": 1.5e400}',
    '{"type": "speak", "text": "\\ud800"}',
    '{"type": "speak", "text": ["x"]}',
    '{"type": "speak", "text": "x", "topP": 1e-39}',
    '{"type": "speak", "text": "x", "temperature": NaN}',
    '{"type": "speak", "text": "x", "seed": -2}',
    '{"type": "speak", "text": "x", "priority": "highest"}',
    '{"type": "speak", "text": "x", "language": "Klingon"}',
    '{"type": "speak", "text": "x", "language": "Japanese"}',  # the small voice speaks English
    '{"type": "flush"}',
    '{"type": "start", "sampleRate": 11025}',
    '{"type": "start", "encoding": "mp3"}',
    '{"type": "start", "language": "Elvish"}',
)
REQUESTS: tuple[tuple[str, str, dict[str, Any], tuple[int, ...]], ...] = (
    ("POST", SPEECH, {"content": b"{"}, (400,)),
    ("POST", SPEECH, {"content": b""}, (400,)),
    ("POST", SPEECH, {"content": b"\xff\xfe"}, (400,)),
    ("POST", SPEECH, {"content": b"[" * 20_000}, (400,)),
    ("POST", SPEECH, {"json": {"input": ""}}, (400,)),
    ("POST", SPEECH, {"json": {"input": TOO_LONG}}, (400,)),
    ("POST", SPEECH, {"json": {"input": MARKS}}, (400,)),
    ("POST", SPEECH, {"json": {"input": "x" * 500_000}}, (413,)),
    ("POST", SPEECH, {"json": {"input": "x", "voice": "nobody"}}, (404,)),
    ("POST", SPEECH, {"json": {"input": "x", "language": "Klingon"}}, (400,)),
    ("POST", SPEECH, {"json": {"input": "x", "response_format": "exe"}}, (400,)),
    ("POST", SPEECH, {"json": {"input": "x", "speed": 9}}, (400,)),
    ("GET", SPEECH, {}, (405,)),
    ("GET", "/api/v1/voices/nobody/sample.wav", {}, (404,)),
    ("DELETE", "/api/v1/voices/nobody", {}, (404,)),
    ("DELETE", "/api/v1/voices/makima", {}, (403,)),
    ("GET", "/etc/passwd", {}, (404,)),
    ("GET", "//api//v1/voices", {}, (404,)),
    ("POST", VOICES, {"json": {}}, (400,)),
    ("POST", VOICES, {"files": {"audio": ("a.wav", b"MZ")}, "data": {"name": "x"}}, (400,)),
    ("POST", VOICES, {"files": {"audio": ("a.wav", b"MZ")}, "data": {"name": "x", "consent": "yes"}}, (415,)),
    ("POST", VOICES, {"files": {"audio": ("a.wav", b"RIFF" + bytes(1000))}, "data": {"name": "x", "consent": "yes"}}, (415, 422)),
    ("GET", VOICES, {"headers": {"Authorization": "Bearer nobody"}}, (401,)),
    ("GET", "/metrics", {"headers": {"Authorization": ""}}, (401,)),
    ("GET", VOICES, {"headers": {"Origin": "http://["}}, (403,)),
)


async def nuisance(site: Site, draw: Random, tally: Tally) -> None:
    """A session with bad messages between good ones, bad requests, and a session that ends by what is sent."""
    async with session(site, tally, transport=draw.choice(("binary", "json"))) as made:
        for _ in range(draw.randint(2, 8)):
            await _message(made, draw, tally)
        await made.speak("Yes.", voice=draw.choice(("makima", "nobody")))  # it lives, and says it in the default voice
    async with client(site) as http:
        for _ in range(draw.randint(2, 8)):
            await _request(http, draw, tally)
    await _fatal(site, draw, tally)


async def _message(made: Session, draw: Random, tally: Tally) -> None:
    kind = draw.choice(("frame", "frame", "text", "begins", "empty", "open", "voice"))
    tally.deeds[f"bad: {kind}"] += 1
    if kind == "frame":
        await made.send(draw.choice(BAD_FRAMES))
        await made.refused("INVALID_MESSAGE")
    elif kind == "text":
        await made.speak(draw.choice(BAD_TEXTS))
    elif kind == "begins":
        await made.speak(draw.choice(BEGINS), "failed")
    elif kind == "empty":
        await made.speak(" ", "failed", **{"continue": True})
        await made.say(type="flush")
    elif kind == "open":
        await made.speak("One ", **{"continue": True})
        await made.say(type="speak", text="two ", requestId="another", **{"continue": True})
        await made.refused("INVALID_MESSAGE", "another")
        await made.say(type="flush")
    else:
        await made.speak("Yes.", voice=draw.choice(("nobody", "../../etc", "x" * 128)))
    await made.settled()


async def _request(http: httpx.AsyncClient, draw: Random, tally: Tally) -> None:
    method, path, more, allowed = draw.choice(REQUESTS)
    tally.deeds["bad: request"] += 1
    answer = await http.request(method, path, **more)
    if answer.status_code not in allowed:
        raise Broken(f"{method} {path} {more!s:.100}: {answer.status_code}, not {allowed}: {answer.text:.200}")


async def _fatal(site: Site, draw: Random, tally: Tally) -> None:
    """Each has its close code."""
    message, token, code = draw.choice(
        (
            ("x" * 70_000, site.key, 1009),
            (json.dumps({"type": "speak", "text": MARKS * 8}), site.key, 1009),
            (json.dumps({"type": "speak", "text": "x"}), "", 4401),
            (json.dumps({"type": "start", "authToken": "nobody"}), "", 4401),
            (json.dumps({"type": "stop"}), site.key, 1000),
        )
    )
    tally.deeds[f"closed: {code}"] += 1
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with connect(site.speak, compression=None, additional_headers=headers, open_timeout=WAIT, ping_timeout=WAIT) as connection:
        try:
            async with asyncio.timeout(WAIT):
                await connection.send(message)
                async for _ in connection:
                    pass
        except ConnectionClosed:
            pass
        if connection.close_code != code:
            raise Broken(f"{message:.60}: the close code is {connection.close_code}, not {code}")
