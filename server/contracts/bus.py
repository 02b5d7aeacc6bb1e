"""What happens to contracts, told to other server processes. Within one process nothing is to be told (MemoryBus)."""

from collections.abc import Callable
from typing import Protocol

from server.contracts.contract import SpeechEvent

Receive = Callable[[str, str, SpeechEvent], None]  # principal's id, contract's id, what happened


class BusDown(ConnectionError):
    """Other processes cannot be reached now."""


class Bus(Protocol):
    """None of the methods waits but ``ask``."""

    def subscribe(self, receive: Receive) -> None:
        """Whom to tell of events of other processes."""

    def watch(self, principal_id: str, contract_id: str) -> None:
        """Hear of that contract's events."""

    def unwatch(self, principal_id: str, contract_id: str) -> None: ...

    def publish(self, principal_id: str, contract_id: str, event: SpeechEvent) -> None:
        """Tell the other processes that watch the contract. What cannot be told now is lost: a second later it is not true any more."""

    async def ask(self, principal_id: str, contract_id: str, event: SpeechEvent) -> int:
        """As ``publish``; returns how many processes were told. Raises BusDown."""

    def start(self) -> None:
        """Connect. Called once, in the event loop."""

    async def close(self) -> None: ...


class MemoryBus:
    """One process: there is nobody to tell."""

    def subscribe(self, receive: Receive) -> None: ...

    def watch(self, principal_id: str, contract_id: str) -> None: ...

    def unwatch(self, principal_id: str, contract_id: str) -> None: ...

    def publish(self, principal_id: str, contract_id: str, event: SpeechEvent) -> None: ...

    async def ask(self, principal_id: str, contract_id: str, event: SpeechEvent) -> int:
        return 0

    def start(self) -> None: ...

    async def close(self) -> None: ...
