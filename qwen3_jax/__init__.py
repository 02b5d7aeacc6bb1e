"""Qwen3-TTS in JAX and Flax: text -> pcm, the whole decoding loop compiled. What is imported here is the public API.

It is imported at its first use, so that a program can set up its process (see runtime/allocation.py) before JAX starts.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen3_jax.model.sampling import Sampling
    from qwen3_jax.speech.utterance import Speech, SpeechStream
    from qwen3_jax.tts import Qwen3TTS
    from qwen3_jax.voices.voice import Voice

__all__ = ["Qwen3TTS", "Sampling", "Speech", "SpeechStream", "Voice"]
__version__ = "0.1.0"
_HOME = {
    "Qwen3TTS": "tts",
    "Sampling": "model.sampling",
    "Speech": "speech.utterance",
    "SpeechStream": "speech.utterance",
    "Voice": "voices.voice",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
