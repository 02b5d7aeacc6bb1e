"""Qwen3-TTS for many at once: requests -> ``qwen3_jax.service``, whose engine speaks for all of them in one batch.

The event loop owns what is here; two threads of its own do what may take long. ``voices`` loads, clones and closes, ``texts`` turns text
into ids: one of each, so that a new voice makes nobody wait who speaks in an old one. An utterance gives ``texts`` one short job at a
time, the next when that is done, so that a long text waits for others' and not they for it.
"""

import asyncio
import gc
import logging
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import Any

import msgspec
import numpy as np

from qwen3_jax import Sampling, Voice
from qwen3_jax.allocation import settle
from qwen3_jax.engine import Closed, Options
from qwen3_jax.engine import OutOfMemory as DeviceFull
from qwen3_jax.engine.loop import LoopConsumer
from qwen3_jax.service import LiveUtterance, SpeechService, Utterance
from qwen3_jax.shapes import NpF32
from qwen3_jax.tts import load_for
from qwen3_jax.voice_folder import VoiceGone
from server.engines import prompts
from server.engines.base import EngineClosed, OutOfMemory, Refused, SpeechRequest, State
from server.engines.qwen3_cloner import Cloner
from server.engines.slots import slots_for
from server.protocol import LANGUAGES
from server.settings import Settings
from server.voices.store import StoredVoice, VoiceStore

WARM_UP, WARM_UP_FRAMES = "Ready.", 6  # a first piece and a later one
PIECE = 240  # characters of a text in pieces that one job of ``texts`` takes: a few ms
LONGER = 10.0  # seconds that the engine is more patient than the server, so that it is the server who tells the client
log = logging.getLogger(__name__)


class Qwen3Handle:
    """One utterance; see ``server.engines.base.Handle``. The engine makes it as fast as it can, up to the buffer's end."""

    def __init__(self, request: SpeechRequest, engine: "Qwen3Engine") -> None:
        self.request = request
        self.finish_reason: str | None = None
        self.failure: BaseException | None = None
        self.utterance: Utterance | None = None
        self._engine, self._loop = engine, asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._text = request.text if request.incremental else ""  # of a text in pieces, what the engine has not taken
        self._text_ended, self._more = False, asyncio.Event()
        self._pieces: list[NpF32["F"]] = []  # of a whole one
        self._over = False

    async def begin(self) -> None:
        """A text that has no word yet does not wait for anybody but its writer."""
        while not self._begun:
            self._news.clear()
            await self._news.wait()

    def append(self, text: str) -> None:
        self._text += text
        self._more.set()

    def finish(self) -> None:
        self._text_ended = True
        self._more.set()

    def cancel(self) -> None:
        if self.utterance is not None:
            self.utterance.cancel()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._cancelled)

    def __aiter__(self) -> "Qwen3Handle":
        return self

    async def __anext__(self) -> NpF32["F"]:
        while not self._over:
            self._news.clear()  # before looking: what comes after is told again
            if self.utterance is not None:
                while (packet := self.utterance.handle.take()) is not None:
                    if not self.request.whole:
                        return packet.pcm
                    self._pieces.append(packet.pcm)
                # One that was cancelled is ended by who did it: `cancel`, or the text that was refused, whose error is on its way.
                if self.utterance.handle.done and not self.utterance.handle.cancelled:
                    self._ended()
                    if self._pieces and self.failure is None:
                        return np.concatenate(self._pieces)
                    break
            await self._news.wait()
        raise StopAsyncIteration

    # The engine's side, in the event loop

    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._over

    def attach(self, utterance: Utterance, news: asyncio.Event) -> None:
        """It has been given to the engine; ``news`` is set when that has some."""
        self.utterance = utterance
        if self._over:
            utterance.cancel()
            return
        self._news.set()
        self._news = news
        self._news.set()

    async def piece(self) -> str | None:
        """What has come of a text in pieces, PIECE characters of it at most; None at its end, or at the utterance's."""
        while not (self._over or self._text or self._text_ended):
            self._more.clear()
            await self._more.wait()
        if self._over or not self._text:
            return None
        piece, self._text = self._text[:PIECE], self._text[PIECE:]
        return piece

    def fail(self, error: BaseException) -> None:
        """It has ended badly."""
        if not self._over:
            self.failure = error
            self._end()
        if self.utterance is not None:
            self.utterance.cancel()

    @property
    def _begun(self) -> bool:
        if self._over or self.utterance is None:
            return self._over
        handle = self.utterance.handle
        return handle.begun or handle.done or (self.request.incremental and handle.segment(0) is None)

    def _cancelled(self) -> None:
        if not self._over:
            self.finish_reason = "cancelled"
            self._end()

    def _ended(self) -> None:
        assert self.utterance is not None
        handle = self.utterance.handle
        if handle.error is not None:
            self.failure = _named(handle.error)
        else:
            self.finish_reason = handle.finish_reason
        self._end()

    def _end(self) -> None:
        self._over = True
        self._news.set()
        self._more.set()
        self._engine.leave(self)


class Qwen3Engine:
    """See ``server.engines.base.TtsEngine``.

    Args:
        settings: limits and warm-up.
        store: the voices.
        make: loads the model and begins the service, in a thread.
    """

    sample_rate = 24000
    streaming = True

    def __init__(self, settings: Settings, store: VoiceStore, make: Callable[[Settings], SpeechService]) -> None:
        self._settings, self._store, self._make = settings, store, make
        self._voices, self._texts = ThreadPoolExecutor(1, "voices"), ThreadPoolExecutor(1, "texts")
        self._service: SpeechService | None = None
        self._consumer: LoopConsumer | None = None
        self._prompts: OrderedDict[tuple[str, str], asyncio.Future[Voice]] = OrderedDict()  # least recently used first
        self._handles: dict[Qwen3Handle, asyncio.Task[None]] = {}
        self.loaded: asyncio.Future[None] | None = None
        self._closed = False

    @property
    def state(self) -> State:
        if self.loaded is None:
            return "idle"
        if not self.loaded.done():
            return "loading"
        if self.loaded.cancelled() or self.loaded.exception() is not None or self._service is None:
            return "failed"
        states: dict[str, State] = {"running": "ready", "restarting": "loading"}
        return states.get(self._service.engine.state, "failed")

    @property
    def is_ready(self) -> bool:
        return self.state == "ready"

    @cached_property
    def _languages(self) -> tuple[str, ...]:
        known = {name.casefold() for name in self._running.tts.languages}
        return tuple(name for name in LANGUAGES if name.casefold() in known)

    @property
    def languages(self) -> tuple[str, ...]:
        return () if self._service is None else self._languages

    @property
    def presets(self) -> tuple[str, ...] | None:
        if self._service is None or self._service.tts.model_type == "base":
            return None
        return self._service.tts.speakers

    @property
    def slots(self) -> int:
        return 0 if self._service is None else self._service.engine.stats().slots

    @property
    def queued(self) -> int:
        coming = sum(handle.utterance is None for handle in self._handles)
        return coming if self._service is None else coming + self._service.engine.stats().waiting

    @property
    def active(self) -> int:
        return 0 if self._service is None else self._service.engine.stats().active

    @property
    def runaways(self) -> int:
        return 0 if self._service is None else self._service.engine.stats().counters["runaways"]

    @property
    def not_finite(self) -> int:
        return 0 if self._service is None else self._service.engine.stats().counters["not_finite"]

    @property
    def restarts(self) -> int:
        return 0 if self._service is None else self._service.engine.stats().restarts

    def load(self) -> "asyncio.Future[None]":
        if self.loaded is None:
            self._consumer = LoopConsumer(asyncio.get_running_loop())
            self.loaded = asyncio.ensure_future(self._load())
        return self.loaded

    def submit(self, request: SpeechRequest) -> Qwen3Handle:
        handle = Qwen3Handle(request, self)
        self._handles[handle] = asyncio.create_task(self._begin(handle))
        return handle

    async def prepare(self, voice: StoredVoice) -> None:
        await self._prompt(voice)

    def forget(self, voice_id: str) -> None:
        for key in [key for key in self._prompts if key[0] == voice_id]:
            del self._prompts[key]

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self.loaded is not None:
            self.loaded.cancel()  # nothing, if it is done
        for handle in list(self._handles):
            handle.fail(EngineClosed("the engine is closed"))
        self._voices.submit(self._shut)
        for threads in (self._voices, self._texts):
            threads.shutdown(wait=False)

    # For the handles

    def leave(self, handle: Qwen3Handle) -> None:
        """It is over."""
        self._handles.pop(handle, None)
        if handle.utterance is not None and self._consumer is not None:
            self._consumer.leave(handle.utterance.handle)

    # In the event loop

    async def _load(self) -> None:
        await self._in(self._voices, self._build)
        candidates = prompts.first_voices(self._settings, self._store, self.presets)
        for voice in candidates:
            try:
                prompt = await self._prompt(voice) if isinstance(voice, StoredVoice) else voice or None
                break
            except (Refused, OSError) as error:
                await self._in(self._voices, prompts.pass_over, self._store, voice, error, voice is candidates[-1])
        await self._in(self._voices, self._say_first_words, prompt)

    async def _begin(self, handle: Qwen3Handle) -> None:
        """Whatever goes wrong is told to the handle's reader."""
        request = handle.request
        try:
            voice = await self._voice(request.voice) if isinstance(request.voice, StoredVoice) else request.voice or None
            if not handle.over:
                await (self._write if request.incremental else self._speak)(handle, self._how(request, voice))
        except Exception as error:  # noqa: BLE001  # a task nobody awaits: the handle tells its reader, or it would wait for ever
            handle.fail(_named(error))

    async def _voice(self, voice: StoredVoice) -> Voice:
        """The voice of an utterance. Raises VoiceGone where its recording has been changed for one that cannot be cloned."""
        try:
            return await self._prompt(voice)
        except Refused as error:  # as at start, such a voice is left out
            await self._in(self._voices, self._store.leave_out, voice, str(error))
            raise VoiceGone(f"voice {voice.id!r} cannot be cloned any more: {error}") from error

    async def _speak(self, handle: Qwen3Handle, how: dict[str, Any]) -> None:
        """A whole text, a part at a time."""
        options = {name: how.pop(name) for name in ("priority", "notify")}
        coming, rows = self._running.rows(handle.request.text, **how), []
        while not handle.over and (row := await self._in(self._texts, next, coming, None)) is not None:
            rows.append(row)
        if not handle.over:
            self._attach(handle, await self._in(self._texts, partial(self._running.submit, rows, **options)))

    async def _write(self, handle: Qwen3Handle, how: dict[str, Any]) -> None:
        """A text in pieces, as they come."""
        live: LiveUtterance = await self._in(self._texts, partial(self._running.open, **how))
        try:
            if not handle.request.text:
                self._attach(handle, live)
            while (piece := await handle.piece()) is not None:
                await self._in(self._texts, _unless_done, live, live.write, piece)
                if handle.utterance is None:
                    self._attach(handle, live)
            if not handle.over:
                await self._in(self._texts, _unless_done, live, live.finish)
        finally:
            if handle.over or handle.utterance is None:
                live.cancel()

    def _how(self, request: SpeechRequest, voice: Voice | str | None) -> dict[str, Any]:
        """Arguments of the service."""
        assert self._consumer is not None
        return {
            "voice": voice,
            "language": request.language,
            "seed": request.seed,
            "normalize": self._settings.normalize,
            "sampling": msgspec.structs.replace(Sampling.defaults(self._running.tts.model.generation), **request.draw),
            "priority": "high" if request.high else "normal",
            "notify": self._consumer.notify,
        }

    def _attach(self, handle: Qwen3Handle, utterance: Utterance) -> None:
        assert self._consumer is not None
        handle.attach(utterance, asyncio.Event() if handle.over else self._consumer.listen(utterance.handle))

    async def _prompt(self, voice: StoredVoice) -> Voice:
        """The voice, cloned once however many wait for it."""
        key = (voice.id, voice.revision)
        if key not in self._prompts:
            self._prompts[key] = self._in(self._voices, self._clone, voice)
        self._prompts.move_to_end(key)
        while len(self._prompts) > self._settings.voice_cache:
            self._prompts.popitem(last=False)
        future = self._prompts[key]
        try:
            return await asyncio.shield(future)
        except Exception:  # of whatever kind: it goes on to who asked, and the next one who asks tries again
            if self._prompts.get(key) is future:
                del self._prompts[key]
            raise

    def _in(self, threads: ThreadPoolExecutor, call: Callable[..., Any], *given: Any) -> "asyncio.Future[Any]":
        return asyncio.get_running_loop().run_in_executor(threads, call, *given)

    # In the threads

    def _build(self) -> None:
        self._service = self._make(self._settings)

    def _clone(self, voice: StoredVoice) -> Voice:
        prompt: Voice = prompts.prepared(self._store, voice, Cloner(self._running.tts))
        return prompt

    def _say_first_words(self, prompt: Voice | str | None) -> None:
        said = self._running.speak(WARM_UP, voice=prompt, max_frames=WARM_UP_FRAMES)
        while said.handle.next(self._settings.chunk_timeout) is not None:
            pass
        gc.collect()
        gc.freeze()  # what is there now stays: to look through it all stops every voice for 0.2 s
        settle()

    def _shut(self) -> None:
        if self._service is not None:
            try:
                self._service.close()
            except TimeoutError:
                log.exception("the engine does not end")

    @property
    def _running(self) -> SpeechService:
        if self._service is None:
            raise RuntimeError("the model is not loaded")
        return self._service


def _unless_done(live: LiveUtterance, call: Callable[..., None], *given: Any) -> None:
    if not live.handle.done:
        call(*given)


def _named(error: BaseException) -> BaseException:
    """The engine's errors by the server's names."""
    if isinstance(error, ValueError) and not isinstance(error, Refused):
        return Refused(str(error))
    if isinstance(error, DeviceFull):
        return OutOfMemory(str(error))
    return EngineClosed(str(error)) if isinstance(error, Closed) else error


def load(settings: Settings) -> SpeechService:
    """The configured checkpoint as a service; errors as in ``Qwen3TTS.from_pretrained`` and ``SpeechService``."""
    tts = load_for(settings.model_id, rows=settings.slots, device=settings.device, dtype=settings.dtype)
    tts.prepared_voices = settings.voice_cache
    slots = settings.slots or slots_for(tts.model, settings.columns, tts.fingerprint)
    log.info("preparing %d slots: programs that this machine has not compiled yet are compiled, and kept", slots)
    options = Options(
        buffer_ms=settings.max_buffer_ms,
        max_waiting=settings.max_queue + settings.max_sessions,  # the server counts first; sessions may each try once more
        stall_seconds=max(settings.text_timeout, settings.send_timeout) + LONGER,
    )
    return SpeechService(tts, slots=slots, columns=settings.columns, options=options, warm=settings.warmup == "all")
