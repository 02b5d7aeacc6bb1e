"""A voice's recording -> what Qwen3-TTS keeps of it, and that as bytes and back; see ``server.engines.prompts.Cloner``."""

from qwen3_jax import Qwen3TTS, Voice
from qwen3_jax.voices.layers import decode
from qwen3_jax.voices.voice import FORMAT
from server.engines.base import Refused


class Cloner:
    """See ``server.engines.prompts.Cloner``. What it returns is ready: its reference has been decoded (``Qwen3TTS.prepare``)."""

    def __init__(self, tts: Qwen3TTS) -> None:
        self._tts = tts

    @property
    def fingerprint(self) -> str:
        """The checkpoint, and what decides besides what is kept of a voice."""
        return f"{self._tts.fingerprint} {FORMAT} {self._tts.model.generation.x_vector_only_mode}"

    def clone(self, wav: bytes, transcript: str | None, name: str) -> Voice:
        try:
            voice = self._tts.create_voice(decode(wav, name), transcript, name=name)
        except ValueError as error:
            raise Refused(str(error)) from error
        self._tts.prepare(voice)
        return voice

    def to_bytes(self, prompt: Voice) -> bytes:
        return prompt.to_bytes()

    def from_bytes(self, data: bytes) -> Voice:
        voice = Voice.from_bytes(data)
        self._tts.prepare(voice)  # refuses codes that the checkpoint does not have
        return voice
