"""Who is lent the next free slot: one line, and a count of the slots that each owner holds, of one scheduler or of several.

Schedulers that share one Lending (pool.py) share out all of their slots by the rules that hold for one scheduler with as many: line.py
orders those who wait by the slots that they hold on all devices, and reserve.py keeps one slot of all of them. Which device serves a
request is decided when its turn comes, not when it enters the line: it is the one with the most free slots. So nobody waits while any
device has a free slot, and whoever waits does not depend on the device that fails.

A device that is in one round for more than ``STUCK`` seconds (it compiles, or hangs) is left out of account until it comes back.
"""

import threading
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from qwen3_jax.engine.line import Line
from qwen3_jax.engine.options import Options
from qwen3_jax.engine.requests import Handle, Request
from qwen3_jax.engine.reserve import Reserve
from qwen3_jax.engine.slots import Slot

STUCK = 1.0  # seconds; no round but one that compiles takes so long


class Reach:
    """How a request that waits reaches the schedulers that may take it. It holds no slots: a handle that holds it makes no cycle."""

    def __init__(self) -> None:
        self.members: list[tuple[Callable[[], None], Callable[[Request], None]]] = []

    def wake(self) -> None:
        """Have all of them look around."""
        for wake, _ in [*self.members]:
            wake()

    def check(self, request: Request) -> None:
        """What the device of one says of it, for they are alike: ValueError if it does not fit. Nothing, if there is none any more."""
        for _, check in self.members[:1]:
            check(request)


@dataclass(eq=False)
class Member:
    """A scheduler as the others see it."""

    slots: list[Slot]
    wake: Callable[[], None]
    since: float | None = None  # when the round that it is in began; None: it waits for work

    @property
    def free(self) -> int:
        """Slots that nobody holds."""
        return sum(slot.handle is None for slot in self.slots)


class Lending:
    """See the module's docstring. Every method may be called from any thread."""

    def __init__(self, options: Options) -> None:
        self.line: Line[Handle] = Line(options.patience, options.max_waiting)
        self.reach = Reach()
        self.lock = threading.RLock()  # held from choosing a request until it has its slot, so that two devices never decide by one count
        self._reserve = Reserve()
        self._members: list[Member] = []

    def join(self, slots: list[Slot], wake: Callable[[], None], check: Callable[[Request], None]) -> Member:
        """A scheduler begins: its slots count from now on."""
        member = Member(slots, wake)
        with self.lock:
            self._members.append(member)
            self.reach.members.append((wake, check))
        return member

    def leave(self, member: Member) -> list[Handle]:
        """A scheduler ends. If none is left, those who wait leave the line, and are returned: nobody serves them."""
        with self.lock:
            if member in self._members:
                index = self._members.index(member)
                del self._members[index], self.reach.members[index]
            waiting = [] if self._members else self.line.drop(lambda _: True)
        self.reach.wake()
        return waiting

    def held(self) -> Counter[Hashable]:
        """Slots by owner."""
        slots = (slot for member in [*self._members] for slot in member.slots)
        return Counter(handle.request.owner for slot in slots if (handle := slot.handle) is not None)  # its thread may free it meanwhile

    def begin(self, member: Member, now: float) -> None:
        """A round of the member begins. With the lock held, as for all that follow."""
        member.since = now
        self._reserve.note(self.held(), now)

    def take(self, member: Member, now: float) -> Handle | None:
        """Whose turn it is to have a free slot of the member; None: nobody's, or another device has more room, which is woken."""
        if (roomier := self._roomier(member, now)) is not None:
            if len(self.line):
                roomier.wake()
            return None
        held = self.held()
        return self.line.pop(held, below=self._below(held, now))

    def take_over(self, now: float) -> Handle | None:
        """Whose turn it is to have a slot whose holder waits."""
        held = self.held()
        return None if self._spare(held, now) else self.line.pop(held)

    def poorer(self, owner: Hashable, now: float) -> tuple[Handle | None, Counter[Hashable]]:
        """Whose turn it is among the owners that hold fewer slots than ``owner``, if there is no slot for them; and what each holds."""
        held = self.held()
        return (None if self._spare(held, now) else self.line.next(held, below=held[owner])), held

    def rest(self, member: Member, now: float) -> float | None:
        """The member has nothing to do. Returns the seconds after which it looks again whose turn it is: 0 if there is a slot for
        somebody here; None if nobody is to be served. A device with more room is woken."""
        with self.lock:
            held = self.held()
            if not self._free(member, now) or self.line.next(held, below=self._below(held, now)) is None:
                member.since = None
                return None
            if (roomier := self._roomier(member, now)) is None:
                return 0.0
            member.since = None
        roomier.wake()
        return STUCK

    def _roomier(self, member: Member, now: float) -> Member | None:
        """The one with the most free slots, if it has more than the member."""
        others = (other for other in self._members if other is not member and not _stuck(other, now))
        most = max(others, key=lambda other: other.free, default=None)
        return most if most is not None and most.free > member.free else None

    def _free(self, member: Member | None, now: float) -> int:
        return sum(one.free for one in self._members if one is member or not _stuck(one, now))

    def _kept(self, held: Counter[Hashable]) -> int:
        return self._reserve.kept(held, sum(len(member.slots) for member in self._members))

    def _spare(self, held: Counter[Hashable], now: float) -> bool:
        """Whether some slot is free for anybody."""
        return self._free(None, now) > self._kept(held)

    def _below(self, held: Counter[Hashable], now: float) -> int | None:
        """Only owners that hold fewer slots than so many may have a free one; None: anybody."""
        return None if self._spare(held, now) else 1


def _stuck(member: Member, now: float) -> bool:
    return member.since is not None and now - member.since > STUCK
