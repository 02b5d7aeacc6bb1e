"""An engine whose output can be checked by hand, and held step by step: no model, no thread, no JAX.

The ``n``-th utterance (from 1) is made of frames of 80 ms; frame ``i`` (from 0) holds one value, ``100 n + i`` in PCM16. A whole text has
``frames`` of them; a text that is still being written has one for each word, as soon as the next word has begun, or at its end.
"fail" in a text raises after the first frame, "break" before it, "memory" is out of memory, "refuse" is refused, "nan" is not finite.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from server.engines.base import DeviceStatus, EngineClosed, OutOfMemory, Refused, SpeechRequest, State
from server.languages import LANGUAGES
from server.settings import Settings
from server.voices.store import StoredVoice, VoiceStore

FRAME = 1920
LIMIT = 60.0  # seconds that a wait may take before the test counts as hung; no test is to depend on it


def tone(utterance: int, index: int) -> np.ndarray:
    """Frame ``index`` of an utterance, float32 [1920]."""
    return np.full(FRAME, (100 * utterance + index) / 32767, np.float32)


def pcm16(utterance: int, frames: int, first: int = 0) -> bytes:
    """Frames as they are on the wire."""
    return b"".join(np.full(FRAME, 100 * utterance + index, "<i2").tobytes() for index in range(first, frames))


@dataclass
class FakeEngine:
    """See ``server.engines.base.TtsEngine``. With ``gate`` set, one release lets one frame of any utterance pass."""

    frames: int = 3
    gate: asyncio.Semaphore | None = None
    presets: tuple[str, ...] | None = None
    languages: tuple[str, ...] = LANGUAGES
    streaming: bool = True
    refuses_voice: bool = False
    healed: bool = False  # whether "break" and "memory" go well when tried again
    hold_loading: bool = False
    loading_error: BaseException | None = None
    requests: list[SpeechRequest] = field(default_factory=list)
    handles: list["FakeHandle"] = field(default_factory=list)
    prepared: list[str] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    loads: int = 0
    sample_rate: int = 24000
    loaded: "asyncio.Future[None] | None" = None

    def __call__(self, settings: Settings, store: VoiceStore) -> "FakeEngine":
        """As a factory: itself."""
        return self

    @property
    def state(self) -> State:
        if self.loaded is None:
            return "idle"
        if not self.loaded.done():
            return "loading"
        return "failed" if self.loaded.exception() is not None else "ready"

    @property
    def is_ready(self) -> bool:
        return self.state == "ready"

    @property
    def queued(self) -> int:
        return 0

    @property
    def active(self) -> int:
        return sum(not handle.over for handle in self.handles)

    runaways, restarts, not_finite = 2, 1, 3
    slots = 10

    @property
    def devices(self) -> dict[str, DeviceStatus]:
        return {}

    def load(self) -> "asyncio.Future[None]":
        if self.loaded is None:
            self.loads += 1
            self.loaded = asyncio.get_running_loop().create_future()
            if self.loading_error is not None:
                self.loaded.set_exception(self.loading_error)
            elif not self.hold_loading:
                self.loaded.set_result(None)
        return self.loaded

    def check_line(self, owner: Any) -> None:
        """There is room."""

    def submit(self, request: SpeechRequest) -> "FakeHandle":
        self.requests.append(request)
        handle = FakeHandle(self, request, len(self.requests))
        self.handles.append(handle)
        return handle

    async def prepare(self, voice: StoredVoice) -> None:
        if self.refuses_voice:
            raise Refused("no voice can be cloned from that")
        self.prepared.append(voice.id)

    def forget(self, voice_id: str) -> None:
        self.forgotten.append(voice_id)

    def frame(self, utterance: int, index: int) -> np.ndarray:
        """What frame ``index`` of an utterance holds."""
        return tone(utterance, index)

    def close(self) -> None:
        for handle in self.handles:
            handle.close()


class FakeHandle:
    """One utterance."""

    def __init__(self, engine: FakeEngine, request: SpeechRequest, number: int) -> None:
        self.request, self.number = request, number
        self.part, self.texts = 0, [request.text] if not request.incremental else []
        self.finish_reason: str | None = None
        self.failure: BaseException | None = None
        self.text = request.text
        self.made = 0
        self.cancelled = asyncio.Event()
        self.over = False
        self._engine = engine
        self._open = request.incremental
        self._more = asyncio.Event()
        self._pending: deque[Any] = deque()

    async def begin(self) -> None:
        """Every utterance's turn is at once."""

    async def taken(self) -> None:
        """A text is one part."""

    def append(self, text: str) -> None:
        self.text += text
        self._more.set()

    def finish(self) -> None:
        self._open = False
        self._more.set()

    def cancel(self) -> None:
        self.over = True
        self.cancelled.set()
        self._more.set()

    def close(self) -> None:
        if not self.over:
            self.failure = EngineClosed("closed")
            self.cancel()

    def __aiter__(self) -> "FakeHandle":
        return self

    async def __anext__(self) -> np.ndarray:
        while not self.over and self.made >= self._frames and self._open:
            self._more.clear()
            await self._more.wait()
        if not self.over and self.made < self._frames and self._engine.gate is not None:
            await self._gate(self._engine.gate)
        self._misfortune()
        if self.over or self.made >= self._frames:
            self._end()
            raise StopAsyncIteration
        self.made += 1
        return self._engine.frame(self.number, self.made - 1) * (np.nan if "nan" in self.text else 1)

    @property
    def _frames(self) -> int:
        if not self.request.incremental:
            return self._engine.frames
        words = self.text.split()
        settled = len(words) if self.text[-1:].isspace() or not self._open else len(words) - 1
        return max(0, settled)

    async def _gate(self, gate: asyncio.Semaphore) -> None:
        passed, stopped = asyncio.ensure_future(gate.acquire()), asyncio.ensure_future(self.cancelled.wait())
        try:
            done, _ = await asyncio.wait({passed, stopped}, timeout=LIMIT, return_when=asyncio.FIRST_COMPLETED)
            assert done, "the test never opened the gate"
        finally:
            stopped.cancel()
            if not passed.done():
                passed.cancel()

    def _misfortune(self) -> None:
        text = self.text
        if self.over:
            return
        tried_again = self._engine.healed and self.request.whole
        if "refuse" in text:
            self.failure = Refused("text 'refuse': is refused; say something else")
        elif "fail" in text and self.made == 1:
            self.failure = RuntimeError("the fake failed")
        elif "break" in text and not tried_again:
            self.failure = RuntimeError("the fake broke")
        elif "memory" in text and not tried_again:
            self.failure = OutOfMemory("RESOURCE_EXHAUSTED")
        self.over = self.failure is not None

    def _end(self) -> None:
        if self.failure is None:
            self.finish_reason = "cancelled" if self.cancelled.is_set() else "eos"
        self.over = True
