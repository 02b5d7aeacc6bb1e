"""Whatever a caller says a voice is -> a Voice, or a preset speaker's name; each one is cloned once.

a Voice | a name of `VoiceLayers` | a voice's own folder | a recording, its words beside it or given | a file of Voice.save | None
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qwen3_jax.checkpoint.folders import expand
from qwen3_jax.messages import shorten
from qwen3_jax.text.files import read
from qwen3_jax.voices.files import REFERENCE, TRANSCRIPT
from qwen3_jax.voices.folder import StoredVoice
from qwen3_jax.voices.layers import DEFAULT_VOICE, VoiceLayers
from qwen3_jax.voices.voice import Voice

KEPT = 16  # voices cloned from names and files, 5 MB each for in-context cloning
Given = Voice | str | os.PathLike[str] | tuple[np.ndarray, int] | None


class VoiceInfo(NamedTuple):
    """A voice by its name, as ``voice=`` takes it."""

    name: str
    language: str
    description: str


class VoiceChoice:
    """The voices that a Base checkpoint can speak in.

    Args:
        create_voice: ``Qwen3TTS.create_voice`` of the checkpoint.
        layers: the folders of voices.
        x_vector_only_mode: as for ``create_voice``.
        tell: hears which voice is the default.
    """

    def __init__(
        self, create_voice: Callable[..., Voice], layers: VoiceLayers, x_vector_only_mode: bool | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self._create_voice, self._layers, self._x_vector_only_mode, self._tell = create_voice, layers, x_vector_only_mode, tell
        self._cloned: OrderedDict[Hashable, Voice] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    def known(self) -> tuple[VoiceInfo, ...]:
        """The voices of the folders, in alphabetical order."""
        voices = self._layers.look().voices.values()
        return tuple(VoiceInfo(voice.id, voice.metadata.language, voice.metadata.description) for voice in voices)

    def voice(self, given: Given, transcript: str | None = None) -> Voice:
        """The voice.

        Args:
            given: see the module's docstring. None: TTS_DEFAULT_VOICE, else makima, else the first one.
            transcript: what a recording says. Default: the words in ``NAME.txt`` or ``transcript.txt`` beside it; without any, only its
                timbre is cloned.

        Raises:
            FileNotFoundError: there is no such voice; says which there are.
            ValueError: something that is no voice, or a recording that cannot be cloned.
        """
        if transcript is not None and (given is None or isinstance(given, Voice)):
            raise ValueError("transcript: it says what a recording says, so give the recording as voice; a saved voice has its own")
        if isinstance(given, Voice):
            return given
        if isinstance(given, tuple):
            return self._clone(given, transcript)
        if given is not None and not isinstance(given, (str, os.PathLike)):
            raise ValueError(f"voice of type {type(given).__name__}: give a Voice, a name, a voice's folder, a recording or a saved voice")
        name = None if given is None else os.fspath(given)
        listing = self._layers.look()
        stored = listing.default(os.environ.get("TTS_DEFAULT_VOICE") or DEFAULT_VOICE) if name is None else listing.find(name)
        if stored is not None and (name is None or transcript is None):
            voice = stored
            if name is None:
                self._tell(f"voice: {voice.id}")
            return self._once(voice, lambda: self._create(self._layers, voice))
        if name is None:
            raise FileNotFoundError(f"no voice: there is none in {self._layers}; give a recording to clone")
        if name.endswith(".safetensors"):
            return Voice.load(name)
        path = Path(expand(name)).absolute()
        if os.path.isfile(path / REFERENCE) and transcript is None:
            own = VoiceLayers.single(path.parent)
            alone = own.layers[0].folder.voice(path.name)
            return self._once(alone, lambda: self._create(own, alone))
        if os.path.isfile(path):
            words, info = _words_beside(path) if transcript is None else transcript, path.stat()
            return self._once((path, info.st_mtime_ns, info.st_size, words), lambda: self._clone(path, words))
        there = ", ".join(listing.voices) or "nothing"
        raise FileNotFoundError(
            f"voice {shorten(repr(name))}: there is no voice of that name in {self._layers} (there is: {there}), and no recording, "
            "saved voice or voice's folder at that path"
        )

    def _create(self, layers: VoiceLayers, voice: StoredVoice) -> Voice:
        return layers.create(voice, self._create_voice, self._x_vector_only_mode)

    def _clone(self, recording: Path | tuple[np.ndarray, int], transcript: str | None) -> Voice:
        return self._create_voice(recording, transcript, x_vector_only_mode=self._x_vector_only_mode)

    def _once(self, key: Hashable, make: Callable[[], Voice]) -> Voice:
        with self._lock:
            if key not in self._cloned:
                self._cloned[key] = make()
            self._cloned.move_to_end(key)
            while len(self._cloned) > KEPT:
                self._cloned.popitem(last=False)
            return self._cloned[key]


def _words_beside(recording: Path) -> str | None:
    for file in (recording.with_suffix(".txt"), recording.with_name(TRANSCRIPT)):
        if file.is_file():
            return read(file).strip() or None
    return None


def of(tts: Any, voices_dir: str | os.PathLike[str] | None) -> VoiceChoice:
    """The voices for a Qwen3TTS: of the named folder, the user's and those that ship (layers.py)."""
    named = os.environ.get("TTS_VOICES_DIR") or None if voices_dir is None else voices_dir
    shipped = os.environ.get("TTS_SHIPPED_VOICES", "").strip().lower() not in ("0", "false", "no", "off", "f", "n")
    return VoiceChoice(tts.create_voice, VoiceLayers.of(named, shipped=shipped))


def find_voice(
    tts: Any, name: str | None, layers: VoiceLayers, x_vector_only_mode: bool | None = None, tell: Callable[[str], None] = print
) -> Voice | str | None:
    """What ``--voice`` stands for, as the checkpoint takes it: see ``VoiceChoice.voice``; a preset speaker's name stays.

    Args:
        tts: a Qwen3TTS.
        name: of the command line.
        layers: the folders of voices.
        x_vector_only_mode: as for ``create_voice``.
        tell: hears which voice is the default, and which ones are left out.
    """
    if tts.model_type != "base":
        return name
    listing = layers.look()
    for why in (*listing.left_out.values(), *listing.troubles):
        tell(f"warning: a voice is left out: {why}")
    return VoiceChoice(tts.create_voice, layers, x_vector_only_mode, tell).voice(name)
