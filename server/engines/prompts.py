"""What a model has to know of a stored voice: from where it is kept, or cloned and then kept; and the voices to be warm at start."""

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from qwen3_jax.messages import shorten
from qwen3_jax.voices.folder import revision
from qwen3_jax.voices.voice import spelling
from server.engines.base import Refused
from server.settings import Settings
from server.voices.cache import Name
from server.voices.store import StoredVoice, VoiceStore

MOST_NAMED = 20  # voices that an error lists
Prompt = TypeVar("Prompt")
log = logging.getLogger(__name__)


class Prompts(Generic[Prompt]):
    """The prompts of the voices that were used last, in memory; for one thread.

    Args:
        most: prompts that are kept; the least recently used goes first.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[str, str], Prompt] = OrderedDict()  # least recently used first

    @property
    def voices(self) -> list[str]:
        """Their ids, the least recently used first."""
        return [voice_id for voice_id, _ in self._kept]

    def get(self, voice: StoredVoice, make: Callable[[StoredVoice], Prompt]) -> Prompt:
        """The voice's, made if it is not there."""
        key = (voice.id, voice.revision)
        if key not in self._kept:
            self._kept[key] = make(voice)
        self._kept.move_to_end(key)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return self._kept[key]

    def drop(self, voice: StoredVoice, prompt: Prompt) -> None:
        """Forget that prompt, unless another one has taken its place."""
        if self._kept.get((voice.id, voice.revision)) is prompt:
            del self._kept[voice.id, voice.revision]

    def forget(self, voice_id: str) -> None:
        """All of a voice's."""
        for key in [key for key in self._kept if key[0] == voice_id]:
            del self._kept[key]

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()


class CloningModel(Protocol):
    """A model that clones voices. ``clone`` raises Refused; ``to_bytes`` and ``from_bytes`` keep what it returns on a disk.

    ``from_bytes`` raises ValueError for bytes that ``to_bytes`` of this model has not made.
    """

    @property
    def fingerprint(self) -> str: ...
    def clone(self, wav: bytes, transcript: str | None, name: str) -> Any: ...
    def to_bytes(self, prompt: Any) -> bytes: ...
    def from_bytes(self, data: bytes) -> Any: ...


def prepared(store: VoiceStore, voice: StoredVoice, model: CloningModel) -> Any:
    """What ``clone`` made of the voice, now or at an earlier time. Blocks.

    Raises:
        VoiceGone: the voice is not there any more.
        Refused: it cannot be cloned.
        OSError: its recording cannot be read.
    """
    recording = store.reference(voice)
    # Of the recording itself: the listing may be a second old, and a file's size and times can be those of another.
    name = Name(voice.folder, voice.id, revision(recording, voice.transcript), model.fingerprint)
    kept = store.prompts.load(name)
    if kept is not None:
        try:
            return model.from_bytes(kept)
        except ValueError as error:
            log.warning("the kept prompt of voice %s cannot be used and is made anew: %s", voice.id, error)
    prompt = model.clone(recording, voice.transcript, voice.id)
    store.keep_prompt(voice, name, model.to_bytes(prompt))
    return prompt


def pass_over(store: VoiceStore, voice: StoredVoice | str, error: Exception, last: bool) -> None:
    """A voice cannot be warmed up: it is logged, and one that cannot be cloned is left out. Raises the error if it was the last one."""
    if last or not isinstance(voice, StoredVoice):
        raise error
    if isinstance(error, Refused):
        store.leave_out(voice, str(error))
    else:
        log.error("voice %s cannot be warmed up: %s", voice.id, error)


def first_voices(settings: Settings, store: VoiceStore, presets: tuple[str, ...] | None) -> list[StoredVoice | str]:
    """What may be warm at start, best first: the default voice, then all others; of presets one, which is empty if the model takes none.

    Raises:
        FileNotFoundError: the model speaks in cloned voices, and there is none.
        ValueError: there is no voice of the name that the operator has set.
    """
    if presets is not None:
        name = spelling(settings.default_voice, presets)
        if name is None:
            _missing(settings, presets)
        return [name or next(iter(presets), "")]
    if not store.voices:
        raise FileNotFoundError(
            f"no voice in {store.layers}: this model speaks in cloned voices; install a recording with "
            "python -m qwen3_jax voices add reference.wav --id NAME --transcript 'What it says.' --consent '...'"
        )
    default = store.find(settings.default_voice)
    if default is None:
        _missing(settings, tuple(store.voices))
    others = [voice for voice in store.voices.values() if voice is not default]
    return [*([] if default is None else [default]), *sorted(others, key=lambda voice: bool(voice.metadata.owner))]


def _missing(settings: Settings, voices: tuple[str, ...]) -> None:
    """There is no default voice. An operator's choice is an error; without one the first voice is the default."""
    if "default_voice" in settings.model_fields_set:
        there = f"use one of {', '.join(voices[:MOST_NAMED])}" if voices else "this model takes no voice: unset it"
        raise ValueError(f"TTS_DEFAULT_VOICE = {shorten(repr(settings.default_voice))}: no such voice: {there}")
    if voices:
        log.warning("there is no voice %r: %r is the default", settings.default_voice, voices[0])
