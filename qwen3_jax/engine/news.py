"""Handles that have news -> one call of each consumer's ``notify`` per round, for all of its handles."""

from collections.abc import Callable

from qwen3_jax.engine.errors import ConsumerFailed
from qwen3_jax.engine.requests import Handle, Notify


class News:
    """What consumers are to be told. For the engine's thread."""

    def __init__(self) -> None:
        self._handles: list[Handle] = []

    def add(self, handle: Handle) -> None:
        """There is news of it."""
        self._handles.append(handle)

    def tell(self, lost: Callable[[list[Handle], ConsumerFailed], None]) -> None:
        """Tell all consumers. ``lost`` is called with the handles whose ``notify`` raised, and why; it may add no news of them."""
        handles, self._handles = dict.fromkeys(self._handles), []
        by_consumer: dict[Notify, list[Handle]] = {}
        for handle in handles:
            if handle.request.notify is not None:
                by_consumer.setdefault(handle.request.notify, []).append(handle)
        for notify, theirs in by_consumer.items():
            try:
                notify([*theirs])
            except BaseException as error:  # noqa: BLE001  # others' code: it ends their requests, not the engine
                failure = ConsumerFailed(f"the function that is told of news of the request raised {type(error).__name__}: {error}")
                failure.__cause__ = error
                lost(theirs, failure)
