"""Who has the floor, as a session that hears sees it: its contract, and who answers in it. Without a contract it does nothing."""

from collections.abc import Callable

from server.context import Context
from server.contracts.contract import Contract
from server.listen.heard_turn import words_of
from server.respond.conversation import Conversation


class Floor:
    """One session's.

    Args:
        tell: called with a sentence for the client where there is no answer.
    """

    def __init__(self, context: Context, tell: Callable[[str], None]) -> None:
        self._context, self._tell = context, tell
        self._contract: Contract | None = None
        self._answers: Conversation | None = None

    def join(self, principal_id: str, contract_id: str, *, respond: bool) -> None:
        """The session is in that contract."""
        self._contract = self._context.contracts.of(principal_id, contract_id)
        self._contract.attend(self)
        if respond:
            self._answers = Conversation(self._context.responder, self._contract, self._tell)

    async def leave(self) -> None:
        """It is in none."""
        contract, answers, self._contract, self._answers = self._contract, self._answers, None, None
        if contract is not None:
            contract.leave(self)
        if answers is not None:
            await answers.close()

    @property
    def responds(self) -> bool:
        return self._answers is not None

    @property
    def playing(self) -> bool:
        """Whether an answer sounds at the client."""
        return self._contract is not None and self._contract.playing

    def loudness(self, ago: float) -> float | None:
        """How loud that answer was so many seconds ago; None where that is not known."""
        return None if self._contract is None else self._contract.loudness(ago)

    def suspected(self) -> None:
        """Somebody may begin to speak."""
        if self._contract is not None:
            self._contract.speech_suspected()

    def began(self) -> None:
        """Somebody speaks."""
        if self._contract is not None:
            self._contract.speech_started()

    def goes_on(self, ms: int, text: str) -> None:
        """So much has been said."""
        if self._contract is not None:
            self._contract.speech_goes_on(ms, words_of(text))

    def ended(self, *, spoken: bool) -> None:
        """Silence again. ``spoken``: whether it was speech at all."""
        if self._contract is not None:
            if not spoken:
                self._contract.false_alarm()
            self._contract.speech_ended()

    def understood(self, text: str, *, speaking: bool) -> None:
        """A turn's text, empty where there is none. ``speaking``: whether another turn is open already."""
        if self._contract is not None:
            if words := words_of(text):
                self._contract.speech_goes_on(0, words)
            elif not speaking:
                self._contract.false_alarm()

    def answer(self, text: str, *, over_an_answer: bool) -> None:
        """Have a turn answered; "mm-hm" to an answer that sounds wants no other one."""
        if self._answers is not None and text and (words_of(text) or not over_an_answer):
            self._answers.turn(text)
