"""How long a model takes to load -> what a client that speaks too early is told, and a line of the log every 20 seconds."""

import asyncio
import logging
from time import monotonic

from server.context import Context

LINE_SECONDS = 20.0  # between two lines of the log
QUICK_SECONDS = 10.0  # a start that lasts longer compiles
SOON, LATER = 2000, 15_000  # milliseconds after which to try again
log = logging.getLogger(__name__)


def too_early(context: Context) -> tuple[str, int]:
    """What a client is told while the engine's state is ``loading``: the message, and milliseconds until another try."""
    if context.engine.loaded is not None and context.engine.loaded.done():
        return "the engine is being built again after a fault; try again in a few seconds", SOON
    wait = SOON if context.loading_seconds() < QUICK_SECONDS else LATER
    return f"the model is being loaded; the first start compiles for about two minutes; try again in {wait // 1000} s", wait


async def tell(context: Context) -> None:
    """Log at intervals that the model is still being loaded, until it is."""
    await context.loading.wait()
    begun, loaded = monotonic(), context.engine.load()
    while not (await asyncio.wait({loaded}, timeout=LINE_SECONDS))[0]:
        log.info("still loading after %.0f s: a first start compiles programs for about two minutes, and keeps them", monotonic() - begun)
