"""What a model has to know of a stored voice: from where it is kept, or cloned and then kept; and the voice that is there at start."""

import logging
from typing import Any, Protocol

from server.settings import Settings
from server.voices.store import StoredVoice, VoiceStore

log = logging.getLogger(__name__)


class Cloner(Protocol):
    """A model that clones voices. ``clone`` raises Refused; ``to_bytes`` and ``from_bytes`` keep what it returns on a disk, and the latter
    raises ValueError for what is damaged."""

    @property
    def fingerprint(self) -> str: ...
    def clone(self, wav: bytes, transcript: str | None, name: str) -> Any: ...
    def to_bytes(self, prompt: Any) -> bytes: ...
    def from_bytes(self, data: bytes) -> Any: ...


def prepared(store: VoiceStore, voice: StoredVoice, model: Cloner) -> Any:
    """What ``clone`` made of the voice, now or at an earlier time. Blocks."""
    kept = store.load_prompt(voice, model.fingerprint)
    if kept is not None:
        return model.from_bytes(kept)
    prompt = model.clone(store.reference(voice), voice.transcript, voice.id)
    store.save_prompt(voice, model.fingerprint, model.to_bytes(prompt))
    return prompt


def first_voice(settings: Settings, store: VoiceStore, presets: tuple[str, ...] | None) -> StoredVoice | str:
    """The voice to be warm at start: the default one, else the first; empty if the model takes none.

    Raises:
        FileNotFoundError: the model speaks in cloned voices, and there is none.
    """
    voices = store.voices
    if presets is None and not voices:
        raise FileNotFoundError(
            f"no voice in {settings.voices_dir}: this model speaks in cloned voices; install a recording with "
            "python -m qwen3_jax voices add reference.wav --id NAME --transcript 'What it says.' --consent '...'"
        )
    names = tuple(voices) if presets is None else presets
    name = settings.default_voice if settings.default_voice in names else next(iter(names), "")
    if name != settings.default_voice:
        log.warning("there is no voice %r: %r is the default", settings.default_voice, name)
    return voices[name] if presets is None else name
