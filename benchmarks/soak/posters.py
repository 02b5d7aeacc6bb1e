"""Clients of the HTTP routes who keep to the rules: speech in every format, voices that come and go."""

import asyncio
import contextlib
import io
from collections.abc import Awaitable
from random import Random
from typing import Any, TypeVar, cast

import httpx
import numpy as np
import soundfile

from benchmarks.soak.session import session
from benchmarks.soak.site import WAIT, Site, opened, request, text_of
from benchmarks.soak.tally import Broken, Tally

SPEECH, VOICES = "/v1/audio/speech", "/api/v1/voices"
FORMATS = ("mp3", "opus", "aac", "flac", "wav", "pcm")
READ = ("mp3", "opus", "flac")  # what soundfile can read when it was streamed
BUSY = 503  # the line is full, or a turn did not come in time
SPEAKERS = ("makima", "heart", "alloy", "onyx")  # two voices that ship, and names of OpenAI's
T = TypeVar("T")
PREFIX = "soak"  # of the names of voices


def client(site: Site) -> httpx.AsyncClient:
    """With the loud principal's key."""
    return httpx.AsyncClient(base_url=site.http, headers=site.bearer, timeout=WAIT)


async def together(*work: Awaitable[T]) -> list[T]:
    """All results. What one of them raises is raised when all have ended."""
    done = await asyncio.gather(*work, return_exceptions=True)
    for one in done:
        if isinstance(one, BaseException):
            raise one
    return cast("list[T]", done)


async def poster(site: Site, draw: Random, tally: Tally) -> None:
    """One utterance after the other on one connection."""
    async with client(site) as http:
        for _ in range(draw.randint(1, 5)):
            await speech(http, tally, text_of(draw), **_wishes(draw))


async def burst(site: Site, draw: Random, tally: Tally) -> None:
    """Many at once, so that some have to wait for a slot; then a pause."""
    async with client(site) as http:
        await together(*(speech(http, tally, text_of(draw), **_wishes(draw)) for _ in range(draw.randint(2, 12))))
    await asyncio.sleep(draw.uniform(0, 3))


def _wishes(draw: Random) -> dict[str, Any]:
    wishes: dict[str, Any] = {"response_format": draw.choice(FORMATS), "voice": draw.choice(SPEAKERS)}
    if draw.random() < 0.2:
        wishes["stream_format"] = "sse"
    if draw.random() < 0.2:
        wishes["speed"] = draw.choice((0.5, 1.25, 2))
    return wishes


async def speech(http: httpx.AsyncClient, tally: Tally, text: str, gone: tuple[int, ...] = (), **wishes: Any) -> None:
    """One utterance, to its last byte.

    Args:
        gone: statuses by which it may end where its voice is being deleted.

    Raises:
        Broken: another status than 200 or BUSY, or a body that is none.
    """
    try:
        answer = await http.post(SPEECH, json={"input": text, "voice": "makima"} | wishes)
    except httpx.HTTPError as error:
        tally.ended("lost")
        raise Broken(f"POST {SPEECH} {wishes}: {error!r}") from error
    if answer.status_code == BUSY or answer.status_code in gone:
        tally.codes[answer.json()["error"]["code"]] += 1
        tally.ended("unclear")
        return
    if answer.status_code != 200:
        tally.ended("unclear")
        raise Broken(f"POST {SPEECH} {wishes}: {answer.status_code} {answer.text:.200}")
    tally.ended("completed")
    if wishes.get("stream_format") == "sse":
        if b"speech.audio.done" not in answer.content:
            raise Broken(f"POST {SPEECH} {wishes}: no speech.audio.done")
    elif not answer.content or (wishes["response_format"] in READ and not _length(answer.content)):
        raise Broken(f"POST {SPEECH} {wishes}: no sound in {len(answer.content)} bytes")


def _length(data: bytes) -> int:
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        return len(file.read())


async def uploader(site: Site, draw: Random, tally: Tally) -> None:
    """Voices are uploaded, listened to, spoken in, and deleted: twice at once, or while they speak or are being uploaded."""
    async with client(site) as http:
        try:
            for _ in range(draw.randint(1, 3)):
                await _voice(site, http, draw, tally)
            if draw.random() < 0.5:
                await _cut_upload(site, draw, tally)
        finally:
            await clean(http)


async def _voice(site: Site, http: httpx.AsyncClient, draw: Random, tally: Tally) -> None:
    number = draw.choice((1, 1, 2))
    answers = await together(*(http.post(VOICES, **_upload(draw)) for _ in range(number)))
    if bad := [answer for answer in answers if answer.status_code != 201]:
        raise Broken(f"POST {VOICES}: {bad[0].status_code} {bad[0].text:.200}")
    tally.deeds["uploads"] += number
    name = answers[0].json()["id"]
    part = await http.get(f"{VOICES}/{name}/sample.wav", headers={"Range": "bytes=0-99"} if draw.random() < 0.5 else {})
    if part.status_code not in (200, 206):
        raise Broken(f"GET {VOICES}/{name}/sample.wav: {part.status_code}")
    kind = draw.choice(("unused", "spoken", "while it speaks", "while it is posted"))
    if kind == "spoken":
        await speech(http, tally, text_of(draw, 1), voice=name, response_format="pcm")
    if kind == "while it is posted":
        await together(speech(http, tally, text_of(draw, 1), (404,), voice=name, response_format="pcm"), _delete(http, name, tally))
        return
    if kind != "while it speaks":
        await _delete(http, name, tally)
        return
    async with session(site, tally) as made:
        await made.speak(text_of(draw), voice=name)
        await asyncio.sleep(draw.uniform(0, 0.5))
        await _delete(http, name, tally)
        await made.settled()
        await made.speak("Yes.", voice=name)  # the default voice says it


def _upload(draw: Random) -> dict[str, Any]:
    """Syllables of noise."""
    time = np.arange(round(draw.uniform(3.2, 6) * 16_000)) / 16_000
    noise = np.random.default_rng(draw.randrange(2**32)).normal(0, 0.2, len(time)).clip(-0.9, 0.9)
    file = io.BytesIO()
    soundfile.write(file, noise * np.clip(np.sin(4 * np.pi * time), 0, 1), 16_000, format=draw.choice(("WAV", "FLAC")))
    form = {"name": f"{PREFIX} {draw.randrange(1000)}", "consent": "It is noise, and agrees.", "transcript": "Noise that says some words."}
    return {"files": {"audio": ("a.wav", file.getvalue())}, "data": form}


async def _delete(http: httpx.AsyncClient, name: str, tally: Tally) -> None:
    """Twice at once: one of them deletes it."""
    answers = await together(*(http.delete(f"{VOICES}/{name}") for _ in range(2)))
    tally.deeds["deletes"] += 1
    if sorted(answer.status_code for answer in answers) != [204, 404]:
        raise Broken(f"two DELETEs of {name}: {[answer.status_code for answer in answers]}, not 204 and 404")


async def _cut_upload(site: Site, draw: Random, tally: Tally) -> None:
    """The connection is cut in the midst of the body, or just behind it."""
    form = httpx.Request("POST", site.http + VOICES, **_upload(draw))
    body = form.read()
    whole = request(site, "POST", VOICES, body, Content_Type=form.headers["content-type"])
    async with opened(site, whole[: draw.choice((len(whole), draw.randrange(len(whole))))]) as (_, writer):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(draw.uniform(0, 0.5)):
                await writer.drain()
                await asyncio.Event().wait()  # it stays for that long
    tally.deeds["uploads cut"] += 1


async def clean(http: httpx.AsyncClient) -> None:
    """Delete what uploads have left whose answers nobody heard."""
    for voice in (await http.get(VOICES)).json()["voices"]:
        if voice["name"].startswith(PREFIX):
            await http.delete(f"{VOICES}/{voice['id']}")
