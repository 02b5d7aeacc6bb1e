"""Voices that another process adds, changes or deletes: seen within a second or two, and what has gone is forgotten everywhere."""

import asyncio

from server.context import Context


async def watch(context: Context) -> None:
    """Look at the folders again and again, in a thread, for ever. The engine forgets voices that have gone or have another recording."""
    store = context.store
    before = dict(store.voices)
    while True:
        await asyncio.sleep(store.interval)
        now = dict(await asyncio.to_thread(store.refresh, now=True))
        for voice in before.values():
            if voice.id not in now or now[voice.id].revision != voice.revision:
                context.engine.forget(voice.id)
        before = now
