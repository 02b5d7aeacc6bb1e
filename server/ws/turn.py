"""An utterance with all that is needed to speak it, and what has become of it: how much was heard, when its words are heard."""

import base64
import time
from time import monotonic

import msgspec
import numpy as np

from qwen3_jax.audio.samples import SAMPLE_RATE
from qwen3_jax.shapes import F32
from qwen3_jax.speech.word_times import TimedWord, WordTimes
from server.admission.speech import Denied
from server.engines.base import SpeechHandle, SpeechRequest
from server.ops.auth import Principal
from server.voices.store import StoredVoice
from server.ws import protocol
from server.ws.heard import AudioFrame, HeardAudio
from server.ws.loudness import Loudness
from server.ws.machine import SessionUtterance

MOVED_MS = 30  # by which a word must have moved to be told again


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """What ``start`` chose."""

    sample_rate: int = SAMPLE_RATE
    encoding: str = "pcm16"
    transport: str = "binary"
    language: str = ""  # empty: the default one
    voice: str | None = None


class Turn:
    """One utterance.

    Args:
        text: all of it that has come.
        timed: whether it must be known when its words are heard, for it may be interrupted, or the client asks.
    """

    def __init__(
        self,
        utterance: SessionUtterance,
        text: str,
        voice: StoredVoice | str,
        configuration: Configuration,
        principal: Principal,
        *,
        timed: bool = False,
    ) -> None:
        self.utterance, self.voice, self.configuration, self.principal = utterance, voice, configuration, principal
        self.text = text
        self.arrived = self.touched = monotonic()
        self.handle: SpeechHandle | None = None
        self.first: float | None = None  # when its first audio went out
        self.sequence = 0
        self.seconds = 0.0  # of audio that has been sent
        self.heard = HeardAudio()
        self.loudness = Loudness()
        self.last: list[protocol.ServerMessage] = []  # what ended it
        self.stopped: tuple[str, str] | None = None  # where it was: the text that has been heard, and the rest
        self._timed = timed
        self._times: WordTimes | None = None
        self._given = 0  # parts of the handle that the times know
        self._words: list[TimedWord] = []  # as they were told
        self._part = 0  # which is heard

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

    def begin(self, handle: SpeechHandle) -> None:
        """A try at it."""
        self.handle, self.seconds, self.loudness = handle, 0.0, Loudness()
        self._given, self._part, self._words = 0, 0, []
        self._times = WordTimes() if self._timed else None
        if self._times is not None:
            self._times.write(self.text)

    def more(self, text: str) -> None:
        """More of its text, and its end where that is not open any more."""
        self.text += text
        self.touched = monotonic()
        if self._times is not None and text:
            self._times.write(text)
        if self.handle is not None:
            if text:
                self.handle.append(text)
            if not self.utterance.text_open:
                self.handle.finish()

    def made(self, pcm: F32[np.ndarray, " F"] | None, handle: SpeechHandle) -> protocol.SpokenWords | None:
        """Its next sound at the engine's rate; None: there is no more. Returns the words that are to be told before it."""
        if pcm is not None and self._timed:
            self.loudness.feed(pcm)
        if (times := self._times) is None:
            return None
        texts = handle.texts
        for text in texts[self._given :]:
            times.add_part(text)
        self._given = len(texts)
        ended = pcm is None or handle.part > self._part
        if pcm is None:
            times.finish()
        else:
            self._part = max(self._part, handle.part)
            times.feed(pcm, self._part)
        known = times.known()  # little by little, so that an interruption does not wait for all of it
        if not self.utterance.message.word_times:
            return None
        first = next((n for n, (one, told) in enumerate(zip(known, self._words, strict=False)) if ended and _moved(one, told)), None)
        first = len(self._words) if first is None else first
        self._words = [*self._words[:first], *known[first:]] if first < len(known) else self._words
        new = [protocol.SpokenWord(word=word, start_ms=begin, end_ms=end) for word, begin, end in known[first:]]
        return protocol.SpokenWords(first=first, words=new, request_id=protocol.named(self.utterance.request_id)) if new else None

    def stop(self, seconds: float) -> protocol.Interrupted:
        """It ends here, after so many seconds of sound."""
        self.stopped = spoken, rest = self.spoken(seconds)
        return protocol.Interrupted(
            audio_end_ms=round(1000 * seconds),
            spoken_text=spoken,
            remaining_text=rest,
            request_id=protocol.named(self.utterance.request_id),
        )

    def spoken(self, seconds: float) -> tuple[str, str]:
        """The text that has been heard by then, cut at the end of a word, and the rest of it."""
        if self._times is None or seconds <= 0:
            return "", self.text
        spoken, rest = self._times.spoken(1000 * seconds)
        return spoken, rest

    def encoded(self, frame: AudioFrame) -> str | bytes:
        """A frame as the session's transport has it."""
        if self.configuration.transport == "binary":
            return frame.data
        self.sequence += 1
        return protocol.encode(
            protocol.AudioChunk(
                data=base64.b64encode(frame.data).decode(),
                sequence_number=self.sequence,
                is_final=frame.final,
                timestamp_ms=round(time.time() * 1000),
                request_id=protocol.named(self.utterance.request_id),
            )
        )


def _moved(one: TimedWord, other: TimedWord) -> bool:
    return any((a is None) != (b is None) or abs((a or 0) - (b or 0)) > MOVED_MS for a, b in zip(one[1:], other[1:], strict=True))


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


def voice_gone(turn: Turn, then: str, *, final: bool = True) -> protocol.Error:
    """What a client is told whose voice was removed while it waited."""
    name = turn.voice.id if isinstance(turn.voice, StoredVoice) else turn.voice
    return protocol.error("VOICE_NOT_FOUND", f"voice {name!r} is not here any more: {then}", turn.utterance.request_id, final=final)
