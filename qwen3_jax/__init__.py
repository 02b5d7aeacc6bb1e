"""Qwen3-TTS in JAX and Flax: text -> pcm, the whole decoding loop compiled. What is imported here is the public API."""

from qwen3_jax.sampling import Sampling
from qwen3_jax.tts import Qwen3TTS, Speech, SpeechStream
from qwen3_jax.voice import Voice

__all__ = ["Qwen3TTS", "Sampling", "Speech", "SpeechStream", "Voice"]
__version__ = "0.1.0"
