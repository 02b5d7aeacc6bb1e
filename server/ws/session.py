"""One client on ``/api/v1/speak``: frames in -> messages and audio out. What may happen when is decided in ``server.ws.machine``.

Two tasks: this one reads, a Playback (server.ws.playback) speaks what waits. Both send through Outgoing, one message at a time and within a
limit; a frame of audio goes out only if its utterance is still live once the lock is held, so nothing follows a ``CANCELLED``.
"""

import asyncio
import contextlib
import logging
import uuid
from time import monotonic

import msgspec

from qwen3_jax.messages import shorten
from qwen3_jax.text.nfc import AROUND, SLICE
from server.admission import speech
from server.admission.speech import Denied
from server.admission.text import normal_form
from server.context import Context
from server.languages import LANGUAGES
from server.ops.connections import here
from server.ops.limits import Limited
from server.ops.logs import session_id
from server.voices.store import StoredVoice
from server.ws import protocol
from server.ws.client import Client, Ended, no_place
from server.ws.machine import Machine, Rejection
from server.ws.outgoing import Outgoing, SlowClient, Socket
from server.ws.playback import Configuration, Playback, Turn, told
from server.ws.protocol import SPEAK, Cancel, Close, Flush, Speak, Start

ANSWERS = ("CANCELLED", "SYNTHESIS_ERROR")  # errors that are no refusals: what was asked for, and faults of ours, which the log has
EXPLAINED = ("UNAUTHORIZED", "RATE_LIMITED", "MODEL_LOADING", "TIMEOUT", "GPU_OUT_OF_MEMORY")  # they say nothing of a client's text
START_SECONDS = 60.0  # from connecting to the first start or speak
VANISHED = 1006  # the close code of a connection that ended without one (RFC 6455)
log = logging.getLogger(__name__)


class ClientSession:
    """A connected client.

    Args:
        address: where it comes from.
        token: from the handshake, if there was one.
    """

    def __init__(self, socket: Socket, context: Context, address: str, token: str | None = None) -> None:
        settings = context.settings
        self.id = str(uuid.uuid4())
        self.machine = Machine(settings.max_waiting, settings.max_text_chars)
        self.contract_id: str | None = None
        self._socket, self._context, self._settings = socket, context, settings
        self._client, self._token = Client(context, address, self._displace), token
        self._reading: asyncio.Timeout | None = None
        self._displaced = False
        self._out = Outgoing(socket, context, self._note)
        self._configuration = Configuration()
        self._playback = Playback(self.machine, self._out, context, self.id)
        self._connected = self._active = monotonic()
        self._begun = False  # whether the client has said anything that counts

    async def run(self) -> None:
        """Until one side ends it. A cancelled run gives up what it speaks."""
        session_id.set(self.id)
        try:
            await self._client.admit(self._token)
            await self._out.send(self._ready())
            self.machine.connected()
            async with asyncio.TaskGroup() as tasks:
                speaking = tasks.create_task(self._playback.run())
                try:
                    while True:
                        await self._receive_one()
                except Ended as end:
                    await self._leave(end.last, end.code)
                finally:
                    self.machine.stop()
                    self._playback.wake()
                    self._playback.settle()
                    speaking.cancel()
        except Ended as end:  # before it began
            await self._leave(end.last, end.code)
        finally:
            self._client.leave()

    @property
    def known(self) -> bool:
        """Whether the client has said who it is, if it has to."""
        return self._client.principal is not None

    def told(self) -> None:
        """For the log: the session has closed. One whose client never said who it is has been refused, or has left before."""
        client = self._client
        if client.principal is not None:
            self._context.access.session_closed(
                {
                    "principal": shorten(client.principal.id),
                    "address": client.address,
                    "seconds": round(monotonic() - self._connected, 1),
                    "utterances": self._playback.utterances,
                    "code": self._out.close_code or here().close_code or VANISHED,
                }
            )

    async def drain(self, grace: float) -> None:
        """The server goes down: what is spoken may end within ``grace`` seconds, what waits may not; then goodbye."""
        waiting = [utterance for utterance in self.machine.live if not utterance.begun]
        for utterance in waiting:
            self.machine.ended(utterance, "cancelled")
        for utterance in waiting:
            await self._out.send(protocol.error("CANCELLED", "the server goes down", utterance.request_id))
        await self._playback.quiet(grace)
        self.machine.cancel()
        await self._leave(protocol.Stopped(reason="server_shutdown"), Close.GOING_AWAY)

    async def fail(self) -> None:
        """A fault of ours: say so and close with 1011, if the socket still takes it."""
        self.machine.fail()
        with contextlib.suppress(SlowClient):
            await self._out.send(protocol.error("SYNTHESIS_ERROR", "internal error; the server's log says more", recoverable=False))
            await self._out.close(Close.INTERNAL)

    async def _leave(self, last: protocol.ServerMessage, code: Close) -> None:
        self.machine.stop()
        await self._out.send(last, code)
        await self._out.close(code)

    def _note(self, error: protocol.Error, status: int | str) -> None:
        """One line of the log, and a count, for every refusal, of whom, of a message or of a text; an idle session's end is none."""
        client = self._client
        if error.code in ANSWERS or (status == Close.IDLE and client.principal is not None):
            return
        why = error.message if error.code in EXPLAINED else ""
        self._context.access.refused(
            route=SPEAK, status=status, reason=error.code, address=client.address, why=why, principal=client.principal_id
        )

    def _displace(self) -> None:
        """Somebody else has got the place."""
        self._displaced = True
        if self._reading is not None:
            self._reading.reschedule(asyncio.get_running_loop().time())

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
                await self._speak(message)
            elif isinstance(message, Flush):
                self._playback.more(*self.machine.flush(message))
            elif isinstance(message, Cancel):
                await self._cancel(message)
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

    async def _next_frame(self) -> str | bytes | None:
        """The next frame. Raises Ended if a deadline passes first."""
        while True:
            wait = max(0.0, self._deadline()[0] - monotonic())
            try:
                async with asyncio.timeout(0 if self._displaced else wait) as self._reading:
                    return await self._socket.receive()
            except TimeoutError:
                if self._displaced and self._client.principal is None:
                    raise no_place() from None
                self._displaced = False  # it came too late
                deadline, why = self._deadline()
                if monotonic() >= deadline:
                    raise Ended(Close.IDLE, protocol.error("TIMEOUT", why, recoverable=False)) from None
            finally:
                self._reading = None

    def _deadline(self) -> tuple[float, str]:
        chosen = self._settings
        if self._client.principal is None:
            return self._connected + chosen.auth_timeout, f"no valid token within {chosen.auth_timeout:g} s"
        if not self._begun:
            return self._connected + START_SECONDS, f"neither start nor speak within {START_SECONDS:g} s"
        heard = monotonic() if self.machine.live else max(self._active, self._playback.last)
        return heard + chosen.idle_timeout, f"nothing to do for {chosen.idle_timeout:g} s"

    async def _start(self, message: Start) -> None:
        for name, value, allowed in (
            ("sampleRate", message.sample_rate, protocol.SAMPLE_RATES),
            ("encoding", message.encoding, protocol.ENCODINGS),
            ("transport", message.transport, protocol.TRANSPORTS),
        ):
            if value not in allowed:
                raise Rejection("INVALID_MESSAGE", f"{name} {shorten(repr(value))} is not supported: use {', '.join(map(str, allowed))}")
        language = speech.language(self._context, message.language or self._configuration.language or None)
        known = self._client.principal
        if self._context.auth.required and (message.auth_token is not None or known is None or await self._client.lapsed() is not None):
            await self._client.authenticate(message.auth_token)
        self.machine.start()
        self._begun = True
        self.contract_id = message.contract_id
        named = None if message.voice is None else await self._known_voice(message.voice)
        voice = named.id if isinstance(named, StoredVoice) else named
        self._configuration = Configuration(
            sample_rate=message.sample_rate, encoding=message.encoding, transport=message.transport, language=language, voice=voice
        )
        await self._out.send(
            protocol.Started(
                sample_rate=message.sample_rate,
                encoding=message.encoding,
                transport=message.transport,
                language=language,
                voice=voice or self._default_voice,
            )
        )

    async def _speak(self, message: Speak) -> None:
        request_id, principal = message.request_id, self._client.principal
        if principal is None:
            raise Ended(
                Close.UNAUTHORIZED, protocol.error("UNAUTHORIZED", "send start with authToken first", request_id, recoverable=False)
            )
        if (why := await self._client.lapsed()) is not None:
            raise Rejection("UNAUTHORIZED", f"{why}: send start with a fresh authToken", request_id)
        self._begun = True
        language = speech.language(self._context, message.language or self._configuration.language or None)
        speech.check_engine(self._context, principal)
        if len(message.text) > SLICE:
            message = await self._normalised(message)
        self._context.limits.count(principal, "characters", len(message.text.strip(AROUND)))
        utterance, settled, new = self.machine.speak(message)
        if not new:
            self._playback.more(utterance, settled)
            return
        try:
            self._context.limits.count(principal, "utterances")
        except Limited:
            self.machine.ended(utterance)
            raise
        voice = await self._voice(message.voice, request_id)
        if voice is None:
            self.machine.ended(utterance)
            raise Rejection("VOICE_NOT_FOUND", "there is no voice here: an operator has to install one", request_id)
        if utterance.live:
            configuration = msgspec.structs.replace(self._configuration, language=language)
            self._playback.add(Turn(utterance, settled, voice, configuration, principal))

    async def _normalised(self, message: Speak) -> Speak:
        """With a long text's normal form, so that the machine, which lets nobody in between, has next to nothing to do."""
        try:
            text = await normal_form(message.text, self._settings.max_text_chars)
        except ValueError as error:
            raise Denied("text", str(error)) from error
        return msgspec.structs.replace(message, text=text)

    async def _cancel(self, message: Cancel) -> None:
        """Every cancelled utterance is told by one CANCELLED; a cancel that finds nothing gets one too."""
        dropped = self.machine.cancel(message)
        self._playback.wake()
        self._context.metrics.cancellations.inc(len(dropped))
        for utterance in dropped:
            await self._out.send(protocol.error("CANCELLED", "cancelled by the client", utterance.request_id))
        if not dropped:
            await self._out.send(protocol.error("CANCELLED", "there was nothing to cancel", message.request_id))

    # What the client asks for, as this server has it

    async def _voice(self, name: str | None, request_id: str | None) -> StoredVoice | str | None:
        """The voice of that name, else the session's, else the default one; the client hears of those that are not there."""
        for wanted in (name, self._configuration.voice):
            if wanted is not None and (found := await self._known_voice(wanted, request_id)) is not None:
                return found
        return await self._context.find_voice(self._default_voice, self._client.principal_id)

    async def _known_voice(self, name: str, request_id: str | None = None) -> StoredVoice | str | None:
        """The voice of that name; None if there is none, and then the client hears of it."""
        try:
            return await speech.voice(self._context, name, self._client.principal_id)
        except Denied as error:
            message = f"{error}; the default voice is used"
            await self._out.send(protocol.error("VOICE_NOT_FOUND", message, request_id, final=False))
            return None

    @property
    def _default_voice(self) -> str:
        return self._context.default_voice(self._client.principal_id)

    def _ready(self) -> protocol.Ready:
        engine, chosen = self._context.engine, self._settings
        return protocol.Ready(
            session_id=self.id,
            voice_loaded=self._default_voice if engine.is_ready else "",
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


async def handle(socket: Socket, context: Context, address: str, token: str | None = None) -> None:
    """Run a session to its end, whichever end that is; a fault of ours ends in ``error`` and 1011, never in 1000."""
    session = ClientSession(socket, context, address, token)
    task = asyncio.create_task(session.run())
    sitting = (session, task)
    context.sessions.add(sitting)
    session_id.set(session.id)
    try:
        await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()) is not None:
            if _slow(error):
                log.warning("session ended: %s", _first(error))
            else:
                log.error("session failed", exc_info=error)
                await session.fail()
    finally:  # if we are cancelled here, the client has vanished
        task.cancel()
        context.sessions.discard(sitting)
        session.told()


def _id_of(message: protocol.ClientMessage | None) -> str | None:
    return getattr(message, "request_id", None)


def _first(error: BaseException) -> BaseException:
    """What happened, out of the groups that tasks put it into."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _slow(error: BaseException) -> bool:
    """Whether the client, and nothing else, was the fault."""
    if isinstance(error, BaseExceptionGroup):
        return all(_slow(one) for one in error.exceptions)
    return isinstance(error, SlowClient)
