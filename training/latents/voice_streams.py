"""A corpus and its latents -> crops of speech with their codes: codes [B M K], wave [B F]. A batch depends on the seed and step only.

The utterances of a voice are put one after another, each padded with silence to whole frames, so that every window of that line is a
crop; teachers begin and end in silence.
"""

import hashlib
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import track

from qwen3_jax.shapes import F32, I32, Integer
from training.corpus.shards import ManifestLine, read_corpus, wave
from training.corpus.teachers import UNIT
from training.corpus.workers import end_with_parent
from training.latents import phonemes, pitch_synchronous
from training.latents.levels import levels
from training.latents.quantiser import FRAME, FitPart, Latents, fit_pitch

SAMPLE_RATE = 24000
_HEARD, _READ = ("wave", "locked", "levels"), ("codes", "main")  # of a VoiceStream: kept apart
_WHOLE = 9600  # samples: whole frames and whole units of the teachers' durations


class VoiceStream(msgspec.Struct):
    """A voice's speech, and its locked and aligned form, int16 [N*1920]; what the latents say of the locked form: levels [N 224], codes
    [N K], main components [N C]."""

    voice: str
    wave: np.ndarray
    locked: np.ndarray
    levels: np.ndarray
    codes: np.ndarray
    main: np.ndarray


def chosen_lines(corpus: Path, hours: float, again: int = 0) -> dict[str, list[ManifestLine]]:
    """The first ``hours`` of each voice, in the corpus's order.

    Args:
        corpus: of training.corpus.
        hours: of each voice, at most.
        again: the same a second time (1) or third (2), begun so many units later (`begun_later`), so that its frames have other borders;
            only voices of so few hours that they fit into ``hours`` as often.

    Raises:
        FileNotFoundError: there is no corpus.
    """
    found: dict[str, list[ManifestLine]] = {}
    seconds: dict[str, float] = {}
    for line in read_corpus(corpus):
        if seconds.get(line.voice, 0.0) < hours * 3600:
            found.setdefault(line.voice, []).append(begun_later(line, again))
            seconds[line.voice] = seconds.get(line.voice, 0.0) + line.samples / SAMPLE_RATE
    return {voice: lines for voice, lines in found.items() if not again or seconds[voice] * (again + 1) <= hours * 3600}


def begun_later(line: ManifestLine, units: int) -> ManifestLine:
    """Without the first units (of 600 samples) of the pause before the speech; as it is where that is shorter. A frame is 3.2 units, so
    one and two of them less put the borders of frames elsewhere."""
    if line.phonemes[:1] not in ("_", " ") or line.durations[0] <= units:
        return line
    cut = units * UNIT
    durations = [line.durations[0] - units, *line.durations[1:]]
    return msgspec.structs.replace(line, start=line.start + cut, samples=line.samples - cut, durations=durations)


def padded(corpus: Path, line: ManifestLine) -> F32[np.ndarray, "..."]:
    """An utterance's speech, padded to whole frames: float32 [N*1920]."""
    samples = wave(corpus, line)
    return np.concatenate([samples, np.zeros(-len(samples) % _WHOLE, samples.dtype)]).astype(np.float32) / 32768


def said(line: ManifestLine) -> Integer[np.ndarray, "N 4"]:
    """The phonemes of each quarter of the frames of ``padded``."""
    return phonemes.quarters(line.phonemes, line.durations, (line.samples + -line.samples % _WHOLE) // FRAME)


def phonemes_by_voice(corpus: Path, hours: float) -> dict[str, I32[np.ndarray, "..."]]:
    """Of each voice the phonemes of the quarters of its frames [N 4], in the order of `load_streams`."""
    return {voice: np.concatenate([said(line) for line in lines]) for voice, lines in chosen_lines(corpus, hours).items()}


def parts_to_fit(corpus: Path, hours: float, entries: int) -> tuple[list[FitPart], pitch_synchronous.PitchBook]:
    """What `latents.fit` takes."""
    found = chosen_lines(corpus, hours)
    free = [pitch_synchronous.synchronise(padded(corpus, line), None) for lines in found.values() for line in lines]
    heard = np.concatenate([one.voiced for one in free])
    cycles, bends = np.concatenate([one.cycles for one in free]), np.concatenate([one.bends for one in free])
    pitch = fit_pitch(cycles[heard], bends[heard], entries)
    parts = []
    for lines in found.values():
        locked = [pitch_synchronous.synchronise(padded(corpus, line), pitch) for line in lines]
        told = np.concatenate([levels(one.wave, one.entry, pitch) for one in locked])
        entry = np.concatenate([one.entry for one in locked])
        parts.append(FitPart(told, entry, np.concatenate([said(line) for line in lines])))
    return parts, pitch


def load_streams(
    corpus: Path, run: Path, hours: float, latents: Latents, speech: float = float("inf"), again: int = 0
) -> list[VoiceStream]:
    """The corpus in memory, as the latents read it: about 350 MB an hour, of which 15 without the speech.

    Each shard is read once, and what was found is kept in ``run``/read, under a name that tells it from a shard of another corpus.

    Args:
        corpus: of training.corpus.
        run: the run's folder.
        hours: of each voice, at most.
        latents: the run's.
        speech: hours of each voice whose waves and levels are loaded too, at least; those of the rest are left out.
        again: as for `chosen_lines`.
    """
    jobs: dict[str, list[tuple[Path, list[ManifestLine], bool]]] = {}
    for voice, lines in chosen_lines(corpus, hours, again).items():
        shards: dict[str, list[ManifestLine]] = {}
        for line in lines:
            shards.setdefault(line.shard, []).append(line)
        seconds = 0.0
        for shard, some in shards.items():
            kept = run / "read" / f"{voice}-{Path(shard).stem}-{_fingerprint(some)}"
            jobs.setdefault(voice, []).append((kept, some, seconds < speech * 3600))
            seconds += sum(line.samples for line in some) / SAMPLE_RATE
    missing = [job for found in jobs.values() for job in found if not _is_read(job[0], job[2])]
    if len(missing) > 1:
        _read_together(corpus, missing, latents)
    streams = []
    for voice, found in jobs.items():
        pieces = [_read_shard(corpus, *job, latents) for job in found]
        joined = {name: [piece[name] for piece in pieces if name in piece] for name in (*_HEARD, *_READ)}
        streams.append(VoiceStream(voice, **{name: np.concatenate(arrays) for name, arrays in joined.items()}))
    return streams


def _read_together(corpus: Path, jobs: list[tuple[Path, list[ManifestLine], bool]], latents: Latents) -> None:
    """Write the files of `_read_shard`, on all cores, one process each."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context, _start, (corpus, latents)) as pool:
        for _ in track(pool.map(_work, jobs), "reading the corpus", len(jobs), console=Console(stderr=True)):
            pass


_READER: list[tuple[Path, Latents]] = []  # of a worker process


def _start(corpus: Path, latents: Latents) -> None:
    end_with_parent()
    _READER[:] = [(corpus, latents)]


def _work(job: tuple[Path, list[ManifestLine], bool]) -> None:
    corpus, latents = _READER[0]
    _read_shard(corpus, *job, latents)


def _fingerprint(lines: list[ManifestLine]) -> str:
    """Of what is said, by whom (and how fast), with which packages."""
    return hashlib.blake2b(msgspec.json.encode(lines), digest_size=6).hexdigest()


def _files(kept: Path) -> tuple[Path, Path]:
    return kept.with_suffix(".read.npz"), kept.with_suffix(".heard.npz")


def _is_read(kept: Path, speech: bool) -> bool:
    read, heard = _files(kept)
    return read.is_file() and (heard.is_file() or not speech)


def _read_shard(corpus: Path, kept: Path, lines: list[ManifestLine], speech: bool, latents: Latents) -> dict[str, np.ndarray]:
    """Arrays of a VoiceStream, from the files at ``kept``, which are written if they are not there: codes and latents, and waves."""
    read, heard = _files(kept)
    if not _is_read(kept, speech):
        found: dict[str, list[np.ndarray]] = {name: [] for name in (*_HEARD, *_READ)}
        for line in lines:
            own = padded(corpus, line)
            one = latents.read(own, said(line))
            if speech:
                found["wave"].append(_int16(own))
                found["locked"].append(_int16(pitch_synchronous.align_harmonics(one.wave, one.codes[:, 1], latents.pitch)))
                found["levels"].append(one.levels.astype(np.float16))
            found["codes"].append(one.codes.astype(np.int16))
            found["main"].append(one.main.astype(np.float16))
        joined = {name: np.concatenate(pieces) for name, pieces in found.items() if pieces}
        if speech:
            keep(heard, lambda file: np.savez(file, wave=joined["wave"], locked=joined["locked"], levels=joined["levels"]))
        keep(read, lambda file: np.savez(file, codes=joined["codes"], main=joined["main"]))
    arrays: dict[str, np.ndarray] = {}
    for path in (read, heard) if speech else (read,):
        with np.load(path) as file:
            arrays |= dict(file)
    return arrays


def _int16(wave: F32[np.ndarray, "..."]) -> np.ndarray:
    return np.rint(np.clip(wave, -1, 1) * 32767).astype(np.int16)


def keep(path: Path, save: Callable[[Any], None]) -> None:
    """Let ``save`` write a file, which is whole under its name or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        save(file)
    os.replace(file.name, path)


class CropBatch(msgspec.Struct):
    """Rows of crops: codes int32 [B M K]; wave float32 [B C*1920], the last C of the M frames."""

    codes: I32[np.ndarray, "..."]
    wave: F32[np.ndarray, "..."]


def places(streams: list[VoiceStream], rows: int, frames: int, seed: int, step: int) -> list[tuple[VoiceStream, int]]:
    """Where a step's crops begin. A voice is drawn as the square root of its length, so that small ones are heard too."""
    noise = np.random.default_rng([seed, step])
    free = np.array([len(stream.codes) - frames for stream in streams])
    if free.max(initial=0) <= 0:
        raise ValueError(f"no voice of the corpus has {frames} frames: make more speech")
    weight = np.sqrt(np.maximum(free, 0))
    chosen = noise.choice(len(streams), rows, p=weight / weight.sum())
    return [(streams[number], int(noise.integers(free[number] + 1))) for number in chosen]


def crops(streams: list[VoiceStream], rows: int, context: int, crop: int, seed: int, step: int) -> CropBatch:
    """A batch for the decoder: ``context`` frames whose codes are given, then ``crop`` whose speech is given too."""
    frames = context + crop
    found = places(streams, rows, frames, seed, step)
    codes = np.stack([stream.codes[at : at + frames] for stream, at in found]).astype(np.int32)
    speech = np.stack([stream.locked[(at + context) * FRAME : (at + frames) * FRAME] for stream, at in found])
    return CropBatch(codes, speech.astype(np.float32) / 32768)
