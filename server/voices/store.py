"""The server's voices: what ``qwen3_jax.voices.layers`` finds, watched, added to and removed from; and the prompts made of them.

All methods block: call them from a thread. Several processes may share a folder.
"""

import contextlib
import errno
import io
import logging
import os
import secrets
import threading
import time
import unicodedata
from pathlib import Path
from typing import BinaryIO

import msgspec
import soundfile

from qwen3_jax.audio.samples import pcm16
from qwen3_jax.voices.files import METADATA, REFERENCE, TRANSCRIPT
from qwen3_jax.voices.folder import ID_RULE, Listing, Metadata, StoredVoice, VoiceFolder, VoiceGone, is_id
from qwen3_jax.voices.layers import VoiceLayers
from server.voices.cache import Name, PromptCache
from server.voices.checks import Clip

NEAR_SECONDS, FAR_SECONDS = 1.0, 5.0  # between two looks at a disk; at a bucket, where each costs
PATIENCE = 5.0  # seconds to wait for a look that another thread takes; then the last listing does
_STANDS = "; what is known of them stands"
log = logging.getLogger(__name__)


class VoiceStore:
    """The voices of some folders; what is new is written to the uppermost that does not come with the package.

    Args:
        layers: the folders; a path or an address stands for that folder alone.
        prompts: where derived prompts are kept.

    Raises:
        ValueError: an address that cannot be opened here.
    """

    def __init__(self, layers: VoiceLayers | str | Path, prompts: PromptCache | None = None) -> None:
        self.layers = layers if isinstance(layers, VoiceLayers) else VoiceLayers.single(layers)
        self.prompts = prompts or PromptCache()
        self.interval = NEAR_SECONDS if all(layer.folder.files.nearby for layer in self.layers.layers) else FAR_SECONDS
        self.failures = 0  # times that voices could not be listed, read or written
        self._looking = threading.Lock()
        self._listing = Listing({}, {})
        self._unfit: dict[StoredVoice, str] = {}  # what the model refused, and why
        self._kept: dict[str, set[tuple[str, str]]] = {}  # folder -> (id, revision) of which prompts are kept
        self._said: set[str] = set()
        self._looked = float("-inf")
        if self.layers.destination is not None:
            try:
                self.layers.destination.files.tidy()
            except OSError as error:
                log.info("half-made voices in %s stay, if there are any: %s", self.layers.destination.address, error)
        self.refresh(now=True)

    @property
    def voices(self) -> dict[str, StoredVoice]:
        """By id, in alphabetical order, as of the last look."""
        return self._listing.voices

    @property
    def left_out(self) -> dict[str, str]:
        """What looks like a voice and cannot be used, and why."""
        return self._listing.left_out

    @property
    def writable(self) -> bool:
        """Whether new voices can be kept, as far as it can be told without trying; a folder that is not there yet is made."""
        folder = self.layers.destination
        if folder is None or not folder.files.nearby:
            return True
        place = Path(folder.address)
        place = next(one for one in (place, *place.parents) if os.path.exists(one))
        return os.access(place, os.W_OK | os.X_OK)

    def find(self, name: str) -> StoredVoice | None:
        """The voice of that id as of the last look; see ``Listing.find``."""
        return self._listing.find(name)

    def refresh(self, *, now: bool = False) -> dict[str, StoredVoice]:
        """Look again, if the last look is a while ago. What cannot be looked at stands as it was, and is logged and counted."""
        if not self._looking.acquire(timeout=PATIENCE):
            self.failures += 1
            log.error("the voices could not be listed within %g s: the last listing stands", PATIENCE)
            return self.voices
        try:
            if now or time.monotonic() - self._looked > self.interval:
                self._listing = listing = self.layers.look(self._unfit)
                self._looked = time.monotonic()
                self._say(listing)
                if not listing.troubles:
                    self._drop_prompts(listing)
        finally:
            self._looking.release()
        return self.voices

    def add(self, clip: Clip, transcript: str | None, metadata: Metadata, name: str | None = None) -> StoredVoice:
        """Keep a recording that has passed the checks.

        Args:
            name: the id; default: a random one.

        Raises:
            ValueError: an id that cannot be one, or is taken in the folder where it would go.
            OSError: it could not be written; then there is no such voice.
        """
        voice_id = f"v-{secrets.token_hex(8)}" if name is None else unicodedata.normalize("NFC", name)
        if not is_id(voice_id):
            raise ValueError(f"voice {voice_id!r}: {ID_RULE}")
        folder = self._destination
        if name is not None:
            self.refresh(now=True)
            taken = self.find(voice_id)
            if taken is not None and taken.folder == folder.address:
                raise ValueError(f"voice {taken.id!r} is there already: remove it first, or choose another id")
        folder.files.write(voice_id, _files(clip, transcript, metadata))
        self.refresh(now=True)
        try:
            return self.layers.listed(folder).get(voice_id) or folder.voice(voice_id)  # the second says why it is not in the list
        except (OSError, ValueError):
            with contextlib.suppress(FileNotFoundError):
                folder.files.remove(voice_id)
            self.refresh(now=True)
            raise

    def leave_out(self, voice: StoredVoice, why: str) -> None:
        """The model refuses it: it is no voice until it has changed."""
        self._unfit = {other: why for other, why in self._unfit.items() if self.layers.lists(other)} | {voice: why}
        self.refresh(now=True)

    def remove(self, voice: StoredVoice | str) -> None:
        """Delete a voice, by itself or by its id, and what was made of it.

        Raises:
            VoiceGone: there is no such voice, or it has been deleted meanwhile.
            ValueError: it comes with the package, and stays.
            OSError: it cannot be deleted.
        """
        if not isinstance(voice, StoredVoice):
            if voice not in self.voices:
                raise VoiceGone(f"voice {voice!r} is not here")
            voice = self.voices[voice]
        kind, folder = self.layers.layer_of(voice)
        if kind == "shipped":
            raise ValueError(f"voice {voice.id!r} comes with the package and stays; TTS_SHIPPED_VOICES=false hides such voices")
        try:
            folder.files.remove(voice.name)
        except FileNotFoundError as error:
            raise VoiceGone(f"voice {voice.id!r} is not here any more") from error
        finally:
            self.prompts.discard(voice.folder, voice.id)
            self.refresh(now=True)

    def reference(self, voice: StoredVoice) -> bytes:
        """The recording, a WAV file. Raises VoiceGone, or OSError where it cannot be read."""
        return self.layers.reference(voice)

    def open_reference(self, voice: StoredVoice) -> BinaryIO:
        """The same, to be read piece by piece. Errors as in ``reference``."""
        return self.layers.folder_of(voice).open_reference(voice)

    def keep_prompt(self, voice: StoredVoice, name: Name, data: bytes) -> None:
        """Keep what was made of a voice, unless that has been deleted meanwhile."""
        self.prompts.save(name, data)
        if not self.holds(voice):
            self.prompts.discard(voice.folder, voice.id)

    def holds(self, voice: StoredVoice) -> bool:
        """Whether the voice is there, at this very moment."""
        try:
            return self.layers.folder_of(voice).files.exists(voice.name)
        except FileNotFoundError:
            return False
        except OSError:  # it cannot be told
            return True

    @property
    def _destination(self) -> VoiceFolder:
        folder = self.layers.destination
        if folder is None:
            raise OSError(errno.ENOENT, "there is no folder for new voices: set TTS_VOICES_DIR, or --voices-dir, to one")
        return folder

    def _say(self, listing: Listing) -> None:
        """Log what is new of what is wrong."""
        self.failures += len(listing.troubles)
        left_out = {f"a voice is left out: {why}" for why in listing.left_out.values()}
        for message in sorted(left_out - self._said):
            log.warning("%s", message)
        troubles = {f"{trouble}{_STANDS}" for trouble in listing.troubles}
        for message in sorted(troubles - self._said):
            log.error("%s", message)
        if not troubles and any(message.endswith(_STANDS) for message in self._said):
            log.info("the voices can be looked at again")
        self._said = left_out | troubles

    def _drop_prompts(self, listing: Listing) -> None:
        """Voices that have gone, or have another recording, leave nothing."""
        for layer in self.layers.layers:
            address = layer.folder.address
            there = {(voice.id, voice.revision) for voice in listing.voices.values() if voice.folder == address}
            before = self._kept.get(address)
            if there != before:
                hidden = set(self.layers.listed(layer.folder))  # by a voice of the same id in a folder above
                if gone := sorted({voice_id for voice_id, _ in before or ()} - {voice_id for voice_id, _ in there} - hidden):
                    log.info("voices gone from %s: %s", address, ", ".join(gone[:20]))
                known = {voice_id for voice_id, _ in there}
                changed = set() if before is None else {voice_id for voice_id, _ in before - there}
                self.prompts.keep_only(address, known - changed)
                self._kept[address] = there


def _files(clip: Clip, transcript: str | None, metadata: Metadata) -> dict[str, bytes]:
    stamped = msgspec.structs.replace(
        metadata, created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), duration_seconds=round(clip.seconds, 3)
    )
    wav = io.BytesIO()
    soundfile.write(wav, pcm16(clip.samples), clip.rate, subtype="PCM_16", format="WAV")
    files = {REFERENCE: wav.getvalue()}
    if transcript is not None:
        files[TRANSCRIPT] = f"{transcript}\n".encode()
    return files | {METADATA: msgspec.json.format(msgspec.json.encode(stamped))}
