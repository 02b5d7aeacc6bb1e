"""The line in which requests wait for a slot: high before normal, but nobody is overtaken for ever."""

import itertools
from collections import deque
from collections.abc import Callable, Iterator

from qwen3_jax.engine.requests import Handle


class Line:
    """First come, first served within a priority.

    Args:
        patience: how many ``high`` requests in a row may go before a waiting ``normal`` one.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._overtaken = 0
        self._waiting: dict[str, deque[Handle]] = {"high": deque(), "normal": deque()}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[Handle]:
        return itertools.chain(*self._waiting.values())

    def push(self, handle: Handle) -> None:
        """To the end of its priority's queue."""
        self._waiting[handle.request.priority].append(handle)

    def pop(self) -> Handle | None:
        """Whose turn it is; None if nobody waits."""
        high, normal = self._waiting["high"], self._waiting["normal"]
        if high and not (normal and self._overtaken >= self._patience):
            self._overtaken += bool(normal)
            return high.popleft()
        self._overtaken = 0
        return normal.popleft() if normal else None

    def drop(self, unwanted: Callable[[Handle], bool]) -> list[Handle]:
        """Take out, and return, those that ``unwanted`` says."""
        gone = [handle for queue in self._waiting.values() for handle in queue if unwanted(handle)]
        for handle in gone:
            self._waiting[handle.request.priority].remove(handle)
        return gone
