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
    """Of one engine; for its thread.

    Args:
        slots: how many there are.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._last: dict[Hashable, float] = {}  # owner -> when it was last seen with a slot

    def note(self, held: Counter[Hashable], now: float) -> None:
        """Remember who holds slots now, and forget who has had none for long."""
        self._last |= dict.fromkeys(held, now)
        for owner in [owner for owner, last in self._last.items() if now - last > KEPT_SECONDS]:
            del self._last[owner]

    def open(self, held: Counter[Hashable]) -> int:
        """Slots for anybody, held ones included."""
        kept = self._slots >= FEWEST and any(owner not in held for owner in self._last)
        return self._slots - kept

    def below(self, held: Counter[Hashable]) -> int | None:
        """Only owners that hold fewer slots than so many may have a free one; None: anybody."""
        return 1 if held.total() >= self.open(held) else None
