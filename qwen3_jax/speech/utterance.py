"""What speaking gives: a finished utterance (pcm float32 [F] and its frames [N 16]), or pieces of pcm [F] while they are made."""

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from qwen3_jax.audio import samples as audio
from qwen3_jax.audio.files import write_sound
from qwen3_jax.engine import Handle, Packet, Request
from qwen3_jax.engine.inline import BATCHES, FRAMES, Inline
from qwen3_jax.model.model import Model
from qwen3_jax.shapes import F32, I32


@dataclass(frozen=True, eq=False, repr=False)
class Speech:
    """A finished utterance.

    Attributes:
        pcm: float32 [samples], mono, in [-1, 1].
        sample_rate: Hz.
        frames: int32 [N 16], the codes; 1920 samples each, and none for the pauses that a text asks for.
        finish_reason: ``eos`` (it ended by itself), ``length`` (it met ``max_frames``) or ``cancelled``.
        seed: what it was drawn with; the same request with it gives the same audio.
    """

    pcm: F32[np.ndarray, " F"]
    sample_rate: int
    frames: I32[np.ndarray, "N K"]
    finish_reason: str
    seed: int

    @property
    def seconds(self) -> float:
        """Length of the audio."""
        return len(self.pcm) / self.sample_rate

    def save(self, path: str | Path) -> None:
        """Write a file: .wav (16 bits), .flac, .mp3, .ogg or .opus, as its name ends. Errors as in ``audio.files.write_sound``."""
        write_sound(path, self.pcm, self.sample_rate)

    def __repr__(self) -> str:
        return f"Speech({self.seconds:.2f} s, {self.sample_rate} Hz, ended by {self.finish_reason}, seed {self.seed})"

    def _repr_html_(self) -> str:
        """A player, in notebooks."""
        wav = io.BytesIO()
        soundfile.write(wav, audio.pcm16(self.pcm), self.sample_rate, "PCM_16", format="WAV")
        return f'<audio controls src="data:audio/wav;base64,{base64.b64encode(wav.getvalue()).decode()}"></audio>'


class SpeechStream(Iterator[F32[np.ndarray, " F"]]):
    """Pieces of pcm (float32, mono, 24 kHz) as they are made. Iterate in one thread; ``cancel`` from any.

    Use it as a context manager, or iterate to the end, or cancel. Parts follow each other without a seam: the codec goes on where the
    last one left it.

    Args:
        handle: the request on its way.
        books: codes of a frame.
        sample_rate: Hz.
        following: the handle's next packet, waited for or made; None at its end.

    Raises (from ``next``):
        EngineError: what went wrong, after all audio that was made before. It is a FloatingPointError, too, where what the model computed
            is NaN or infinite. ``finish_reason`` is ``error`` then.
    """

    def __init__(self, handle: Handle, books: int, sample_rate: int, following: Callable[[Handle], Packet | None]) -> None:
        self.handle, self.sample_rate = handle, sample_rate
        self.seed = handle.request.seed
        self._books, self._following = books, following
        self._codes: list[I32[np.ndarray, "N K"]] = []
        self._told = False  # its end, or its error, which is raised once

    def __next__(self) -> F32[np.ndarray, " F"]:
        packet = None
        try:
            if not self._told:
                packet = self._following(self.handle)
        finally:
            self._told = packet is None and self.handle.done
        if packet is None:
            raise StopIteration
        self._codes.append(packet.codes)
        return packet.pcm

    @property
    def finish_reason(self) -> str | None:
        """``eos``, ``length``, ``cancelled`` or ``error``; None while there is more."""
        return self.handle.finish_reason

    @property
    def frames(self) -> I32[np.ndarray, "N K"]:
        """Codes of all that has been handed out."""
        return np.concatenate(self._codes) if self._codes else np.zeros((0, self._books), np.int32)

    def cancel(self) -> None:
        """No piece is handed out after this; what is being computed is thrown away."""
        self.handle.cancel()

    def __enter__(self) -> "SpeechStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


def stream(model: Model, request: Request, first: int, each: int) -> SpeechStream:
    """Speak in the caller's thread: nothing runs between two calls of ``next``. ``first``, ``each``: frames of the pieces.

    Raises:
        ValueError: a request that does not fit, or that would make NaN.
    """
    inline = Inline(model, slots=1, first=first, each=each)
    return SpeechStream(inline.submit(request), *form(model), inline.next)


def batch_on(models: Sequence[Model], requests: list[Request]) -> list[Speech]:
    """Speak requests side by side: on one device in the caller's thread, on several in a thread each. Errors as in `batch`."""
    count = min(len(models), len(requests))
    if count <= 1:
        return batch(models[0], requests)
    shares = [range(at, len(requests), count) for at in range(count)]
    spoken: dict[int, Speech] = {}
    with ThreadPoolExecutor(count, "batch") as threads:
        made = threads.map(lambda model, share: batch(model, [requests[number] for number in share], share), models, shares)
        for share, speeches in zip(shares, made, strict=True):
            spoken |= zip(share, speeches, strict=True)
    return [spoken[number] for number in range(len(requests))]


def batch(model: Model, requests: list[Request], numbers: Sequence[int] | None = None) -> list[Speech]:
    """Speak requests side by side, in the caller's thread. ``numbers``: what an error calls them; default: from 0 on.

    Raises:
        ValueError: a request that does not fit, or that would make NaN.
        FloatingPointError: what the model computed is NaN or infinite.
    """
    inline = Inline(model, slots=min(len(requests), BATCHES[-1]), first=FRAMES, each=FRAMES, ahead=True)
    handles = [inline.submit(request) for request in requests]
    spoken = []
    for number, handle in zip(numbers or range(len(handles)), handles, strict=True):
        try:
            packets = list(iter(partial(inline.next, handle), None))
        except FloatingPointError as error:
            raise FloatingPointError(f"request {number}: {error}") from error
        books, sample_rate = form(model)
        pcm = np.concatenate([np.zeros(0, np.float32), *(packet.pcm for packet in packets)])
        codes = np.concatenate([np.zeros((0, books), np.int32), *(packet.codes for packet in packets)])
        spoken.append(Speech(pcm, sample_rate, codes, str(handle.finish_reason), handle.request.seed))
    return spoken


def form(model: Model) -> tuple[int, int]:
    """(codes of a frame, samples of a second)."""
    return model.config.talker_config.num_code_groups, model.codec_config.output_sample_rate
