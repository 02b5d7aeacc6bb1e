"""A voice's recording -> what Qwen3-TTS keeps of it, and that as bytes and back; see ``server.engines.prompts.Cloner``."""

import tempfile
from io import BytesIO
from pathlib import Path

import soundfile

from qwen3_jax import Qwen3TTS, Voice
from server.engines.base import Refused


class Cloner:
    """See ``server.engines.prompts.Cloner``."""

    def __init__(self, tts: Qwen3TTS) -> None:
        self._tts = tts

    @property
    def fingerprint(self) -> str:
        return self._tts.fingerprint

    def clone(self, wav: bytes, transcript: str | None, name: str) -> Voice:
        samples, rate = soundfile.read(BytesIO(wav), dtype="float32")
        try:
            return self._tts.create_voice((samples, rate), transcript, name=name)
        except ValueError as error:
            raise Refused(str(error)) from error

    def to_bytes(self, prompt: Voice) -> bytes:
        return prompt.to_bytes()

    def from_bytes(self, data: bytes) -> Voice:
        with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
            Path(file.name).write_bytes(data)
            voice = Voice.load(file.name)
        self._tts.prepare(voice)  # refuses codes that the checkpoint does not have
        return voice
