"""One client on ``/api/v1/speak``: frames in -> messages and audio out. What may happen when is decided in ``server.ws.machine``.

Two tasks: this one reads, a Playback (server.ws.playback) speaks what waits. Both send through Outgoing, one message at a time and within a
limit; a frame of audio goes out only if its utterance is still live once the lock is held, so nothing follows a ``CANCELLED``.
"""

import asyncio
import logging
from time import monotonic

import msgspec

from qwen3_jax.messages import shorten
from qwen3_jax.text.nfc import AROUND, SLICE
from server.admission import speech
from server.admission.speech import Denied
from server.admission.text import normal_form
from server.context import Context
from server.languages import LANGUAGES
from server.ops.limits import Limited
from server.voices.store import StoredVoice
from server.ws import protocol
from server.ws.client import Ended
from server.ws.connected import ConnectedSession, serve
from server.ws.machine import Machine, Rejection
from server.ws.outgoing import Socket
from server.ws.playback import Configuration, Playback, Turn, told
from server.ws.protocol import SPEAK, Cancel, Close, Flush, Speak, Start

log = logging.getLogger(__name__)


class ClientSession(ConnectedSession):
    """A connected client that has texts spoken."""

    ROUTE, BEGINS, FAULT = SPEAK, "neither start nor speak", "SYNTHESIS_ERROR"

    def __init__(self, socket: Socket, context: Context, address: str, token: str | None = None) -> None:
        super().__init__(socket, context, address, token)
        self.machine = Machine(self._settings.max_waiting, self._settings.max_text_chars)
        self.contract_id: str | None = None
        self._configuration = Configuration()
        self._playback = Playback(self.machine, self._out, context, self.id)

    async def _talk(self) -> None:
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

    def _busy_until(self) -> float:
        return monotonic() if self.machine.live else self._playback.last

    def _ended(self) -> None:
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
        await self._playback.quiet(grace)
        self.machine.cancel()
        await self._leave(protocol.Stopped(reason="server_shutdown"), Close.GOING_AWAY)

    async def fail(self) -> None:
        """A fault of ours: say so and close with 1011, if the socket still takes it."""
        self.machine.fail()
        await super().fail()

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
    """Run a session to its end, see ``server.ws.connected.serve``."""
    await serve(ClientSession(socket, context, address, token), context)


def _id_of(message: protocol.ClientMessage | None) -> str | None:
    return getattr(message, "request_id", None)
