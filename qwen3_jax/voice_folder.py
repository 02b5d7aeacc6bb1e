"""A folder of voices on disk, ``{id}/{reference.wav, transcript.txt, metadata.json}`` -> entries, and from one of them a Voice.

The layout is that of the specification's 6.2.1. ``transcript.txt`` may be missing (x-vector cloning), ``metadata.json`` too.
"""

from collections.abc import Callable
from pathlib import Path

import msgspec

from qwen3_jax.voice import Voice

REFERENCE, TRANSCRIPT, METADATA = "reference.wav", "transcript.txt", "metadata.json"
DEFAULT_VOICE = "makima"
_SHIPPED = (Path(__file__).with_name("voices"), Path(__file__).parents[1] / "voices")  # installed; in the repository
CreateVoice = Callable[..., Voice]  # Qwen3TTS.create_voice


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """``metadata.json``; unknown fields are left alone."""

    name: str = ""
    language: str = ""
    description: str = ""
    licence: str = ""
    consent: str = ""


class VoiceEntry(msgspec.Struct, frozen=True):
    """One voice of the folder. ``id`` is the name of its own folder."""

    id: str
    path: Path
    metadata: Metadata
    transcript: str | None

    @property
    def mode(self) -> str:
        """``icl`` (the transcript is known) or ``xVector``."""
        return "xVector" if self.transcript is None else "icl"

    def create(self, create_voice: CreateVoice, x_vector_only_mode: bool | None = None) -> Voice:
        """Clone it, with ``Qwen3TTS.create_voice`` of the checkpoint that will speak; arguments and errors are those of that function."""
        return create_voice(self.path / REFERENCE, self.transcript, name=self.id, x_vector_only_mode=x_vector_only_mode)


def default_folder() -> Path:
    """``voices`` here if there is one, else the voices that come with the package."""
    return next((folder for folder in (Path("voices"), *_SHIPPED) if folder.is_dir()), Path("voices"))


def shipped_folder() -> Path | None:
    """The voices that come with the package, unless they are those of ``voices`` here."""
    found = next((folder for folder in _SHIPPED if folder.is_dir()), None)
    return None if found is None or found.resolve() == Path("voices").resolve() else found


def find(folder: Path) -> dict[str, VoiceEntry]:
    """Every voice in ``folder`` by id, in alphabetical order; none if there is no such folder.

    Raises:
        ValueError: a ``metadata.json`` that is not an object of the known fields, or a transcript that is empty or not UTF-8.
    """
    return {path.parent.name: read(path.parent) for path in sorted(folder.glob(f"[!.]*/{REFERENCE}"))}


def read(path: Path) -> VoiceEntry:
    """The voice in one folder.

    Raises:
        FileNotFoundError: there is no ``reference.wav`` in it.
        ValueError: as for ``find``.
    """
    if not (path / REFERENCE).is_file():
        raise FileNotFoundError(f"{path} is not a voice: it has no {REFERENCE}")
    metadata, transcript = Metadata(), None
    if (path / METADATA).is_file():
        try:
            metadata = msgspec.json.decode((path / METADATA).read_bytes(), type=Metadata)
        except msgspec.DecodeError as error:
            raise ValueError(f"{path / METADATA} is not a voice's metadata ({error}): mend it, or remove it") from error
    if (path / TRANSCRIPT).is_file():
        try:
            transcript = (path / TRANSCRIPT).read_text("utf-8").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path / TRANSCRIPT} is not UTF-8 ({error}): save it as UTF-8") from error
        if not transcript:
            raise ValueError(f"{path / TRANSCRIPT} is empty: write what the reference says, or remove the file for x-vector cloning")
    return VoiceEntry(path.name, path, metadata, transcript)
