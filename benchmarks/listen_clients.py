"""The two halves of a client: a Microphone on ``/api/v1/listen``, and a Loudspeaker on ``/api/v1/speak``, both in real time."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import numpy as np
import soxr
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.listen_sounds import RATE
from qwen3_jax.shapes import F32

TICK = 320  # samples that a microphone hands over at a time: 20 ms
SPEECH_RATE = 24_000
PLAYED_SECONDS = 0.25  # between two reports of what has sounded
HELD = 2 * TICK  # samples that the resampler may keep to itself
ECHO_DELAY = 0.06 - HELD / RATE  # seconds from the loudspeaker to the microphone with both of their buffers, less those
DUCKED_DB = -20.0  # by which a client turns down what it still has, while speech is held
WAIT = 60.0
Message = dict[str, Any]


@dataclass
class Told:
    """Messages of one socket, with the time at which each came."""

    messages: list[tuple[float, Message]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, message: Message) -> None:
        self.messages.append((monotonic(), message))
        self.changed.set()

    async def next(self, fits: Callable[[Message], bool], since: float = 0.0, wait: float = WAIT) -> tuple[float, Message]:
        """The first that fits, of those that came after ``since``. Raises TimeoutError."""
        async with asyncio.timeout(wait):
            while True:
                for at, message in self.messages:
                    if at >= since and fits(message):
                        return at, message
                self.changed.clear()
                await self.changed.wait()

    async def end_of(self, name: str) -> tuple[float, Message]:
        """The last message of an utterance."""
        return await self.next(lambda one: one.get("requestId") == name and one["type"] in ("complete", "error"))

    def has(self, name: str, kind: str) -> bool:
        """Whether an utterance has had a message of that type."""
        return any(message["type"] == kind and message.get("requestId") == name for _, message in reversed(self.messages))

    def count(self, *types: str) -> int:
        return sum(message["type"] in types for _, message in self.messages)


class Loudspeaker:
    """A player: frames are heard one after the other, each as soon as it has come and the one before it is over."""

    def __init__(self, connection: ClientConnection) -> None:
        self.told = Told()
        self.first_frames: list[tuple[float, str | None]] = []  # when the first audio of each utterance came
        self.pcm: dict[str | None, list[F32[np.ndarray, " F"]]] = {}  # of each utterance, all that came
        self._connection = connection
        self._timeline: list[tuple[float, F32[np.ndarray, " F"], str | None]] = []  # when each frame begins to sound
        self._until = 0.0  # when the last of it has sounded
        self._current: str | None = None  # whose audio comes: that of the first utterance that has not ended
        self._queue: list[str | None] = []
        self._ducked = False
        self._stopped: dict[str | None, float] = {}  # how much had sounded of those that were interrupted

    async def speak(self, text: str, request_id: str, **more: Any) -> None:
        self._queue.append(request_id)
        await self._connection.send(json.dumps({"type": "speak", "text": text, "requestId": request_id, **more}))

    async def cancel(self) -> None:
        await self._connection.send(json.dumps({"type": "cancel"}))

    async def run(self) -> None:
        """Receive and play, for ever."""
        reporting = asyncio.create_task(self._report())
        try:
            async for frame in self._connection:
                if isinstance(frame, bytes):
                    self._play(np.frombuffer(frame, "<i2").astype(np.float32) / 32768)
                else:
                    await self._hear(json.loads(frame))
        finally:
            reporting.cancel()

    def _play(self, pcm: F32[np.ndarray, " F"]) -> None:
        now, name = monotonic(), self._queue[0] if self._queue else None
        if name not in self.pcm:
            self.pcm[name] = []
            self.first_frames.append((now, name))
        self.pcm[name].append(pcm)
        begin = max(now, self._until)
        self._timeline = [entry for entry in self._timeline if entry[0] > now - 2]
        self._timeline.append((begin, pcm, name))
        self._until = begin + len(pcm) / SPEECH_RATE

    async def _hear(self, message: Message) -> None:
        kind, name = message["type"], message.get("requestId")
        if kind == "answer" and name not in self._queue and name not in self.pcm:
            self._queue.append(name)
        elif kind == "ducked":
            self._ducked = True
        elif kind == "resumed":
            self._ducked = False
        elif kind == "interrupted":
            self._ducked = False
            now = monotonic()
            self._stopped[name] = self.played(name)
            self._timeline, self._until = (
                [(begin, pcm[: max(0, round((now - begin) * SPEECH_RATE))], one) for begin, pcm, one in self._timeline],
                now,
            )
        if kind == "complete" or (kind == "error" and message.get("final", True)):
            self._queue = [one for one in self._queue if one != name]
        self.told.add(message)

    def played(self, name: str | None) -> float:
        """Seconds of an utterance that have sounded; what is older than two seconds counts as a whole."""
        if name in self._stopped:
            return self._stopped[name]
        whole = sum(len(pcm) for pcm in self.pcm.get(name, [])) / SPEECH_RATE
        now = monotonic()
        ahead = sum(
            min(len(pcm) / SPEECH_RATE, max(0.0, begin + len(pcm) / SPEECH_RATE - now)) for begin, pcm, one in self._timeline if one == name
        )
        return whole - ahead

    def sounding(self) -> str | None:
        """The utterance that is heard now."""
        now = monotonic()
        return next((name for begin, pcm, name in self._timeline if begin <= now < begin + len(pcm) / SPEECH_RATE), None)

    def picked_up(self, begin: float, count: int) -> F32[np.ndarray, " F"]:
        """What sounds from a moment on, so many samples at 24 kHz."""
        sound = np.zeros(count, np.float32)
        for start, pcm, _ in self._timeline:
            at = round((start - begin) * SPEECH_RATE)
            low, high = max(0, at), min(count, at + len(pcm))
            if low < high:
                sound[low:high] += pcm[low - at : high - at]
        return sound * 10 ** (DUCKED_DB / 20) if self._ducked else sound

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(PLAYED_SECONDS)
            if (name := self.sounding()) is not None:
                await self._connection.send(json.dumps({"type": "played", "requestId": name, "ms": round(1000 * self.played(name))}))


class Microphone:
    """A microphone that hands over 20 ms at a time when they have been heard: what is said, what the loudspeaker plays, and a quiet room.

    Args:
        loudspeaker: whose sound it picks up; None: headphones.
        echo_db: how loud, against what is played.
        background: heard again and again.
    """

    def __init__(
        self,
        connection: ClientConnection,
        background: F32[np.ndarray, " F"],
        loudspeaker: Loudspeaker | None = None,
        echo_db: float = 0.0,
    ) -> None:
        self.told = Told()
        self._connection, self._background = connection, background
        self._loudspeaker, self._gain = loudspeaker, 10 ** (echo_db / 20)
        self._resampler = soxr.ResampleStream(SPEECH_RATE, RATE, 1, dtype="float32")
        self._echo = np.zeros(HELD, np.float32)  # resampled, and not heard yet
        self._said = np.zeros(0, np.float32)
        self._begun = 0.0  # when the first sample was heard
        self._samples = 0

    def say(self, speech: F32[np.ndarray, " F"]) -> float:
        """Say that now. Returns the time of its first sample."""
        begin = self._begun + (self._samples + len(self._said)) / RATE
        self._said = np.concatenate([self._said, speech])
        return begin

    async def settle(self) -> None:
        """Return when each turn that has begun is written down; a cough may have none."""
        with contextlib.suppress(TimeoutError):
            begun = [at for at, message in self.told.messages if message["type"] == "speechStarted"]
            if begun:
                await self.told.next(lambda one: one["type"] == "final", begun[-1], 5.0)

    async def run(self) -> None:
        """Listen and hand over, for ever."""
        receiving = asyncio.create_task(self._receive())
        self._begun = monotonic()
        try:
            while True:
                await asyncio.sleep(max(0.0, self._begun + (self._samples + TICK) / RATE - monotonic()))
                pcm = self._tick()
                self._samples += TICK
                await self._connection.send((np.clip(pcm, -1, 1) * 32767).astype("<i2").tobytes())
        finally:
            receiving.cancel()

    def _tick(self) -> F32[np.ndarray, " F"]:
        pcm = np.take(self._background, np.arange(self._samples, self._samples + TICK), mode="wrap").astype(np.float32)
        said, self._said = self._said[:TICK], self._said[TICK:]
        pcm[: len(said)] += said
        if self._loudspeaker is not None:
            heard = self._loudspeaker.picked_up(self._begun + self._samples / RATE - ECHO_DELAY, TICK * SPEECH_RATE // RATE)
            self._echo = np.concatenate([self._echo, self._resampler.resample_chunk(heard)])
            echo, self._echo = self._echo[:TICK], self._echo[TICK:]
            pcm += self._gain * echo
        return pcm

    async def _receive(self) -> None:
        async for frame in self._connection:
            self.told.add(json.loads(frame))


@contextlib.asynccontextmanager
async def opened(url: str, start: Message) -> AsyncIterator[ClientConnection]:
    """A session that has started."""
    async with connect(url, compression=None, max_size=None) as connection:
        await asyncio.wait_for(connection.recv(), WAIT)  # ready
        await connection.send(json.dumps({"type": "start", **start}))
        answer = json.loads(await asyncio.wait_for(connection.recv(), WAIT))
        if answer["type"] != "started":
            raise RuntimeError(f"{url}: start was answered with {answer}")
        yield connection
        await connection.send(json.dumps({"type": "stop"}))


@contextlib.asynccontextmanager
async def running(*clients: Loudspeaker | Microphone) -> AsyncIterator[None]:
    """Clients that run meanwhile. What one of them dies of is raised."""
    tasks = [asyncio.create_task(one.run()) for one in clients]
    await asyncio.sleep(0)  # a microphone knows when it has begun
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def conversation(
    base: str, contract: str, background: F32[np.ndarray, " F"], *, respond: bool = False, echo_db: float | None = None, **speak: Any
) -> AsyncIterator[tuple[Microphone, Loudspeaker]]:
    """Both halves of a client, joined by a contract. ``speak``: fields of the Speak session's ``start``."""
    start = {"contractId": contract, "language": "English", **speak}
    async with (
        opened(f"{base}/api/v1/speak", start) as speaking,
        opened(f"{base}/api/v1/listen", {"contractId": contract, "respond": respond}) as listening,
    ):
        loudspeaker = Loudspeaker(speaking)
        microphone = Microphone(listening, background, None if echo_db is None else loudspeaker, echo_db or 0.0)
        async with running(loudspeaker, microphone):
            yield microphone, loudspeaker


async def silence(base: str, background: F32[np.ndarray, " F"], speech: F32[np.ndarray, " F"], seconds: float) -> dict[str, float]:
    """A client that says nothing for so long, and then something. Raises TimeoutError if that is not heard."""
    async with conversation(base, "silence", background) as (microphone, _):
        await asyncio.sleep(seconds)
        begun = microphone.told.count("speechStarted")
        begin = microphone.say(speech)
        await microphone.told.next(lambda one: one["type"] == "final" and bool(one["text"].strip()), begin)
    return {"silence_minutes": seconds / 60, "turns_in_silence": float(begun)}
