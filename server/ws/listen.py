"""One client on ``/api/v1/listen``: audio in -> when somebody speaks, what is said, and when a turn is over.

This task reads and looks for speech; a second one sends the finals, in the order of their turns; partials and judgements of a pause are
tasks of their own. All recognition is in another process (server.listen.process).
"""

import asyncio
import base64
import logging
from collections.abc import Coroutine
from time import monotonic

import numpy as np
from msgspec import UNSET

from qwen3_jax.messages import shorten
from qwen3_jax.runtime.extras import MissingExtra
from server.context import Context
from server.languages import AUTO, language
from server.listen import silero
from server.listen.audio_in import SAMPLE_RATES, AudioIn
from server.listen.base import RATE, WINDOW, HeardSpeech, VoiceActivity
from server.listen.heard_turn import HeardTurn
from server.listen.process import RecogniserBehind, RecogniserGone
from server.listen.smart_turn import ABSENT, SECONDS
from server.listen.turns import Detection, TurnEvent, Turns
from server.ws import listen_protocol, protocol
from server.ws.client import Ended
from server.ws.connected import ConnectedSession, serve
from server.ws.finals import Finals
from server.ws.floor import Floor
from server.ws.listen_protocol import LISTEN, Audio, Clear, Commit, ListenStart, StartRefused
from server.ws.outgoing import Socket
from server.ws.protocol import Close, InvalidMessage

STALLS_SECONDS = 2.0  # without audio in the middle of a turn, after which that is over
JUDGED = SECONDS * RATE // WINDOW  # windows, the last of a turn, that the model reads
BREATH = 8  # windows, after which the event loop goes round
log = logging.getLogger(__name__)


class ListenSession(ConnectedSession):
    """A connected client that is heard."""

    ROUTE, BEGINS, FAULT = LISTEN, "no start", "RECOGNITION_ERROR"

    def __init__(self, socket: Socket, context: Context, address: str, token: str | None = None) -> None:
        super().__init__(socket, context, address, token)
        self._ears, self._metrics = context.ears, context.metrics
        self._voice: VoiceActivity | None = None  # None until ``start``
        self._audio, self._language = AudioIn(), ""
        self._turns = Turns(Detection())
        self._turn: HeardTurn | None = None  # that is open
        self._group = asyncio.TaskGroup()
        self._floor = Floor(context, self._unanswered)
        self._finals = Finals(self._out, context.metrics, self._floor, lambda: self._turn is not None)
        self._refused = False  # whether the newest ``start`` was; then no audio is heard
        self._predicted = False  # whether the client was told that the turn may be over
        self._judging: asyncio.Task[float] | None = None  # the newest pause
        self._heard_at = self._connected  # when audio came last
        self._tasks = set[asyncio.Task[None]]()  # beside this one

    async def _talk(self) -> None:
        try:
            self._ears.check()
        except MissingExtra as error:
            raise Ended(Close.INTERNAL, protocol.error("RECOGNITION_ERROR", str(error), recoverable=False)) from error
        await self._out.send(self._ready())
        try:
            async with asyncio.TaskGroup() as self._group:
                self._spawn(self._finals.run())
                try:
                    while True:
                        await self._receive_one()
                except Ended as end:
                    if end.code is Close.NORMAL:
                        await self._finals.told(self._settings.grace)
                    await self._leave(end.last, end.code)
                finally:
                    self._ended()
                    for task in self._tasks:
                        task.cancel()
        finally:
            await self._floor.leave()

    def _busy_until(self) -> float:
        return monotonic() if self._finals.pending else self._finals.last

    def _ended(self) -> None:
        if self._turn is not None:
            self._turn.cancel()
        self._turn = None
        self._finals.drop()

    def _counts(self) -> dict[str, object]:
        return {"turns": self._finals.sent, "audio_seconds": round(self._audio.seconds, 1)}

    async def drain(self, grace: float) -> None:
        """The server goes down: turns that are over may get their text within ``grace`` seconds; then goodbye."""
        await self._finals.told(grace)
        await self._leave(protocol.Stopped(reason="server_shutdown"), Close.GOING_AWAY)

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
            self._refused = self._refused or isinstance(error, StartRefused)
            await self._out.send(protocol.error("INVALID_MESSAGE", str(error), final=False))
        except RecogniserGone as error:
            await self._out.send(protocol.error("RECOGNITION_ERROR", str(error), final=False))
        self._active = monotonic()  # loading may have taken long

    async def _take(self, message: listen_protocol.ListenClientMessage | None) -> None:
        if isinstance(message, ListenStart):
            await self._start(message)
        elif isinstance(message, Audio):
            await self._hear_base64(message.data)
        elif isinstance(message, Commit):
            await self._commit()
        elif isinstance(message, Clear):
            self._forget()
        elif message is None:
            log.debug("a message of a type that nobody knows is ignored")
        else:
            raise Ended(Close.NORMAL, protocol.Stopped(reason=message.reason))

    async def _start(self, message: ListenStart) -> None:
        self._refused = True  # until it is accepted
        for name, value, allowed in (
            ("sampleRate", message.sample_rate, SAMPLE_RATES),
            ("encoding", message.encoding, listen_protocol.ENCODINGS),
        ):
            if value not in allowed:
                raise InvalidMessage(f"{name} {shorten(repr(value))} is not supported: use {', '.join(map(str, allowed))}")
        detection = listen_protocol.detection(message.turn_detection, self._ears.ends_of_turn, ABSENT)
        if message.respond and message.contract_id is None:
            raise InvalidMessage("respond needs a contractId: the answer is spoken in a Speak session that was started with the same one")
        await self._identify(message.auth_token)
        self._begun = True
        hello = await self._ears.process.ready()
        self._language = _language(message.language, hello.languages)
        self._forget()
        await self._floor.leave()
        self._voice = await self._ears.voice_activity()
        self._audio, self._turns = AudioIn(message.sample_rate, message.encoding), Turns(detection)
        if message.contract_id is not None and self._client.principal is not None:
            self._floor.join(self._client.principal.id, message.contract_id, respond=message.respond)
        self._refused = False
        await self._out.send(
            listen_protocol.ListenStarted(
                sample_rate=message.sample_rate,
                encoding=message.encoding,
                language=self._language,
                turn_detection=detection,
                respond=self._floor.responds,
                contract_id=UNSET if message.contract_id is None else message.contract_id,
            )
        )

    def _check_known(self) -> None:
        """Raises Ended unless the client has said who it is."""
        principal = self._client.principal
        if principal is None or principal.expired:
            raise Ended(Close.UNAUTHORIZED, protocol.error("UNAUTHORIZED", "send start with a valid authToken first", recoverable=False))

    async def _check_allowed(self) -> None:
        """Raises Ended where it is not any more who it has said to be."""
        if (why := await self._client.lapsed()) is not None:
            raise Ended(Close.UNAUTHORIZED, protocol.error("UNAUTHORIZED", why, recoverable=False))

    async def _hear_base64(self, data: str) -> None:
        """As ``_hear``. Nothing is decoded that would not be heard."""
        self._check_known()
        if self._refused:
            return
        try:
            self._audio.check_length(3 * (len(data) // 4) - 2)  # at least, whatever its padding
        except ValueError as error:
            raise InvalidMessage(str(error)) from error
        try:
            decoded = base64.b64decode(data, validate=True)
        except ValueError as error:
            raise InvalidMessage(f"data must be base64 of {self._audio.encoding} samples: {error}") from error
        await self._hear(decoded)

    async def _hear(self, data: bytes) -> None:
        self._check_known()
        if self._refused:
            return
        if self._voice is None:
            await self._start(ListenStart())
        assert self._voice is not None
        before, self._heard_at = self._audio.seconds, monotonic()
        try:
            windows = list(self._audio.feed(data))
        except ValueError as error:
            raise InvalidMessage(str(error)) from error
        self._metrics.heard.inc(self._audio.seconds - before)
        for number, window in enumerate(windows, 1):
            loudness = self._floor.loudness((len(windows) - number) * WINDOW / RATE)
            for event in self._turns.feed(window, self._voice.feed(window), playing=self._floor.playing, answer_db=loudness):
                await self._check_allowed()
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
        self._floor.goes_on(self._turns.voiced_ms, turn.text)
        if segment is not None and self._turns.silent_ms == 0 and turn.due():
            self._spawn(self._partial(turn))

    # Turns

    async def _happened(self, event: TurnEvent) -> None:
        turns, turn = self._turns, self._turn
        if event is TurnEvent.SUSPECTED:
            self._floor.suspected()
            return
        if event is TurnEvent.BEGAN:
            self._turn = HeardTurn(self._ears.process, self.id, self._language)
            self._floor.began()
            self._spawn(self._stalls(self._turn))
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
        self._floor.ended(spoken=spoken)
        if not spoken and not turn.by_hand:
            turn.cancel()
            self._metrics.turns.labels("empty").inc()
            return
        if segment is not None:
            turn.settle(segment)
        await self._finals.add(turn)

    async def _commit(self) -> None:
        self._check_known()
        await self._check_allowed()
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
            self._floor.ended(spoken=False)
        self._turn, self._predicted = None, False
        self._turns.clear()
        self._finals.drop()

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
            self._floor.goes_on(self._turns.voiced_ms, turn.text)
            await self._out.send(listen_protocol.Partial(text=turn.text, audio_ms=at))

    async def _stalls(self, turn: HeardTurn) -> None:
        """A client that sends no more audio in the middle of a turn has ended it."""
        while turn is self._turn and self._turns.detection.type != "none":
            wait = self._heard_at + STALLS_SECONDS - monotonic()
            if wait <= 0:
                await self._finish(turn, spoken=self._turns.finish() is TurnEvent.OVER)
                return
            await asyncio.sleep(wait)

    async def _judge(self, turn: HeardTurn) -> None:
        """Ask the model whether the turn is over, of the newest pause only; without an answer, silence ends it."""
        if (segment := self._turns.segment) is None:
            return
        end, at = segment.end, self._turns.position_ms
        if self._judging is not None:
            self._judging.cancel()
        last = np.concatenate(segment.windows[-JUDGED:])
        asked = self._judging = asyncio.create_task(self._ears.process.turn_over(last, self.id))
        try:
            await asyncio.wait({asked})
        finally:
            asked.cancel()
        if asked.cancelled():  # a newer pause is judged
            return
        try:
            probability = asked.result()
        except (RecogniserBehind, RecogniserGone) as error:
            log.warning("a pause was not judged: %s", error)
            return
        if turn is not self._turn or self._turns.segment is None or self._turns.segment.end != end:
            return  # speech goes on
        self._predicted = True
        await self._out.send(listen_protocol.TurnPredicted(audio_ms=at, probability=round(probability, 3)))
        if turn is self._turn and self._turns.segment is not None and self._turns.segment.end == end:
            event = self._turns.decide(probability)
            if event is not None:
                await self._finish(turn, spoken=event is TurnEvent.OVER)

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
