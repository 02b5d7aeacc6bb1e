"""Sentences, or waves [F] at 24 kHz -> what a checkpoint makes of them, with the time it took."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import msgspec
import numpy as np

from qwen3_jax.codec.decoder import init_state
from qwen3_jax.evaluate.judges import Figure
from qwen3_jax.model.decode import decode
from qwen3_jax.model.encode import encode_codes
from qwen3_jax.model.model import Model
from qwen3_jax.shapes import F32
from qwen3_jax.voices.voice import Voice

CHUNK = 16  # frames decoded at a time in `reconstruct`: one trace for every length
TOO_LONG = 1.5  # times the teacher's length
PIECE, QUIET = 240, 30.0  # samples, and dB below the loudest piece
_QUIET_SAID = f"up to the first 10 ms at most {QUIET:.0f} dB below the loudest"


class Spoken(msgspec.Struct, frozen=True):
    """An utterance as it came: ``first`` is the seconds to its first samples, ``took`` to its last."""

    wave: Any
    finish_reason: str
    first: float
    took: float


def speak(
    tts: Any, texts: Sequence[str], voice: Voice | str | None, language: str, seed: int, tell: Callable[[int], None] = lambda _: None
) -> list[Spoken]:
    """Speak each text by itself, as a stream at its default chunk sizes; ``tell`` hears how many are done.

    Seeds are ``seed``, ``seed`` + 1, ... Errors are those of ``Qwen3TTS.stream``.
    """
    made = []
    for index, text in enumerate(texts):
        began, first, pieces = time.perf_counter(), 0.0, []
        stream = tts.stream(text, voice=voice, language=language, seed=seed + index)
        for piece in stream:
            first = first or time.perf_counter() - began
            pieces.append(piece)
        took = time.perf_counter() - began
        made.append(Spoken(np.concatenate([np.zeros(0, np.float32), *pieces]), stream.finish_reason, first or took, took))
        tell(index + 1)
    return made


def timing(spoken: Sequence[Spoken], sample_rate: int) -> list[Figure]:
    """RTF, time to first audio, and utterances that did not end by themselves."""
    seconds = sum(len(one.wave) for one in spoken) / sample_rate
    firsts = [one.first for one in spoken]
    rtf = sum(one.took for one in spoken) / max(seconds, 1e-9)
    unended = [float(one.finish_reason != "eos") for one in spoken]
    silences = [silence(one.wave) / sample_rate for one in spoken]
    return [
        Figure("no proper end", sum(unended), "finish_reason is not eos", f"of {len(spoken)} sentences", unended),
        Figure("RTF", rtf, "this machine, one stream, warm", "seconds of work for a second of speech"),
        Figure("TTFA, median", float(np.median(firsts)), "this machine, one stream, warm", "seconds to the first samples", firsts),
        Figure("TTFA, 95th percentile", float(np.percentile(firsts, 95)), "this machine, one stream, warm", "seconds"),
        Figure(
            "silence before speech, median",
            float(np.median(silences)),
            _QUIET_SAID,
            "seconds, of the audio; heard after the TTFA",
            silences,
        ),
    ]


def silence(wave: F32[np.ndarray, " F"]) -> int:
    """Samples before the first piece of 10 ms that is at most `QUIET` dB below the loudest; all of a silent wave."""
    pieces = wave[: len(wave) // PIECE * PIECE].reshape(-1, PIECE)
    power = np.square(pieces.astype(np.float64)).mean(axis=1)
    loud = np.flatnonzero((power > 0) & (power >= power.max(initial=0.0) * 10 ** (-QUIET / 10)))
    return int(loud[0]) * PIECE if len(loud) else len(wave)


def lengths(waves: Sequence[F32[np.ndarray, " _"]], teacher: Sequence[F32[np.ndarray, " _"]]) -> list[Figure]:
    """Lengths against the teacher's, in the same sentences."""
    ratios = [len(wave) / max(len(other), 1) for wave, other in zip(waves, teacher, strict=True)]
    longer = [float(ratio > TOO_LONG) for ratio in ratios]
    return [
        Figure("length ratio", float(np.mean(ratios)), "against the teacher's reading", "1 is the same length", ratios),
        Figure("too long", sum(longer), f"over {TOO_LONG} times the teacher's length", f"of {len(ratios)} sentences"),
    ]


def reconstruct(
    model: Model, waves: Sequence[F32[np.ndarray, " _"]], tell: Callable[[int], None] = lambda _: None
) -> list[F32[np.ndarray, " _"]]:
    """Each wave through the codec and back, at its own length. Errors are those of ``encode_codes``."""
    made = []
    for index, wave in enumerate(waves):
        codes = encode_codes(model, wave)
        state = init_state(model.codec_config.decoder_config, 1)
        pieces = []
        for start in range(0, len(codes), CHUNK):
            piece = codes[start : start + CHUNK]
            padded = np.pad(piece, ((0, CHUNK - len(piece)), (0, 0)))[
                :, None
            ]  # the decoder is causal: padding comes after all that is kept
            pcm, state = decode(model.graphs.codec_decoder, model.params["codec"]["decoder"], jnp.asarray(padded), state)
            pieces.append(np.asarray(pcm[0]))
        made.append(np.concatenate(pieces)[: len(wave)])
        tell(index + 1)
    return made
