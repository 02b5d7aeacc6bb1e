"""A corpus and its latents -> crops of speech with their codes: codes [B M K], wave [B F]. A batch depends on the seed and step only.

The utterances of a voice are put one after another, each padded with silence to whole frames, so that every window of that line is a
crop; teachers begin and end in silence.
"""

import os
import tempfile
from pathlib import Path

import msgspec
import numpy as np

from qwen3_jax.shapes import NpF32, NpInt
from qwen3_jax.train import locking
from qwen3_jax.train.corpus import Line, read_corpus, wave
from qwen3_jax.train.latents import FRAME, UNIT, Latents, Part, log_mel

SAMPLE_RATE = 24000
_WHOLE = 9600  # samples: whole frames and whole units of the teachers' durations


class Stream(msgspec.Struct):
    """A voice's speech and its locked form, int16 [N*1920], and what the latents say: codes [N K] of the locked form, latent [N H] of
    the speech itself, content [N D]."""

    voice: str
    wave: np.ndarray
    locked: np.ndarray
    codes: np.ndarray
    latent: np.ndarray
    content: np.ndarray


def chosen_lines(corpus: Path, hours: float) -> dict[str, list[Line]]:
    """The first ``hours`` of each voice, in the corpus's order.

    Raises:
        FileNotFoundError: there is no corpus.
    """
    found: dict[str, list[Line]] = {}
    seconds: dict[str, float] = {}
    for line in read_corpus(corpus):
        if seconds.get(line.voice, 0.0) < hours * 3600:
            found.setdefault(line.voice, []).append(line)
            seconds[line.voice] = seconds.get(line.voice, 0.0) + line.samples / SAMPLE_RATE
    return found


def padded(corpus: Path, line: Line) -> NpF32:
    """An utterance's speech, padded to whole frames: float32 [N*1920]."""
    samples = wave(corpus, line)
    return np.concatenate([samples, np.zeros(-len(samples) % _WHOLE, samples.dtype)]).astype(np.float32) / 32768


def labels(line: Line, symbols: dict[str, int]) -> np.ndarray:
    """The phoneme of every 600 samples of ``padded``."""
    said = np.repeat([symbols[symbol] for symbol in line.phonemes], line.durations)
    return np.concatenate([said, np.full(-line.samples % _WHOLE // UNIT, symbols["_"])])


def parts_to_fit(corpus: Path, hours: float) -> list[Part]:
    """What `latents.fit` takes."""
    found = chosen_lines(corpus, hours)
    everything = sorted({symbol for lines in found.values() for line in lines for symbol in line.phonemes} | {"_"})
    symbols = {symbol: number for number, symbol in enumerate(everything)}
    parts = []
    for voice, lines in found.items():
        locked = [locking.lock(padded(corpus, line), None) for line in lines]
        heard = np.concatenate([one.voiced for one in locked])
        cycles, bends = np.concatenate([one.cycles for one in locked]), np.concatenate([one.bends for one in locked])
        mel = log_mel(np.concatenate([one.wave for one in locked]))
        parts.append(Part(voice, mel, np.concatenate([labels(line, symbols) for line in lines]), cycles[heard], bends[heard]))
    return parts


def load_streams(corpus: Path, run: Path, hours: float, latents: Latents) -> list[Stream]:
    """The corpus in memory, as the latents read it: about 350 MB an hour. Each shard is read once, and kept in ``run``/read."""
    streams = []
    for voice, lines in chosen_lines(corpus, hours).items():
        shards: dict[str, list[Line]] = {}
        for line in lines:
            shards.setdefault(line.shard, []).append(line)
        pieces = [_read_shard(corpus, run / "read" / f"{voice}-{Path(shard).stem}-{len(some)}.npz", some, latents) for shard, some in shards.items()]
        streams.append(Stream(voice, **{name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}))
    return streams


def _read_shard(corpus: Path, kept: Path, lines: list[Line], latents: Latents) -> dict[str, np.ndarray]:
    if not kept.is_file():
        found = []
        for line in lines:
            own = padded(corpus, line)
            read = latents.read(own, line.voice)
            loud = np.rint(np.clip(np.stack([own, read.wave]), -1, 1) * 32767).astype(np.int16)
            found.append((*loud, read.codes.astype(np.int16), read.latent.astype(np.float16), read.content.astype(np.float16)))
        arrays = dict(zip(Stream.__struct_fields__[1:], map(np.concatenate, zip(*found, strict=True)), strict=True))
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as file:
            np.savez(file, **arrays)
        os.replace(file.name, kept)
    with np.load(kept) as file:
        return dict(file)


class Batch(msgspec.Struct):
    """Rows of crops: codes int32 [B M K]; wave float32 [B C*1920], the last C of the M frames."""

    codes: NpInt
    wave: NpF32


def places(streams: list[Stream], rows: int, frames: int, seed: int, step: int) -> list[tuple[Stream, int]]:
    """Where a step's crops begin. A voice is drawn as the square root of its length, so that small ones are heard too."""
    noise = np.random.default_rng([seed, step])
    free = np.array([len(stream.codes) - frames for stream in streams])
    if free.max(initial=0) <= 0:
        raise ValueError(f"no voice of the corpus has {frames} frames: make more speech")
    weight = np.sqrt(np.maximum(free, 0))
    chosen = noise.choice(len(streams), rows, p=weight / weight.sum())
    return [(streams[number], int(noise.integers(free[number] + 1))) for number in chosen]


def crops(streams: list[Stream], rows: int, context: int, crop: int, seed: int, step: int) -> Batch:
    """A batch for the decoder: ``context`` frames whose codes are given, then ``crop`` whose speech is given too."""
    frames = context + crop
    found = places(streams, rows, frames, seed, step)
    codes = np.stack([stream.codes[at : at + frames] for stream, at in found]).astype(np.int32)
    speech = np.stack([stream.locked[(at + context) * FRAME : (at + frames) * FRAME] for stream, at in found])
    return Batch(codes, speech.astype(np.float32) / 32768)
