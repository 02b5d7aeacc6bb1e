"""The server's engine for load without a model: the real ``qwen3_jax.engine.Engine`` on a device that only takes its time.

A text has ``FRAMES_A_WORD`` frames for each word. Texts in pieces are not spoken. All samples are ``mark`` of the process, so that a client
knows which of several processes it is served by.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from qwen3_jax.engine import Engine, Full, Handle, Options, Packet, Request
from qwen3_jax.engine.loop import LoopConsumer
from qwen3_jax.model.sampling import Sampling
from server.engines.base import Crowded, DeviceStatus, SpeechRequest, State
from server.languages import LANGUAGES
from server.settings import Settings
from server.voices.store import StoredVoice, VoiceStore
from tests.timed_device import TimedDevice, Times, segment

FRAMES_A_WORD = 4
LIMIT = 120.0


def frames_of(text: str) -> int:
    """What a text lasts."""
    return FRAMES_A_WORD * max(1, len(text.split()))


def mark(pid: int) -> int:
    """What a process says, in PCM16."""
    return pid % 32000 + 1


class TimedEngine:
    """See ``server.engines.base.TtsEngine``."""

    sample_rate, languages, streaming, presets = 24000, LANGUAGES, True, None
    runaways = not_finite = 0

    def __init__(self, times: Times, settings: Settings) -> None:
        options = Options(buffer_ms=settings.max_buffer_ms, max_waiting=settings.max_queue)
        level = mark(os.getpid()) / 32767
        self._engine = Engine(lambda slots, on_cpu: TimedDevice(times, level=level), slots=max(times.step), options=options)
        self.loaded: asyncio.Future[None] | None = None

    @property
    def state(self) -> State:
        if self.loaded is None:
            return "idle"
        return "ready" if self._engine.state == "running" else "failed"

    @property
    def is_ready(self) -> bool:
        return self.state == "ready"

    @property
    def slots(self) -> int:
        return self._engine.stats().slots

    @property
    def queued(self) -> int:
        return self._engine.stats().waiting

    @property
    def active(self) -> int:
        return self._engine.stats().active

    @property
    def restarts(self) -> int:
        return self._engine.stats().restarts

    @property
    def devices(self) -> dict[str, DeviceStatus]:
        return {}

    def load(self) -> "asyncio.Future[None]":
        if self.loaded is None:
            loop = asyncio.get_running_loop()
            self._consumer = LoopConsumer(loop)
            self.loaded = loop.create_future()
            self.loaded.set_result(None)
        return self.loaded

    def check_line(self, owner: Any) -> None:
        try:
            self._engine.check_line(owner)
        except Full as error:
            raise Crowded(str(error)) from error

    def submit(self, request: SpeechRequest) -> "TimedHandle":
        asked = Request(
            (segment(frames_of(request.text)),),
            Sampling(),
            request.seed or 0,
            priority="high" if request.high else "normal",
            owner=request.owner,
            notify=self._consumer.notify,
        )
        return TimedHandle(self._engine.submit(asked), self._consumer)

    async def prepare(self, voice: StoredVoice) -> None:
        """Any voice is ready."""

    def forget(self, voice_id: str) -> None:
        """Nothing is kept of a voice."""

    def close(self) -> None:
        self._engine.close()


class TimedHandle:
    """See ``server.engines.base.SpeechHandle``."""

    part, texts = 0, ()

    def __init__(self, handle: Handle, consumer: LoopConsumer) -> None:
        self._handle, self._consumer = handle, consumer
        self._packets: AsyncIterator[Packet] = consumer.packets(handle, LIMIT)

    @property
    def finish_reason(self) -> str | None:
        return self._handle.finish_reason if self.failure is None else None

    @property
    def failure(self) -> BaseException | None:
        return self._handle.error

    async def begin(self) -> None:
        await self._consumer.until(self._handle, lambda: self._handle.begun or self._handle.done)

    async def taken(self) -> None:
        """A text is one part."""

    def append(self, text: str) -> None:
        raise NotImplementedError("no text in pieces here")

    def finish(self) -> None:
        raise NotImplementedError("no text in pieces here")

    def cancel(self) -> None:
        self._handle.cancel()

    def __aiter__(self) -> "TimedHandle":
        return self

    async def __anext__(self) -> np.ndarray:
        return (await anext(self._packets)).pcm


def make(times: Times, settings: Settings, store: VoiceStore) -> TimedEngine:
    """For ``functools.partial``: a factory of the server's."""
    return TimedEngine(times, settings)
