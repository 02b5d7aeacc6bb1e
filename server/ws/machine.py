"""The states of a session on ``/api/v1/speak``, and of its utterances. Pure: messages in, decisions out; no socket, engine or clock.

    CONNECTING --ready--> READY --start--> STARTED
    READY, STARTED --speak--> SPEAKING --the last utterance ends, or is cancelled--> READY
    READY, STARTED, SPEAKING --stop--> STOPPED        any --a fault of ours--> ERROR

An utterance is live from its ``speak`` to its last message (``complete``, or ``error`` with its requestId). Audio is sent only while its
utterance is live, so a cancel, which ends that at once, lets not one byte follow. An utterance belongs to the epoch in which it came; an
interrupt raises the session's epoch, and audio of an older one is not sent, even that of an utterance that has ended well.
"""

from collections import deque
from enum import Enum
from typing import Literal

from qwen3_jax.text.nfc import AROUND, nfc, settle
from server.admission.text import check_length, too_long
from server.ws.protocol import Cancel, Code, Flush, Speak, Start, Stop

MOST_CUT = 32  # requestIds of open texts that were interrupted, and whose pieces may still be on their way


class SessionState(Enum):
    """See the module's docstring."""

    CONNECTING = "connecting"
    READY = "ready"
    STARTED = "started"
    SPEAKING = "speaking"
    STOPPED = "stopped"
    ERROR = "error"


_IDLE: dict[type, SessionState] = {Start: SessionState.STARTED, Speak: SessionState.SPEAKING, Stop: SessionState.STOPPED}
NEXT: dict[SessionState, dict[type, SessionState]] = {
    SessionState.CONNECTING: {},
    SessionState.READY: _IDLE,
    SessionState.STARTED: _IDLE,
    SessionState.SPEAKING: {Speak: SessionState.SPEAKING, Flush: SessionState.SPEAKING, Stop: SessionState.STOPPED},
    SessionState.STOPPED: {},
    SessionState.ERROR: {},
}


End = Literal["completed", "cancelled", "failed", "left"]  # left: with its connection


class Rejection(ValueError):
    """A message that is not possible now; becomes an ``error`` and changes nothing."""

    def __init__(self, code: Code, message: str, request_id: str | None = None, retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        self.code, self.request_id, self.retry_after_ms = code, request_id, retry_after_ms


class Late(Exception):  # not an error
    """A piece, or the end, of a text that was interrupted before it came: its client has been told."""


class SessionUtterance:
    """One ``speak``, or the text of several: what it says so far, and whether it is still wanted."""

    def __init__(self, message: Speak, max_chars: int, epoch: int = 0) -> None:
        self.message, self.request_id, self.epoch = message, message.request_id, epoch
        self.live = True
        self.begun = False  # its turn has come
        self.end: End | None = None  # how it ended
        self.text_open = message.continue_
        self.characters = 0
        self._max_chars = max_chars
        self._held = ""  # what the next piece may still compose with

    def take(self, piece: str, *, last: bool) -> str:
        """More text -> what of it is settled, in NFC. Its length is looked at first.

        Raises:
            Rejection: the text would be too long, is empty at its end, or has too many combining marks in a row; then nothing is taken.
        """
        try:
            check_length(piece, self._max_chars)
            done, held = (nfc(self._held + piece), "") if last else settle(self._held, piece)
            coming = len(nfc(held))
            if self.characters == 0:
                done = done.lstrip(AROUND)
            if last:
                done = done.rstrip(AROUND)
            characters = self.characters + len(done)
            if characters + coming > self._max_chars or (last and characters == 0):
                raise too_long(characters + coming, self._max_chars)
        except ValueError as error:
            raise Rejection("INVALID_TEXT", str(error), self.request_id) from error
        self._held, self.characters = held, characters
        return done


class Machine:
    """The state of one session.

    Args:
        max_waiting: utterances that may be live.
        max_chars: of one utterance.
    """

    def __init__(self, max_waiting: int, max_chars: int) -> None:
        self.state = SessionState.CONNECTING
        self.live: list[SessionUtterance] = []  # in order of arrival
        self.epoch = 0
        self._cut: deque[str] = deque(maxlen=MOST_CUT)  # see MOST_CUT
        self._open: SessionUtterance | None = None
        self._max_waiting, self._max_chars = max_waiting, max_chars

    def connected(self) -> None:
        """``ready`` has been sent."""
        self.state = SessionState.READY

    def start(self) -> None:
        """A ``start`` that is in order. Raises Rejection while speaking."""
        self.state = self._next(Start)

    def speak(self, message: Speak) -> tuple[SessionUtterance, str, bool]:
        """A ``speak``. Returns its utterance, the text that is settled, and whether the utterance is a new one.

        Raises:
            Rejection: too long, empty, too many, or a piece of another text than the open one.
            Late: a piece of a text that was interrupted.
        """
        after = self._next(Speak, message.request_id)
        if self._is_late(message):
            raise Late(message.request_id)
        if message.continue_ and self._open is not None:
            if message.request_id not in (None, self._open.request_id):
                raise Rejection(
                    "INVALID_MESSAGE", f"the text of {self._open.request_id!r} is still open: flush it first", message.request_id
                )
            return self._open, self._open.take(message.text, last=False), False
        utterance, settled = self._begin(message, after)
        self._open = utterance if message.continue_ else self._open
        return utterance, settled, True

    def answer(self, message: Speak) -> tuple[SessionUtterance, str]:
        """An utterance of the server's own, whose text comes in pieces, beside the client's. Errors as ``speak``."""
        return self._begin(message, self._next(Speak, message.request_id))

    def _begin(self, message: Speak, after: SessionState) -> tuple[SessionUtterance, str]:
        if len(self.live) >= self._max_waiting:
            raise Rejection("RATE_LIMITED", f"{self._max_waiting} utterances wait already", message.request_id, 1000)
        utterance = SessionUtterance(message, self._max_chars, self.epoch)
        settled = utterance.take(message.text, last=not message.continue_)
        self.live.append(utterance)
        self.state = after
        return utterance, settled

    def flush(self, message: Flush) -> tuple[SessionUtterance, str]:
        """The end of the open text. Returns its utterance and the rest of the text.

        Raises:
            Rejection: no text is open, another one is, or it is empty; an empty one ends here.
            Late: the end of a text that was interrupted.
        """
        if self._was_cut(message.request_id):
            self._cut.remove(str(message.request_id))
            raise Late(message.request_id)
        if self._open is None or message.request_id not in (None, self._open.request_id):
            raise Rejection("INVALID_MESSAGE", "flush: no such text is open; open one with speak and continue:true", message.request_id)
        utterance, self._open = self._open, None
        return utterance, self.close(utterance)

    def close(self, utterance: SessionUtterance) -> str:
        """The end of a text. Returns the rest of it. Raises Rejection if it is empty, and then the utterance has ended."""
        utterance.text_open = False
        try:
            return utterance.take("", last=True)
        except Rejection:
            self.ended(utterance)
            raise

    def cancel(self, message: Cancel | None = None, end: End = "cancelled") -> list[SessionUtterance]:
        """Whatever is live, or what has the requestId: not live any more."""
        wanted = None if message is None else message.request_id
        dropped = [utterance for utterance in self.live if wanted in (None, utterance.request_id)]
        for utterance in dropped:
            self.ended(utterance, end)
        return dropped

    def interrupt(self) -> list[SessionUtterance]:
        """The epoch rises: whatever is live is not any more, and no audio of before is sent."""
        self.epoch += 1
        if self._open is not None and self._open.request_id is not None:
            self._cut.append(self._open.request_id)
        return self.cancel()

    def audible(self, utterance: SessionUtterance) -> bool:
        """Whether its audio may be sent: now, or once more."""
        return utterance.epoch == self.epoch and (utterance.live or utterance.end == "completed")

    def _is_late(self, message: Speak) -> bool:
        """Whether it is a piece of a text that was interrupted, which its client did not know when it wrote that."""
        if self._was_cut(message.request_id) and not message.continue_:
            self._cut.remove(str(message.request_id))  # another utterance
        return self._was_cut(message.request_id)

    def _was_cut(self, request_id: str | None) -> bool:
        """Whether the text of that requestId was interrupted while it was open, and none of that name is open now."""
        return request_id in self._cut and (self._open is None or self._open.request_id != request_id)

    def speaks(self, request_id: str | None) -> bool:
        """Whether something of that requestId, or without any, is live."""
        return any(utterance.request_id == request_id for utterance in self.live)

    def ended(self, utterance: SessionUtterance, end: End = "failed") -> None:
        """Nothing of it follows but its last message."""
        utterance.end = utterance.end or end
        utterance.live = utterance.text_open = False
        if utterance in self.live:
            self.live.remove(utterance)
        if self._open is utterance:
            self._open = None
        if not self.live and self.state is SessionState.SPEAKING:
            self.state = SessionState.READY

    def stop(self) -> None:
        """The end, from whichever side."""
        self.cancel(end="left")
        if self.state is not SessionState.ERROR:
            self.state = SessionState.STOPPED

    def fail(self) -> None:
        """A fault of ours."""
        self.cancel(end="failed")
        self.state = SessionState.ERROR

    def _next(self, kind: type, request_id: str | None = None) -> SessionState:
        try:
            return NEXT[self.state][kind]
        except KeyError as error:
            raise Rejection("INVALID_MESSAGE", f"{kind.__name__.lower()} is not possible while {self.state.value}", request_id) from error
