"""What of a session's audio goes out, when: in time, not while it is held, once more after a socket was lost; and what of it was heard.

Audio is held while the session is ducked and while it has no socket. Whether a frame may go out is looked at when nothing can come in
between any more, so that none of an older epoch follows the acknowledgement of an interruption.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Protocol

from server.ops.metrics import Metrics
from server.ws import protocol
from server.ws.audio_out import SendPace
from server.ws.heard import BRIEF_SECONDS, SILENT_SECONDS, AudioFrame
from server.ws.machine import Machine
from server.ws.turn import Turn

MOST_ENDED = 16  # utterances that have ended and may still sound
HEARD = 0.02  # seconds of an utterance's end that nobody misses


class SpeechOutput(Protocol):
    """The part of ``server.ws.outgoing.Outgoing`` that is used here."""

    @property
    def lost(self) -> bool: ...
    async def send(self, message: protocol.ServerMessage) -> None: ...
    async def audio(self, frame: Callable[[], str | bytes | None]) -> bool: ...


class Change:
    """Something has changed: whoever waits looks again."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def tell(self) -> None:
        """Wake all that wait."""
        self._changed.set()

    async def wait(self, limit: float | None) -> None:
        """Return at the next change, at the latest after ``limit`` seconds."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await self._changed.wait()


class Release:
    """One session's.

    Args:
        lead: seconds that audio may go out ahead of real time.
        change: told by others when there is a reason to look again.
    """

    def __init__(self, machine: Machine, out: SpeechOutput, metrics: Metrics, lead: float, change: Change) -> None:
        self.ducked = False
        self.kept = BRIEF_SECONDS  # of audio, for another socket
        self.held: Callable[[Turn], None] = lambda turn: None  # told of a turn that begins while ducked
        self.sounds: Callable[[float], None] = lambda seconds: None  # told for how long an ideal listener still hears something
        self._machine, self._out, self._metrics, self._change = machine, out, metrics, change
        self._pace = SendPace(lead)
        self._last_sent = 0.0
        self._turns: deque[Turn] = deque(maxlen=MOST_ENDED)  # those whose turn has come, in that order
        self._again: deque[tuple[Turn, AudioFrame | protocol.ServerMessage]] = deque()
        self._unheard: list[tuple[Turn, float]] | None = None  # while there is no socket: turns that sounded, and how much was heard

    def begin(self, turn: Turn) -> None:
        """Its turn has come."""
        if turn not in self._turns:
            sounding = self.sounding()
            for one in self._turns:
                if one not in sounding and not self._out.lost:
                    one.heard.drop()
            self._turns.append(turn)

    def find(self, request_id: str | None) -> Turn | None:
        """The turn of that requestId, the newest first; without one, the one that sounds."""
        if request_id is None:
            return next(iter(self.sounding()), None)
        return next((turn for turn in reversed(self._turns) if turn.utterance.request_id == request_id), None)

    def report(self, request_id: str | None, seconds: float) -> None:
        """The client says how much of a turn has sounded."""
        if (turn := self.find(request_id)) is not None:
            turn.heard.report(seconds, monotonic())

    def sounding(self) -> list[Turn]:
        """Turns that sound at the client, in their order."""
        now = monotonic()
        rung_out = self._pace.ahead(now - SILENT_SECONDS) <= 0
        return [
            turn
            for turn in self._turns
            if self._machine.audible(turn.utterance) and not rung_out and self.heard(turn, now) < turn.heard.released - HEARD
        ]

    def heard(self, turn: Turn, now: float) -> float:
        """Seconds of a turn that its client has heard."""
        return turn.heard.at(now, self._ahead(turn, now))

    def loudness(self, now: float) -> float | None:
        """dB of full scale of what sounds; None if nothing does."""
        places = [(turn, turn.heard.about(now, self._ahead(turn, now))) for turn in self.sounding()]
        return max((turn.loudness.loudest(*place) for turn, place in places), default=None)

    def _ahead(self, turn: Turn, now: float) -> float:
        """Seconds of a turn that an ideal listener has not heard yet."""
        ahead = self._pace.ahead(now)
        for one in reversed(self._turns):
            of_this = min(ahead, one.heard.released)
            if one is turn:
                return of_this
            ahead -= of_this
        return turn.heard.released

    def forget(self) -> None:
        """The client threw away what it had."""
        self._pace.forget()
        self._again.clear()

    async def send(self, turn: Turn, frame: AudioFrame) -> bool:
        """A frame of a live turn, when its time has come. False, and nothing sent, if the turn is not live any more."""
        waited = 0.0
        while turn.utterance.live:
            paused = monotonic()
            await self.repeat()
            await self._wait(turn, frame)
            waited += monotonic() - paused
            if await self._out.audio(partial(self._now, turn, frame)):
                self._note(turn, frame, waited)
                return True
            if not (self.ducked or self._out.lost or self._again):
                return False
        return False

    async def repeat(self) -> None:
        """Send once more what a lost socket may have taken with it."""
        while self._again and not self._out.lost:
            turn, item = self._again[0]
            if not isinstance(item, AudioFrame):
                self._again.popleft()
                await self._out.send(item)
                continue
            await self._wait(turn, item)
            if await self._out.audio(partial(self._once_more, turn, item)):
                self._pace.sent(item.seconds, monotonic())
            elif not self._machine.audible(turn.utterance) and self._again and self._again[0][1] is item:
                self._again.popleft()

    def again(self, request_id: str | None, played: float | None) -> None:
        """Another socket: what was released and not heard goes out once more, then what ended those utterances."""
        self.lose()
        unheard, self._unheard = self._unheard or [], None
        named = next((turn for turn, _ in unheard), None) if request_id is None else self.find(request_id)
        turns = list(self._turns)
        if named is not None:
            turns = turns[turns.index(named) :]
        self._again.clear()
        for turn in turns:
            heard = next((seconds for one, seconds in unheard if one is turn), None)
            if turn is named or heard is not None:
                begin = played if turn is named and played is not None else turn.heard.released if heard is None else heard
                if self._machine.audible(turn.utterance):
                    rate = turn.configuration.sample_rate
                    self._again.extend((turn, frame.rest(begin, rate)) for frame in turn.heard.again(begin))
                self._again.extend((turn, message) for message in turn.last)
        self._pace.forget()
        self._change.tell()

    def lose(self) -> None:
        """The socket is lost: what has been heard by now is all that was."""
        if self._unheard is None:
            now = monotonic()
            self._unheard = [(turn, self.heard(turn, now)) for turn in self._turns if turn.utterance.live or turn in self.sounding()]

    async def _wait(self, turn: Turn, frame: AudioFrame) -> None:
        """Return when the next frame may go out, or the turn may not sound any more."""
        while self._machine.audible(turn.utterance):
            if self.ducked:
                self.held(turn)
            if self.ducked or self._out.lost:
                await self._change.wait(None)
            elif frame.data and (wait := self._pace.wait(monotonic())) > 0:
                await self._change.wait(wait)
            else:
                return

    def _may(self, turn: Turn, frame: AudioFrame) -> bool:
        """Asked at the last moment."""
        return frame.epoch == self._machine.epoch and self._machine.audible(turn.utterance) and not (self.ducked or self._out.lost)

    def _now(self, turn: Turn, frame: AudioFrame) -> str | bytes | None:
        if self._again or not turn.utterance.live or not self._may(turn, frame):
            return None
        turn.heard.sent(frame, self.kept)
        return turn.encoded(frame)

    def _once_more(self, turn: Turn, frame: AudioFrame) -> str | bytes | None:
        if not self._again or self._again[0][1] is not frame or not self._may(turn, frame):
            return None
        self._again.popleft()
        turn.heard.sent(frame, self.kept)
        return turn.encoded(frame)

    def _note(self, turn: Turn, frame: AudioFrame, waited: float) -> None:
        now = monotonic()
        if not frame.data:
            return
        late = self._pace.sent(frame.seconds, now)
        if turn.first is None:
            turn.first = now
            self._metrics.ttfa.observe(now - turn.arrived)
        else:
            self._metrics.gap.observe(max(0.0, now - self._last_sent - waited))
            if not turn.utterance.text_open:
                self._metrics.underrun.inc(max(0.0, late - waited))
        self._last_sent = now
        turn.seconds += frame.seconds
        self._metrics.audio.inc(frame.seconds)
        self.sounds(self._pace.ahead(now))
