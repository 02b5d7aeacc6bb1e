"""Handles that have news -> one call of each consumer's ``notify`` per round, for all of its handles."""

from collections.abc import Callable

from qwen3_jax.engine.requests import Handle, Notify


class News:
    """What consumers are to be told. For the engine's thread.

    Args:
        lost: called with the handles whose ``notify`` raised, and what it raised. It may add no news of them.
    """

    def __init__(self, lost: Callable[[list[Handle], BaseException], None]) -> None:
        self._lost = lost
        self._handles: list[Handle] = []

    def add(self, handle: Handle) -> None:
        """There is news of it."""
        self._handles.append(handle)

    def tell(self) -> None:
        """Tell all consumers."""
        handles, self._handles = dict.fromkeys(self._handles), []
        by_consumer: dict[Notify, list[Handle]] = {}
        for handle in handles:
            if handle.request.notify is not None:
                by_consumer.setdefault(handle.request.notify, []).append(handle)
        for notify, theirs in by_consumer.items():
            try:
                notify([*theirs])
            except BaseException as error:  # noqa: BLE001  # others' code: it ends their requests, not the engine
                self._lost(theirs, error)
