"""A wave [F] float32 -> a file in the format that its name ends in. libsndfile writes all of them."""

import io
import os
from pathlib import Path
from typing import IO

import numpy as np
import soundfile

from qwen3_jax.audio.samples import check_finite, pcm16
from qwen3_jax.checkpoint.folders import home_path
from qwen3_jax.shapes import F32

MP3_LEVEL = 0.6  # of libsndfile's scale from 0 (best) to 1: 64 kbit/s at 24 kHz
BLOCK = 65_536  # samples that are encoded at a time
FORMATS = {  # ending -> container and encoding
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
}


def check_name(path: str | os.PathLike[str]) -> Path:
    """The path, if a sound can be written there.

    Raises:
        ValueError: its ending names no format that is written.
        FileNotFoundError: its folder is not there.
        IsADirectoryError: it is a folder.
    """
    file = home_path(path)
    if file.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file in it, such as {file / 'speech.wav'}")
    if file.suffix.lower() not in FORMATS:
        ending = f"files that end in {file.suffix} are not written" if file.suffix else "the name has no ending that says the format"
        raise ValueError(f"{path}: {ending}; use one of {', '.join(FORMATS)}")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {file.parent}; make it first")
    return file


def open_sound(where: IO[bytes] | io.RawIOBase, ending: str, sample_rate: int) -> soundfile.SoundFile:
    """A mono file to write to, in the format of an ending.

    MP3 has a constant bit rate: without it, readers of a stream, which has no table of contents, guess a length that is a fraction of
    the true one as soon as there are pauses.
    """
    container, encoding = FORMATS[ending]
    constant = {"bitrate_mode": "CONSTANT", "compression_level": MP3_LEVEL} if container == "MP3" else {}
    return soundfile.SoundFile(where, "w", sample_rate, 1, encoding, format=container, **constant)


def write_sound(path: str | os.PathLike[str], pcm: F32[np.ndarray, " F"], sample_rate: int) -> None:
    """Write a mono file, 16 bits a sample where the format has bits. Errors as in ``check_name``.

    Args:
        path: its ending chooses the format, see ``FORMATS``.
        pcm: [F], in [-1, 1]; what is beyond is clipped.
        sample_rate: Hz.

    Raises:
        FloatingPointError: a sample is NaN or infinite.
    """
    file = check_name(path)
    ending = file.suffix.lower()
    samples = pcm16(pcm) if FORMATS[ending][1] == "PCM_16" else np.clip(check_finite(pcm), -1, 1)
    encoded = io.BytesIO()  # the file is opened when all is encoded, so that an interrupt or a fault before leaves it as it was
    with open_sound(encoded, ending, sample_rate) as sound:
        for start in range(0, len(samples), BLOCK):  # libvorbis crashes at a block of minutes
            sound.write(samples[start : start + BLOCK])
    file.write_bytes(encoded.getbuffer())
