"""A corpus on disk: 24 kHz int16 speech in shards that can be memory-mapped, and a manifest.

``CORPUS/VOICE/00000.npy`` is the speech of up to 64 sentences, one after another, int16 [F]; ``00000.jsonl`` beside it has a line for each
of them (`ManifestLine`), and is written last: a shard without it does not exist. Which sentence is in which shard, and every sample,
depends on the voice, the texts and the packages only. ``CORPUS/manifest.jsonl`` is all lines of all shards, ``CORPUS/summary.json`` their
totals.
"""

import os
import tempfile
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from qwen3_jax.audio.samples import write_wav
from qwen3_jax.evaluate.texts import SENTENCES, held_out
from qwen3_jax.shapes import Integer
from training.corpus import sources, teachers
from training.corpus.sentences import CorpusSentence, number
from training.corpus.teachers import SAMPLE_RATE, TeacherSpeech, TeacherVoice
from training.latents import phonemes

SHARD = 64  # sentences: about three minutes of speech
SAID = ".said.json"
PEAK = 0.95  # louder speech is turned down to it, so that nothing clips


class ManifestLine(msgspec.Struct, frozen=True, kw_only=True):
    """One utterance of the manifest. ``start`` and ``samples`` are places in the shard; ``durations`` as in `teachers.TeacherSpeech`."""

    id: str
    text: str
    voice: str
    shard: str
    start: int
    samples: int
    seed: int
    phonemes: str
    durations: list[int]
    source: str
    text_licence: str
    teacher: str
    versions: dict[str, str]
    licence: str = "Apache-2.0 (the teacher's; synthetic voice)"


class SpeechSource(Protocol):
    """What makes the speech: `Teacher`, or a stand-in in tests."""

    def speak(self, who: TeacherVoice, text: str, seed: int) -> TeacherSpeech:
        """Say ``text``."""


def cut_into_shards(who: TeacherVoice, texts: list[CorpusSentence]) -> list[list[CorpusSentence]]:
    """The voice's own order of all sentences, cut into shards; everyday phrases first, so that a voice of few minutes has them, too."""
    first = set(sources.everyday())
    order = sorted(texts, key=lambda sentence: (sentence.text not in first, number(sentence.text, who.name)))
    return [order[start : start + SHARD] for start in range(0, len(order), SHARD)]


def make_shard(folder: Path, index: int, who: TeacherVoice, batch: list[CorpusSentence], teacher: SpeechSource) -> int:
    """Speak and write one shard. Returns its samples. What exists already is only counted."""
    done = folder / f"{index:05}.jsonl"
    if done.is_file():
        return sum(line.samples for line in read_lines(done))
    lines, waves, start = [], [], 0
    versions = teachers.versions()
    for place, sentence in enumerate(batch):
        seed = number(sentence.text, "seed") % 2**32
        made = teacher.speak(who, sentence.text, seed)
        wave = to_int16(made.wave)
        lines.append(
            ManifestLine(
                id=f"{who.name}-{index:05}-{place:02}", text=sentence.text, voice=who.name, shard=f"{who.name}/{index:05}.npy",
                start=start, samples=len(wave), seed=seed, phonemes=made.phonemes, durations=made.durations, source=sentence.source,
                text_licence=sources.LICENCES[sentence.source], teacher=who.made_by, versions=versions,
            )
        )  # fmt: skip
        waves.append(wave)
        start += len(wave)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as file:
        np.save(file, np.concatenate(waves))
        file.seek(0)
        write_atomically(folder / f"{index:05}.npy", file.read())
    write_atomically(done, msgspec.json.Encoder().encode_lines(lines))
    return start


def to_int16(wave: np.ndarray) -> np.ndarray:
    """float32 -> int16, turned down if it is louder than `PEAK`."""
    peak = float(np.abs(wave).max(initial=0.0))
    return np.rint(wave * (32767 * min(1.0, PEAK / max(peak, 1e-9)))).astype("<i2")


def write_atomically(path: Path, data: bytes) -> None:
    """The whole file under its name, or none."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_lines(path: Path) -> list[ManifestLine]:
    """Lines of a shard's or the whole manifest."""
    return msgspec.json.Decoder(ManifestLine).decode_lines(path.read_bytes())


def read_corpus(folder: Path, voices: list[str] | None = None) -> list[ManifestLine]:
    """All utterances of the corpus in ``folder``, by voice and shard; ``wave`` gives the speech of one.

    Raises:
        FileNotFoundError: there are none.
    """
    paths = sorted(path for path in folder.glob("*/*.jsonl") if voices is None or path.parent.name in voices)
    if not paths:
        which = "" if voices is None else f" of {', '.join(voices)}"
        raise FileNotFoundError(f"{folder} holds no corpus{which}: make one with python -m training.corpus")
    return [line for path in paths for line in read_lines(path)]


def wave(folder: Path, line: ManifestLine) -> np.ndarray:
    """The speech of one utterance: int16 [F], read from the disk when it is looked at."""
    return np.load(folder / line.shard, mmap_mode="r")[line.start : line.start + line.samples]


def summarise(folder: Path) -> dict[str, Any]:
    """Write the manifest and the summary of what is in ``folder``; returns the summary."""
    lines = read_corpus(folder)
    write_atomically(folder / "manifest.jsonl", msgspec.json.Encoder().encode_lines(lines))
    voices: dict[str, dict[str, Any]] = {}
    for line in lines:
        entry = voices.setdefault(
            line.voice, {"utterances": 0, "seconds": 0.0, "words": 0, "teacher": line.teacher, "licence": line.licence}
        )
        entry["utterances"] += 1
        entry["seconds"] += line.samples / SAMPLE_RATE
        entry["words"] += len(line.text.split())
    for entry in voices.values():
        entry["seconds"] = round(entry["seconds"], 1)
    texts = {line.source: line.text_licence for line in lines}
    summary = {
        "voices": voices,
        "texts": texts,
        "versions": [dict(pairs) for pairs in sorted({tuple(line.versions.items()) for line in lines})],
    }
    write_atomically(folder / "summary.json", msgspec.json.format(msgspec.json.encode(summary), indent=1))
    return summary


def speak_held_out(folder: Path, who: TeacherVoice, teacher: SpeechSource) -> None:
    """The teacher's own reading of the 100 held-out sentences, as wavs that ``evaluate --teacher`` compares with, and beside each of them
    what it says when (`read_phonemes`)."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = held_out()
    for index, text in enumerate(texts):
        path = folder / f"{index:04}.wav"
        if not (path.is_file() and path.with_suffix(SAID).is_file()):
            made = teacher.speak(who, text, number(text, "seed") % 2**32)
            temporary = folder / f".{index:04}.partial"
            write_wav(temporary, to_int16(made.wave) / np.float32(32767))
            temporary.rename(path)
            write_atomically(path.with_suffix(SAID), msgspec.json.encode({"phonemes": made.phonemes, "durations": made.durations}))
    write_atomically(folder / SENTENCES, "".join(f"{text}\n" for text in texts).encode())


def read_phonemes(wav: Path, frames: int) -> Integer[np.ndarray, "N 4"]:
    """`phonemes.quarters` of one of ``speak_held_out``'s wavs; zeros for any other."""
    path = wav.with_suffix(SAID)
    if not path.is_file():
        return np.zeros((frames, phonemes.QUARTERS), np.int8)
    told = msgspec.json.decode(path.read_bytes())
    return phonemes.quarters(told["phonemes"], told["durations"], frames)
