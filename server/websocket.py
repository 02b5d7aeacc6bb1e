"""One session on ``/api/v1/speak``: frames in, messages and pcm frames out. The states, and what may happen in each:

    CONNECTING --ready--> READY --start--> STARTED
    READY, STARTED --speak--> SPEAKING --last complete, error or cancel--> READY
    any --stop--> STOPPED        any --a fault of ours--> ERROR

Two tasks: one reads, one speaks what waits. Whatever is sent goes through ``_outgoing``, one message at a time and within a limit;
a piece of audio is sent only if its utterance is still wanted once the lock is held, so nothing follows a ``CANCELLED``.
"""

import asyncio
import contextlib
import logging
import unicodedata
import uuid
from collections.abc import AsyncIterator
from enum import Enum
from time import perf_counter
from typing import Protocol

from msgspec import UNSET

from qwen3_jax.audio import SAMPLE_RATE, to_pcm16
from server import protocol
from server.engine import Engine, Refused, Request, Utterance
from server.protocol import Cancel, Flush, Speak, Start, Stop
from server.settings import Settings

log = logging.getLogger(__name__)
OK, INTERNAL, GOING_AWAY = 1000, 1011, 1012


class SlowClient(ConnectionError):
    """A client that does not read what it is sent."""


class Socket(Protocol):
    """The part of Quart's websocket that is used here."""

    async def receive(self) -> str | bytes | None: ...
    async def send(self, data: str | bytes) -> None: ...
    async def close(self, code: int, reason: str = "") -> None: ...


class State(Enum):
    """See the module's docstring."""

    CONNECTING = "connecting"
    READY = "ready"
    STARTED = "started"
    SPEAKING = "speaking"
    STOPPED = "stopped"
    ERROR = "error"


_IDLE: dict[type, State] = {Start: State.STARTED, Speak: State.SPEAKING, Stop: State.STOPPED}
NEXT: dict[State, dict[type, State]] = {
    State.READY: _IDLE,
    State.STARTED: _IDLE,
    State.SPEAKING: {Speak: State.SPEAKING, Cancel: State.READY, Stop: State.STOPPED},
}


class Waiting:
    """A ``speak`` that is spoken or waits to be; ``wanted`` turns false when it is cancelled."""

    def __init__(self, message: Speak, text: str, voice: str, language: str) -> None:
        self.message, self.text, self.voice, self.language = message, text, voice, language
        self.arrived = perf_counter()
        self.wanted = True
        self.utterance: Utterance | None = None

    def cancel(self) -> None:
        self.wanted = False
        if self.utterance is not None:
            self.utterance.cancel()


class Session:
    """A connected client."""

    def __init__(self, socket: Socket, engine: Engine, settings: Settings) -> None:
        self.state = State.CONNECTING
        self._socket, self._engine, self._settings = socket, engine, settings
        self._voice: str | None = None
        self._language = protocol.language(settings.default_language) or "Auto"
        self._outgoing = asyncio.Lock()
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue(settings.max_waiting)
        self._unfinished: list[Waiting] = []  # the spoken one first

    async def run(self) -> None:
        """Until the client stops. A cancelled run gives up what it speaks."""
        await self._send(self._ready())
        self.state = State.READY
        async with asyncio.TaskGroup() as tasks:
            speaker = tasks.create_task(self._speak_all())
            try:
                while self.state is not State.STOPPED:
                    await self._receive_one()
            finally:
                for waiting in self._unfinished:
                    waiting.cancel()
                speaker.cancel()

    async def leave(self, reason: str, code: int) -> None:
        """Say goodbye and close; not a byte of audio follows."""
        for waiting in self._unfinished:
            waiting.cancel()
        self.state = State.STOPPED
        await self._send(protocol.Stopped(reason=reason))
        await self._close(code, reason)

    async def fail(self) -> None:
        """A fault of ours: say so and close with 1011, if the socket still takes it."""
        self.state = State.ERROR
        with contextlib.suppress(SlowClient):
            await self._send(protocol.error("SYNTHESIS_ERROR", "internal error; the server's log says more", recoverable=False))
            await self._close(INTERNAL, "internal error")

    # Reading

    async def _receive_one(self) -> None:
        try:
            message = protocol.parse(await self._socket.receive())
        except protocol.InvalidMessage as error:
            await self._send(protocol.error("INVALID_MESSAGE", str(error)))
            return
        if message is None:
            return
        if isinstance(message, Cancel):
            await self._cancel(message)
        elif isinstance(message, Flush):
            await self._send(protocol.error("INVALID_MESSAGE", "flush: text in pieces is not supported yet", message.request_id))
        elif type(message) not in NEXT[self.state]:
            await self._send(
                protocol.error("INVALID_MESSAGE", f"{type(message).__name__.lower()} is not possible while {self.state.value}")
            )
        elif isinstance(message, Start):
            await self._start(message)
        elif isinstance(message, Speak):
            await self._enqueue(message)
        else:
            await self.leave(message.reason, OK)

    async def _start(self, message: Start) -> None:
        for name, value, allowed in (
            ("sampleRate", message.sample_rate, protocol.SAMPLE_RATES),
            ("encoding", message.encoding, protocol.ENCODINGS),
            ("transport", message.transport, protocol.TRANSPORTS),
        ):
            if value not in allowed:
                choices = ", ".join(map(str, allowed))
                await self._send(protocol.error("INVALID_MESSAGE", f"{name} {value!r} is not supported: use {choices}"))
                return
        language = protocol.language(message.language or self._language)
        if language is None:
            await self._send(_unknown_language(message.language))
            return
        self._language = language
        self._voice = await self._known_voice(message.voice)
        self.state = NEXT[self.state][Start]
        voice = self._voice or self._engine.default_voice
        await self._send(protocol.Started(sample_rate=SAMPLE_RATE, encoding="pcm16", voice=voice, language=language, transport="binary"))

    async def _known_voice(self, name: str | None, request_id: str | None = None) -> str | None:
        """The voice's id; None, for the default, if none is named or there is no such voice (then the client hears of it)."""
        if name is None or name in self._engine.voices:
            return name
        message = f"voice {name!r} is not here: {', '.join(self._engine.voices) or 'there is none'}; the default voice is used"
        await self._send(protocol.error("VOICE_NOT_FOUND", message, request_id))
        return None

    async def _enqueue(self, message: Speak) -> None:
        text = unicodedata.normalize("NFC", message.text).strip()
        refusal: protocol.Error | None = None
        if message.continue_:
            refusal = protocol.error("INVALID_MESSAGE", "continue: text in pieces is not supported yet; send it whole", message.request_id)
        elif self._engine.state == "loading":
            refusal = protocol.error("MODEL_LOADING", "the model is being loaded; try again in a few seconds", message.request_id)
        elif self._engine.state == "failed":
            refusal = protocol.error(
                "SYNTHESIS_ERROR", "the model could not be loaded; the server's log says why", message.request_id, recoverable=False
            )
        elif not 1 <= len(text) <= self._settings.max_text_chars:
            allowed = f"must be 1 to {self._settings.max_text_chars} characters after trimming"
            refusal = protocol.error("INVALID_TEXT", f"text of {len(text)} characters: {allowed}", message.request_id)
        elif len(self._unfinished) >= self._settings.max_waiting:
            refusal = protocol.error("RATE_LIMITED", f"{self._settings.max_waiting} utterances wait already", message.request_id)
        if refusal is not None:
            await self._send(refusal)
            return
        voice = await self._known_voice(message.voice, message.request_id) or self._voice or self._engine.default_voice
        waiting = Waiting(message, text, voice, self._language)
        self._unfinished.append(waiting)
        self._queue.put_nowait(waiting)
        self.state = NEXT[self.state][Speak]

    async def _cancel(self, message: Cancel) -> None:
        """Every cancelled utterance is told by one CANCELLED; a cancel that finds nothing gets one too."""
        dropped = [one for one in self._unfinished if message.request_id in (None, one.message.request_id)]
        for waiting in dropped:
            waiting.cancel()
            self._unfinished.remove(waiting)
        if dropped and not self._unfinished:
            self.state = NEXT[self.state][Cancel]
        for waiting in dropped:
            await self._send(protocol.error("CANCELLED", "cancelled by the client", waiting.message.request_id))
        if not dropped:
            await self._send(protocol.error("CANCELLED", "there was nothing to cancel", message.request_id))

    # Speaking

    async def _speak_all(self) -> None:
        while True:
            waiting = await self._queue.get()
            if waiting.wanted:
                await self._speak(waiting)

    async def _speak(self, waiting: Waiting) -> None:
        message = waiting.message
        draw = {name: value for name in ("temperature", "top_k", "top_p") if (value := getattr(message, name)) is not None}
        request = Request(text=waiting.text, voice=waiting.voice, language=waiting.language, seed=message.seed, draw=draw)
        utterance = waiting.utterance = self._engine.submit(request)
        try:
            last = await self._pass_on(waiting, utterance)
        finally:
            utterance.cancel()
        if waiting.wanted:
            self._unfinished.remove(waiting)
            if not self._unfinished:
                self.state = State.READY
            await self._send(last)

    async def _pass_on(self, waiting: Waiting, utterance: Utterance) -> protocol.Complete | protocol.Error:
        """Send the audio as it comes. Returns the message that ends the utterance."""
        request_id, samples, first = waiting.message.request_id, 0, None
        try:
            async with asyncio.timeout(self._settings.turn_timeout):
                await utterance.begin()
            while (pcm := await asyncio.wait_for(utterance.next(), self._settings.chunk_timeout)) is not None:
                if await self._send_audio(waiting, to_pcm16(pcm)):
                    samples += len(pcm)
                    first = perf_counter() if first is None else first
        except TimeoutError:  # not one of sending, see _sending
            return protocol.error("TIMEOUT", "the server is too busy; try again later", request_id)
        if isinstance(utterance.failure, Refused):
            return protocol.error("INVALID_TEXT", str(utterance.failure), request_id)
        if utterance.failure is not None:
            log.error("an utterance failed", exc_info=utterance.failure)
            return protocol.error("SYNTHESIS_ERROR", "failed to generate audio; the server's log says more", request_id)
        return protocol.Complete(
            duration_ms=_ms(perf_counter() - waiting.arrived),
            characters_processed=len(waiting.text),
            audio_length_ms=_ms(samples / SAMPLE_RATE),
            ttfa_ms=None if first is None else _ms(first - waiting.arrived),
            finish_reason=utterance.finish_reason or "cancelled",
            request_id=UNSET if request_id is None else request_id,
        )

    # Sending

    @contextlib.asynccontextmanager
    async def _sending(self) -> AsyncIterator[None]:
        async with self._outgoing:
            try:
                async with asyncio.timeout(self._settings.send_timeout):
                    yield
            except TimeoutError as error:
                raise SlowClient(f"the client read nothing for {self._settings.send_timeout} s") from error

    async def _send(self, message: protocol.ServerMessage) -> None:
        async with self._sending():
            await self._socket.send(protocol.encode(message))

    async def _send_audio(self, waiting: Waiting, frame: bytes) -> bool:
        """False if the utterance is no longer wanted: then nothing was sent."""
        async with self._sending():
            if waiting.wanted:
                await self._socket.send(frame)
            return waiting.wanted

    async def _close(self, code: int, reason: str) -> None:
        async with self._sending():
            await self._socket.close(code, reason)

    def _ready(self) -> protocol.Ready:
        capabilities = protocol.Capabilities(
            streaming=True,
            languages=protocol.LANGUAGES,
            encodings=protocol.ENCODINGS,
            sample_rates=protocol.SAMPLE_RATES,
            max_text_chars=self._settings.max_text_chars,
            voices=self._engine.voices,
        )
        limits = protocol.Limits(max_message_bytes=self._settings.max_message_bytes, max_waiting=self._settings.max_waiting)
        loaded = self._engine.default_voice if self._engine.state == "ready" else ""
        return protocol.Ready(session_id=str(uuid.uuid4()), voice_loaded=loaded, capabilities=capabilities, limits=limits)


Sitting = tuple[Session, "asyncio.Task[None]"]


async def handle(socket: Socket, engine: Engine, settings: Settings, sessions: set[Sitting]) -> None:
    """Run a session to its end, whichever end that is; a fault of ours ends in ``error`` and 1011, never in 1000."""
    session = Session(socket, engine, settings)
    task = asyncio.create_task(session.run())
    sitting = (session, task)
    sessions.add(sitting)
    try:
        await asyncio.wait({task})
    finally:  # if we are cancelled here, the client has vanished
        task.cancel()
        sessions.discard(sitting)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("session failed", exc_info=error)
        await session.fail()


async def drain(sessions: set[Sitting]) -> None:
    """The server goes down: tell every session and end it."""

    async def one(session: Session, task: "asyncio.Task[None]") -> None:
        with contextlib.suppress(SlowClient):
            await session.leave("server_shutdown", GOING_AWAY)
        task.cancel()

    await asyncio.gather(*(one(*sitting) for sitting in list(sessions)))


def _unknown_language(name: str | None) -> protocol.Error:
    return protocol.error("INVALID_TEXT", f"language {name!r} is not known: use one of {', '.join(protocol.LANGUAGES)}")


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
