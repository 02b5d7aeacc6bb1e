"""One utterance between a session and ``qwen3_jax.service``: text in, pieces of pcm out, all in the event loop."""

import asyncio
from collections.abc import Callable

import numpy as np

from qwen3_jax.engine import Closed, DeviceOutOfMemory, Full
from qwen3_jax.shapes import F32
from qwen3_jax.speech.utterance import SpeechStream
from server.engines.base import Crowded, EngineClosed, OutOfMemory, Refused, SpeechRequest

PIECE = 240  # characters of a text in pieces that one job of the engine's thread for texts takes: a few ms


class Qwen3Handle:
    """One utterance; see ``server.engines.base.Handle``. The engine makes it as fast as it can, up to the buffer's end.

    Args:
        request: what to say.
        leave: called once, when it is over.
    """

    def __init__(self, request: SpeechRequest, leave: "Callable[[Qwen3Handle], None]") -> None:
        self.request = request
        self.finish_reason: str | None = None
        self.failure: BaseException | None = None
        self.utterance: SpeechStream | None = None
        self._leave, self._loop = leave, asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._text = request.text if request.incremental else ""  # of a text in pieces, what the engine has not taken
        self._text_ended, self._more = False, asyncio.Event()
        self._pieces: list[F32[np.ndarray, " F"]] = []  # of a whole one
        self._over = False

    async def begin(self) -> None:
        """A text that has no word yet does not wait for anybody but its writer."""
        while not self._begun:
            self._news.clear()
            await self._news.wait()

    def append(self, text: str) -> None:
        self._text += text
        self._more.set()

    def finish(self) -> None:
        self._text_ended = True
        self._more.set()

    def cancel(self) -> None:
        if self.utterance is not None:
            self.utterance.cancel()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._cancelled)

    def __aiter__(self) -> "Qwen3Handle":
        return self

    async def __anext__(self) -> F32[np.ndarray, " F"]:
        while not self._over:
            self._news.clear()  # before looking: what comes after is told again
            if self.utterance is not None:
                while (packet := self.utterance.handle.take()) is not None:
                    if not self.request.whole:
                        return packet.pcm
                    self._pieces.append(packet.pcm)
                # One that was cancelled is ended by who did it: `cancel`, or the text that was refused, whose error is on its way.
                if self.utterance.handle.done and not self.utterance.handle.cancelled:
                    self._ended()
                    if self._pieces and self.failure is None:
                        return np.concatenate(self._pieces)
                    break
            await self._news.wait()
        raise StopAsyncIteration

    # The engine's side, in the event loop

    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._over

    def attach(self, utterance: SpeechStream, news: asyncio.Event) -> None:
        """It has been given to the engine; ``news`` is set when that has some."""
        self.utterance = utterance
        if self._over:
            utterance.cancel()
            return
        self._news.set()
        self._news = news
        self._news.set()

    async def piece(self) -> str | None:
        """What has come of a text in pieces, PIECE characters of it at most; None at its end, or at the utterance's."""
        while not (self._over or self._text or self._text_ended):
            self._more.clear()
            await self._more.wait()
        if self._over or not self._text:
            return None
        piece, self._text = self._text[:PIECE], self._text[PIECE:]
        return piece

    def fail(self, error: BaseException) -> None:
        """It has ended badly."""
        if not self._over:
            self.failure = error
            self._end()
        if self.utterance is not None:
            self.utterance.cancel()

    @property
    def _begun(self) -> bool:
        if self._over or self.utterance is None:
            return self._over
        handle = self.utterance.handle
        return handle.begun or handle.done or (self.request.incremental and handle.segment(0) is None)

    def _cancelled(self) -> None:
        if not self._over:
            self.finish_reason = "cancelled"
            self._end()

    def _ended(self) -> None:
        assert self.utterance is not None
        handle = self.utterance.handle
        if handle.error is not None:
            self.failure = named(handle.error)
        else:
            self.finish_reason = handle.finish_reason
        self._end()

    def _end(self) -> None:
        self._over = True
        self._news.set()
        self._more.set()
        self._leave(self)


def named(error: BaseException) -> BaseException:
    """The engine's errors by the server's names."""
    if isinstance(error, ValueError) and not isinstance(error, Refused):
        return Refused(str(error))
    if isinstance(error, Full):
        return Crowded(str(error))
    if isinstance(error, DeviceOutOfMemory):
        return OutOfMemory(str(error))
    return EngineClosed(str(error)) if isinstance(error, Closed) else error
