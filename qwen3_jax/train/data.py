"""A corpus and its latents -> crops of speech with their codes: codes [B M K], wave [B F]. A batch depends on the seed and step only.

The utterances of a voice are put one after another, each padded with silence to whole frames, so that every window of that line is a
crop; teachers begin and end in silence.
"""

from pathlib import Path

import msgspec
import numpy as np

from qwen3_jax.shapes import NpF32, NpInt
from qwen3_jax.train.corpus import Line, read_corpus, wave
from qwen3_jax.train.latents import FRAME, UNIT, Latents, Part, log_mel

SAMPLE_RATE = 24000
_WHOLE = 9600  # samples: whole frames and whole units of the teachers' durations


class Stream(msgspec.Struct):
    """A voice's speech, int16 [N*1920], and what the latents say of it: codes [N K], latent [N L], content [N M]."""

    voice: str
    wave: np.ndarray
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


def joined(corpus: Path, lines: list[Line]) -> np.ndarray:
    """The speech of these lines, each padded to whole frames: int16 [N*1920]."""
    pieces = []
    for line in lines:
        samples = wave(corpus, line)
        pieces += [samples, np.zeros(-len(samples) % _WHOLE, samples.dtype)]
    return np.concatenate(pieces)


def labels(lines: list[Line], symbols: dict[str, int]) -> np.ndarray:
    """The phoneme of every 600 samples of ``joined``."""
    pieces = []
    for line in lines:
        pieces.append(np.repeat([symbols[symbol] for symbol in line.phonemes], line.durations))
        pieces.append(np.full(-line.samples % _WHOLE // UNIT, symbols["_"]))
    return np.concatenate(pieces)


def parts_to_fit(corpus: Path, hours: float) -> list[Part]:
    """What `latents.fit` takes."""
    found = chosen_lines(corpus, hours)
    everything = sorted({symbol for lines in found.values() for line in lines for symbol in line.phonemes} | {"_"})
    symbols = {symbol: number for number, symbol in enumerate(everything)}
    return [Part(voice, log_mel(joined(corpus, lines)), labels(lines, symbols)) for voice, lines in found.items()]


def load_streams(corpus: Path, hours: float, latents: Latents) -> list[Stream]:
    """The corpus in memory, with its codes: about 180 MB and ten seconds of work for an hour."""
    streams = []
    for voice, lines in chosen_lines(corpus, hours).items():
        speech = joined(corpus, lines)
        latent = latents.latent(log_mel(speech))
        content = latents.content_vector(latent, voice)
        codes = latents.codes(latent, content).astype(np.int16)
        streams.append(Stream(voice, speech, codes, latent.astype(np.float16), content.astype(np.float16)))
    return streams


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
    speech = np.stack([stream.wave[(at + context) * FRAME : (at + frames) * FRAME] for stream, at in found])
    return Batch(codes, speech.astype(np.float32) / 32768)
