"""One client on ``/api/v1/listen``: audio in -> when somebody speaks, what is said, and when a turn is over.

This task reads and looks for speech; a second one sends the finals, in the order of their turns; partials and judgements of a pause are
tasks of their own. All recognition is in another process (server.listen.process).
"""

import asyncio
import base64
import binascii
import logging
from collections.abc import Coroutine
from time import monotonic

import numpy as np
from msgspec import UNSET

from qwen3_jax.messages import shorten
from qwen3_jax.runtime.extras import MissingExtra
from server.context import Context, TurnTaker
from server.contracts.contract import Contract
from server.languages import AUTO, language
from server.listen import silero
from server.listen.audio_in import SAMPLE_RATES, AudioIn
from server.listen.base import HeardSpeech, VoiceActivity
from server.listen.heard_turn import HeardTurn, TurnDropped, words_of
from server.listen.process import RecogniserBehind, RecogniserGone
from server.listen.smart_turn import ABSENT
from server.listen.turns import Detection, TurnEvent, Turns
from server.ws import listen_protocol, protocol
from server.ws.client import Ended
from server.ws.connected import ConnectedSession, serve
from server.ws.listen_protocol import LISTEN, Audio, Clear, Commit, ListenStart
from server.ws.outgoing import Socket
from server.ws.protocol import Close, InvalidMessage

BREATH = 8  # windows, after which the event loop goes round
MOST_PENDING = 64  # turns that are over and whose text is not known yet; then the client is not read
log = logging.getLogger(__name__)


class ListenSession(ConnectedSession):
    """A connected client that is heard."""

    ROUTE, BEGINS, FAULT = LISTEN, "no start", "RECOGNITION_ERROR"

    def __init__(self, socket: Socket, context: Context, address: str, token: str | None = None) -> None:
        super().__init__(socket, context, address, token)
        self._ears, self._metrics = context.ears, context.metrics
        self._voice: VoiceActivity | None = None  # None until ``start``
        self._audio, self._language, self._respond = AudioIn(), "", False
        self._turns = Turns(Detection())
        self._turn: HeardTurn | None = None  # that is open
        self._over: asyncio.Queue[HeardTurn] = asyncio.Queue(MOST_PENDING)
        self._group = asyncio.TaskGroup()
        self._pending: set[HeardTurn] = set()  # those whose final is still to be sent
        self._quiet = asyncio.Event()  # there is none
        self._quiet.set()
        self._contract: Contract | None = None
        self._answers: TurnTaker | None = None
        self._predicted = False  # whether the client was told that the turn may be over
        self._last = self._connected
        self._heard = 0  # turns
        self._tasks = set[asyncio.Task[None]]()  # beside this one

    async def _talk(self) -> None:
        try:
            self._ears.check()
        except MissingExtra as error:
            raise Ended(Close.INTERNAL, protocol.error("RECOGNITION_ERROR", str(error), recoverable=False)) from error
        await self._out.send(self._ready())
        try:
            async with asyncio.TaskGroup() as self._group:
                self._spawn(self._send_finals())
                try:
                    while True:
                        await self._receive_one()
                except Ended as end:
                    if end.code is Close.NORMAL:
                        await self._finals_told(self._settings.grace)
                    await self._leave(end.last, end.code)
                finally:
                    self._ended()
                    for task in self._tasks:
                        task.cancel()
        finally:
            await self._leave_contract()

    def _busy_until(self) -> float:
        return monotonic() if self._pending else self._last

    def _ended(self) -> None:
        if self._turn is not None:
            self._turn.cancel()
        self._turn = None
        for pending in self._pending:
            pending.cancel()

    def _counts(self) -> dict[str, object]:
        return {"turns": self._heard, "audio_seconds": round(self._audio.seconds, 1)}

    async def drain(self, grace: float) -> None:
        """The server goes down: turns that are over may get their text within ``grace`` seconds; then goodbye."""
        await self._finals_told(grace)
        await self._leave(protocol.Stopped(reason="server_shutdown"), Close.GOING_AWAY)

    async def _finals_told(self, limit: float) -> None:
        try:
            async with asyncio.timeout(limit):
                await self._quiet.wait()
        except TimeoutError:
            log.warning("%d turns have no text after %g s", len(self._pending), limit)

    # Reading

    async def _receive_one(self) -> None:
        frame = await self._next_frame()
        self._active = monotonic()
        try:
            if isinstance(frame, str):
                await self._take(listen_protocol.parse(frame))
            else:
                await self._hear(frame or b"")
        except InvalidMessage as error:
            await self._out.send(protocol.error("INVALID_MESSAGE", str(error), final=False))
        except RecogniserGone as error:
            await self._out.send(protocol.error("RECOGNITION_ERROR", str(error), final=False))

    async def _take(self, message: listen_protocol.ListenClientMessage | None) -> None:
        if isinstance(message, ListenStart):
            await self._start(message)
        elif isinstance(message, Audio):
            try:
                data = base64.b64decode(message.data, validate=True)
            except (binascii.Error, ValueError) as error:
                raise InvalidMessage(f"data must be base64 of {self._audio.encoding} samples: {error}") from error
            await self._hear(data)
        elif isinstance(message, Commit):
            await self._commit()
        elif isinstance(message, Clear):
            self._forget()
        elif message is None:
            log.debug("a message of a type that nobody knows is ignored")
        else:
            raise Ended(Close.NORMAL, protocol.Stopped(reason=message.reason))

    async def _start(self, message: ListenStart) -> None:
        for name, value, allowed in (
            ("sampleRate", message.sample_rate, SAMPLE_RATES),
            ("encoding", message.encoding, listen_protocol.ENCODINGS),
        ):
            if value not in allowed:
                raise InvalidMessage(f"{name} {shorten(repr(value))} is not supported: use {', '.join(map(str, allowed))}")
        detection = listen_protocol.detection(message.turn_detection, self._ears.ends_of_turn, ABSENT)
        if message.respond and message.contract_id is None:
            raise InvalidMessage("respond needs a contractId: the answer is spoken in a Speak session that was started with the same one")
        if message.respond and self._context.converse is None:
            raise InvalidMessage("respond: this server has no responder; answer by speak, in a Speak session of the same contractId")
        known = self._client.principal
        if self._context.auth.required and (message.auth_token is not None or known is None or known.expired):
            await self._client.authenticate(message.auth_token)
        self._begun = True
        hello = await self._ears.process.ready()
        self._language = _language(message.language, hello.languages)
        self._forget()
        await self._leave_contract()
        self._voice = await self._ears.voice_activity()
        self._audio, self._turns = AudioIn(message.sample_rate, message.encoding), Turns(detection)
        self._respond = message.respond
        if message.contract_id is not None:
            self._join(message.contract_id)
        await self._out.send(
            listen_protocol.ListenStarted(
                sample_rate=message.sample_rate,
                encoding=message.encoding,
                language=self._language,
                turn_detection=detection,
                respond=self._answers is not None,
                contract_id=UNSET if message.contract_id is None else message.contract_id,
            )
        )

    async def _hear(self, data: bytes) -> None:
        principal = self._client.principal
        if principal is None or principal.expired:
            raise Ended(Close.UNAUTHORIZED, protocol.error("UNAUTHORIZED", "send start with a valid authToken first", recoverable=False))
        if self._voice is None:
            await self._start(ListenStart())
        assert self._voice is not None
        before = self._audio.seconds
        try:
            windows = self._audio.feed(data)
        except ValueError as error:
            raise InvalidMessage(str(error)) from error
        self._metrics.heard.inc(self._audio.seconds - before)
        for number, window in enumerate(windows, 1):
            playing = self._contract is not None and self._contract.playing
            for event in self._turns.feed(window, self._voice.feed(window), playing=playing):
                await self._happened(event)
            if number % BREATH == 0:
                await asyncio.sleep(0)
        self._go_on()

    def _go_on(self) -> None:
        """Tell the contract how much has been said, and begin the next partial."""
        turn, segment = self._turn, self._turns.segment
        if turn is None:
            return
        if self._turns.silent_ms == 0:
            turn.last_voice = monotonic()
        if self._contract is not None:
            self._contract.speech_goes_on(self._turns.voiced_ms, words_of(turn.text))
        if segment is not None and self._turns.silent_ms == 0 and turn.due():
            self._spawn(self._partial(turn))

    # Turns

    async def _happened(self, event: TurnEvent) -> None:
        turns, turn = self._turns, self._turn
        if event is TurnEvent.BEGAN:
            self._turn = HeardTurn(self._ears.process, self.id, self._language)
            if self._contract is not None:
                self._contract.speech_started()
            await self._out.send(listen_protocol.SpeechStarted(audio_ms=turns.begin_ms))
            return
        if turn is None:  # a judgement has ended it meanwhile
            return
        if event is TurnEvent.PAUSED:
            if turns.segment is not None and (ahead := turn.look_ahead(turns.segment)) is not None:
                self._spawn(self._look_ahead(turn, ahead))
            if turns.detection.type == "semantic":
                self._spawn(self._judge(turn))
        elif event is TurnEvent.RESUMED:
            if self._predicted:
                self._predicted = False
                await self._out.send(listen_protocol.TurnResumed(audio_ms=turns.position_ms))
        elif event is TurnEvent.SETTLED:
            if (segment := turns.take()) is not None:
                turn.settle(segment)
        else:
            await self._finish(turn, spoken=event is TurnEvent.OVER)

    async def _finish(self, turn: HeardTurn, *, spoken: bool) -> None:
        """A turn is over."""
        turns = self._turns
        segment = turns.take()
        turn.begin_ms, turn.end_ms = turns.begin_ms, turns.end_ms
        turns.clear()
        self._turn, self._predicted = None, False
        if self._contract is not None:
            if not spoken:
                self._contract.false_alarm()
            self._contract.speech_ended()
        if not spoken and not turn.by_hand:
            turn.cancel()
            self._metrics.turns.labels("empty").inc()
            return
        if segment is not None:
            turn.settle(segment)
        self._pending.add(turn)
        self._quiet.clear()
        await self._over.put(turn)

    async def _commit(self) -> None:
        turn = self._turn
        if turn is None:  # nobody speaks, but the client waits for an answer
            turn = HeardTurn(self._ears.process, self.id, self._language)
            self._turns.begin_ms = self._turns.end_ms = self._turns.position_ms
        turn.by_hand = True
        turn.last_voice = monotonic()
        self._turns.finish()
        await self._finish(turn, spoken=self._turn is not None)

    def _forget(self) -> None:
        """Nothing that was heard so far is told."""
        if self._turn is not None:
            self._turn.cancel()
            if self._contract is not None:
                self._contract.false_alarm()
                self._contract.speech_ended()
        self._turn, self._predicted = None, False
        self._turns.clear()
        for turn in self._pending:
            turn.cancel()

    # What is sent beside

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _partial(self, turn: HeardTurn) -> None:
        if (segment := self._turns.segment) is not None:
            before, at = turn.text, self._turns.position_ms
            await turn.partial(segment)
            await self._tell_partial(turn, before, at)

    async def _look_ahead(self, turn: HeardTurn, ahead: "asyncio.Task[HeardSpeech]") -> None:
        """The text at a pause is a partial, too, if speech goes on or the turn is not over yet."""
        before, at = turn.text, self._turns.position_ms
        await asyncio.wait({ahead})
        if turn is self._turn and not ahead.cancelled() and ahead.exception() is None:
            turn.take(ahead)
            await self._tell_partial(turn, before, at)

    async def _tell_partial(self, turn: HeardTurn, before: str, at: int) -> None:
        """If it says anything new, and the turn is open still."""
        if turn is self._turn and turn.text and turn.text != before:
            if self._contract is not None:
                self._contract.speech_goes_on(self._turns.voiced_ms, words_of(turn.text))
            await self._out.send(listen_protocol.Partial(text=turn.text, audio_ms=at))

    async def _judge(self, turn: HeardTurn) -> None:
        """Ask the model whether the turn is over; without an answer, silence ends it."""
        if (segment := self._turns.segment) is None:
            return
        end, at = segment.end, self._turns.position_ms
        try:
            probability = await self._ears.process.turn_over(np.concatenate(segment.windows), self.id)
        except RecogniserGone as error:
            log.warning("a pause was not judged: %s", error)
            return
        if turn is not self._turn or self._turns.segment is None or self._turns.segment.end != end:
            return  # speech goes on
        self._predicted = True
        event = self._turns.decide(probability)
        await self._out.send(listen_protocol.TurnPredicted(audio_ms=at, probability=round(probability, 3)))
        if event is not None and turn is self._turn:
            await self._finish(turn, spoken=event is TurnEvent.OVER)

    async def _send_finals(self) -> None:
        while True:
            turn = await self._over.get()
            try:
                await self._tell_final(turn, await turn.result())
            except TurnDropped:
                pass
            except RecogniserBehind as error:
                await self._lost(protocol.error("OVERLOADED", str(error)))
            except RecogniserGone as error:
                await self._lost(protocol.error("RECOGNITION_ERROR", str(error)))
            self._last = monotonic()
            self._pending.discard(turn)
            if not self._pending:
                self._quiet.set()

    async def _lost(self, error: protocol.Error) -> None:
        """A turn that has no text."""
        self._metrics.turns.labels("lost").inc()
        self._no_words()
        await self._out.send(error)

    async def _tell_final(self, turn: HeardTurn, heard: HeardSpeech) -> None:
        words = words_of(heard.text)
        answering = self._contract is not None and self._contract.playing
        if words and self._contract is not None:
            self._contract.speech_goes_on(0, words)
        elif not words:
            self._no_words()
        self._metrics.turns.labels("final" if heard.text else "empty").inc()
        if not heard.text and not turn.by_hand:
            return
        self._heard += 1
        self._metrics.to_final.observe(monotonic() - turn.last_voice)
        await self._out.send(
            listen_protocol.Final(
                text=heard.text,
                start_ms=turn.begin_ms,
                end_ms=turn.end_ms,
                language=heard.language,
                words=UNSET if heard.words is None else heard.words,
            )
        )
        if self._answers is not None and heard.text and (words or not answering):  # "mm-hm" to an answer wants no other one
            self._answers.turn(heard.text)

    def _no_words(self) -> None:
        """The turn was no speech, as far as the contract goes, unless somebody speaks again."""
        if self._contract is not None and self._turn is None:
            self._contract.false_alarm()

    # The contract

    def _join(self, contract_id: str) -> None:
        principal = self._client.principal
        assert principal is not None
        self._contract = self._context.contracts.of(principal.id, contract_id)
        self._contract.attend(self)
        if self._respond and self._context.converse is not None:
            self._answers = self._context.converse(self._contract, self._unanswered)

    async def _leave_contract(self) -> None:
        contract, answers, self._contract, self._answers = self._contract, self._answers, None, None
        if contract is not None:
            contract.leave(self)
        if answers is not None:
            await answers.close()

    def _unanswered(self, why: str) -> None:
        self._spawn(self._out.send(protocol.error("RESPONDER_ERROR", why, final=False)))

    def _ready(self) -> listen_protocol.ListenReady:
        ears = self._ears
        return listen_protocol.ListenReady(
            session_id=self.id,
            capabilities=listen_protocol.ListenCapabilities(
                languages=ears.languages,
                sample_rates=SAMPLE_RATES,
                encodings=listen_protocol.ENCODINGS,
                vad=silero.NAME,
                end_of_turn=ears.ends_of_turn,
                recogniser=ears.recogniser_name,
            ),
        )


async def handle(socket: Socket, context: Context, address: str, token: str | None = None) -> None:
    """Run a session to its end, see ``server.ws.connected.serve``."""
    await serve(ListenSession(socket, context, address, token), context)


def _language(named: str | None, known: tuple[str, ...]) -> str:
    """The language that a client names, as the recogniser has it; empty: it finds out. Raises InvalidMessage."""
    if len(known) == 1 and (named is None or language(named) == AUTO):
        return known[0]
    if named is None or (found := language(named)) == AUTO:
        return ""
    if found not in known:
        raise InvalidMessage(f"language {shorten(repr(named))}: this recogniser understands {', '.join(known)}; or leave it out")
    return found
