"""What the clients of a soak saw: every utterance that they asked for, with its end, and whatever broke the server's contract."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

End = Literal["completed", "cancelled", "failed", "refused", "unclear", "gone", "lost"]
"""``failed``: it had begun, and its client was told why not. ``refused``: it never began. ``unclear``: one of these two, the answer does
not say which. ``gone``: its client left, and cannot know which: one that waits too long fails, too. ``lost``: it should have ended and
did not, or a fault came before its end."""
MOST_WRONG = 50  # that are kept in words


class Broken(Exception):
    """The server did something that its contract forbids."""


@dataclass
class Tally:
    """Of one client, or of many."""

    asked: int = 0
    ends: Counter[End] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)  # of errors, as clients were told
    deeds: Counter[str] = field(default_factory=Counter)  # rounds by kind of client, and what was done in them
    faults: int = 0
    wrong: list[str] = field(default_factory=list)

    def ended(self, end: End, number: int = 1) -> None:
        """Count utterances with their end."""
        self.asked += number
        self.ends[end] += number

    def fault(self, what: str) -> None:
        """Note a fault of the server's."""
        self.faults += 1
        if len(self.wrong) < MOST_WRONG:
            self.wrong.append(what)

    def add(self, other: "Tally") -> None:
        """Take over what another client has noted."""
        self.asked += other.asked
        self.faults += other.faults
        self.wrong = (self.wrong + other.wrong)[:MOST_WRONG]
        for name in ("ends", "codes", "deeds"):
            getattr(self, name).update(getattr(other, name))
