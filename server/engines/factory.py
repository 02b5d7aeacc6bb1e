"""``TTS_ENGINE`` -> an engine."""

from server.engines.base import TtsEngine
from server.engines.thread import ThreadEngine
from server.settings import Settings
from server.voices.store import VoiceStore


def create(settings: Settings, store: VoiceStore) -> TtsEngine:
    """The configured engine, not loaded yet. Its packages are imported when it loads.

    Raises:
        ValueError: an engine that nobody knows.
    """
    if settings.engine == "qwen3":
        from server.engines import qwen3

        return qwen3.Qwen3Engine(settings, store, qwen3.load)
    if settings.engine == "chatterbox":
        from server.engines import chatterbox

        return ThreadEngine(settings, store, lambda device: chatterbox.load(settings, device))
    raise ValueError(f"TTS_ENGINE = {settings.engine!r}: use qwen3 or chatterbox")
