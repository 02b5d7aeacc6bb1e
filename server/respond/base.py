"""What has been said so far -> the answer's text, in pieces as it is written: one interface, an implementation a file."""

from collections.abc import AsyncGenerator, Sequence
from typing import Literal, Protocol

import msgspec


class Said(msgspec.Struct, frozen=True):
    """One turn of a conversation; of an answer, the part that was heard."""

    role: Literal["user", "assistant"]
    text: str


class Unanswered(RuntimeError):
    """There is no answer, or no more of it; the message says why, and may be told to the client."""


class Responder(Protocol):
    """Writes answers. One for all conversations of a server."""

    def answer(self, history: Sequence[Said]) -> AsyncGenerator[str, None]:
        """Pieces of the answer to the last turn, which is the user's. Leaving the iterator early ends the work.

        Raises (while iterated):
            Unanswered: no answer, or no more of it.
        """

    async def close(self) -> None:
        """Let go of connections."""
