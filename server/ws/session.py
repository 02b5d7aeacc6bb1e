"""One client on ``/api/v1/speak``: frames in -> messages and audio out. What may happen when is decided in ``server.ws.machine``.

Two tasks: this one reads, a Playback (server.ws.playback) speaks what waits. Both send through Outgoing, one message at a time and within a
limit; a frame of audio goes out only if its utterance is still live once the lock is held, so nothing follows a ``CANCELLED``.
"""

import asyncio
import contextlib
import logging
from time import monotonic
from typing import cast

import msgspec

from qwen3_jax.messages import shorten
from server.admission import speech
from server.admission.speech import Denied
from server.context import Context
from server.contracts.contract import Interruption
from server.languages import LANGUAGES
from server.ops.limits import Limited
from server.voices.store import StoredVoice
from server.ws import protocol
from server.ws.client import Client, Ended
from server.ws.connected import ConnectedSession
from server.ws.heard import BRIEF_SECONDS, KEPT_SECONDS
from server.ws.machine import Late, Machine, Rejection, SessionState
from server.ws.mouth import SessionMouth
from server.ws.outgoing import Socket
from server.ws.playback import Playback
from server.ws.protocol import SPEAK, Cancel, Close, Flush, Played, Resume, Speak, Start
from server.ws.speaking import Speaking
from server.ws.turn import Configuration, told

LOST_SECONDS = 30.0  # in which a session that lost its socket may come back
log = logging.getLogger(__name__)


class Seat:
    """A socket that a session goes on with, until it is lost or another one is there."""

    def __init__(self, socket: Socket) -> None:
        self.socket = socket
        self.left = asyncio.Event()


class Moved(Exception):  # not an error
    """The client goes on in a session that it began on another socket."""

    def __init__(self, session: "ClientSession", message: Resume) -> None:
        super().__init__(session.id)
        self.session, self.message = session, message


class ClientSession(ConnectedSession):
    """A connected client that has texts spoken."""

    ROUTE, BEGINS, FAULT = SPEAK, "neither start nor speak", "SYNTHESIS_ERROR"

    def __init__(self, socket: Socket, context: Context, address: str, token: str | None = None) -> None:
        super().__init__(socket, context, address, token)
        self.machine = Machine(self._settings.max_waiting, self._settings.max_text_chars)
        self.seat: Seat | None = Seat(socket)  # None: the socket is lost
        self.life: asyncio.Task[None] | None = None
        self.successor: Moved | None = None  # where this session's socket goes on
        self._out.stuck = self._stuck
        self._playback = Playback(self.machine, self._out, context)
        self._speaking = Speaking(self.machine, self._playback, self._out, self._client, context)
        self._tasks = asyncio.TaskGroup()
        self._mouth = SessionMouth(
            self.machine, self._playback, self._out, context.metrics, self._speaking.answer, lambda work: self._tasks.create_task(work)
        )
        self._lost_at = 0.0
        self._reports = False  # whether the client says what it has played

    async def _talk(self) -> None:
        await self._out.send(self._ready())
        self.machine.connected()
        async with self._tasks as tasks:
            beside = [tasks.create_task(self._playback.run()), tasks.create_task(self._out.run())]
            try:
                while True:
                    await self._receive_one()
            except Moved as moved:
                self.successor = moved
            except Ended as end:
                await self._leave(end.last, end.code)
            finally:
                self._ended()
                self._playback.wake()
                self._playback.settle()
                for task in beside:
                    task.cancel()

    def _busy_until(self) -> float:
        return monotonic() if self.machine.live or self._mouth.attended else self._playback.last

    def _ended(self) -> None:
        self._mouth.close()
        self.machine.stop()

    def _counts(self) -> dict[str, object]:
        return {"utterances": self._playback.utterances}

    async def drain(self, grace: float) -> None:
        """The server goes down: what is spoken may end within ``grace`` seconds, what waits may not; then goodbye."""
        waiting = [utterance for utterance in self.machine.live if not utterance.begun]
        for utterance in waiting:
            self.machine.ended(utterance, "cancelled")
        for utterance in waiting:
            await self._out.send(protocol.error("CANCELLED", "the server goes down", utterance.request_id))
        await self._playback.quiet(0.0 if self.seat is None else grace)
        cut = self.machine.cancel()
        self._playback.wake()
        for utterance in cut:
            await self._out.send(protocol.error("CANCELLED", "the server goes down", utterance.request_id))
        await self._leave(protocol.Stopped(reason="server_shutdown"), Close.GOING_AWAY)

    async def fail(self) -> None:
        """A fault of ours: say so and close with 1011, if the socket still takes it."""
        self.machine.fail()
        await super().fail()

    # A socket that is lost, and another one

    def lose(self, seat: "Seat") -> bool:
        """That socket has gone. Returns whether the session goes on without one, for LOST_SECONDS."""
        if self.seat is not seat:
            return True
        if not self._may_return or self._context.draining.is_set():
            return False
        self.seat, self._lost_at = None, monotonic()
        self._out.detach()
        self._playback.release.lose()
        self._look_again()
        seat.left.set()
        return True

    @property
    def _may_return(self) -> bool:
        """Whether the client knows of contracts, or says what it has played, and the session has not ended."""
        ended = self.machine.state in (SessionState.CONNECTING, SessionState.STOPPED, SessionState.ERROR)
        return not ended and (self._reports or self._mouth.contract is not None)

    def resumable_by(self, client: Client) -> bool:
        """Whether that client may go on here."""
        return self._may_return and client is not self._client and client.principal_id == self._client.principal_id is not None

    def sit(self, seat: "Seat", message: Resume) -> None:
        """Go on with that socket."""
        if self.seat is not None:
            self.seat.left.set()
        self.seat, self._active = seat, monotonic()
        played = None if message.played_ms is None else message.played_ms / 1000
        self._out.attach(seat.socket, self._started())
        self._playback.release.again(message.request_id, played)
        self._mouth.again()
        self._context.metrics.resumes.inc()
        self._look_again()

    def _stuck(self) -> bool:
        return self.seat is None or self.lose(self.seat)

    async def _resume(self, message: Resume) -> None:
        """Raises Moved where the session is there, the principal's, and may go on."""
        await self._identify(message.auth_token)
        if self._begun:
            raise Rejection("INVALID_MESSAGE", "resume is possible only as the first message of a socket", message.request_id)
        for session, _ in self._context.sessions:
            if isinstance(session, ClientSession) and session.id == message.session_id and session.resumable_by(self._client):
                raise Moved(session, message)
        raise Rejection("INVALID_MESSAGE", "resume: there is no session of yours with that sessionId: send start", message.request_id)

    # Reading

    async def _receive_one(self) -> None:
        try:
            message = protocol.parse(await self._next_frame())
        except protocol.InvalidMessage as error:
            await self._out.send(
                protocol.error("INVALID_MESSAGE", str(error), error.request_id, final=not self.machine.speaks(error.request_id))
            )
            return
        self._active = monotonic()
        try:
            if isinstance(message, Start):
                await self._start(message)
            elif isinstance(message, Speak):
                known = self._client.principal
                self._begun = self._begun or (known is not None and await self._client.lapsed() is None)
                await self._speaking.speak(message)
            elif isinstance(message, Flush):
                with contextlib.suppress(Late):
                    self._playback.more(*self.machine.flush(message))
            elif isinstance(message, Cancel):
                await self._cancel(message)
            elif isinstance(message, Played):
                self._played(message)
            elif isinstance(message, Resume):
                await self._resume(message)
            elif message is None:
                log.debug("a message of a type that nobody knows is ignored")
            else:
                raise Ended(Close.NORMAL, protocol.Stopped(reason=message.reason))
        except Rejection as error:
            self._playback.wake()  # an open text that turned out empty has ended
            await self._refuse(message, protocol.error(error.code, str(error), error.request_id, retry_after_ms=error.retry_after_ms))
        except Limited as error:
            await self._refuse(message, protocol.error("RATE_LIMITED", str(error), _id_of(message), retry_after_ms=error.retry_after_ms))
        except Denied as error:
            last = told(error, _id_of(message))
            if error.reason == "failed":  # it will never speak
                raise Ended(Close.INTERNAL, msgspec.structs.replace(last, recoverable=False)) from error
            await self._refuse(message, last)

    async def _refuse(self, message: protocol.ClientMessage | None, last: protocol.Error) -> None:
        final = not isinstance(message, Start) and not self.machine.speaks(last.request_id or None)
        await self._out.send(msgspec.structs.replace(last, final=final))

    async def _receive(self) -> str | bytes | None:
        while self.seat is None:
            await asyncio.Event().wait()  # until ``_look_again``
        return await self.seat.socket.receive()

    def _deadline(self) -> tuple[float, str]:
        if self.seat is None:
            return self._lost_at + LOST_SECONDS, f"the socket was lost for {LOST_SECONDS:g} s"
        return super()._deadline()

    async def _start(self, message: Start) -> None:
        for name, value, allowed in (
            ("sampleRate", message.sample_rate, protocol.SAMPLE_RATES),
            ("encoding", message.encoding, protocol.ENCODINGS),
            ("transport", message.transport, protocol.TRANSPORTS),
            ("interruption", message.interruption, protocol.INTERRUPTIONS),
        ):
            if value not in allowed:
                raise Rejection("INVALID_MESSAGE", f"{name} {shorten(repr(value))} is not supported: use {', '.join(map(str, allowed))}")
        language = speech.language(self._context, message.language or self._speaking.configuration.language or None)
        await self._identify(message.auth_token)
        self.machine.start()
        self._begun = True
        named = None if message.voice is None else await self._speaking.known_voice(message.voice)
        voice = named.id if isinstance(named, StoredVoice) else named
        self._speaking.configuration = Configuration(
            sample_rate=message.sample_rate, encoding=message.encoding, transport=message.transport, language=language, voice=voice
        )
        principal, contract = self._client.principal, None
        if message.contract_id is not None and principal is not None:
            contract = self._context.contracts.of(principal.id, message.contract_id)
        self._speaking.timed, self._speaking.word_times = contract is not None, message.word_times
        self._playback.release.kept = KEPT_SECONDS if self._reports or contract is not None else BRIEF_SECONDS
        self._mouth.join(contract, cast(Interruption, message.interruption))
        await self._out.send(self._started())

    def _started(self) -> protocol.Started:
        chosen = self._speaking.configuration
        return protocol.Started(
            sample_rate=chosen.sample_rate,
            encoding=chosen.encoding,
            transport=chosen.transport,
            language=chosen.language,
            voice=chosen.voice or self._speaking.default_voice,
        )

    def _played(self, message: Played) -> None:
        """Reports of an utterance that nobody knows, or knows any more, are late, and mean nothing."""
        self._reports, self._playback.release.kept = True, KEPT_SECONDS
        self._playback.release.report(message.request_id, message.ms / 1000)

    async def _cancel(self, message: Cancel) -> None:
        """Every cancelled utterance is told by one CANCELLED; a cancel that finds nothing gets one too."""
        dropped = self.machine.cancel(message)
        self._playback.wake()
        self._context.metrics.cancellations.inc(len(dropped))
        for utterance in dropped:
            await self._out.send(protocol.error("CANCELLED", "cancelled by the client", utterance.request_id))
        if not dropped:
            await self._out.send(protocol.error("CANCELLED", "there was nothing to cancel", message.request_id))

    def _ready(self) -> protocol.Ready:
        engine, chosen = self._context.engine, self._settings
        return protocol.Ready(
            session_id=self.id,
            voice_loaded=self._speaking.default_voice if engine.is_ready else "",
            capabilities=protocol.Capabilities(
                streaming=engine.streaming,
                languages=engine.languages or LANGUAGES,
                encodings=protocol.ENCODINGS,
                sample_rates=protocol.SAMPLE_RATES,
                max_text_chars=chosen.max_text_chars,
                voices=self._context.voices(self._client.principal_id),
            ),
            limits=protocol.SessionLimits(
                max_message_bytes=chosen.max_message_bytes,
                max_waiting=chosen.max_waiting,
                idle_timeout_ms=round(chosen.idle_timeout * 1000),
            ),
        )


def _id_of(message: protocol.ClientMessage | None) -> str | None:
    return getattr(message, "request_id", None)
