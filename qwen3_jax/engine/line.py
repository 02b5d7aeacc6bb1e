"""The line in which requests wait for a slot, shared out between their owners: waiting requests -> the next one to be served.

Whose turn it is: ``high`` goes before ``normal``, but ``patience`` of them in a row at most overtake a waiting ``normal`` one. Inside a
priority it is the turn of the owner that holds the fewest slots now; among equals, of the one whose last turn is longest ago. Slots that
are held count first, because they are what the others lack; audio that was heard earlier is owed to nobody. So a request whose owner
holds no slot waits for one turn of each other owner at most, however many requests those have. An owner's own requests are served
in the order in which they came; one that gave its slot back goes before those that had none yet. A request that waits for text, or for
its consumer, is passed over.

Who may wait: the line has a bound, which an owner may fill as long as it is alone. A full line takes a request of an owner only if another
owner has at least two more in it; the newest request of the owner that has most then leaves. So each of n owners always gets ``bound // n``
places, and nobody loses one to an owner that has as many.
"""

import itertools
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from qwen3_jax.engine.errors import Full
from qwen3_jax.engine.requests import Priority, Standing

REMEMBERED = 4096  # owners whose last turn is known; one that is forgotten counts as new


class Waiting(Protocol):
    """The part of ``engine.requests.Handle`` that is used here."""

    begun: bool

    @property
    def place(self) -> tuple[Priority, Hashable]:
        """Its priority and its owner."""

    @property
    def standing(self) -> Standing:
        """Only what is ready gets a turn."""


W = TypeVar("W", bound=Waiting)


class Line(Generic[W]):
    """See the module's docstring. Every method may be called from any thread.

    Args:
        patience: how many ``high`` requests in a row may go before a waiting ``normal`` one.
        bound: requests that may wait; more only where they have given a slot back.
    """

    def __init__(self, patience: int, bound: int) -> None:
        self._patience, self._bound = patience, bound
        self._overtaken = 0
        self._queues: dict[Priority, dict[Hashable, deque[W]]] = {"high": {}, "normal": {}}
        self._turns: OrderedDict[Hashable, int] = OrderedDict()  # owner -> the number of its last turn; the longest ago first
        self._number = itertools.count()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            return sum(1 for _ in self._all())

    def __iter__(self) -> Iterator[W]:
        with self._lock:
            return iter([*self._all()])

    def enter(self, one: W) -> W | None:
        """To the end of its owner's queue. Returns the request that has to leave for it, if there is one.

        Raises:
            Full: the line is full, and nobody has more in it than this owner.
        """
        with self._lock:
            leaves = self._leaves(one.place[1])
            if leaves is not None:
                self._remove(leaves)
            self._queue(one).append(one)
            return leaves

    def back(self, one: W) -> None:
        """One that had a slot and gave it back: behind those of its owner that did so before, in front of the others."""
        with self._lock:
            queue = self._queue(one)
            queue.insert(sum(other.begun for other in queue), one)

    def check(self, owner: Hashable) -> None:
        """Raises Full if ``enter`` would refuse a request of the owner now."""
        with self._lock:
            self._leaves(owner)

    def next(self, held: Mapping[Hashable, int], below: int | None = None) -> W | None:
        """Whose turn it is; None if nobody's.

        Args:
            held: slots that each owner holds.
            below: only owners that hold fewer than so many.
        """
        with self._lock:
            return self._choose(held, below)

    def pop(self, held: Mapping[Hashable, int], below: int | None = None) -> W | None:
        """Take out whose turn it is. Arguments as in ``next``."""
        with self._lock:
            one = self._choose(held, below)
            if one is None:
                return None
            priority, owner = one.place
            if priority == "normal":
                self._overtaken = 0
            elif any(other.standing == "ready" for queue in self._queues["normal"].values() for other in queue):
                self._overtaken += 1
            self._turns[owner] = next(self._number)
            self._turns.move_to_end(owner)
            while len(self._turns) > REMEMBERED:
                self._turns.popitem(last=False)
            self._remove(one)
            return one

    def drop(self, unwanted: Callable[[W], bool]) -> list[W]:
        """Take out, and return, those that ``unwanted`` says."""
        with self._lock:
            gone = [one for one in self._all() if unwanted(one)]
            for one in gone:
                self._remove(one)
            return gone

    # With the lock held

    def _all(self) -> Iterator[W]:
        return (one for queues in self._queues.values() for queue in queues.values() for one in queue)

    def _queue(self, one: W) -> deque[W]:
        priority, owner = one.place
        return self._queues[priority].setdefault(owner, deque())

    def _remove(self, one: W) -> None:
        priority, owner = one.place
        queue = self._queues[priority][owner]
        queue.remove(one)
        if not queue:
            del self._queues[priority][owner]

    def _leaves(self, owner: Hashable) -> W | None:
        """Who would leave for a request of this owner; None if there is room."""
        waiting = [*self._all()]
        if len(waiting) < self._bound:
            return None
        counts = Counter(one.place[1] for one in waiting)
        most, has = max(counts.items(), key=lambda item: item[1], default=(owner, 0))
        if has < counts[owner] + 2:
            share = self._bound // len({owner, *counts})
            raise Full(
                f"{len(waiting)} requests wait already, {counts[owner]} of them for this client, whose share is {share}; try again later"
            )
        theirs = [one for one in waiting if one.place[1] == most]
        return next((one for one in reversed(theirs) if not one.begun), theirs[-1])

    def _choose(self, held: Mapping[Hashable, int], below: int | None) -> W | None:
        high, normal = (self._first(queues, held, below) for queues in (self._queues["high"], self._queues["normal"]))
        return high if high is not None and (normal is None or self._overtaken < self._patience) else normal

    def _first(self, queues: dict[Hashable, deque[W]], held: Mapping[Hashable, int], below: int | None) -> W | None:
        """The first that is ready, of the owner whose turn it is."""
        owners = [owner for owner in queues if below is None or held.get(owner, 0) < below]
        for owner in sorted(owners, key=lambda owner: (held.get(owner, 0), self._turns.get(owner, -1))):
            for one in queues[owner]:
                if one.standing == "ready":
                    return one
        return None
