"""What a session speaks: Turns -> frames of audio and the message that ends each, one after the other, ``high`` ones first.

Each is sent at most a second ahead of real time. One that fails before any audio has gone out is made once more, in one piece.
"""

import asyncio
import base64
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Iterator
from time import monotonic
from typing import Protocol

import msgspec
import numpy as np
from msgspec import UNSET

from qwen3_jax.audio.samples import SAMPLE_RATE
from qwen3_jax.messages import shorten
from qwen3_jax.shapes import F32
from server.admission.speech import Denied, Tries
from server.context import Context
from server.engines.base import SpeechHandle, SpeechRequest
from server.ops.auth import Principal
from server.voices.store import StoredVoice
from server.ws import protocol
from server.ws.audio_out import Converter, SendPace
from server.ws.machine import Machine, SessionUtterance

log = logging.getLogger(__name__)


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """What ``start`` chose."""

    sample_rate: int = SAMPLE_RATE
    encoding: str = "pcm16"
    transport: str = "binary"
    language: str = ""  # empty: the default one
    voice: str | None = None


class SpeechOutput(Protocol):
    """The part of ``server.ws.outgoing.Outgoing`` that is used here."""

    async def send(self, message: protocol.ServerMessage) -> None: ...
    async def audio(self, utterance: SessionUtterance, frame: str | bytes) -> bool: ...


class Turn:
    """An utterance with all that is needed to speak it."""

    def __init__(
        self, utterance: SessionUtterance, text: str, voice: StoredVoice | str, configuration: Configuration, principal: Principal
    ) -> None:
        self.utterance, self.voice, self.configuration, self.principal = utterance, voice, configuration, principal
        self.text = text  # all of it that has come
        self.arrived = self.touched = monotonic()
        self.handle: SpeechHandle | None = None
        self.first: float | None = None  # when its first audio went out
        self.sequence = 0
        self.seconds = 0.0  # of audio that has been sent

    def request(self) -> SpeechRequest:
        """For the engine."""
        message = self.utterance.message
        draw = {name: value for name in ("temperature", "top_k", "top_p") if (value := getattr(message, name)) is not None}
        return SpeechRequest(
            text=self.text,
            voice=self.voice,
            language=self.configuration.language,
            seed=message.seed,
            draw=draw,
            high=message.priority == "high",
            incremental=self.utterance.text_open,
            owner=self.principal.bucket,
        )


class Playback:
    """The speaking task of one session."""

    def __init__(self, machine: Machine, out: SpeechOutput, context: Context, name: str) -> None:
        self.last = float("-inf")  # when the last utterance ended
        self.utterances = 0  # so far
        self._last_sent = 0.0
        self._machine, self._out, self._context, self._name = machine, out, context, name
        self._settings, self._metrics = context.settings, context.metrics
        self._turns: list[Turn] = []
        self._changed = asyncio.Event()
        self._pace = SendPace(self._settings.lead)

    def add(self, turn: Turn) -> None:
        """Speak that when its turn comes."""
        self._turns.append(turn)
        self.utterances += 1
        self._metrics.begun.inc()
        self._changed.set()

    def settle(self) -> None:
        """Count those that have ended, and forget them."""
        for turn in self._turns:
            if not turn.utterance.live:
                self._metrics.ended.labels(turn.utterance.end).inc()
                if turn.utterance.end != "completed":
                    self._tell(turn, {"cancelled": "cancelled", "left": "client_left"}.get(str(turn.utterance.end), "error"))
        self._turns = [turn for turn in self._turns if turn.utterance.live]

    def more(self, utterance: SessionUtterance, text: str) -> None:
        """More text of an utterance, and its end where that is not open any more."""
        turn = next(turn for turn in self._turns if turn.utterance is utterance)
        turn.text += text
        turn.touched = monotonic()
        if turn.handle is not None:
            if text:
                turn.handle.append(text)
            if not utterance.text_open:
                turn.handle.finish()

    def wake(self) -> None:
        """Something was cancelled: stop waiting for it."""
        for turn in self._turns:
            if not turn.utterance.live and turn.handle is not None:
                turn.handle.cancel()
        self._changed.set()

    async def quiet(self, limit: float) -> None:
        """Return when nothing is spoken, at the latest after ``limit`` seconds."""
        end = monotonic() + limit
        while self._machine.live and (left := end - monotonic()) > 0:
            await self._change(left)

    async def run(self) -> None:
        """For ever."""
        try:
            while True:
                self.settle()
                if not self._turns:
                    await self._change(None)
                    continue
                turn = max(self._turns, key=lambda turn: turn.utterance.message.priority == "high")  # the first of the highest
                turn.utterance.begun = True
                await self._speak(turn)
                self.last = monotonic()
        except ConnectionError:  # the client's
            raise
        except Exception:  # of whatever kind: nothing may be spoken after a fault of ours, which goes on to who runs this
            self._machine.fail()
            raise

    async def _change(self, limit: float | None) -> None:
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await self._changed.wait()

    async def _speak(self, turn: Turn) -> None:
        utterance, moved = turn.utterance, False
        tries = Tries(self._context, high=utterance.message.priority == "high")
        last: protocol.Complete | protocol.Error | None = None
        while last is None and utterance.live:
            try:
                last = await self._attempt(turn, tries)
            except Denied as error:
                if error.reason == "voice":
                    last, moved = await self._in_default_voice(turn, moved), True
                else:
                    last = told(error, utterance.request_id)
        if utterance.live and last is not None:
            self._machine.ended(utterance, "completed" if isinstance(last, protocol.Complete) else "failed")
            await self._out.send(last)
        elif not utterance.live:
            self._pace.forget()
        self._changed.set()

    async def _in_default_voice(self, turn: Turn, moved: bool) -> protocol.Error | None:
        """The turn's voice has gone: the client hears of it, and the default voice is next. Returns the last message if there is none."""
        voice = None if moved else await self._context.fallback(turn.principal.id)
        if not turn.utterance.live:
            return None
        if voice is None or voice == turn.voice:
            return _voice_gone(turn, "there is no other")
        await self._out.send(_voice_gone(turn, "the default voice is used", final=False))
        turn.voice = voice
        return None

    async def _attempt(self, turn: Turn, tries: Tries) -> protocol.Complete | None:
        """Speak it. Returns its last message; None if it is not live any more, or is to be tried again. Raises Denied."""
        handle = turn.handle = tries.submit(turn.request())
        converter = Converter(turn.configuration.sample_rate, turn.configuration.encoding)
        turn.seconds = 0.0
        broken: FloatingPointError | None = None
        try:
            await tries.turn(handle)
            begun = monotonic()
            async with contextlib.aclosing(self._pieces(turn, handle)) as pieces:
                async for pcm in pieces:
                    if not await self._send_all(turn, converter.write(pcm)):
                        return None
            if handle.failure is None and not await self._send_all(turn, converter.finish(), end=True):
                return None
        except TimeoutError as error:  # not one of sending: that is a SlowClient
            raise (tries.late("no more text came: flush it in time") if turn.utterance.text_open else tries.late()) from error
        except FloatingPointError as error:  # an engine that handed out what is no sound
            broken = error
        finally:
            handle.cancel()
        if (failure := handle.failure or broken) is None:
            self._metrics.rtf.observe((monotonic() - begun) / max(converter.seconds, 0.001))
            return self._complete(turn, converter, handle.finish_reason or "eos")
        if turn.utterance.live:
            tries.failed(failure, heard=converter.samples > 0)
        return None

    async def _pieces(self, turn: Turn, handle: SpeechHandle) -> AsyncGenerator[F32[np.ndarray, " F"], None]:
        """The handle's pieces, each within its limit: the engine's, or that of a client who is still writing."""
        while True:
            writing = turn.utterance.text_open
            limit = self._settings.text_timeout if writing else self._settings.chunk_timeout
            try:
                async with asyncio.timeout(limit):
                    piece = await anext(handle)
            except StopAsyncIteration:
                return
            except TimeoutError:
                still = turn.utterance.text_open and monotonic() - turn.touched < limit
                if not (writing and (still or not turn.utterance.text_open)):
                    raise
                continue
            yield piece

    async def _send_all(self, turn: Turn, frames: Iterator[tuple[bytes, float]], *, end: bool = False) -> bool:
        """Send frames in time, in JSON the last one marked. False if the utterance is not live any more."""
        for data, seconds in frames:
            if not await self._send_frame(turn, data, seconds):
                return False
        if end and turn.configuration.transport == "json":
            return await self._out.audio(turn.utterance, _chunk(turn, b"", final=True))
        return turn.utterance.live

    async def _send_frame(self, turn: Turn, data: bytes, seconds: float) -> bool:
        utterance, paused = turn.utterance, monotonic()
        while utterance.live and (wait := self._pace.wait(monotonic())) > 0:
            await self._change(wait)
        ready = monotonic()
        if not await self._out.audio(utterance, data if turn.configuration.transport == "binary" else _chunk(turn, data, final=False)):
            return False
        now = monotonic()
        late = self._pace.sent(seconds, now)
        if turn.first is None:
            turn.first = now
            self._metrics.ttfa.observe(now - turn.arrived)
        else:
            self._metrics.gap.observe(max(0.0, now - self._last_sent - (ready - paused)))
            if not utterance.text_open:
                self._metrics.underrun.inc(late)
        self._last_sent = now
        turn.seconds += seconds
        self._metrics.audio.inc(seconds)
        return True

    def _complete(self, turn: Turn, converter: Converter, reason: str) -> protocol.Complete:
        now, utterance = monotonic(), turn.utterance
        self._metrics.utterances.labels(reason).inc()
        message = protocol.Complete(
            duration_ms=round((now - turn.arrived) * 1000),
            characters_processed=utterance.characters,
            audio_length_ms=round(converter.seconds * 1000),
            ttfa_ms=None if turn.first is None else round((turn.first - turn.arrived) * 1000),
            finish_reason=reason,
            request_id=UNSET if utterance.request_id is None else utterance.request_id,
        )
        self._tell(turn, reason)
        return message

    def _tell(self, turn: Turn, reason: str) -> None:
        """One line of the log, with what an utterance over HTTP has, too."""
        voice = turn.voice
        fields: dict[str, object] = {
            "route": protocol.SPEAK,
            "principal": shorten(turn.principal.id),
            "voice": shorten(voice.id if isinstance(voice, StoredVoice) else voice),
            "characters": turn.utterance.characters,
            "audio_ms": round(1000 * turn.seconds),
            "ttfa_ms": None if turn.first is None else round(1000 * (turn.first - turn.arrived)),
            "finish_reason": reason,
            "text": turn.text if self._settings.log_texts else None,
        }
        self._context.access.spoke(fields, complete=reason in ("eos", "length"))


_DENIED: dict[str, tuple[protocol.Code, str]] = {  # reason -> code, and what is added to the message
    "draining": ("RATE_LIMITED", ": connect again"),
    "loading": ("MODEL_LOADING", ""),
    "failed": ("SYNTHESIS_ERROR", "; the server's log says why"),
    "crowded": ("RATE_LIMITED", ""),
    "language": ("INVALID_MESSAGE", ""),
    "text": ("INVALID_TEXT", ""),
    "voice": ("VOICE_NOT_FOUND", ""),
    "late": ("TIMEOUT", ""),
    "memory": ("GPU_OUT_OF_MEMORY", ""),
    "fault": ("SYNTHESIS_ERROR", ""),
}


def told(error: Denied, request_id: str | None, *, final: bool = True) -> protocol.Error:
    """What a client is told of an utterance that is not spoken."""
    code, more = _DENIED[error.reason]
    return protocol.error(code, f"{error}{more}", request_id, final=final, retry_after_ms=error.retry_after_ms)


def _voice_gone(turn: Turn, then: str, *, final: bool = True) -> protocol.Error:
    name = turn.voice.id if isinstance(turn.voice, StoredVoice) else turn.voice
    return protocol.error("VOICE_NOT_FOUND", f"voice {name!r} is not here any more: {then}", turn.utterance.request_id, final=final)


def _chunk(turn: Turn, data: bytes, *, final: bool) -> str:
    turn.sequence += 1
    request_id = turn.utterance.request_id
    return protocol.encode(
        protocol.AudioChunk(
            data=base64.b64encode(data).decode(),
            sequence_number=turn.sequence,
            is_final=final,
            timestamp_ms=round(time.time() * 1000),
            request_id=UNSET if request_id is None else request_id,
        )
    )
