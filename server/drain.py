"""The server goes down: nothing new begins, what is spoken may end within the grace period, and every client is told."""

import asyncio
import contextlib

from server.context import Context
from server.ws.connected import ConnectedSession
from server.ws.outgoing import SlowClient


async def drain(context: Context) -> None:
    """Return when no session is left and no audio is on its way."""
    context.draining.set()
    await asyncio.gather(_http(context), *(_session(session, task, context.settings.grace) for session, task in list(context.sessions)))


async def _session(session: ConnectedSession, task: "asyncio.Task[None]", grace: float) -> None:
    with contextlib.suppress(SlowClient):
        await session.drain(grace)
    task.cancel()


async def _http(context: Context) -> None:
    """What is not at its end in time is cut."""
    if context.streams:
        await asyncio.wait(context.streams.values(), timeout=context.settings.grace)
    for handle in context.streams:
        handle.cancel()
