"""What WebSocket and HTTP ask alike before anybody speaks, and what they make of a try that failed.

Each puts a ``Denied`` into its own codes: ``server.ws.playback.told``, ``server.http.web.denied``.
"""

import asyncio
import logging
from time import monotonic
from typing import Literal

import msgspec

from qwen3_jax.messages import shorten
from server.admission.loading import too_early
from server.context import Context
from server.engines.base import Crowded, EngineClosed, OutOfMemory, Refused, SpeechHandle, SpeechRequest
from server.languages import default_language, spoken
from server.ops.auth import Principal
from server.voices.store import StoredVoice, VoiceGone

Reason = Literal["draining", "loading", "failed", "crowded", "language", "text", "voice", "late", "memory", "fault"]
MOST_NAMED = 20  # voices that a refusal lists
BUSY = "the server is too busy; try again later"
SOON, LATER = 2000, 5000  # milliseconds after which to try again
log = logging.getLogger(__name__)


class Denied(Exception):
    """An utterance that is not spoken: ``reason`` in one word, a message for the client, and when it may try again."""

    def __init__(self, reason: Reason, message: str, retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        self.reason, self.retry_after_ms = reason, retry_after_ms


def check_engine(context: Context, principal: Principal) -> None:
    """Whether an utterance of the principal can begin now; an engine that waits for the first one begins to load.

    Raises:
        Denied: ``draining``, ``loading``, ``failed`` or ``crowded``.
    """
    engine = context.engine
    if context.draining.is_set():
        raise Denied("draining", "the server goes down", LATER)
    if engine.state == "idle":
        context.load()
    if engine.state == "loading":
        raise Denied("loading", *too_early(context))
    if engine.state == "failed":
        raise Denied("failed", "the model could not be loaded")
    try:
        engine.check_line(principal.bucket)
    except Crowded as error:
        raise _crowded(context, error) from error


def language(context: Context, named: str | None) -> str:
    """The language that a client names, else the server's own, as the engine takes it. Raises Denied ``language``."""
    languages = context.engine.languages
    if named is None:
        return default_language(context.settings, languages)
    try:
        return spoken(named, languages)
    except ValueError as error:
        raise Denied("language", str(error)) from error


async def voice(context: Context, name: str, principal_id: str | None) -> StoredVoice | str:
    """The voice that a client names. Raises Denied ``voice``, with the names of those that are there."""
    found = await context.named_voice(name, principal_id)
    if found is None:
        there = ", ".join(context.voices(principal_id)[:MOST_NAMED]) or "there is none"
        raise Denied("voice", f"voice {shorten(name)!r} is not here: {there}")
    return found


class Tries:
    """The tries at one utterance: a first one, and where that fails before any sound, a second, made whole before any is handed out.

    All of them together wait ``TTS_TURN_TIMEOUT`` for their turn, from when this is made.

    Args:
        high: whether the utterance goes before others.
    """

    def __init__(self, context: Context, *, high: bool = False) -> None:
        self._context, self._high = context, high
        self._due = monotonic() + context.settings.turn_timeout
        self._first: BaseException | None = None  # what the first one died of

    def submit(self, request: SpeechRequest) -> SpeechHandle:
        """Begin a try."""
        return self._context.engine.submit(msgspec.structs.replace(request, whole=self._first is not None))

    async def turn(self, handle: SpeechHandle) -> None:
        """Return when the try's turn has come. Raises TimeoutError."""
        with self._context.metrics.wait(high=self._high):
            async with asyncio.timeout(max(0.0, self._due - monotonic())):
                await handle.begin()

    def late(self, why: str = BUSY) -> Denied:
        """What a client is told of a try that takes too long: of a second one, what the first one died of."""
        return Denied("late", why, SOON) if self._first is None else _fault(self._first)

    def failed(self, failure: BaseException, *, heard: bool) -> None:
        """A try has failed. Returns if there is to be another one.

        Args:
            heard: whether any of it has gone to the client.

        Raises:
            Denied: it is the last one: ``text``, ``voice``, ``crowded``, ``memory`` or ``fault``.
        """
        if isinstance(failure, Refused):
            raise Denied("text", str(failure)) from failure
        if isinstance(failure, VoiceGone):
            raise Denied("voice", str(failure)) from failure
        if isinstance(failure, Crowded):
            raise _crowded(self._context, failure) from failure
        log.error("an utterance failed", exc_info=failure)
        if self._first is not None or heard or isinstance(failure, EngineClosed):
            raise _fault(self._first if isinstance(self._first, OutOfMemory) else failure) from failure
        self._first = failure
        self._context.metrics.retries.inc()


def _crowded(context: Context, error: Crowded) -> Denied:
    context.metrics.crowded.inc()
    return Denied("crowded", str(error), LATER)


def _fault(failure: BaseException) -> Denied:
    if isinstance(failure, OutOfMemory):
        return Denied("memory", "the device ran out of memory; try again", SOON)
    return Denied("fault", "failed to generate audio; the server's log says more")
