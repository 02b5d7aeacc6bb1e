"""The engine for models that speak one utterance at a time: one thread owns the model; whose turn it is says `qwen3_jax.engine.line`.

A turn is a whole text, or a sentence of one that is still being written, which then goes back into the line. So nobody's turn is spent on
waiting for text.

The executor is the thread's owner: whatever an utterance raises, SystemExit included, ends that utterance and is told to whoever
waits for it, and the thread lives on. Out of memory: the caches are cleared, and at the second time the model moves to the CPU.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from qwen3_jax.audio.samples import check_finite
from qwen3_jax.engine import Full
from qwen3_jax.engine.line import Line
from qwen3_jax.shapes import F32
from qwen3_jax.text.scripts import Letters
from server.engines import prompts
from server.engines.base import Crowded, DeviceStatus, OutOfMemory, Refused, SpeechRequest, State
from server.engines.handle import ThreadHandle
from server.languages import check_default
from server.settings import Settings
from server.voices.store import StoredVoice, VoiceStore

PATIENCE = 4  # ``high`` ones in a row that may overtake a normal one
log = logging.getLogger(__name__)


class Synthesis(Protocol):
    """An utterance being made: iterate it in the thread, ``cancel`` from any."""

    finish_reason: str | None

    def __iter__(self) -> Iterator[F32[np.ndarray, " F"]]: ...
    def cancel(self) -> None: ...


class Synthesiser(Protocol):
    """A model as the thread sees it. Every method runs in the thread and may block.

    ``clone`` returns what the model needs to know of a voice, ``to_bytes`` and ``from_bytes`` keep it on a disk.
    ``speak`` raises Refused for input that the model does not take, OutOfMemory (there or later) where memory ends.
    """

    sample_rate: int
    streaming: bool

    @property
    def fingerprint(self) -> str: ...
    @property
    def languages(self) -> tuple[str, ...]: ...
    @property
    def presets(self) -> tuple[str, ...] | None: ...
    def clone(self, wav: bytes, transcript: str | None, name: str) -> Any: ...
    def to_bytes(self, prompt: Any) -> bytes: ...
    def from_bytes(self, data: bytes) -> Any: ...
    def speak(self, request: SpeechRequest, prompt: Any, text: str) -> Synthesis: ...
    def warm_up(self, request: SpeechRequest, prompt: Any) -> None: ...
    def clear(self) -> None: ...
    def split(self, text: str) -> list[str]:
        """Sentences of a text that is still being written."""


class ThreadEngine:
    """See ``server.engines.base.TtsEngine``.

    Args:
        settings: limits and warm-up.
        store: the voices.
        make: loads the model on the device given (None: the configured one), in the thread.
    """

    sample_rate = 24000

    def __init__(self, settings: Settings, store: VoiceStore, make: Callable[[str | None], Synthesiser]) -> None:
        self._settings, self._store, self._make = settings, store, make
        self._thread = ThreadPoolExecutor(1, "tts")
        self._model: Synthesiser | None = None
        self._prompts = prompts.Prompts[Any](settings.voice_cache)  # the thread's alone
        self._line: Line[ThreadHandle] = Line(PATIENCE, settings.max_queue)
        self._running: set[ThreadHandle] = set()
        self._exhausted = 0
        self._closed = False
        self.loaded: asyncio.Future[None] | None = None

    @property
    def state(self) -> State:
        if self.loaded is None:
            return "idle"
        if not self.loaded.done():
            return "loading"
        return "failed" if self.loaded.cancelled() or self.loaded.exception() is not None else "ready"

    @property
    def is_ready(self) -> bool:
        return self.state == "ready"

    @property
    def languages(self) -> tuple[str, ...]:
        return () if self._model is None else self._model.languages

    @property
    def streaming(self) -> bool:
        return self._model is None or self._model.streaming

    @property
    def presets(self) -> tuple[str, ...] | None:
        return None if self._model is None else self._model.presets

    runaways = restarts = not_finite = 0
    slots = 1

    @property
    def devices(self) -> dict[str, DeviceStatus]:
        return {}

    @property
    def queued(self) -> int:
        return len(self._line)

    @property
    def active(self) -> int:
        return len(self._running) - len(self._line)

    def load(self) -> "asyncio.Future[None]":
        if self.loaded is None:
            self.loaded = asyncio.get_running_loop().run_in_executor(self._thread, self._prepare)
        return self.loaded

    def submit(self, request: SpeechRequest) -> ThreadHandle:
        loop = asyncio.get_running_loop()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the engine with it
                loop.call_soon_threadsafe(self._turn, loop)

        handle = ThreadHandle(request, self._settings.max_buffer_ms * self.sample_rate // 1000, wake)
        self._running.add(handle)
        try:
            displaced = self._line.enter(handle)
        except Full as error:
            self._over(handle, Crowded(str(error)))
            return handle
        if displaced is not None:
            self._over(displaced, Crowded("the line is full, and others had fewer requests in it; try again later"))
        wake()
        return handle

    def check_line(self, owner: Hashable) -> None:
        try:
            self._line.check(owner)
        except Full as error:
            raise Crowded(str(error)) from error

    async def prepare(self, voice: StoredVoice) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._prompt, voice)

    def forget(self, voice_id: str) -> None:
        self._thread.submit(self._prompts.forget, voice_id)

    def close(self) -> None:
        self._closed = True
        for handle in list(self._running):
            handle.abandon()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have the thread look who is next. From the loop: whatever fails there has an owner here."""
        if not self._closed and self._line.next({}) is not None:
            loop.run_in_executor(self._thread, self._run_next, loop).add_done_callback(self._ended)

    # In the thread

    def _run_next(self, loop: asyncio.AbstractEventLoop) -> None:
        handle = self._line.pop({})
        if handle is None:
            return
        failure: BaseException | None = None
        over = True
        try:
            if handle.wanted:
                handle.start()
                over = self._speak(handle)
            else:
                handle.finish_reason = "cancelled"
        except BaseException as error:  # noqa: BLE001  # its owner is the handle's reader, who is told
            failure = error
        if over:
            self._over(handle, failure)
        else:
            self._line.back(handle)
        if isinstance(failure, OutOfMemory):
            self._recover()
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the engine with it
            loop.call_soon_threadsafe(self._turn, loop)

    def _over(self, handle: ThreadHandle, failure: BaseException | None) -> None:
        self._running.discard(handle)
        handle.end(failure)

    def _ended(self, done: "asyncio.Future[None]") -> None:
        """The thread's owner. What an utterance died of its reader knows; an exception here means that the model is gone."""
        if not done.cancelled() and (error := done.exception()) is not None:
            log.critical("the engine could not recover", exc_info=error)
            self.loaded = done

    def _speak(self, handle: ThreadHandle) -> bool:
        """One turn. Returns whether it was the last."""
        request, model = handle.request, self._loaded
        prompt = self._prompt(request.voice) if isinstance(request.voice, StoredVoice) else request.voice
        if (text := handle.next_text(model.split)) is not None:
            _check_letters(handle, text, model.languages)
            speech = model.speak(request, prompt, text)
            pieces: Iterator[F32[np.ndarray, " F"]] = map(self._finite, speech)
            if request.whole:
                pieces = iter(list(pieces))
            for piece in pieces:
                if not handle.put(piece):
                    speech.cancel()
                    handle.finish_reason = "cancelled"
                    return True
            handle.finish_reason = speech.finish_reason
        if not handle.spoken and handle.wanted:
            return False
        if handle.finish_reason is None:  # its text ended before it had any
            handle.finish_reason = "eos" if handle.wanted else "cancelled"
        return True

    def _finite(self, piece: F32[np.ndarray, " F"]) -> F32[np.ndarray, " F"]:
        try:
            return check_finite(piece)
        except FloatingPointError:
            self.not_finite += 1
            raise

    def _prompt(self, voice: StoredVoice) -> Any:
        return self._prompts.get(voice, lambda voice: prompts.prepared(self._store, voice, self._loaded))

    def _recover(self) -> None:
        """After out of memory: clear the caches; where that has not helped, go on on the CPU."""
        self._exhausted += 1
        self._prompts.clear()
        self._loaded.clear()
        log.error("out of memory: caches cleared")
        if self._exhausted > 1 and self._settings.device != "cpu":
            log.error("out of memory again: the model moves to the CPU")
            self._model = None
            self._model = self._make("cpu")
            self._exhausted = 0

    @property
    def _loaded(self) -> Synthesiser:
        if self._model is None:
            raise RuntimeError("the model is not loaded")
        return self._model

    def _prepare(self) -> None:
        self._model = model = self._make(None)
        check_default(self._settings, model.languages)
        candidates = prompts.first_voices(self._settings, self._store, model.presets)
        for voice in candidates:
            try:
                prompt = self._prompt(voice) if isinstance(voice, StoredVoice) else voice
                break
            except (Refused, OSError) as error:
                prompts.pass_over(self._store, voice, error, voice is candidates[-1])
        model.warm_up(SpeechRequest(text="Ready.", voice=voice, language="Auto"), prompt)


def _check_letters(handle: ThreadHandle, text: str, languages: tuple[str, ...]) -> None:
    """Raises Refused if most of what an utterance says, up to the text's end, is written in none of the languages."""
    letters = handle.letters = handle.letters or Letters(languages)
    letters.add(text)
    try:
        letters.check()
    except ValueError as error:
        raise Refused(str(error)) from error
