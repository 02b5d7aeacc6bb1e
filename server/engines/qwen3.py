"""Qwen3TTS as a Synthesiser: requests -> ``Qwen3TTS.stream``; voices are Voice objects."""

import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import sentencex
import soundfile

from qwen3_jax import Qwen3TTS, Sampling, Voice
from qwen3_jax.config import GenerationConfig
from qwen3_jax.shapes import NpF32
from server.engines.base import OutOfMemory, SpeechRequest
from server.engines.thread import Speech, refuse
from server.protocol import LANGUAGES
from server.settings import Settings

WARM_UP_FRAMES = 6  # a first piece and a later one


class Model(Protocol):
    """The part of a loaded model that is used here."""

    @property
    def generation(self) -> GenerationConfig: ...


class Tts(Protocol):
    """The part of Qwen3TTS that is used here; a fake of a dozen lines can stand in for it."""

    @property
    def model(self) -> Model: ...
    @property
    def model_type(self) -> str: ...
    @property
    def speakers(self) -> tuple[str, ...]: ...
    @property
    def languages(self) -> tuple[str, ...]: ...
    @property
    def fingerprint(self) -> str: ...
    def warmup(self) -> None: ...
    def create_voice(self, audio_in: Any, transcript: str | None = None, *, name: str | None = None) -> Voice: ...
    @property
    def stream(self) -> Callable[..., Any]: ...
    @property
    def generate(self) -> Callable[..., Any]: ...


class Qwen3Synthesiser:
    """See ``server.engines.thread.Synthesiser``."""

    sample_rate = 24000
    streaming = True

    def __init__(self, tts: Tts) -> None:
        self._tts = tts

    @property
    def fingerprint(self) -> str:
        return self._tts.fingerprint

    @cached_property
    def languages(self) -> tuple[str, ...]:
        known = {name.casefold() for name in self._tts.languages}
        return tuple(name for name in LANGUAGES if name.casefold() in known)

    @property
    def presets(self) -> tuple[str, ...] | None:
        return None if self._tts.model_type == "base" else self._tts.speakers

    def clone(self, wav: bytes, transcript: str | None, name: str) -> Voice:
        samples, rate = soundfile.read(BytesIO(wav), dtype="float32")
        try:
            return self._tts.create_voice((samples, rate), transcript, name=name)
        except ValueError as error:
            raise refuse(error) from error

    def to_bytes(self, prompt: Voice) -> bytes:
        return prompt.to_bytes()

    def from_bytes(self, data: bytes) -> Voice:
        with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
            Path(file.name).write_bytes(data)
            return Voice.load(file.name)

    def speak(self, request: SpeechRequest, prompt: Any, text: str) -> Speech:
        sampling = msgspec.structs.replace(Sampling.defaults(self._tts.model.generation), **request.draw)
        options = {"voice": prompt or None, "language": request.language, "seed": request.seed, "sampling": sampling}
        try:
            if request.whole:
                return Whole(self._tts.generate(text, **options))
            return Guarded(self._tts.stream(text, **options))
        except ValueError as error:
            raise refuse(error) from error
        except RuntimeError as error:
            raise _memory(error) from error

    def warm_up(self, request: SpeechRequest | None, prompt: Any, *, everything: bool) -> None:
        if everything:
            self._tts.warmup()
        if request is not None:
            for _ in self._tts.stream(request.text, voice=prompt or None, max_frames=WARM_UP_FRAMES):
                pass

    def clear(self) -> None:
        """Compiled programs hold device memory; they come back from the disk's cache."""
        import jax

        jax.clear_caches()

    def split(self, text: str) -> list[str]:
        return list(sentencex.segment("en", text)) or [text]


class Guarded:
    """A SpeechStream whose errors have the server's names."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.finish_reason: str | None = None

    def __iter__(self) -> Iterator[NpF32["F"]]:
        try:
            with self._stream as stream:
                yield from stream
            self.finish_reason = self._stream.finish_reason
        except RuntimeError as error:
            raise _memory(error) from error

    def cancel(self) -> None:
        self._stream.cancel()


class Whole:
    """A finished Speech as one piece."""

    def __init__(self, speech: Any) -> None:
        self._pcm: NpF32["F"] = np.asarray(speech.pcm)
        self.finish_reason: str | None = speech.finish_reason

    def __iter__(self) -> Iterator[NpF32["F"]]:
        yield self._pcm

    def cancel(self) -> None:
        """There is nothing left to stop."""


def _memory(error: RuntimeError) -> RuntimeError:
    """XLA says so in words only."""
    return OutOfMemory(str(error)) if "RESOURCE_EXHAUSTED" in str(error) else error


def load(settings: Settings, device: str | None) -> Qwen3Synthesiser:
    """The configured checkpoint, on ``device`` or the configured one; errors as in ``Qwen3TTS.from_pretrained``."""
    tts = Qwen3TTS.from_pretrained(settings.model_id, device=device or settings.device, dtype=settings.dtype)
    return Qwen3Synthesiser(tts)
