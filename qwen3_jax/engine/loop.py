"""Packets for an event loop: one ``call_soon_threadsafe`` per engine step for all requests of the loop, not one per packet.

consumer = LoopConsumer(asyncio.get_running_loop())
handle = engine.submit(Request(..., notify=consumer.notify))
async for packet in consumer.packets(handle, limit=30): ...
"""

import asyncio
from collections.abc import AsyncIterator, Callable

from qwen3_jax.engine.requests import Handle, Packet


class LoopConsumer:
    """All requests of one event loop. Methods but ``notify`` are for the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._news: dict[Handle, asyncio.Event] = {}  # of those that are waited for; the next news take one out

    def notify(self, handles: list[Handle]) -> None:
        """There are news of these; from any thread. Raises RuntimeError if the loop is closed, which ends the engine's requests."""
        self._loop.call_soon_threadsafe(self.wake, handles)

    def wake(self, handles: list[Handle]) -> None:
        """As ``notify``, at once."""
        for handle in handles:
            if (news := self._news.pop(handle, None)) is not None:
                news.set()

    async def until(self, handle: Handle, condition: Callable[[], bool]) -> None:
        """Return when the condition is true. It is looked at now, and whenever there are news of the handle."""
        while not condition():
            await self._news.setdefault(handle, asyncio.Event()).wait()

    async def next(self, handle: Handle) -> Packet | None:
        """As `Handle.take`, but waits: the next packet, or None at the handle's end. Nothing is lost if the wait is cancelled."""
        while (packet := handle.take()) is None and not handle.done:
            await self.until(handle, lambda: handle.buffered > 0 or handle.done)
        return packet

    async def packets(self, handle: Handle, limit: float) -> AsyncIterator[Packet]:
        """The handle's packets to its end. Leaving the iterator early, or cancelling the task, cancels the request.

        Raises:
            TimeoutError: none came in ``limit`` seconds.
            EngineError: what the request died of, after all audio that was made before; or what `Handle.fail` was given.
        """
        try:
            while True:
                try:
                    async with asyncio.timeout(limit):
                        packet = await self.next(handle)
                except TimeoutError as error:
                    raise TimeoutError(f"no audio for {limit} s") from error
                if packet is None:
                    break
                yield packet
            if handle.error is not None:
                raise handle.error
        finally:
            handle.cancel()  # nothing, if it has ended
