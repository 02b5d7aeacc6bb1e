"""A stand-in for Qwen3TTS whose every step a test can hold: it sees the server's side of the model's API, and no array of a model."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np

from qwen3_jax import Sampling, Voice
from qwen3_jax.model.config import GenerationConfig
from tests.fake_engine import FRAME, LIMIT

WARM_UP = "Ready."


def tone(index: int) -> np.ndarray:
    """The audio of a piece: one value, so that a test can tell which piece it was."""
    return np.full(FRAME, (index + 1) / 100, np.float32)


class Gate(threading.Semaphore):
    """For ``FakeTTS.gate``; ``asked`` is how often a piece has come to it."""

    asked = 0

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        self.asked += 1
        return super().acquire(blocking, timeout)


@dataclass
class FakeTTS:
    """Speaks ``pieces`` frames a text. With ``gate`` set, waits for one release per piece; "fail" in a text raises, "refuse" is refused,
    with "nan" the second piece is not finite."""

    pieces: int = 3
    gate: threading.Semaphore | None = None
    model_type: str = "base"
    speakers: tuple[str, ...] = ()
    streams: list["FakeStream"] = field(default_factory=list)
    cloned: list[tuple[str, str | None]] = field(default_factory=list)
    warm: list[str] = field(default_factory=list)
    prepared: list[str] = field(default_factory=list)
    sample_rate: int = 24000
    languages: tuple[str, ...] = ("english", "german")
    fingerprint: str = "f"
    device: str | None = None
    frail: bool = True  # "memory" in a text is out of memory, but for the CPU

    @property
    def model(self) -> Any:
        return SimpleNamespace(generation=GenerationConfig(max_new_tokens=100))

    def create_voice(
        self, audio_in: Any, transcript: str | None = None, *, name: str | None = None, x_vector_only_mode: bool | None = None
    ) -> Voice:
        transcript = None if x_vector_only_mode else transcript
        self.cloned.append((name or "voice", transcript))
        codes = None if transcript is None else np.zeros((1, 16), np.int32)
        return Voice(np.zeros(4, np.float32), codes, transcript, name or "voice")

    def prepare(self, voice: Voice) -> None:
        self.prepared.append(voice.name)

    def stream(
        self,
        text: str,
        *,
        voice: Any = None,
        language: str = "Auto",
        instruct: str | None = None,
        seed: int | None = None,
        sampling: Sampling | None = None,
        max_frames: int | None = None,
        split: bool = True,
        normalize: bool | None = None,
        **draw: Any,
    ) -> "FakeStream":
        sampling = msgspec.structs.replace(sampling or Sampling.defaults(self.model.generation), **draw)
        if "memory" in text and not (self.frail and self.device == "cpu"):
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        if "refuse" in text:
            raise ValueError("text 'refuse': is refused; say something else")
        request = SimpleNamespace(
            text=text, voice=voice, language=language, instruct=instruct, seed=seed, sampling=sampling, max_frames=max_frames
        )
        if text == WARM_UP:
            self.warm.append(voice.name if isinstance(voice, Voice) else voice)
            return FakeStream(FakeTTS(pieces=1), request)
        stream = FakeStream(self, request)
        self.streams.append(stream)
        return stream


class FakeStream:
    """As SpeechStream. ``closed`` is set when the engine's thread lets go of it."""

    sample_rate = 24000

    def __init__(self, tts: FakeTTS, request: SimpleNamespace) -> None:
        self.request, self.seed = request, request.seed
        self.finish_reason: str | None = None
        self.frames = np.zeros((tts.pieces, 16), np.int32)
        self.cancelled, self.closed = threading.Event(), threading.Event()
        self._tts = tts

    def __iter__(self) -> Iterator[np.ndarray]:
        for index in range(self._tts.pieces):
            if self._tts.gate is not None and not self._tts.gate.acquire(timeout=LIMIT):
                raise TimeoutError("the test never opened the gate")
            if "fail" in self.request.text and index == 1:
                raise RuntimeError("the fake failed")
            if "kill" in self.request.text:
                raise SystemExit("the thread is killed")
            if self.cancelled.is_set():
                self.finish_reason = "cancelled"
                return
            yield tone(index) * (np.nan if "nan" in self.request.text and index == 1 else 1)
        self.finish_reason = "eos"

    def cancel(self) -> None:
        self.cancelled.set()

    def __enter__(self) -> "FakeStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.cancelled.set()
        self.closed.set()
