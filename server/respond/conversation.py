"""What is heard of a user, turn by turn -> answers into the contract's mouth as they are written; the history keeps only what was heard.

A turn ends the answer under way. So does an interruption: the mouth ends its utterance, and with it the writing.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from typing import Literal

from server.contracts.contract import Answer, Contract, Mouth
from server.respond.base import Responder, Said, Unanswered

MOST_TURNS, MOST_CHARACTERS = 40, 12_000  # of the history; the oldest go first
LONGEST_SECONDS = 1200.0  # from the last word that was written to the last that is heard
NOBODY = "no Speak session has this contractId: begin one on /api/v1/speak, with the same contractId in its start"
LEAVE_SECONDS = 5.0  # for a cancelled answer to say what was heard of it
log = logging.getLogger(__name__)


class Conversation:
    """The answers to one client that is heard. For the event loop's thread.

    Args:
        tell: called with a sentence for the client where there is no answer, or no more of one; once for each turn at most.
    """

    def __init__(self, responder: Responder, contract: Contract, tell: Callable[[str], None]) -> None:
        self._responder, self._contract, self._tell = responder, contract, tell
        self._history: list[Said] = []
        self._unanswered: list[str] = []  # turns of the user that are not in the history yet
        self._tasks: set[asyncio.Task[None]] = set()  # the answer under way, and cancelled ones that have not ended yet

    @property
    def history(self) -> tuple[Said, ...]:
        """What has been said and heard."""
        return tuple(self._history)

    def turn(self, text: str) -> None:
        """The user has said that: answer it; without a mouth, say that there is none. The answer under way is cancelled."""
        if not (text := text.strip()):
            return
        before = set(self._tasks)
        for task in before:
            task.cancel()
        self._unanswered.append(text)
        task = asyncio.create_task(self._turn(before))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def close(self) -> None:
        """The client has left: cancel the answer under way."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an answer failed", exc_info=error)
            self._tell("there is no answer: an internal error; the server's log says more")

    async def _turn(self, before: "set[asyncio.Task[None]]") -> None:
        if before:
            await asyncio.wait(before)  # they add what was heard of them
        turns, self._unanswered = self._unanswered, []
        for text in turns:
            self._add("user", text)
        if (mouth := self._contract.mouth) is None:
            self._tell(NOBODY)
            return
        utterance = _AnswerUtterance(mouth, self._contract.next_answer())
        try:
            await self._write(utterance)
            await utterance.ended()
        except asyncio.CancelledError:
            utterance.cancel()
            raise
        finally:
            if heard := await utterance.heard():
                self._add("assistant", heard)

    async def _write(self, utterance: "_AnswerUtterance") -> None:
        """The answer as it is written, while anybody hears it. What was written before a fault is spoken to its end."""
        try:
            async with aclosing(self._responder.answer(self.history)) as pieces:
                async for piece in pieces:
                    if not utterance.append(piece):
                        return
        except Unanswered as error:
            log.info("no answer: %s", error)
            self._tell(str(error))
        utterance.finish()

    def _add(self, role: Literal["user", "assistant"], text: str) -> None:
        """Two turns of one side in a row are one: chat templates want them to alternate, and a user's to be the first."""
        history = self._history
        if history and history[-1].role == role:
            text = f"{history.pop().text}\n{text}"
        history.append(Said(role, text[-MOST_CHARACTERS:]))
        while len(history) > MOST_TURNS or sum(len(said.text) for said in history) > MOST_CHARACTERS or history[0].role == "assistant":
            history.pop(0)
            if not history:
                return


class _AnswerUtterance:
    """An utterance of the mouth, opened with the first piece of its text."""

    def __init__(self, mouth: Mouth, request_id: str) -> None:
        self._mouth, self._id = mouth, request_id
        self._spoken: Answer | None = None
        self._heard: asyncio.Task[str] | None = None  # done when nothing of it sounds any more

    def append(self, text: str) -> bool:
        """More of its text. False if it has ended: nobody hears more."""
        if self._spoken is None or self._heard is None:
            self._spoken = self._mouth.answer(self._id)
            self._heard = asyncio.create_task(self._spoken.heard())
        if self._heard.done():
            return False
        self._spoken.append(text)
        return True

    def finish(self) -> None:
        if self._spoken is not None and self._heard is not None and not self._heard.done():
            self._spoken.finish()

    def cancel(self) -> None:
        if self._spoken is not None and self._heard is not None and not self._heard.done():
            self._spoken.cancel()

    async def ended(self) -> None:
        """Wait for its end."""
        if self._heard is not None:
            await asyncio.wait({self._heard}, timeout=LONGEST_SECONDS)

    async def heard(self) -> str:
        """The part of its text that was heard; empty if its end does not come in a moment."""
        if self._heard is None:
            return ""
        await asyncio.wait({self._heard}, timeout=LEAVE_SECONDS)
        if not self._heard.done():
            self.cancel()
            self._heard.cancel()
            return ""
        return "" if self._heard.cancelled() else self._heard.result().strip()
