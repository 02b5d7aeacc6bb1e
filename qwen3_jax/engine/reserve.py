"""The last free slot is kept for an owner that holds none, where several owners speak: slots held by each -> who may have a free one.

Without it, an owner that fills every slot makes the others wait for the end of a sentence, which is seconds of silence. The slot is kept
while some owner that held a slot within the last ``KEPT_SECONDS`` holds none; with fewer than ``FEWEST`` slots it would cost too much.
So an owner that speaks alone has all of the slots.
"""

from collections import Counter
from collections.abc import Hashable

KEPT_SECONDS = 60.0
FEWEST = 4


class Reserve:
    """Of the schedulers that share one Lending (lending.py); for one thread at a time."""

    def __init__(self) -> None:
        self._last: dict[Hashable, float] = {}  # owner -> when it was last seen with a slot

    def note(self, held: Counter[Hashable], now: float) -> None:
        """Remember who holds slots now, and forget who has had none for long."""
        self._last |= dict.fromkeys(held, now)
        for owner in [owner for owner, last in self._last.items() if now - last > KEPT_SECONDS]:
            del self._last[owner]

    def kept(self, held: Counter[Hashable], slots: int) -> int:
        """Of so many slots, those that only an owner that holds none may have."""
        return int(slots >= FEWEST and any(owner not in held for owner in self._last))
