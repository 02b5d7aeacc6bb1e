"""The voices that are there, one meaning for shell, library and server: three folders, one above the other -> a Listing.

    the folder that was named, else ./voices if it exists  >  the user's, ~/.local/share/qwen3-jax/voices  >  those that ship

A voice takes the place of one with the same id in a folder below; nothing else of an upper folder hides a lower one.

    layers = VoiceLayers.of("my-voices")
    voice = layers.look().find("makima")
    cloned = layers.create(voice, tts.create_voice)
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np

from qwen3_jax.audio import recording
from qwen3_jax.checkpoint.folders import data_folder
from qwen3_jax.voices.files import Disk
from qwen3_jax.voices.folder import Listing, StoredVoice, VoiceFolder, VoiceGone
from qwen3_jax.voices.voice import Voice

DEFAULT_VOICE = "makima"
Kind = Literal["named", "user", "shipped"]
CreateVoice = Callable[..., Voice]  # Qwen3TTS.create_voice
_HERE = "voices"
_SHIPPED = (Path(__file__).parents[1] / "embedded" / "voices", Path(__file__).parents[2] / "voices")  # installed; in the repository


class Layer(NamedTuple):
    """A folder of voices, and why it is asked."""

    kind: Kind
    folder: VoiceFolder


class VoiceLayers:
    """Folders of voices, the uppermost first. It remembers the last listing of each, which stands while a folder cannot be listed."""

    def __init__(self, layers: list[Layer]) -> None:
        self.layers = layers
        self._last: dict[str, Listing] = {}

    @classmethod
    def of(cls, named: str | os.PathLike[str] | None = None, *, shipped: bool = True) -> "VoiceLayers":
        """The folders that count.

        Args:
            named: a folder, which need not exist, or an address that fsspec knows; ``~`` is expanded. Default: ``./voices`` if it exists.
            shipped: whether the voices that come with the package are there.

        Raises:
            ValueError: an address that cannot be opened here.
        """
        layers: list[Layer] = []
        below = shipped_folder() if shipped else None
        if named is not None:
            folder = VoiceFolder(named)
            if _is_ours(folder):  # named by its own path: it is there, and still nobody's to write to
                below = None if _is_shipped(folder) else below
                layers.append(Layer("shipped", folder))
            else:
                layers.append(Layer("named", folder))
        elif os.path.isdir(_HERE) and not _is_shipped(here := VoiceFolder(_HERE)):
            layers.append(Layer("shipped" if _is_ours(here) else "named", here))
        own = data_folder()
        if own is not None and not any(_same(layer.folder, own / "voices") for layer in layers):
            layers.append(Layer("user", VoiceFolder(own / "voices")))
        if below is not None:
            layers.append(Layer("shipped", VoiceFolder(below)))
        return cls(layers)

    @classmethod
    def single(cls, location: str | os.PathLike[str]) -> "VoiceLayers":
        """One folder alone, whichever it is. Raises ValueError as ``of``."""
        return cls([Layer("named", VoiceFolder(location))])

    @property
    def destination(self) -> VoiceFolder | None:
        """Where new voices go: the uppermost folder that does not come with the package."""
        return next((layer.folder for layer in self.layers if layer.kind != "shipped"), None)

    def look(self, unfit: Mapping[StoredVoice, str] = MappingProxyType({})) -> Listing:
        """All voices by id, in alphabetical order. A folder that cannot be listed is one of the ``troubles``, and its last listing stands.

        Args:
            unfit: voices that are left out as well, and why.
        """
        voices: dict[str, StoredVoice] = {}
        left_out: dict[str, str] = {}
        troubles: list[str] = []
        for kind, folder in reversed(self.layers):
            last = self._last.get(folder.address)
            try:
                listing = self._last[folder.address] = folder.look()
                troubles += listing.troubles
            except OSError as error:
                if last is None and kind == "user" and isinstance(error, (PermissionError, NotADirectoryError)):
                    continue  # another user's home, or HOME=/dev/null
                troubles.append(f"the voices in {folder.address} cannot be listed: {error.strerror or error}")
                listing = last or Listing({}, {})
            voices |= {voice_id: voice for voice_id, voice in listing.voices.items() if voice not in unfit}
            left_out |= listing.left_out
            left_out |= {voice.id: f"{folder.address}/{voice.name}: {unfit[voice]}" for voice in listing.voices.values() if voice in unfit}
        return Listing(dict(sorted(voices.items())), dict(sorted(left_out.items())), tuple(troubles))

    def lists(self, voice: StoredVoice) -> bool:
        """Whether its folder had that very voice at the last look."""
        return any(listing.voices.get(voice.id) == voice for listing in self._last.values())

    def listed(self, folder: VoiceFolder) -> Mapping[str, StoredVoice]:
        """The voices that one of the folders had at the last look, by id, hidden ones included."""
        last = self._last.get(folder.address)
        return {} if last is None else last.voices

    def reference(self, voice: StoredVoice) -> bytes:
        """The recording, a WAV file.

        Raises:
            VoiceGone: the voice is not there any more.
            OSError: it cannot be read.
        """
        return self.folder_of(voice).reference(voice)

    def create(self, voice: StoredVoice, create_voice: CreateVoice, x_vector_only_mode: bool | None = None) -> Voice:
        """Clone it, with ``Qwen3TTS.create_voice`` of the checkpoint that will speak.

        Raises:
            ValueError: as that function; or its recording is no sound that can be cloned.
            VoiceGone, OSError: as ``reference``.
        """
        sound = decode(self.reference(voice), voice.id)
        try:
            return create_voice(sound, voice.transcript, name=voice.id, x_vector_only_mode=x_vector_only_mode)
        except recording.Refusal as error:
            raise ValueError(f"the recording of voice {voice.id!r}: {error}") from error

    def layer_of(self, voice: StoredVoice) -> Layer:
        """The layer that a voice of ``look`` lies in. Raises VoiceGone."""
        for layer in self.layers:
            if layer.folder.address == voice.folder:
                return layer
        raise VoiceGone(f"voice {voice.id!r} is not here")

    def folder_of(self, voice: StoredVoice) -> VoiceFolder:
        """Its folder. Raises VoiceGone."""
        return self.layer_of(voice).folder

    def __str__(self) -> str:
        return ", ".join(f"{layer.folder.address} ({layer.kind})" for layer in self.layers) or "no folder"


def decode(content: bytes, voice_id: str) -> tuple[np.ndarray, int]:
    """A voice's recording -> (float32 [F], rate in Hz). Raises ValueError if it is no sound that can be cloned."""
    try:
        clip = recording.read(content)
    except recording.Refusal as error:
        raise ValueError(f"the recording of voice {voice_id!r}: {error}") from error
    return clip.samples, clip.rate


def shipped_folder() -> Path | None:
    """The voices that come with the package."""
    return next((folder for folder in _SHIPPED if os.path.isdir(folder)), None)


def _is_ours(folder: VoiceFolder) -> bool:
    """Whether it comes with the package, or is a checkout's folder, which is no place for one's own voices: they would be committed."""
    if _is_shipped(folder) or not isinstance(folder.files, Disk):
        return _is_shipped(folder)
    root = Path(folder.files.root).absolute()
    source = root.parent
    return root.name == _HERE and (source / "qwen3_jax" / "__init__.py").is_file() and (source / "pyproject.toml").is_file()


def _is_shipped(folder: VoiceFolder) -> bool:
    shipped = shipped_folder()
    return shipped is not None and _same(folder, shipped)


def _same(folder: VoiceFolder, path: Path) -> bool:
    return isinstance(folder.files, Disk) and os.path.realpath(folder.files.root) == os.path.realpath(path)
