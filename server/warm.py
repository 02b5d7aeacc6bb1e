"""``python -m server warm``: load the model as a start does, and end. What was downloaded and compiled is kept; nothing is served.

For an init container, or a machine that is to serve later: the next start with the same settings and folders takes seconds.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from time import monotonic
from types import FrameType

from qwen3_jax.voices.layers import VoiceLayers
from server.engines import factory
from server.engines.base import TtsEngine
from server.ops import signals
from server.run import begin
from server.settings import Settings
from server.voices.store import VoiceStore

log = logging.getLogger("server")


def main(make_engine: Callable[[Settings, VoiceStore], TtsEngine] = factory.create) -> None:
    """Load, and return.

    Raises:
        ValueError, FileNotFoundError: as ``server.run.main``; and whatever else makes loading fail.
    """
    for number in signals.ENDING:
        signal.signal(number, _end)
    began, settings = monotonic(), begin()
    store = VoiceStore(VoiceLayers.of(settings.voices_dir, shipped=settings.shipped_voices))
    slots = asyncio.run(_load(make_engine(settings, store)))
    log.info("warm", extra={"fields": {"model": settings.model_id, "slots": slots, "seconds": round(monotonic() - began, 1)}})


async def _load(engine: TtsEngine) -> int:
    try:
        await engine.load()
        return engine.slots
    finally:
        engine.close()


def _end(number: int, frame: FrameType | None) -> None:
    """At once: a native compile cannot be interrupted. Not with 0, for the work is not done."""
    os._exit(128 + number)
