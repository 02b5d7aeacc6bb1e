"""What a session speaks: Turns -> frames of audio and the message that ends each, one after the other, ``high`` ones first.

Each is sent at most a second ahead of real time. One that fails before any audio has gone out is made once more, in one piece.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from time import monotonic

import numpy as np

from qwen3_jax.messages import shorten
from qwen3_jax.shapes import F32
from server.admission.speech import Denied, Tries
from server.context import Context
from server.engines.base import SpeechHandle
from server.voices.store import StoredVoice
from server.ws import protocol
from server.ws.audio_out import Converter
from server.ws.heard import AudioFrame
from server.ws.machine import Machine, SessionUtterance
from server.ws.release import Change, Release, SpeechOutput
from server.ws.turn import Turn, told, voice_gone

RINGS = 0.1  # seconds between two looks at whether an utterance still sounds


class Playback:
    """The speaking task of one session."""

    def __init__(self, machine: Machine, out: SpeechOutput, context: Context) -> None:
        self.last = float("-inf")  # when the last utterance ended
        self.utterances = 0  # so far
        self._machine, self._out, self._context = machine, out, context
        self._settings, self._metrics = context.settings, context.metrics
        self.turns: list[Turn] = []  # in order of arrival; those that have ended are forgotten soon
        self.change = Change()
        self.release = Release(machine, out, context.metrics, context.settings.lead, self.change)

    def add(self, turn: Turn) -> None:
        """Speak that when its turn comes."""
        self.turns.append(turn)
        self.utterances += 1
        self._metrics.begun.inc()
        self.change.tell()

    def settle(self) -> None:
        """Count those that have ended, and forget them."""
        for turn in self.turns:
            if not turn.utterance.live:
                self._metrics.ended.labels(turn.utterance.end).inc()
                if turn.utterance.end != "completed":
                    self._tell(turn, {"cancelled": "cancelled", "left": "client_left"}.get(str(turn.utterance.end), "error"))
        self.turns = [turn for turn in self.turns if turn.utterance.live]

    def more(self, utterance: SessionUtterance, text: str) -> None:
        """More text of an utterance, and its end where that is not open any more."""
        next(turn for turn in self.turns if turn.utterance is utterance).more(text)

    def wake(self) -> None:
        """Something was cancelled: stop waiting for it."""
        for turn in self.turns:
            if not turn.utterance.live:
                if turn.stopped is None:
                    turn.stop(self.release.heard(turn, monotonic()))
                if turn.handle is not None:
                    turn.handle.cancel()
        self.change.tell()

    def turn_of(self, utterance: SessionUtterance) -> Turn | None:
        """Its turn; None if it has ended, or has no voice yet."""
        return next((turn for turn in self.turns if turn.utterance is utterance), None)

    async def heard(self, turn: Turn) -> str:
        """When a turn has ended and does not sound any more: the text of it that was heard."""
        utterance = turn.utterance
        while utterance.live or (turn.stopped is None and turn in self.release.sounding()):
            await self.change.wait(RINGS)
        if turn.stopped is None:
            return turn.text if utterance.end == "completed" else turn.spoken(self.release.heard(turn, monotonic()))[0]
        return turn.stopped[0]

    async def quiet(self, limit: float) -> None:
        """Return when nothing is spoken, at the latest after ``limit`` seconds."""
        end = monotonic() + limit
        while self._machine.live and (left := end - monotonic()) > 0:
            await self.change.wait(left)

    async def run(self) -> None:
        """For ever."""
        try:
            while True:
                await self.release.repeat()
                self.settle()
                if not self.turns:
                    await self.change.wait(None)
                    continue
                turn = max(self.turns, key=lambda turn: turn.utterance.message.priority == "high")  # the first of the highest
                turn.utterance.begun = True
                self.release.begin(turn)
                await self._speak(turn)
                self.last = monotonic()
        except ConnectionError:  # the client's
            raise
        except Exception:  # of whatever kind: nothing may be spoken after a fault of ours, which goes on to who runs this
            self._machine.fail()
            raise

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
            turn.last = [last]
            self._machine.ended(utterance, "completed" if isinstance(last, protocol.Complete) else "failed")
            await self._out.send(last)
        elif not utterance.live:
            self.release.forget()
        self.change.tell()

    async def _in_default_voice(self, turn: Turn, moved: bool) -> protocol.Error | None:
        """The turn's voice has gone: the client hears of it, and the default voice is next. Returns the last message if there is none."""
        voice = None if moved else await self._context.fallback(turn.principal.id)
        if not turn.utterance.live:
            return None
        if voice is None or voice == turn.voice:
            return voice_gone(turn, "there is no other")
        await self._out.send(voice_gone(turn, "the default voice is used", final=False))
        turn.voice = voice
        return None

    async def _attempt(self, turn: Turn, tries: Tries) -> protocol.Complete | None:
        """Speak it. Returns its last message; None if it is not live any more, or is to be tried again. Raises Denied."""
        handle = tries.submit(turn.request())
        turn.begin(handle)
        converter = Converter(turn.configuration.sample_rate, turn.configuration.encoding)
        broken: FloatingPointError | None = None
        try:
            await tries.turn(handle)
            begun = monotonic()
            async with contextlib.aclosing(self._pieces(turn, handle)) as pieces:
                async for pcm in pieces:
                    await self._tell_words(turn, pcm, handle)
                    if not await self._send_all(turn, converter.write(pcm)):
                        return None
            if handle.failure is None:
                await self._tell_words(turn, None, handle)
                if not await self._send_all(turn, converter.finish(), end=True):
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

    async def _tell_words(self, turn: Turn, pcm: F32[np.ndarray, " F"] | None, handle: SpeechHandle) -> None:
        words = turn.made(pcm, handle)
        if words is not None and turn.utterance.live:
            await self._out.send(words)

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
        epoch, begin = turn.utterance.epoch, turn.seconds
        for data, seconds in frames:
            if not await self.release.send(turn, AudioFrame(epoch, data, seconds, begin)):
                return False
            begin = turn.seconds
        if end and turn.configuration.transport == "json":
            return await self.release.send(turn, AudioFrame(epoch, b"", 0.0, begin, final=True))
        return turn.utterance.live

    def _complete(self, turn: Turn, converter: Converter, reason: str) -> protocol.Complete:
        now, utterance = monotonic(), turn.utterance
        self._metrics.utterances.labels(reason).inc()
        message = protocol.Complete(
            duration_ms=round((now - turn.arrived) * 1000),
            characters_processed=utterance.characters,
            audio_length_ms=round(converter.seconds * 1000),
            ttfa_ms=None if turn.first is None else round((turn.first - turn.arrived) * 1000),
            finish_reason=reason,
            request_id=protocol.named(utterance.request_id),
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
