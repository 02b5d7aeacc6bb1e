"""A session's speech as a contract sees it (``server.contracts.contract.Mouth``), and the answers that the server itself speaks in it."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from time import monotonic
from typing import Any

from prometheus_client import Histogram

from qwen3_jax.text.nfc import AROUND
from server.admission.speech import Denied
from server.contracts.contract import Contract, Interruption
from server.ops.limits import Limited
from server.ops.metrics import Metrics
from server.ws import protocol
from server.ws.machine import Machine, Rejection, SessionUtterance
from server.ws.outgoing import Outgoing
from server.ws.playback import Playback
from server.ws.turn import Turn, told

UNWANTED = "the answer is not wanted any more"
SPOKEN_OVER = "interrupted: somebody speaks"
ASKED = "interrupted: a request to end it came (POST /api/v1/contracts/{contractId}/interrupt)"


class SessionMouth:
    """One session's. Whatever it does is done when a call returns; messages follow in order.

    Args:
        speak: (first piece, requestId) -> an utterance whose text comes in pieces. Raises Rejection, Limited or Denied.
        start: runs something beside the session, as long as it lives.
    """

    def __init__(
        self,
        machine: Machine,
        playback: Playback,
        out: Outgoing,
        metrics: Metrics,
        speak: Callable[[str, str], Awaitable[SessionUtterance]],
        start: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self.interruption: Interruption = "confirm"
        self.contract: Contract | None = None
        self._machine, self._playback, self._out, self._metrics = machine, playback, out, metrics
        self._speak, self._start = speak, start
        self._release = playback.release
        self._release.held = self._hold
        self._closed = False
        self._told: list[Turn] = []  # of which the client knows that they are ducked

    def join(self, contract: Contract | None, interruption: Interruption) -> None:
        """Speak in that contract from now on, and in no other."""
        self.leave()
        self.interruption, self.contract = interruption, contract
        if contract is not None:
            self._release.sounds = contract.sounds
            contract.join(self)

    def leave(self) -> None:
        """The session goes into another contract, or into none."""
        if self.contract is not None:
            self.contract.leave(self)
            self.contract = None
            self._release.sounds = lambda seconds: None

    def close(self) -> None:
        """The session has ended."""
        self._closed = True
        self.leave()

    @property
    def attended(self) -> bool:
        """Whether somebody is heard in its contract: silence is part of a conversation."""
        return self.contract is not None and self.contract.attended

    # As the contract sees it

    @property
    def speaking(self) -> bool:
        return not self._out.lost and (bool(self._machine.live) or self.sounding)

    @property
    def sounding(self) -> bool:
        return not self._out.lost and bool(self._release.sounding())

    def loudness(self, ago: float) -> float | None:
        return None if self._out.lost else self._release.loudness(monotonic() - ago)

    def duck(self) -> None:
        self._release.ducked = True
        if (turn := self._release.find(None)) is not None:
            self._hold(turn)

    def unduck(self) -> None:
        self._release.ducked = False
        told, self._told = self._told, []
        for turn in told:
            if self._machine.audible(turn.utterance):  # else its last message has been sent
                self._out.post(protocol.Resumed(request_id=protocol.named(turn.utterance.request_id)))
        self._playback.wake()

    def interrupt(self, audio_end_ms: int | None, *, asked: bool) -> None:
        now, why = monotonic(), ASKED if asked else SPOKEN_OVER
        turns = self._release.sounding()
        turns += [turn for turn in self._playback.turns if turn not in turns and turn.utterance.live]
        waiting = [utterance for utterance in self._machine.live if not any(turn.utterance is utterance for turn in turns)]
        told = [(turn, self._release.heard(turn, now)) for turn in turns]
        if told and audio_end_ms is not None:
            told[0] = turns[0], min(audio_end_ms / 1000, turns[0].heard.released)
        self._release.ducked, self._told = False, []
        observe = self._observed(self._metrics.to_silence)
        live = self._machine.interrupt() if told or waiting else []
        for turn, seconds in told:
            message = turn.stop(seconds)
            error = protocol.error("CANCELLED", why, turn.utterance.request_id)
            turn.last = [message, error] if turn.utterance in live else [*turn.last, message]
            self._out.post(message, observe)
            if turn.utterance in live:
                self._out.post(error)
        for utterance in waiting:  # their voices are being looked for
            self._out.post(protocol.error("CANCELLED", why, utterance.request_id))
        self._metrics.cancellations.inc(len(live))
        self._release.forget()
        self._playback.wake()

    def answer(self, request_id: str) -> "SessionAnswer":
        """Open an utterance. What goes wrong with it is told to the client, and ends it."""
        answer = SessionAnswer(request_id, self._machine, self._playback, self._out, self._speak)
        if self._closed:
            answer.never()
        else:
            self._start(answer.run())
        return answer

    def again(self) -> None:
        """Another socket: what is ducked is said once more."""
        told, self._told = self._told, []
        for turn in told:
            self._hold(turn)

    def _hold(self, turn: Turn) -> None:
        """The client hears that a turn is ducked, once."""
        if turn not in self._told:
            self._told.append(turn)
            at = round(1000 * self._release.heard(turn, monotonic()))
            message = protocol.Ducked(at_ms=at, request_id=protocol.named(turn.utterance.request_id))
            self._out.post(message, self._observed(self._metrics.to_duck))

    def _observed(self, histogram: Histogram) -> Callable[[], None] | None:
        """To be called when a message has gone out that speech has caused."""
        since = None if self.contract is None else self.contract.since_speech
        if since is None:
            return None
        began = monotonic() - since
        return lambda: histogram.observe(monotonic() - began)


class SessionAnswer:
    """See ``server.contracts.contract.Answer``. Its text waits until the session takes it; its bound is that of a text."""

    def __init__(
        self, request_id: str, machine: Machine, playback: Playback, out: Outgoing, speak: Callable[[str, str], Awaitable[SessionUtterance]]
    ) -> None:
        self.request_id = request_id
        self._machine, self._playback, self._out, self._speak = machine, playback, out, speak
        self._text = ""  # that was not taken
        self._finished = self._cancelled = False
        self._utterance: SessionUtterance | None = None
        self._turn: Turn | None = None
        self._change = playback.change
        self._heard: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def append(self, text: str) -> None:
        self._text += text
        self._change.tell()

    def finish(self) -> None:
        self._finished = True
        self._change.tell()

    def cancel(self) -> None:
        self._cancelled = True
        if self._utterance is not None and self._utterance.live:
            self._machine.ended(self._utterance, "cancelled")
            self._out.post(protocol.error("CANCELLED", UNWANTED, self.request_id))
            self._playback.wake()
        self._change.tell()

    def never(self) -> None:
        """Its session has ended before it began."""
        self._cancelled = True
        self._heard.set_result("")

    async def heard(self) -> str:
        return await asyncio.shield(self._heard)

    async def run(self) -> None:
        """Its life, in the session."""
        heard = ""
        try:
            await self._write()
            if self._turn is not None:
                heard = await self._playback.heard(self._turn)
        except Rejection as error:
            self._fail(protocol.error(error.code, str(error), self.request_id, retry_after_ms=error.retry_after_ms))
        except Limited as error:
            self._fail(protocol.error("RATE_LIMITED", str(error), self.request_id, retry_after_ms=error.retry_after_ms))
        except Denied as error:
            self._fail(told(error, self.request_id))
        finally:
            if not self._heard.done():
                self._heard.set_result(heard)

    async def _write(self) -> None:
        """Its text, as it comes, to the client and to the engine."""
        while not self._cancelled and (self._utterance is None or self._utterance.live):
            if not self._finished and not (self._text if self._utterance is not None else self._text.strip(AROUND)):
                await self._change.wait(None)
                continue
            piece, self._text, finished = self._text, "", self._finished
            self._out.post(protocol.AnswerText(request_id=self.request_id, text=piece, is_final=finished))
            if piece.strip(AROUND) or self._utterance is not None:
                await self._take(piece, finished)
            if finished and not self._text:
                return

    async def _take(self, piece: str, finished: bool) -> None:
        if self._utterance is None:
            self._utterance = await self._speak(piece, self.request_id)
            self._turn = self._playback.turn_of(self._utterance)
            if self._cancelled:
                self.cancel()
            piece = ""
        utterance = self._utterance
        if piece and utterance.live:
            self._playback.more(utterance, utterance.take(piece, last=False))
        if finished and not self._text and utterance.live:
            self._playback.more(utterance, self._machine.close(utterance))

    def _fail(self, last: protocol.Error) -> None:
        if self._utterance is not None:
            self._machine.ended(self._utterance)
        self._playback.wake()
        self._out.post(last)
