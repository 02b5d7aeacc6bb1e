"""Recordings of a speaker and what they say -> what fine-tuning reads: per clip text ids [T] and frames [N 16], and one x-vector [H].

    CLIPS/ one.wav one.txt two.flac two.txt      a transcript beside each recording
    CLIPS/ metadata.csv wavs/one.wav ...         or a table: ``name|text`` a line, as LJSpeech has it, or ``file_name,text`` with a header

Everything comes from the checkpoint itself: ids from its tokenizer, frames from its codec's encoder, the x-vector from its speaker encoder.
The x-vector is that of the clip nearest to the mean of all: a real one, as the model knows them, which the mean itself would not be.
"""

import csv
import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from safetensors.numpy import load_file, save_file

from qwen3_jax.audio import recording
from qwen3_jax.audio.samples import SAMPLE_RATE, load_audio
from qwen3_jax.checkpoint.atomic import new_folder
from qwen3_jax.model.encode import encode_codes, encode_x_vector
from qwen3_jax.model.model import Model
from qwen3_jax.shapes import F32, I32
from qwen3_jax.text.files import read
from qwen3_jax.text.tokenizer import Tokenizer, normalise

TABLE = "metadata.csv"
CLIP_SECONDS = (1.0, 60.0)  # of a training clip, which need not be enough to clone a voice from
SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
_TEXT_COLUMNS = ("text", "transcription", "transcript", "sentence")
_FILE, _ARRAYS = "speech.json", "speech.safetensors"


class TranscribedClip(msgspec.Struct, frozen=True):
    """A recording and exactly what it says."""

    path: Path
    text: str


class EncodedClip(msgspec.Struct, frozen=True):
    """A clip as the model has it."""

    name: str
    ids: I32[np.ndarray, "..."]  # [T], the whole turn
    codes: I32[np.ndarray, "..."]  # [N K]


class EncodedClips(msgspec.Struct, frozen=True):
    """All clips, and the speaker."""

    clips: list[EncodedClip]
    x_vector: F32[np.ndarray, "..."]  # [H]
    reference: str  # the clip that it is of


def find(folder: Path) -> list[TranscribedClip]:
    """The clips of a folder, by name.

    Raises:
        FileNotFoundError: no folder, or a recording or transcript that is not there.
        ValueError: no clips, a table that cannot be read, or a transcript without text; names the file.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: give one with recordings and their transcripts")
    clips = _of_table(folder) if (folder / TABLE).is_file() else _of_files(folder)
    if not clips:
        kinds = ", ".join(SOUNDS)
        raise ValueError(f"{folder} has no clips: put NAME.wav ({kinds}) and NAME.txt into it, or a {TABLE} of name|text lines")
    for clip in clips:
        try:
            normalise(clip.text)
        except ValueError as error:
            raise ValueError(f"the transcript of {clip.path}: {error}") from error
    return sorted(clips, key=lambda clip: clip.path)


def _of_files(folder: Path) -> list[TranscribedClip]:
    sounds = [path for path in folder.iterdir() if path.suffix.lower() in SOUNDS]
    if bare := sorted(path.name for path in sounds if not path.with_suffix(".txt").is_file()):
        raise FileNotFoundError(f"{folder}: no transcript for {', '.join(bare[:5])}; write {Path(bare[0]).with_suffix('.txt')} beside it")
    return [TranscribedClip(path, read(path.with_suffix(".txt"))) for path in sounds]


def _of_table(folder: Path) -> list[TranscribedClip]:
    table = folder / TABLE
    text = read(table)
    first = text.splitlines()[0] if text.strip() else ""
    if "|" in first:  # LJSpeech: no quotes; a third column, the text with numbers in words, is nearer to what is said
        rows = [(line.split("|")[0], line.split("|")[-1]) for line in text.splitlines() if line.strip()]
    else:
        reader = csv.DictReader(text.splitlines())
        column = next((name for name in _TEXT_COLUMNS if name in (reader.fieldnames or ())), None)
        if column is None or "file_name" not in (reader.fieldnames or ()):
            raise ValueError(
                f"{table} starts with {first!r}: it must have name|text lines, "
                f"or a header with file_name and one of {', '.join(_TEXT_COLUMNS)}"
            )
        rows = [(row["file_name"], row[column] or "") for row in reader]
    return [TranscribedClip(_sound(folder, name.strip()), text) for name, text in rows]


def _sound(folder: Path, name: str) -> Path:
    tried = [place / f"{name}{suffix}" for place in (folder, folder / "wavs") for suffix in ("", *SOUNDS)]
    for path in tried:
        if name and path.is_file():
            return path
    raise FileNotFoundError(f"{folder / TABLE} names {name!r}: there is no such recording in {folder} or {folder / 'wavs'}")


def digest(clips: list[TranscribedClip]) -> str:
    """sha256 (hex) over the recordings' bytes and the transcripts."""
    made = hashlib.sha256()
    for clip in clips:
        made.update(hashlib.sha256(clip.path.read_bytes()).digest() + hashlib.sha256(clip.text.encode()).digest())
    return made.hexdigest()


def encode(model: Model, tokenizer: Tokenizer, clips: list[TranscribedClip], done: Callable[[], object] = lambda: None) -> EncodedClips:
    """What the checkpoint makes of the clips; ``done`` is called after each.

    Raises:
        ValueError: a recording that is unfit (see audio/recording.py; 1 to 60 s) or a transcript that is; names the file.
    """
    spoken, x_vectors = [], []
    for clip in clips:
        try:
            wave = load_audio(clip.path)
            recording.check(recording.Clip(wave, SAMPLE_RATE, 0), shortest=CLIP_SECONDS[0], longest=CLIP_SECONDS[1])
            ids = tokenizer.assistant(clip.text)
        except ValueError as error:
            raise ValueError(f"{clip.path}: {error}") from error
        spoken.append(EncodedClip(clip.path.stem, ids, encode_codes(model, wave)))
        x_vectors.append(encode_x_vector(model, wave))
        done()
    unit = np.stack(x_vectors) / np.linalg.norm(x_vectors, axis=1, keepdims=True)
    nearest = int(np.argmax(unit @ unit.mean(axis=0)))
    return EncodedClips(spoken, x_vectors[nearest], spoken[nearest].name)


def save(folder: Path, speech: EncodedClips) -> None:
    """Write a new folder."""
    arrays = {"x_vector": speech.x_vector}
    for number, clip in enumerate(speech.clips):
        arrays |= {f"{number}.ids": clip.ids, f"{number}.codes": clip.codes}
    with new_folder(folder) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary / _ARRAYS)
        facts = {"reference": speech.reference, "clips": [clip.name for clip in speech.clips]}
        (temporary / _FILE).write_bytes(msgspec.json.format(msgspec.json.encode(facts), indent=1))


def load(folder: Path) -> EncodedClips:
    """What ``save`` wrote."""
    facts = msgspec.json.decode((folder / _FILE).read_bytes())
    arrays = load_file(folder / _ARRAYS)
    clips = [EncodedClip(name, arrays[f"{number}.ids"], arrays[f"{number}.codes"]) for number, name in enumerate(facts["clips"])]
    return EncodedClips(clips, arrays["x_vector"], facts["reference"])
