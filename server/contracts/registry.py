"""The contracts of one server process: found by principal and id, so that somebody else's contract of the same id is another one."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from time import monotonic

from server.contracts.bus import Bus, MemoryBus
from server.contracts.contract import Contract, InterruptionRules, Outcome, SpeechEvent, Timer

LINGERS = 30.0  # seconds that a contract without a session is known: a client that comes back finds it
MOST, MOST_OF_ONE = 10_000, 1000  # contracts: in all, of one principal; those that have been without a session longest are forgotten first

Key = tuple[str, str]  # principal's id, contract's id


class Contracts:
    """All of them.

    Args:
        rules: when speech is an interruption.
        later: calls a function after so many seconds, as ``loop.call_later``.
        count: told how each interruption of an answer ended.
        bus: to other processes; None: there are none.
        clock: seconds.
    """

    def __init__(
        self,
        rules: InterruptionRules,
        later: Callable[[float, Callable[[], None]], Timer],
        count: Callable[[Outcome], None] = lambda outcome: None,
        bus: Bus | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.bus: Bus = MemoryBus() if bus is None else bus
        self._rules, self._later, self._count, self._clock = rules, later, count, clock
        self._contracts: dict[Key, Contract] = {}
        self._of: Counter[str] = Counter()  # by principal
        self._empty: dict[str, dict[str, Timer]] = {}  # by principal: without a session, longest first -> when they are forgotten
        self.bus.subscribe(self._apply)

    def __len__(self) -> int:
        return len(self._contracts)

    def of(self, principal_id: str, contract_id: str) -> Contract:
        """The principal's contract of that id, made if it is not there."""
        key = principal_id, contract_id
        if (contract := self._contracts.get(key)) is None:
            contract = self._contracts[key] = Contract(
                self._rules,
                self._clock,
                self._later,
                publish=partial(self.bus.publish, *key),
                count=self._count,
                changed=partial(self._changed, key),
            )
            self._of[principal_id] += 1
            self.bus.watch(*key)
            self._changed(key)
        return contract

    def get(self, principal_id: str, contract_id: str) -> Contract | None:
        """The principal's contract of that id, if it is there."""
        return self._contracts.get((principal_id, contract_id))

    def _apply(self, principal_id: str, contract_id: str, event: SpeechEvent) -> None:
        if (contract := self.get(principal_id, contract_id)) is not None:
            contract.apply(event)

    def _changed(self, key: Key) -> None:
        """A session has joined or left."""
        principal_id, contract_id = key
        self._occupy(key)
        if self._contracts[key].empty:
            self._empty.setdefault(principal_id, {})[contract_id] = self._later(LINGERS, partial(self._forget, key))
            if self._of[principal_id] > MOST_OF_ONE:
                self._forget_one(principal_id)
            elif len(self._contracts) > MOST:
                self._forget_one(max(self._empty, key=lambda one: len(self._empty[one])))  # whoever has most of them

    def _occupy(self, key: Key) -> None:
        """It is not one of the empty ones, if it was."""
        principal_id, contract_id = key
        empty = self._empty.get(principal_id, {})
        if (timer := empty.pop(contract_id, None)) is not None:
            timer.cancel()
            if not empty:
                del self._empty[principal_id]

    def _forget_one(self, principal_id: str) -> None:
        self._forget((principal_id, next(iter(self._empty[principal_id]))))

    def _forget(self, key: Key) -> None:
        self._occupy(key)
        del self._contracts[key]
        self._of[key[0]] -= 1
        if not self._of[key[0]]:
            del self._of[key[0]]
        self.bus.unwatch(*key)
