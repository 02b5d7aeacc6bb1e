"""One utterance as the event loop has it: before its voice is known, text that comes; from then on, the engine's handle."""

import asyncio
import contextlib
from collections import deque

import numpy as np

from qwen3_jax.engine import Closed, DeviceOutOfMemory, Full, Handle, Packet
from qwen3_jax.engine.loop import LoopConsumer
from qwen3_jax.shapes import F32
from server.engines.base import Crowded, EngineClosed, OutOfMemory, Refused, SpeechRequest

PIECE = 240  # characters of a text in pieces that one job of the thread for texts takes: a few ms


class Qwen3Utterance:
    """See ``server.engines.base.SpeechHandle``. Its packets, its end and its error are those of the engine's handle.

    Args:
        request: what to say.
        consumer: has the news of the engine's handles.
    """

    def __init__(self, request: SpeechRequest, consumer: LoopConsumer) -> None:
        self.request = request
        self.opened: asyncio.Future[Handle | None] = asyncio.get_running_loop().create_future()
        self.written: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # done as soon as the engine has all of its text
        self._early: Exception | None = None  # where that is None, there never is a handle: what went wrong, or None after a cancel
        self._consumer = consumer
        self._text, self._text_ended = request.text, False  # of a text in pieces, what the engine has not taken
        self._whole: deque[Packet] = deque()  # of an utterance that is handed out part by part when all of it is made
        self.part = 0
        self.texts: list[str] = []  # written by the thread for texts

    @property
    def handle(self) -> Handle | None:
        """The engine's; None if there is none, or none yet."""
        return self.opened.result() if self.opened.done() else None

    @property
    def finish_reason(self) -> str | None:
        if (handle := self.handle) is not None:
            return None if handle.error is not None else handle.finish_reason
        return "cancelled" if self.opened.done() and self._early is None else None

    @property
    def failure(self) -> BaseException | None:
        error = self._early if self.handle is None else self.handle.error if self.handle.done else None
        return None if error is None else _named(error)

    async def begin(self) -> None:
        """A text that has no word yet does not wait for anybody but its writer."""
        if (handle := await self._there()) is not None:
            written = self.request.incremental
            await self._consumer.until(handle, lambda: handle.begun or handle.done or (written and handle.segment(0) is None))

    async def taken(self) -> None:
        await asyncio.wait([self.written])  # which leaves it as it is if this is cancelled

    def append(self, text: str) -> None:
        self._text += text
        self._tell()

    def finish(self) -> None:
        self._text_ended = True
        self._tell()

    def cancel(self) -> None:
        if (handle := self.handle) is not None:
            handle.cancel()  # now, whichever thread this is
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits there
            self.opened.get_loop().call_soon_threadsafe(self._cancel)

    def __aiter__(self) -> "Qwen3Utterance":
        return self

    async def __anext__(self) -> F32[np.ndarray, " F"]:
        if (handle := await self._there()) is not None:
            while (packet := await self._consumer.next(handle)) is not None:
                if not self.request.whole:
                    return self._handed(packet)
                self._whole.append(packet)
            if self._whole and handle.finish_reason in ("eos", "length"):
                return self._whole_part()
        raise StopAsyncIteration

    def _handed(self, packet: Packet) -> F32[np.ndarray, " F"]:
        self.part = packet.segment
        return packet.pcm

    def _whole_part(self) -> F32[np.ndarray, " F"]:
        """The next part of what has all been made."""
        packets = [self._whole.popleft()]
        while self._whole and self._whole[0].segment == packets[0].segment:
            packets.append(self._whole.popleft())
        self.part = packets[0].segment
        return np.concatenate([packet.pcm for packet in packets])

    # For the engine, in the event loop

    def open(self, handle: Handle) -> bool:
        """It has been given to the engine. False if nobody waits for it any more."""
        if self.opened.done():
            handle.cancel()
            return False
        self.opened.set_result(handle)
        return True

    def fail(self, error: Exception) -> None:
        """It cannot go on; nothing, if it has ended."""
        if not self.opened.done():
            self._early = error
            self.opened.set_result(None)
        elif self.handle is not None:
            self.handle.fail(error)
            self._tell()

    async def piece(self) -> str | None:
        """What has come of a text in pieces, PIECE characters of it at most; None at its end, or at the utterance's."""
        if (handle := self.handle) is not None:
            await self._consumer.until(handle, lambda: bool(self._text) or self._text_ended or handle.done or handle.ended)
            if handle.done or handle.ended:
                return None
        piece, self._text = self._text[:PIECE], self._text[PIECE:]
        return piece or None

    async def _there(self) -> Handle | None:
        """The engine's handle, waited for; None if there never is one."""
        if not self.opened.done():
            await asyncio.wait([self.opened])  # which leaves it as it is if this is cancelled
        return self.handle

    def _cancel(self) -> None:
        if not self.opened.done():
            self.opened.set_result(None)
        elif self.handle is not None:
            self.handle.cancel()
            self._tell()

    def _tell(self) -> None:
        """Whoever waits for news of it looks again."""
        if self.handle is not None:
            self._consumer.wake([self.handle])


def _named(error: BaseException) -> BaseException:
    """The engine's errors by the server's names."""
    if isinstance(error, ValueError) and not isinstance(error, Refused):
        return Refused(str(error))
    if isinstance(error, Full):
        return Crowded(str(error))
    if isinstance(error, DeviceOutOfMemory):
        return OutOfMemory(str(error))
    return EngineClosed(str(error)) if isinstance(error, Closed) else error
