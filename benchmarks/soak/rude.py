"""Clients who do not keep to the rules of the road: they vanish, do not read, or flood the server without a token."""

import asyncio
import contextlib
import json
from random import Random

from benchmarks.soak.posters import SPEECH, VOICES
from benchmarks.soak.site import WAIT, Site, frame, handshake, opened, request, text_of, upgraded
from benchmarks.soak.tally import Broken, Tally

LET_GO = 60.0  # seconds in which a session ends that did not read for some time; the server's own limit is 10 s
SILENT_UTTERANCES = 2  # of a session that reads nothing
FLOOD_BYTES = 20_000_000  # that a flood may write before the server has to have cut it


async def vanisher(site: Site, draw: Random, tally: Tally) -> None:
    """A WebSocket whose TCP connection is cut: before, in and after the handshake, in a frame, before speech, in it."""
    stage = draw.choice(("connected", "half a handshake", "handshake", "half a frame", "spoken", "close", "listening", "listening"))
    known = draw.random() < 0.9
    tally.deeds[f"cut: {stage}"] += 1
    if stage in ("connected", "half a handshake", "handshake"):
        hello = handshake(site, draw, known=known)
        sent = {"connected": 0, "handshake": len(hello)}.get(stage, draw.randrange(len(hello)))
        async with opened(site, hello[:sent]) as (_, writer):
            await _go(writer, draw)
        return
    is_open = stage != "listening" and draw.random() < 0.3
    spoken = frame(1, json.dumps({"type": "speak", "text": text_of(draw), "continue": is_open}).encode())
    async with upgraded(site, draw, known=known) as (reader, writer):
        if stage == "half a frame":
            writer.write(spoken[: draw.randrange(len(spoken))])
        else:
            tally.ended("gone")
            writer.write(spoken + (frame(8, b"\x03\xe8") if stage == "close" else b""))
        if stage == "listening":
            await _read(reader, draw.choice((100, 1000, 5000, 20_000)))  # the shortest text has more
        await _go(writer, draw)


async def _go(writer: asyncio.StreamWriter, draw: Random) -> None:
    """Stay for a moment, or not even for what was written to leave."""
    if draw.random() < 0.8:
        with contextlib.suppress(ConnectionError):
            await writer.drain()
    if draw.random() < 0.5:
        await asyncio.sleep(draw.uniform(0, 0.3))


async def vanishing_poster(site: Site, draw: Random, tally: Tally) -> None:
    """A request whose TCP connection is cut: in its head, in its body, before the answer, in it."""
    body = json.dumps({"input": text_of(draw), "voice": "makima", "response_format": draw.choice(("pcm", "mp3", "flac"))}).encode()
    whole = request(site, "POST", SPEECH, body, Content_Type="application/json")
    head = len(whole) - len(body)
    stage = draw.choice(("head", "body", "asked", "answer", "answer"))
    sent = whole[: {"head": draw.randrange(head), "body": draw.randrange(head, len(whole))}.get(stage, len(whole))]
    tally.deeds[f"cut: {stage}"] += 1
    if stage in ("asked", "answer"):
        tally.ended("gone")
    async with opened(site, sent) as (reader, writer):
        await writer.drain()
        if stage == "answer":
            await _read(reader, draw.choice((1, 500, 5000, 60_000)))
        elif draw.random() < 0.7:
            await asyncio.sleep(draw.uniform(0, 0.5))
    await asyncio.sleep(draw.uniform(0, 0.3))


async def _read(reader: asyncio.StreamReader, number: int) -> None:
    """So many bytes, or all that there are."""
    async with asyncio.timeout(WAIT):
        with contextlib.suppress(ConnectionError):
            while number > 0 and (data := await reader.read(min(number, 4096))):
                number -= len(data)


async def slow_reader(site: Site, draw: Random, tally: Tally) -> None:
    """Speech that is not read as fast as it comes, or, from some point on, not at all."""
    text = text_of(draw, 6)  # of what it is told it reads bytes, not messages: its utterances are gone
    if draw.random() < 0.5:
        tally.deeds["slow sessions"] += 1
        tally.ended("gone", SILENT_UTTERANCES)
        await _silent(site, draw, text)
        return
    tally.deeds["slow answers"] += 1
    tally.ended("gone")
    body = json.dumps({"input": text, "voice": "heart", "response_format": "wav"}).encode()
    async with opened(site, request(site, "POST", SPEECH, body, Content_Type="application/json"), receive_buffer=4096) as (reader, _):
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(draw.uniform(2, 10)):
                while await reader.read(2048):  # noqa: ASYNC110  # slowness is what is meant
                    await asyncio.sleep(draw.uniform(0, 0.2))


async def _silent(site: Site, draw: Random, text: str) -> None:
    """A session that reads nothing after ``ready``, with more audio than all buffers hold. Raises Broken: the server does not let go."""
    asked = frame(1, json.dumps({"type": "start", "sampleRate": 48_000, "encoding": "pcm32f"}).encode())
    asked += frame(1, json.dumps({"type": "speak", "text": f"{text} " * 4}).encode()) * SILENT_UTTERANCES
    async with upgraded(site, draw, known=True, receive_buffer=4096) as (reader, writer):
        writer.write(asked)
        await _read(reader, 200)
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # a transport that reads, too
        await asyncio.sleep(draw.uniform(8, 16))
        writer.transport.resume_reading()  # type: ignore[attr-defined]  # the same
        try:
            async with asyncio.timeout(LET_GO):
                with contextlib.suppress(ConnectionError):
                    writer.write(frame(1, b'{"type": "stop"}'))  # if the session is there still
                    while await reader.read(65536):
                        pass
        except TimeoutError as error:
            raise Broken(f"a session that did not read for some seconds was still open {LET_GO:.0f} s later") from error


async def flooder(site: Site, draw: Random, tally: Tally) -> None:
    """As much as the server takes, without a token."""
    kind = draw.choice(tuple(FLOODS))
    tally.deeds[f"flood: {kind}"] += 1
    begin, more = FLOODS[kind]
    there = opened(site, begin) if kind in BODIES else upgraded(site, draw, known=False)
    async with there as (reader, writer):
        if kind not in BODIES:
            writer.write(begin)
        heard = asyncio.create_task(_to_the_end(reader))
        written = 0
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(WAIT):
                while written < FLOOD_BYTES and not heard.done():
                    writer.write(more)
                    written += len(more)
                    await writer.drain()
                    await asyncio.sleep(0)
            await heard
        heard.cancel()
        if written >= FLOOD_BYTES:
            raise Broken(f"{kind} without a token: {written} bytes were taken")
    await asyncio.sleep(draw.uniform(0, 0.5))


async def _to_the_end(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(WAIT):
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                pass


CHUNKED = " HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
BODIES = {
    "chunks": (f"POST {SPEECH}{CHUNKED}".encode(), b"1\r\nx\r\n" * 200),
    "chunks of an upload": (f"POST {VOICES}{CHUNKED}".encode(), b"1\r\nx\r\n" * 200),
    "heads": (b"GET / HTTP/1.1\r\n", b"A: b\r\n" * 200),
}
FLOODS = {  # what comes first, and again and again
    "pings": (b"", frame(9, b"") * 200),
    "full pings": (b"", frame(9, b"x" * 125) * 50),
    "pongs": (b"", frame(10, b"") * 200),
    "continuations": (frame(1, b"", final=False), frame(0, b"", final=False) * 200),
    "messages": (b"", frame(1, b"{}") * 200),
    "bytes": (b"", frame(2, b"x" * 60_000)),
    **BODIES,
}
