"""What speaking gives: a finished utterance (pcm float32 [F] and its frames [N 16]), or pieces of pcm [F] while they are made."""

import base64
import io
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from qwen3_jax import audio
from qwen3_jax.audio import SAMPLE_RATE
from qwen3_jax.codec import DecoderState
from qwen3_jax.model import Model
from qwen3_jax.session import BATCH_BUCKETS, Piece, Request, Session
from qwen3_jax.shapes import F32, I32
from qwen3_jax.sound_files import write_sound

OFFLINE_CHUNK = 8  # frames per compiled call


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
        """Write a file: .wav (16 bits), .flac, .mp3, .ogg or .opus, as its name ends. Errors as in ``sound_files.write_sound``."""
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

    Use it as a context manager, or iterate to the end, or cancel: nothing runs between two calls of ``next``. Sentences follow each other
    without a seam: the codec goes on where the last one left it.

    Raises (from ``next``):
        FloatingPointError: what the model computed is NaN or infinite; ``finish_reason`` is ``error`` then.
    """

    def __init__(self, model: Model, sentences: list[Request], max_frames: int | None, first_chunk: int, chunk: int) -> None:
        self._model, self._waiting, self._left = model, deque(sentences), max_frames
        self._next, self._chunk = first_chunk, chunk
        self._cancelled = threading.Event()
        self._codes: list[I32[np.ndarray, "N K"]] = []
        self._cut = False  # a sentence met its limit
        self.sample_rate = model.codec_config.output_sample_rate
        self.seed = sentences[0].seed
        self.finish_reason: str | None = None
        self._silence = np.zeros(0, np.float32)  # before the next piece
        self._codec_state: DecoderState | None = None  # where the last sentence left the codec; None: as the next one says
        self._session: Session | None = self._begin()

    def __next__(self) -> F32[np.ndarray, " F"]:
        while self.finish_reason is None:
            if self._cancelled.is_set():
                self.finish_reason = "cancelled"
                break
            session = self._session = self._session or self._begin()
            try:
                piece = session.step(self._next)[0]
            except FloatingPointError:
                self.finish_reason = "error"
                raise
            self._next = self._chunk
            if self._cancelled.is_set():
                self.finish_reason = "cancelled"
                break
            if self._left is not None:
                self._left -= len(piece.codes)
            if (reason := session.finish_reasons[0]) is not None:
                self._cut |= reason == "length"
                self._codec_state, self._session = session.ended[0], None
                if not self._waiting or self._left == 0:
                    self.finish_reason = "length" if self._cut else "eos"
            if len(piece.pcm):
                self._codes.append(piece.codes)
                silence, self._silence = self._silence, self._silence[:0]
                return np.concatenate([silence, piece.pcm]) if len(silence) else piece.pcm
        raise StopIteration

    def _begin(self) -> Session:
        sentence = self._waiting.popleft()
        self._silence = np.zeros(round(sentence.pause * self.sample_rate), np.float32)
        if self._codec_state is not None:
            sentence = sentence._replace(codec_state=self._codec_state)
        if self._left is not None:
            sentence = sentence._replace(max_frames=min(sentence.max_frames, self._left))
        return Session(self._model, [sentence], carried=bool(self._waiting))

    @property
    def frames(self) -> I32[np.ndarray, "N K"]:
        """Codes of all that has been handed out."""
        return np.concatenate(self._codes) if self._codes else np.zeros((0, self._model.config.talker_config.num_code_groups), np.int32)

    def cancel(self) -> None:
        """No piece is handed out after this; the chunk being computed is thrown away."""
        self._cancelled.set()

    def __enter__(self) -> "SpeechStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


def speak_batch(model: Model, texts: list[list[Request]], max_frames: int | None = None) -> list[Speech]:
    """Speak texts side by side, the first sentences of all of them, then the second ones, and so on.

    Args:
        model: the checkpoint.
        texts: the sentences of each.
        max_frames: most of each text; None: as its sentences say.

    Raises:
        FloatingPointError: what the model computed is NaN or infinite.
    """
    size = BATCH_BUCKETS[-1]
    spoken = [_Row(sentences, max_frames) for sentences in texts]
    for start in range(0, len(spoken), size):
        rows = spoken[start : start + size]
        while going := [row for row in rows if row.waiting]:
            session = Session(model, [row.next() for row in going], carried=any(row.waiting for row in going))
            while session.running:
                for row, piece in zip(going, session.step(OFFLINE_CHUNK), strict=True):
                    row.add(piece)
            for row, reason, state in zip(going, session.finish_reasons, session.ended, strict=True):
                row.end(reason, state)
    return [row.speech(model) for row in spoken]


class _Row:
    """One text of a batch, on its way."""

    def __init__(self, sentences: list[Request], max_frames: int | None) -> None:
        self.waiting, self.seed, self._left = deque(sentences), sentences[0].seed, max_frames
        self._pieces: list[Piece] = []
        self._silence = 0.0  # seconds before the next piece
        self._cut = False
        self._state: DecoderState | None = None

    def next(self) -> Request:
        sentence = self.waiting.popleft()
        self._silence = sentence.pause
        left = sentence.max_frames if self._left is None else min(sentence.max_frames, self._left)
        return sentence._replace(max_frames=left, codec_state=self._state or sentence.codec_state)

    def add(self, piece: Piece) -> None:
        if self._silence and len(piece.pcm):
            self._pieces.append(Piece(np.zeros(round(self._silence * SAMPLE_RATE), np.float32), piece.codes[:0]))
            self._silence = 0.0
        self._pieces.append(piece)
        if self._left is not None:
            self._left -= len(piece.codes)

    def end(self, reason: str | None, state: DecoderState | None) -> None:
        self._cut |= reason != "eos"
        self._state = state
        if self._left == 0:
            self.waiting.clear()

    def speech(self, model: Model) -> Speech:
        pcm = np.concatenate([piece.pcm for piece in self._pieces]) if self._pieces else np.zeros(0, np.float32)
        nothing = np.zeros((0, model.config.talker_config.num_code_groups), np.int32)
        codes = np.concatenate([nothing, *(piece.codes for piece in self._pieces)])
        return Speech(pcm, model.codec_config.output_sample_rate, codes, "length" if self._cut else "eos", self.seed)
