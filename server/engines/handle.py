"""The way of an utterance's pcm from an engine's thread to the event loop, and of its text the other way: both bounded.

The thread's side is ``put``, ``more_text`` and ``wanted``; the loop's side is the Handle of ``base``.
"""

import asyncio
import threading
from collections import deque

from qwen3_jax.shapes import NpF32
from server.engines.base import EngineClosed, SpeechRequest

END_OF_TEXT = None


class ThreadHandle:
    """One utterance. Made in the event loop.

    Args:
        request: what to say.
        max_samples: audio that may lie here unread; then the thread waits.
    """

    def __init__(self, request: SpeechRequest, max_samples: int) -> None:
        self.request = request
        self.finish_reason: str | None = None
        self.failure: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        self._begun, self._arrived = asyncio.Event(), asyncio.Event()
        self._changed = threading.Condition()  # guards what follows
        self._pieces: deque[NpF32["F"]] = deque()
        self._samples, self._max_samples = 0, max_samples
        self._text: deque[str | None] = deque()
        self._cancelled = self._ended = False

    # The loop's side

    async def begin(self) -> None:
        await self._begun.wait()

    def append(self, text: str) -> None:
        with self._changed:
            self._text.append(text)
            self._changed.notify_all()

    def finish(self) -> None:
        with self._changed:
            self._text.append(END_OF_TEXT)
            self._changed.notify_all()

    def cancel(self) -> None:
        with self._changed:
            self._cancelled = True
            self._pieces.clear()
            self._samples = 0
            self._changed.notify_all()

    def __aiter__(self) -> "ThreadHandle":
        return self

    async def __anext__(self) -> NpF32["F"]:
        while True:
            with self._changed:
                if self._pieces:
                    piece = self._pieces.popleft()
                    self._samples -= len(piece)
                    self._changed.notify_all()
                    return piece
                if self._ended:
                    raise StopAsyncIteration
                self._arrived.clear()
            await self._arrived.wait()

    # The thread's side

    @property
    def wanted(self) -> bool:
        return not self._cancelled

    def start(self) -> None:
        """It is this utterance's turn."""
        self._tell(self._begun)

    def put(self, piece: NpF32["F"]) -> bool:
        """Hand a piece over, waiting for room; False if nobody wants it any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._cancelled or not self._pieces or self._samples + len(piece) <= self._max_samples)
            if self._cancelled:
                return False
            self._pieces.append(piece)
            self._samples += len(piece)
        self._tell(self._arrived)
        return True

    def more_text(self) -> str | None:
        """All text that has come and not been taken, waiting for some; None at its end, or when nobody wants it any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._cancelled or self._text)
            if self._cancelled:
                return None
            taken = []
            while self._text and self._text[0] is not END_OF_TEXT:
                taken.append(self._text.popleft())
            return "".join(part for part in taken if part is not None) if taken else None

    def end(self, failure: BaseException | None) -> None:
        """It is over, well or badly. From any thread."""
        with self._changed:
            self.failure = failure
            self._ended = True
        for event in (self._begun, self._arrived):
            self._tell(event)

    def abandon(self) -> None:
        """The engine is closed."""
        self.cancel()
        self.end(EngineClosed("the engine is closed"))

    def _tell(self, event: asyncio.Event) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(event.set)
