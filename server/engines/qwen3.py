"""Qwen3-TTS for many at once: voices and texts -> the requests of ``qwen3_jax.engine``, which speaks for all of them in one batch.

The event loop owns what is here; two threads of its own do what may take long. ``voices`` loads, clones and closes, ``texts`` turns text
into ids: one of each, so that a new voice makes nobody wait who speaks in an old one. An utterance gives ``texts`` one short job at a
time, the next when that is done, so that a long text waits for others' and not they for it.

Every utterance is an open request of the engine as soon as its voice is known and its first words are laid out. A whole text's other
parts follow while those before them are spoken; a text in pieces grows as its pieces come.
"""

import asyncio
import gc
import logging
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import msgspec

from qwen3_jax import Sampling, Voice
from qwen3_jax.engine import Full, Handle, Options
from qwen3_jax.engine.loop import LoopConsumer
from qwen3_jax.model.sampling import greedy_at_zero
from qwen3_jax.runtime.allocation import settle
from qwen3_jax.runtime.devices import several
from qwen3_jax.service import LiveText, SpeechService
from qwen3_jax.speech.part import SpokenPart
from qwen3_jax.tts import Qwen3TTS, load_for
from qwen3_jax.voices.folder import VoiceGone
from server.engines import prompts
from server.engines.base import HELD_SECONDS, Crowded, DeviceStatus, EngineClosed, Refused, SpeechRequest, State
from server.engines.qwen3_cloner import Cloner
from server.engines.qwen3_utterance import Qwen3Utterance
from server.engines.slots import slots_for
from server.languages import LANGUAGES, check_default
from server.settings import Settings
from server.voices.store import StoredVoice, VoiceStore

WARM_UP, WARM_UP_FRAMES = "Ready.", 6  # a first piece and a later one
LONGER = 10.0  # seconds that the engine is more patient than the server, so that it is the server who tells the client
log = logging.getLogger(__name__)


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
        self._prompts = prompts.Prompts[asyncio.Future[Voice]](settings.voice_cache)
        self._utterances: dict[Qwen3Utterance, asyncio.Task[None]] = {}  # until the engine has made all of them
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
        return _languages(self._running.tts)

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
        coming = sum(not one.opened.done() for one in self._utterances)
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

    @property
    def devices(self) -> dict[str, DeviceStatus]:
        if self._service is None:
            return {}
        return {name: DeviceStatus(one.state, one.slots, one.active, one.restarts) for name, one in self._service.engine.devices().items()}

    def load(self) -> "asyncio.Future[None]":
        if self.loaded is None:
            self.loaded = asyncio.ensure_future(self._load())
        return self.loaded

    def check_line(self, owner: Hashable) -> None:
        coming = sum(not one.opened.done() and one.request.owner == owner for one in self._utterances)
        if coming >= self._settings.max_queue:
            raise Crowded(f"{coming} requests of this client wait already; try again later")
        try:
            self._running.engine.check_line(owner)
        except Full as error:
            raise Crowded(str(error)) from error

    def submit(self, request: SpeechRequest) -> Qwen3Utterance:
        utterance = Qwen3Utterance(request, self._consumer)
        self._utterances[utterance] = asyncio.create_task(self._speak(utterance))
        return utterance

    async def prepare(self, voice: StoredVoice) -> None:
        await self._prompt(voice)

    def forget(self, voice_id: str) -> None:
        self._prompts.forget(voice_id)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self.loaded is not None:
            self.loaded.cancel()  # nothing, if it is done
        for utterance in self._utterances:
            utterance.fail(EngineClosed("the engine is closed"))
        self._voices.submit(self._shut)
        for threads in (self._voices, self._texts):
            threads.shutdown(wait=False)

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

    async def _speak(self, utterance: Qwen3Utterance) -> None:
        """An utterance to its end. Whatever goes wrong is told to its reader."""
        request = utterance.request
        try:
            voice = await self._voice(request.voice) if isinstance(request.voice, StoredVoice) else request.voice or None
            # After a fault the engine is built again; whoever waits for the utterance has a limit of his own.
            await asyncio.shield(asyncio.wrap_future(self._running.engine.rebuilt))
            if not utterance.opened.done():
                await (self._write_pieces if request.incremental else self._write_whole)(utterance, self._how(request, voice))
        except Exception as error:  # noqa: BLE001  # nobody awaits this task: its reader must hear of the error, or would wait for ever
            utterance.fail(error)
        utterance.written.set_result(None)
        if (handle := utterance.handle) is not None:
            await self._consumer.until(handle, lambda: handle.ended)
        del self._utterances[utterance]

    async def _voice(self, voice: StoredVoice) -> Voice:
        """The voice of an utterance. Raises VoiceGone where its recording has been changed for one that cannot be cloned."""
        try:
            return await self._prompt(voice)
        except Refused as error:  # as at start, such a voice is left out
            await self._in(self._voices, self._store.leave_out, voice, str(error))
            raise VoiceGone(f"voice {voice.id!r} cannot be cloned any more: {error}") from error

    async def _write_whole(self, utterance: Qwen3Utterance, how: dict[str, Any]) -> None:
        """A whole text, a part at a time."""
        options = {name: how.pop(name) for name in ("priority", "notify", "owner")}
        parts = self._running.parts(utterance.request.text, **how)
        handle = await self._in(self._texts, self._submit_first, parts, options, utterance.texts)
        if utterance.open(handle):
            while await self._in(self._texts, _add_next, handle, parts, utterance.texts):
                pass

    async def _write_pieces(self, utterance: Qwen3Utterance, how: dict[str, Any]) -> None:
        """A text in pieces, as they come."""
        text: LiveText = await self._in(self._texts, self._submit_text, await utterance.piece(), how)
        utterance.texts = text.texts
        if utterance.open(text.handle):
            while (piece := await utterance.piece()) is not None:
                await self._in(self._texts, _unless_done, text, text.write, piece)
            await self._in(self._texts, _unless_done, text, text.finish)

    def _how(self, request: SpeechRequest, voice: Voice | str | None) -> dict[str, Any]:
        """Arguments of the service."""
        return {
            "voice": voice,
            "language": request.language,
            "seed": request.seed,
            "normalize": self._settings.normalize,
            "sampling": msgspec.structs.replace(Sampling.defaults(self._running.tts.model.generation), **greedy_at_zero(request.draw)),
            "priority": "high" if request.high else "normal",
            "notify": self._consumer.notify,
            "owner": request.owner,
        }

    async def _prompt(self, voice: StoredVoice) -> Voice:
        """The voice, cloned once however many wait for it."""
        future = self._prompts.get(voice, lambda voice: self._in(self._voices, self._clone, voice))
        try:
            return await asyncio.shield(future)
        except Exception:  # whatever the error is, the caller gets it, and the next caller tries again
            self._prompts.drop(voice, future)
            raise

    def _in(self, threads: ThreadPoolExecutor, call: Callable[..., Any], *given: Any) -> "asyncio.Future[Any]":
        return asyncio.get_running_loop().run_in_executor(threads, call, *given)

    # In the threads

    def _build(self) -> None:
        self._service = self._make(self._settings)

    def _clone(self, voice: StoredVoice) -> Voice:
        prompt: Voice = prompts.prepared(self._store, voice, Cloner(self._running.tts))
        return prompt

    def _submit_first(self, parts: Iterator[SpokenPart], options: dict[str, Any], texts: list[str]) -> Handle:
        first = next(parts)
        texts.append(first.text)
        return self._running.submit([first], open=True, **options)

    def _submit_text(self, piece: str | None, how: dict[str, Any]) -> LiveText:
        text = self._running.live_text(**how)
        try:
            if piece is not None:
                text.write(piece)
        except ValueError:
            text.handle.cancel()
            raise
        return text

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

    @cached_property
    def _consumer(self) -> LoopConsumer:
        return LoopConsumer(asyncio.get_running_loop())

    @property
    def _running(self) -> SpeechService:
        if self._service is None:
            raise RuntimeError("the model is not loaded")
        return self._service


def _add_next(handle: Handle, parts: Iterator[SpokenPart], texts: list[str]) -> bool:
    """The next part of a text. Returns whether there may be more."""
    part = None if handle.done or handle.ended else next(parts, None)
    if part is None:
        handle.finish()
        return False
    texts.append(part.text)
    handle.add(part.segment)
    return True


def _unless_done(text: LiveText, call: Callable[..., None], *given: Any) -> None:
    if not text.handle.done:
        call(*given)


def _languages(tts: Qwen3TTS) -> tuple[str, ...]:
    known = {name.casefold() for name in tts.languages}
    return tuple(name for name in LANGUAGES if name.casefold() in known)


def load(settings: Settings) -> SpeechService:
    """The configured checkpoint as a service.

    Raises:
        ValueError: TTS_DEFAULT_LANGUAGE is a language that the checkpoint does not speak.
        Others as in ``Qwen3TTS.from_pretrained`` and ``SpeechService``.
    """
    where: dict[str, Any] = {"devices" if several(settings.device) else "device": settings.device}
    tts = load_for(settings.model_id, rows=settings.slots, dtype=settings.dtype, tensor_parallel=settings.tensor_parallel, **where)
    check_default(settings, _languages(tts))  # before a first start compiles for minutes
    tts.prepared.most = settings.voice_cache
    slots = settings.slots or slots_for(tts.model, settings.columns, tts.fingerprint)
    on = f" on each of {', '.join(tts.devices)}" if len(tts.devices) > 1 else ""
    log.info("preparing %d slots%s: programs that this machine has not compiled yet are compiled, and kept", slots, on)
    options = Options(
        buffer_ms=settings.max_buffer_ms,
        max_waiting=settings.max_queue,
        stall_seconds=max(settings.text_timeout, settings.send_timeout, HELD_SECONDS) + LONGER,
    )
    return SpeechService(tts, slots=slots, columns=settings.columns, options=options, warm=settings.warmup == "all")
