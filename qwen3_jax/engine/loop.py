"""Packets for an event loop: one ``call_soon_threadsafe`` per engine step for all requests of the loop, not one per packet.

consumer = LoopConsumer(asyncio.get_running_loop())
handle = engine.submit(Request(..., notify=consumer.notify))
async for packet in consumer.packets(handle, limit=30): ...
"""

import asyncio
from collections.abc import AsyncIterator

from qwen3_jax.engine.requests import Handle, Packet


class LoopConsumer:
    """All requests of one event loop. Methods but ``notify`` are for the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._news: dict[Handle, asyncio.Event] = {}

    def notify(self, handles: list[Handle]) -> None:
        """From the engine's thread. Raises RuntimeError if the loop is closed, which ends its requests."""
        self._loop.call_soon_threadsafe(self._wake, handles)

    def _wake(self, handles: list[Handle]) -> None:
        for handle in handles:
            if handle in self._news:
                self._news[handle].set()

    def listen(self, handle: Handle) -> asyncio.Event:
        """What is set whenever there are news of the handle, until ``leave``; clear it before looking."""
        return self._news.setdefault(handle, asyncio.Event())

    def leave(self, handle: Handle) -> None:
        """Hear no more of it."""
        self._news.pop(handle, None)

    async def packets(self, handle: Handle, limit: float) -> AsyncIterator[Packet]:
        """The handle's packets to its end. Who leaves early, or is cancelled, cancels the request.

        Raises:
            TimeoutError: none came in ``limit`` seconds.
            EngineError: what the request died of, after all audio that was made before.
        """
        event = self.listen(handle)
        try:
            while True:
                event.clear()  # before looking: what comes after is told again
                while (packet := handle.take()) is not None:
                    yield packet
                if handle.done:
                    break
                try:
                    async with asyncio.timeout(limit):
                        await event.wait()
                except TimeoutError as error:
                    raise TimeoutError(f"no audio for {limit} s") from error
            if handle.error is not None and not handle.cancelled:
                raise handle.error
        finally:
            handle.cancel()  # nothing, if it has ended
            self.leave(handle)
