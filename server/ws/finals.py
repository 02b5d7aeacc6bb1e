"""Turns that are over -> their texts, sent in the order of the turns."""

import asyncio
import logging
from collections.abc import Callable
from time import monotonic

from msgspec import UNSET

from server.listen.base import HeardSpeech
from server.listen.heard_turn import HeardTurn, TurnDropped
from server.listen.process import RecogniserBehind, RecogniserGone
from server.ops.metrics import Metrics
from server.ws import protocol
from server.ws.floor import Floor
from server.ws.listen_protocol import Final
from server.ws.outgoing import Outgoing

MOST_PENDING = 64  # turns that are over and whose text is not known yet
log = logging.getLogger(__name__)


class Finals:
    """One session's.

    Args:
        speaking: whether another turn is open.
    """

    def __init__(self, out: Outgoing, metrics: Metrics, floor: Floor, speaking: Callable[[], bool]) -> None:
        self._out, self._metrics, self._floor, self._speaking = out, metrics, floor, speaking
        self._over: asyncio.Queue[HeardTurn] = asyncio.Queue(MOST_PENDING)
        self.pending: set[HeardTurn] = set()
        self._none = asyncio.Event()
        self._none.set()
        self.last = monotonic()  # when one was sent
        self.sent = 0

    async def add(self, turn: HeardTurn) -> None:
        """A turn is over. Where too many wait, it has no text; the client is read in any case. Raises SlowClient."""
        if self._over.full():
            turn.cancel()
            await self._lost(protocol.error("OVERLOADED", f"{MOST_PENDING} turns wait for their texts: this one is lost; send them slower"))
            return
        self.pending.add(turn)
        self._none.clear()
        self._over.put_nowait(turn)

    def drop(self) -> None:
        """Nobody wants those that are pending."""
        for turn in self.pending:
            turn.cancel()

    async def told(self, limit: float) -> None:
        """Return when none is pending, or after so many seconds."""
        try:
            async with asyncio.timeout(limit):
                await self._none.wait()
        except TimeoutError:
            log.warning("%d turns have no text after %g s", len(self.pending), limit)

    async def run(self) -> None:
        """Send them. Raises SlowClient."""
        while True:
            turn = await self._over.get()
            try:
                await self._tell(turn, await turn.result())
            except TurnDropped:
                pass
            except RecogniserBehind as error:
                await self._lost(protocol.error("OVERLOADED", str(error)))
            except RecogniserGone as error:
                await self._lost(protocol.error("RECOGNITION_ERROR", str(error)))
            self.last = monotonic()
            self.pending.discard(turn)
            if not self.pending:
                self._none.set()

    async def _tell(self, turn: HeardTurn, heard: HeardSpeech) -> None:
        over_an_answer = self._floor.playing
        self._floor.understood(heard.text, speaking=self._speaking())
        self._metrics.turns.labels("final" if heard.text else "empty").inc()
        if not heard.text and not turn.by_hand:
            return
        self.sent += 1
        self._metrics.to_final.observe(monotonic() - turn.last_voice)
        words = UNSET if heard.words is None else heard.words
        await self._out.send(Final(text=heard.text, start_ms=turn.begin_ms, end_ms=turn.end_ms, language=heard.language, words=words))
        self._floor.answer(heard.text, over_an_answer=over_an_answer)

    async def _lost(self, error: protocol.Error) -> None:
        """A turn has no text."""
        self._metrics.turns.labels("lost").inc()
        self._floor.understood("", speaking=self._speaking())
        await self._out.send(error)
