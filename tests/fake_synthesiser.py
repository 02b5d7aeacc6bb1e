"""FakeTTS as a Synthesiser: a model that speaks one utterance at a time, for the tests of ``server.engines.thread``."""

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import msgspec
import numpy as np
import sentencex
import soundfile

from qwen3_jax import Sampling, Voice
from server.engines.base import OutOfMemory, Refused, SpeechRequest
from server.engines.thread import Synthesis
from server.languages import LANGUAGES
from tests.fake_tts import FakeTTS


class FakeSynthesiser:
    """See ``server.engines.thread.Synthesiser``. A prompt on the disk is the voice's name."""

    sample_rate = 24000
    streaming = True
    presets = None

    def __init__(self, tts: FakeTTS) -> None:
        self._tts = tts
        self.fingerprint = tts.fingerprint
        self.languages = tuple(name for name in LANGUAGES if name.casefold() in tts.languages)

    def clone(self, wav: bytes, transcript: str | None, name: str) -> Voice:
        return self._tts.create_voice(soundfile.read(BytesIO(wav)), transcript, name=name)

    def to_bytes(self, prompt: Voice) -> bytes:
        return prompt.name.encode()

    def from_bytes(self, data: bytes) -> Voice:
        return Voice(np.zeros(4, np.float32), None, None, data.decode())

    def speak(self, request: SpeechRequest, prompt: Any, text: str) -> Synthesis:
        sampling = msgspec.structs.replace(Sampling.defaults(self._tts.model.generation), **request.draw)
        try:
            return Guarded(self._tts.stream(text, voice=prompt, language=request.language, seed=request.seed, sampling=sampling))
        except ValueError as error:
            raise Refused(str(error)) from error
        except RuntimeError as error:
            raise OutOfMemory(str(error)) from error

    def warm_up(self, request: SpeechRequest, prompt: Any) -> None:
        for _ in self.speak(request, prompt, request.text):
            pass

    def clear(self) -> None:
        """There is no cache."""

    def split(self, text: str) -> list[str]:
        return list(sentencex.segment("en", text)) or [text]


class Guarded:
    """A stream that is left when it ends."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.finish_reason: str | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        with self._stream as stream:
            yield from stream
        self.finish_reason = self._stream.finish_reason

    def cancel(self) -> None:
        self._stream.cancel()
