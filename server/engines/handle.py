"""The way of an utterance's pcm from an engine's thread to the event loop, and of its text the other way: both bounded.

The thread's side is ``put``, ``next_text`` and ``wanted``; the loop's side is the SpeechHandle of ``base``. Between two sentences of a
text that is still being written the handle waits in the engine's line (``place``, ``standing``), so no thread waits for text.
"""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Hashable

import numpy as np

from qwen3_jax.engine.requests import Priority, Standing
from qwen3_jax.shapes import F32
from qwen3_jax.text.scripts import Letters
from server.engines.base import EngineClosed, SpeechRequest


class ThreadHandle:
    """One utterance. Made in the event loop.

    Args:
        request: what to say.
        max_samples: audio that may lie here unread; then the thread waits.
        wake: called whenever what it waits for may have come.
    """

    part = 0
    texts: tuple[str, ...] = ()

    def __init__(self, request: SpeechRequest, max_samples: int, wake: Callable[[], None]) -> None:
        self.request = request
        self.begun = False  # it has had a turn
        self.finish_reason: str | None = None
        self.failure: BaseException | None = None
        self.letters: Letters | None = None  # of the text so far; the thread's
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._begun, self._arrived = asyncio.Event(), asyncio.Event()
        self._changed = threading.Condition()  # guards what follows
        self._pieces: deque[F32[np.ndarray, " F"]] = deque()
        self._samples, self._max_samples = 0, max_samples
        self._text, self._open = request.text, request.incremental  # what the thread has not taken; whether more may come
        self._sentences: deque[str] = deque()  # settled, and not spoken yet
        self._new = True  # whether any has come since the thread looked
        self._cancelled = self._ended = False

    # The loop's side

    async def begin(self) -> None:
        """A text that has no word yet waits for nobody but its writer."""
        if self.standing != "text":
            await self._begun.wait()

    async def taken(self) -> None:
        """The model speaks one part after the other, and says of each only then whether it takes it."""

    def append(self, text: str) -> None:
        with self._changed:
            self._text += text
            self._new = True
        self._wake()

    def finish(self) -> None:
        with self._changed:
            self._open = False
        self._wake()

    def cancel(self) -> None:
        with self._changed:
            self._cancelled = True
            self._pieces.clear()
            self._samples = 0
            self._changed.notify_all()
        self._wake()

    def __aiter__(self) -> "ThreadHandle":
        return self

    async def __anext__(self) -> F32[np.ndarray, " F"]:
        while True:
            with self._changed:
                if self._pieces:
                    piece = self._pieces.popleft()
                    self._samples -= len(piece)
                    self._changed.notify_all()
                    break
                if self._ended:
                    raise StopAsyncIteration
                self._arrived.clear()
            await self._arrived.wait()
        self._wake()
        return piece

    # The line's side

    @property
    def place(self) -> tuple[Priority, Hashable]:
        return "high" if self.request.high else "normal", self.request.owner

    @property
    def standing(self) -> Standing:
        with self._changed:
            if self._cancelled:
                return "ready"  # to be ended
            if self._open and not self._sentences and not (self._new and self._text.strip()):
                return "text"
            return "ready" if self._samples < self._max_samples else "consumer"

    # The thread's side

    @property
    def wanted(self) -> bool:
        return not self._cancelled

    def start(self) -> None:
        """It is this utterance's turn."""
        self.begun = True
        self._tell(self._begun)

    def put(self, piece: F32[np.ndarray, " F"]) -> bool:
        """Hand a piece over, waiting for room; False if nobody wants it any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._cancelled or not self._pieces or self._samples + len(piece) <= self._max_samples)
            if self._cancelled:
                return False
            self._pieces.append(piece)
            self._samples += len(piece)
        self._tell(self._arrived)
        return True

    def next_text(self, split: Callable[[str], list[str]]) -> str | None:
        """The next to be spoken: the text whole; one that is still being written by sentences, each as soon as the next has begun. None:
        there is none now."""
        with self._changed:
            if not self.request.incremental:
                text, self._text = self._text, ""
                return text or None
            if not self._sentences and self._text:
                *settled, self._text = split(self._text)
                self._sentences.extend(sentence for sentence in settled if sentence.strip())
            self._new = False
            if not self._sentences and not self._open and self._text.strip():
                self._sentences.append(self._text)
                self._text = ""
            return self._sentences.popleft() if self._sentences else None

    @property
    def spoken(self) -> bool:
        """Whether there is nothing more to say."""
        with self._changed:
            return not (self._open or self._sentences or self._text.strip())

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
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits there
            self._loop.call_soon_threadsafe(event.set)
