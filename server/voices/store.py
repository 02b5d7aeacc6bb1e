"""Where voices lie: ``{folder}/{id}/{reference.wav, transcript.txt, metadata.json, prompt-*.safetensors}`` <-> StoredVoice.

The folder may be a bucket that fsspec knows. On a disk a voice appears with one rename, so a killed process leaves none by half; in a
bucket ``metadata.json`` is written last, and what has none is no voice. All methods block: call them from a thread.
"""

import hashlib
import io
import json
import logging
import os
import re
import secrets
import threading
import time
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import msgspec
import soundfile

from qwen3_jax import voice_folder
from qwen3_jax.atomic import new_folder, remove_leftovers
from qwen3_jax.audio import pcm16
from qwen3_jax.voice_folder import METADATA, REFERENCE, TRANSCRIPT
from server.voices.checks import Clip

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
STALE_SECONDS = 2.0  # a voice that another process added is seen after that time
log = logging.getLogger(__name__)


class Metadata(voice_folder.Metadata, frozen=True, kw_only=True):
    """``metadata.json`` of a voice: what the library reads, and what the server adds."""

    owner: str = ""  # a principal; empty: everybody's
    created: str = ""
    duration_seconds: float = 0.0


class StoredVoice(msgspec.Struct, frozen=True, kw_only=True):
    """One voice. ``revision`` changes with the recording and with the transcript."""

    id: str
    metadata: Metadata
    transcript: str | None
    revision: str

    @property
    def mode(self) -> str:
        """``icl`` (the transcript is known) or ``xVector``."""
        return "xVector" if self.transcript is None else "icl"

    def visible_to(self, principal: str | None) -> bool:
        """Built-in voices are everybody's; others their owner's alone."""
        return not self.metadata.owner or self.metadata.owner == principal


class VoiceStore:
    """The voices below a folder or a bucket, and, if there are any, those that come with the package, which are only read.

    Args:
        location: a path or an fsspec address; what is new is written there.
        shipped: a folder of more voices. One of ``location`` with the same id takes its place.

    Raises:
        ValueError: an address that fsspec does not know, or a voice that cannot be read.
    """

    def __init__(self, location: str | Path, shipped: Path | None = None) -> None:
        self._shipped = None if shipped is None else VoiceStore(shipped)
        self._fs, path = fsspec.core.url_to_fs(str(location))
        self._root = PurePosixPath(path)
        self._local = isinstance(self._fs, fsspec.implementations.local.LocalFileSystem)
        self._lock = threading.Lock()
        self._own: dict[str, StoredVoice] = {}
        self._voices: dict[str, StoredVoice] = {}
        self._looked = 0.0
        if self._local:
            remove_leftovers(Path(path))
        self.refresh(now=True, strict=True)

    @property
    def voices(self) -> dict[str, StoredVoice]:
        """By id, in alphabetical order, as of the last look."""
        return self._voices

    def refresh(self, *, now: bool = False, strict: bool = False) -> dict[str, StoredVoice]:
        """Look again, if the last look is a while ago. A voice that cannot be read is left out; ``strict``: raises ValueError."""
        with self._lock:
            if now or time.monotonic() - self._looked > STALE_SECONDS:
                self._fs.invalidate_cache()
                found = (PurePosixPath(path).parent.name for path in self._fs.glob(str(self._root / "*" / REFERENCE)))
                looked = ((name, self._look(name, strict)) for name in sorted(found) if ID.fullmatch(name))
                self._own = {name: voice for name, voice in looked if voice is not None}
                every = self._own if self._shipped is None else self._shipped.voices | self._own
                self._voices = dict(sorted(every.items()))
                self._looked = time.monotonic()
            return self._voices

    def add(self, clip: Clip, transcript: str | None, metadata: Metadata, name: str | None = None) -> StoredVoice:
        """Keep a recording that has passed the checks.

        Args:
            name: the id; default: a random one.

        Raises:
            ValueError: an id that cannot be one, or is taken.
            OSError: it could not be written; then there is no such voice.
        """
        voice_id = f"v-{secrets.token_hex(8)}" if name is None else name
        if not ID.fullmatch(voice_id):
            raise ValueError(f"voice {voice_id!r}: an id is 1 to 64 of A-Z a-z 0-9 _ . - and begins with a letter or a digit")
        if voice_id in self.refresh(now=True):
            raise ValueError(f"voice {voice_id!r} is there already: remove it first, or choose another id")
        stamped = msgspec.structs.replace(
            metadata, created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), duration_seconds=round(clip.seconds, 3)
        )
        wav = io.BytesIO()
        soundfile.write(wav, pcm16(clip.samples), clip.rate, subtype="PCM_16", format="WAV")
        files = {REFERENCE: wav.getvalue()}
        if transcript is not None:
            files[TRANSCRIPT] = f"{transcript}\n".encode()
        files[METADATA] = msgspec.json.format(msgspec.json.encode(stamped))  # last: in a bucket it makes the voice
        if self._local:
            with new_folder(Path(self._root / voice_id)) as folder:
                for file, data in files.items():
                    write_file(folder / file, data)
        else:
            for file, data in files.items():
                self._fs.pipe_file(self._path(voice_id, file), data)
        self.refresh(now=True)
        return self._voices[voice_id]

    def remove(self, voice_id: str) -> None:
        """Delete a voice. In a bucket its metadata goes first, so that what is left is no voice.

        Raises:
            KeyError: there is no such voice here; one that comes with the package stays.
        """
        if voice_id not in self._own:
            raise KeyError(voice_id)
        if self._local:
            hidden = self._root / f".{voice_id}.partial-{secrets.token_hex(4)}"
            os.rename(self._root / voice_id, hidden)
            remove_leftovers(Path(self._root))
        else:
            self._fs.rm_file(self._path(voice_id, METADATA))
            self._fs.rm(str(self._root / voice_id), recursive=True)
        self.refresh(now=True)

    def reference(self, voice: StoredVoice) -> bytes:
        """The recording, a WAV file."""
        if voice.id not in self._own and self._shipped is not None:
            return self._shipped.reference(voice)
        data: bytes = self._fs.cat_file(self._path(voice.id, REFERENCE))
        return data

    def load_prompt(self, voice: StoredVoice, fingerprint: str) -> bytes | None:
        """What ``save_prompt`` kept for this model and this recording; None if there is none."""
        try:
            data: bytes = self._fs.cat_file(self._path(voice.id, prompt_name(voice, fingerprint)))
        except FileNotFoundError:
            return None
        return data

    def save_prompt(self, voice: StoredVoice, fingerprint: str, data: bytes) -> None:
        """Keep a pre-computed prompt; one of another model or recording is removed. A folder that cannot be written to is left alone."""
        path = self._path(voice.id, prompt_name(voice, fingerprint))
        try:
            if self._local:
                if self._shipped is not None and voice.id in self._shipped.voices:  # of those, the prompt alone is kept here
                    Path(path).parent.mkdir(parents=True, exist_ok=True)
                partial = f"{path}.{secrets.token_hex(4)}"
                write_file(Path(partial), data)
                os.replace(partial, path)
            else:
                self._fs.pipe_file(path, data)
            for other in self._fs.glob(self._path(voice.id, "prompt-*")):
                if PurePosixPath(other).name != PurePosixPath(path).name:
                    self._fs.rm_file(other)
        except OSError as error:
            log.warning("the prompt of voice %s is not kept: %s", voice.id, error)

    def _path(self, voice_id: str, file: str) -> str:
        return str(self._root / voice_id / file)

    def _look(self, voice_id: str, strict: bool) -> StoredVoice | None:
        """The voice; None if there is none, or, unless ``strict``, none that can be read."""
        try:
            return self._read(voice_id)
        except ValueError as error:
            if strict:
                raise
            log.warning("a voice is left out: %s", error)
        except FileNotFoundError:  # removed while we looked
            pass
        return None

    def _read(self, voice_id: str) -> StoredVoice | None:
        metadata = self._optional(voice_id, METADATA)
        if metadata is None and not self._local:
            return None
        transcript = self._optional(voice_id, TRANSCRIPT)
        try:
            known = Metadata() if metadata is None else msgspec.json.decode(metadata, type=Metadata)
        except msgspec.DecodeError as error:
            raise ValueError(f"{self._path(voice_id, METADATA)} is not a voice's metadata ({error}): mend it, or remove it") from error
        try:
            words = None if transcript is None else transcript.decode().strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self._path(voice_id, TRANSCRIPT)} is not UTF-8 ({error}): save it as UTF-8") from error
        if words == "":
            raise ValueError(f"{self._path(voice_id, TRANSCRIPT)} is empty: write what the reference says, or remove the file")
        stamp = {**self._stamp(voice_id), "transcript": words}
        revision = hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()[:16]
        if not known.duration_seconds:
            known = msgspec.structs.replace(known, duration_seconds=self._seconds(voice_id, revision))
        return StoredVoice(id=voice_id, metadata=known, transcript=words, revision=revision)

    def _seconds(self, voice_id: str, revision: str) -> float:
        """How long the recording is; it is opened once."""
        before = self._own.get(voice_id)
        if before is not None and before.revision == revision:
            return before.metadata.duration_seconds
        try:
            with self._fs.open(self._path(voice_id, REFERENCE), "rb") as file:
                return round(float(soundfile.info(file).duration), 3)
        except soundfile.LibsndfileError as error:
            raise ValueError(
                f"{self._path(voice_id, REFERENCE)} is not a readable sound ({error}): replace it, or remove the voice"
            ) from error

    def _stamp(self, voice_id: str) -> dict[str, Any]:
        """What tells one recording from another without reading it."""
        info = self._fs.info(self._path(voice_id, REFERENCE))
        return {name: str(info[name]) for name in ("size", "mtime", "ETag", "created") if name in info}

    def _optional(self, voice_id: str, file: str) -> bytes | None:
        try:
            data: bytes = self._fs.cat_file(self._path(voice_id, file))
        except FileNotFoundError:
            return None
        return data


def prompt_name(voice: StoredVoice, fingerprint: str) -> str:
    """The file of a prompt: another model or recording has another one."""
    return f"prompt-{hashlib.sha256(f'{fingerprint} {voice.revision}'.encode()).hexdigest()[:16]}.safetensors"


def write_file(path: Path, data: bytes) -> None:
    """Write and flush; the one place where a disk can be full."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
