"""What HTTP speaks: an utterance -> the bytes of a file, as they are made. Before the first of them, a failure is an answer of its own.

The WebSocket's is ``server.ws.playback``; the tries at an utterance are common to both (``server.admission.speech``).
"""

import asyncio
import weakref
from collections.abc import AsyncGenerator
from time import monotonic

import numpy as np

from qwen3_jax.audio.samples import check_finite
from qwen3_jax.messages import shorten
from qwen3_jax.shapes import F32
from server.admission.speech import Denied, Tries
from server.context import Context
from server.engines.base import SpeechHandle, SpeechRequest
from server.http.encode import FileEncoder, Tempo
from server.http.web import denied
from server.ops.logs import CutShort
from server.voices.store import StoredVoice
from server.ws.machine import End

SPEECH = "/v1/audio/speech"  # the route


class FilePlayback:
    """One utterance on its way into a file.

    Args:
        wanted: a whole text.
        encoding: of the file, not used yet.
        tempo: changes the speed; None: that of the engine.
        principal_id: for the log.
    """

    def __init__(self, context: Context, wanted: SpeechRequest, encoding: FileEncoder, tempo: Tempo | None, principal_id: str) -> None:
        self._context, self._wanted, self._encoding, self._tempo = context, wanted, encoding, tempo
        self._principal_id = principal_id
        self._handle: SpeechHandle | None = None
        self._begun = monotonic()
        self._sounds: float | None = None  # when its first bytes went out
        self._seconds = 0.0  # of audio that has been encoded
        self._end: End | None = None

    async def first(self) -> F32[np.ndarray, " F"] | None:
        """The first piece, once all parts of the text have been taken, so that what goes wrong before any sound is an HTTP error.

        Raises:
            HttpError: it is not spoken.
        """
        self._context.metrics.begun.inc()
        try:
            return await self._first()
        except Denied as error:
            told = denied(error)
            self._ended("failed", "error" if error.reason in ("memory", "fault") else None, told.status)
            raise told from error
        except BaseException as error:
            self._ended("left" if isinstance(error, asyncio.CancelledError) else "failed")
            raise

    def rest(self, piece: F32[np.ndarray, " F"] | None) -> AsyncGenerator[bytes, None]:
        """The file. A failure in its middle cuts the connection, for there is no other way to say so; a client that goes away ends it."""
        body = self._rest(piece)
        gone = weakref.finalize(body, self._ended, "left", "client_left")  # a body whose client goes before its first byte never begins
        gone.atexit = False
        return body

    def _ended(self, end: End, reason: str | None = None, status: int = 200) -> None:
        """It has ended; the first time counts. With a ``reason`` it has a line in the log; a refusal has another there."""
        if self._end is None:
            self._end = end
            self._context.metrics.ended.labels(end).inc()
            if reason is not None:
                self._tell(status, reason)
        if self._handle is not None:
            self._handle.cancel()

    async def _first(self) -> F32[np.ndarray, " F"] | None:
        tries = Tries(self._context)
        while True:
            self._handle = handle = tries.submit(self._wanted)
            broken, piece = None, None
            try:
                await tries.turn(handle)
                piece = await self._next(handle)
                async with asyncio.timeout(self._context.settings.chunk_timeout):
                    await handle.taken()
            except TimeoutError as error:
                raise tries.late() from error
            except FloatingPointError as error:  # an engine that handed out what is no sound
                handle.cancel()
                broken = error
            if (failure := handle.failure or broken) is None:
                self._context.metrics.ttfa.observe(monotonic() - self._begun)
                return piece
            tries.failed(failure, heard=False)

    async def _rest(self, piece: F32[np.ndarray, " F"] | None) -> AsyncGenerator[bytes, None]:
        handle = self._handle
        assert handle is not None
        ended = self._context.streams[handle] = asyncio.get_running_loop().create_future()
        try:
            while piece is not None:
                sound = piece if self._tempo is None else await asyncio.to_thread(self._tempo.write, piece)
                self._count(sound)
                if data := await asyncio.to_thread(self._encoding.write, sound):
                    self._sounds = self._sounds or monotonic()
                    yield data
                piece = await self._next(handle)
            if handle.failure is not None:
                raise handle.failure
            if handle.finish_reason == "cancelled":
                raise CutShort("the server goes down")
            if self._tempo is not None:
                self._count(sound := await asyncio.to_thread(self._tempo.finish))
                yield await asyncio.to_thread(self._encoding.write, sound)
            yield await asyncio.to_thread(self._encoding.finish)
            reason = handle.finish_reason or "eos"
            self._context.metrics.utterances.labels(reason).inc()
            self._ended("completed", reason)
        except (GeneratorExit, asyncio.CancelledError):
            self._ended("left", "client_left")
            raise
        finally:
            cancelled = handle.finish_reason == "cancelled"
            self._ended("cancelled" if cancelled else "failed", "cancelled" if cancelled else "error")
            del self._context.streams[handle]
            ended.set_result(None)

    def _count(self, sound: F32[np.ndarray, " F"]) -> None:
        """It is about to be encoded."""
        seconds = len(sound) / self._context.engine.sample_rate
        self._seconds += seconds
        self._context.metrics.audio.inc(seconds)

    def _tell(self, status: int, reason: str) -> None:
        """One line of the log, with what an utterance of a session has, too."""
        voice, settings = self._wanted.voice, self._context.settings
        fields: dict[str, object] = {
            "route": SPEECH,
            "principal": shorten(self._principal_id),
            "voice": shorten(voice.id if isinstance(voice, StoredVoice) else voice),
            "characters": len(self._wanted.text),
            "audio_ms": round(1000 * self._seconds),
            "ttfa_ms": None if self._sounds is None else round(1000 * (self._sounds - self._begun)),
            "status": status,
            "finish_reason": reason,
            "text": self._wanted.text if settings.log_texts else None,
        }
        self._context.access.spoke(fields, complete=reason in ("eos", "length"))

    async def _next(self, handle: SpeechHandle) -> F32[np.ndarray, " F"] | None:
        try:
            async with asyncio.timeout(self._context.settings.chunk_timeout):
                return check_finite(await anext(handle))
        except StopAsyncIteration:
            return None
