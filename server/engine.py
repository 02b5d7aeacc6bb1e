"""Threads between model and event loop: load -> voices -> utterances, ``slots`` at a time in order of arrival; pcm goes to the loop.

The model speaks for all of them in one batch (qwen3_jax.service); a thread here only carries one utterance's audio over. The executor's
queue is the line in which utterances wait, its future is the owner that learns of a thread's failure: nothing an utterance raises is
lost. Between thread and loop there are at most ``max_chunks`` pieces of audio; the thread waits for room, and so its slot pauses.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import msgspec
import numpy as np

from qwen3_jax import Qwen3TTS, Sampling, Voice, voice_folder
from qwen3_jax.config import GenerationConfig
from qwen3_jax.service import SpeechService
from qwen3_jax.service import Utterance as Spoken
from server.settings import Settings

WARM_UP, WARM_UP_FRAMES = "Ready.", 6  # a first piece and a later one, in the default voice
log = logging.getLogger(__name__)


class Stream(Protocol):
    """The part of SpeechStream that is used here."""

    @property
    def finish_reason(self) -> str | None: ...
    def __iter__(self) -> Iterator[np.ndarray]: ...
    def __enter__(self) -> "Stream": ...
    def __exit__(self, *_: object) -> None: ...
    def cancel(self) -> None: ...


class Model(Protocol):
    """The part of a loaded model that is used here."""

    @property
    def generation(self) -> GenerationConfig: ...


class Tts(Protocol):
    """The part of Qwen3TTS that is used here; a fake of a dozen lines can stand in for it."""

    @property
    def model(self) -> Model: ...
    @property
    def model_type(self) -> str: ...
    @property
    def speakers(self) -> tuple[str, ...]: ...
    def warmup(self) -> None: ...
    def create_voice(self, audio_in: Any, transcript: str | None = None, *, name: str | None = None) -> Voice: ...
    def stream(
        self,
        text: str,
        *,
        voice: Voice | str | None = None,
        language: str = "Auto",
        seed: int | None = None,
        sampling: Sampling | None = None,
        max_frames: int | None = None,
    ) -> Stream: ...


class Served:
    """A checkpoint all of whose streams share one batch. As Tts."""

    def __init__(self, service: SpeechService) -> None:
        self._service = service
        tts = service.tts
        self.model, self.model_type, self.speakers, self.create_voice = tts.model, tts.model_type, tts.speakers, tts.create_voice

    def warmup(self) -> None:
        """Done when the service began."""

    def stream(
        self,
        text: str,
        *,
        voice: Voice | str | None = None,
        language: str = "Auto",
        seed: int | None = None,
        sampling: Sampling | None = None,
        max_frames: int | None = None,
    ) -> Spoken:
        return self._service.speak(text, voice=voice, language=language, seed=seed, sampling=sampling, max_frames=max_frames)

    def close(self) -> None:
        self._service.close()


class Refused(ValueError):
    """The model refused the input; the message says what is allowed."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to say, and how. ``draw`` are fields of Sampling that differ from the checkpoint's."""

    text: str
    voice: str
    language: str
    seed: int | None = None
    draw: dict[str, Any] = {}


class Utterance:
    """One request on its way: made by ``Engine.submit``, read with ``begin`` and ``next``, given up with ``cancel``."""

    def __init__(self, request: Request, room: int) -> None:
        self.request = request
        self.finish_reason: str | None = None
        self._loop = asyncio.get_running_loop()
        self._begun = asyncio.Event()
        self._chunks: asyncio.Queue[np.ndarray | None] = asyncio.Queue()  # bounded by _room
        self._room = threading.Semaphore(room)
        self._cancelled = threading.Event()
        self._stream: Stream | None = None
        self._done: asyncio.Future[None] | None = None

    def cancel(self) -> None:
        """Give up, from any thread, at any time; the thread stops at its next piece."""
        self._cancelled.set()
        if self._stream is not None:
            self._stream.cancel()
        self._room.release()

    async def begin(self) -> None:
        """Wait for the turn."""
        await self._begun.wait()

    async def next(self) -> np.ndarray | None:
        """The next piece, float32 [F]; None at the end, whatever ended it: see ``failure``."""
        chunk = await self._chunks.get()
        if chunk is not None:
            self._room.release()
        return chunk

    @property
    def failure(self) -> BaseException | None:
        """After the end: what the thread died of. ``Refused`` if the model did not take the input; None if all went well."""
        if self._done is None or self._done.cancelled():
            return asyncio.CancelledError("the engine is closed")
        return self._done.exception()

    def attach(self, done: "asyncio.Future[None]") -> None:
        """Learn of the thread's end, good or bad: its callback comes after every piece that the thread has handed over."""
        self._done = done
        done.add_done_callback(self._finished)

    def _finished(self, done: "asyncio.Future[None]") -> None:
        self._begun.set()
        if not done.cancelled():
            done.exception()  # looked at, even if nobody reads on: asyncio warns of exceptions that nobody has seen
        self._chunks.put_nowait(None)

    def run(self, engine: "Engine") -> None:
        """The thread's part."""
        if self._cancelled.is_set():
            return
        self._loop.call_soon_threadsafe(self._begun.set)
        tts, request = engine.tts, self.request
        voice = engine.voice(request.voice)
        sampling = msgspec.structs.replace(Sampling.defaults(tts.model.generation), **request.draw)
        try:
            stream = tts.stream(request.text, voice=voice, language=request.language, seed=request.seed, sampling=sampling)
        except ValueError as error:
            raise Refused(str(error)) from error
        with stream:
            self._stream = stream
            for chunk in stream:
                self._room.acquire()
                if self._cancelled.is_set():
                    stream.cancel()
                    break
                self._loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)
            self.finish_reason = stream.finish_reason


class Engine:
    """Loads in the background; ``state`` is ``loading``, ``ready`` or ``failed``. All methods are for the event loop's thread."""

    def __init__(self, settings: Settings, load: Callable[[], Tts]) -> None:
        self._settings = settings
        self._load = load
        self._threads = ThreadPoolExecutor(settings.slots, "tts")
        self._cloning = threading.Lock()  # two utterances in a new voice clone it once
        self._tts: Tts | None = None
        self._entries = voice_folder.find(settings.voices_dir)
        self._voices: dict[str, Voice] = {}
        self._running: set[Utterance] = set()
        self.loaded: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Begin to load."""
        self.loaded = asyncio.get_running_loop().run_in_executor(self._threads, self._prepare)

    def close(self) -> None:
        """Give up everything that runs or waits."""
        for utterance in self._running:
            utterance.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)
        if isinstance(self._tts, Served):
            self._tts.close()

    @property
    def state(self) -> str:
        if self.loaded is None or not self.loaded.done():
            return "loading"
        return "failed" if self.loaded.cancelled() or self.loaded.exception() is not None else "ready"

    @property
    def tts(self) -> Tts:
        """The model; only asked for once it is loaded."""
        if self._tts is None:
            raise RuntimeError("the model is not loaded")
        return self._tts

    @property
    def voices(self) -> tuple[str, ...]:
        """Ids that ``voice`` may name: the folder's, or the checkpoint's preset speakers."""
        if self._tts is None or self._tts.model_type == "base":
            return tuple(self._entries)
        return self._tts.speakers

    @property
    def default_voice(self) -> str:
        """The configured one if it is there, else the first; empty if there is none (voice_design)."""
        voices = self.voices
        return self._settings.default_voice if self._settings.default_voice in voices else next(iter(voices), "")

    def voice(self, name: str) -> Voice | str | None:
        """What the model takes for a voice of that id; a folder's voice is cloned once and kept. Runs in the thread."""
        if self.tts.model_type != "base":
            return name or None
        with self._cloning:
            if name not in self._voices:
                self._voices[name] = self._entries[name].create(self.tts.create_voice)
            return self._voices[name]

    def submit(self, request: Request) -> Utterance:
        """Queue an utterance behind those of all sessions."""
        utterance = Utterance(request, self._settings.max_chunks)
        self._running.add(utterance)
        done = asyncio.get_running_loop().run_in_executor(self._threads, utterance.run, self)
        done.add_done_callback(lambda _: self._running.discard(utterance))
        utterance.attach(done)
        return utterance

    def _prepare(self) -> None:
        tts = self._load()
        if tts.model_type == "base" and not self._entries:
            raise FileNotFoundError(
                f"no voice in {self._settings.voices_dir}: a Base checkpoint speaks in cloned voices; put a recording and what it says "
                f"into {self._settings.voices_dir}/NAME/{voice_folder.REFERENCE} and {voice_folder.TRANSCRIPT}"
            )
        self._tts = tts
        name = self.default_voice
        if self._settings.warmup == "all":
            tts.warmup()
        with tts.stream(WARM_UP, voice=self.voice(name), max_frames=WARM_UP_FRAMES) as stream:
            for _ in stream:
                pass
        if name != self._settings.default_voice:
            log.warning("there is no voice %r: %r is the default", self._settings.default_voice, name)


def load_model(settings: Settings) -> Tts:
    """The configured checkpoint; errors as in ``Qwen3TTS.from_pretrained``."""
    tts = Qwen3TTS.from_pretrained(settings.model_id, device=settings.device, dtype=settings.dtype)
    return Served(SpeechService(tts, slots=settings.slots))
