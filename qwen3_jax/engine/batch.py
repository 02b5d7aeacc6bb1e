"""The rows of a device that speak: their state, which slot has which row, and how the batch grows and shrinks."""

from dataclasses import dataclass, field

import numpy as np

from qwen3_jax.engine import programs


@dataclass
class Batch:
    """See the module's docstring. What is changed is donated, so the state is always the only one."""

    state: programs.State
    owners: list[int | None]  # the slot of each row; None: it is free
    columns: int
    ends: dict[int, int] = field(default_factory=dict)  # of each slot, the last column that it may have written

    def row(self, slot: int) -> int:
        """The row of a slot. Raises ValueError if it has none."""
        return self.owners.index(slot)

    @property
    def count(self) -> int:
        """Rows that a slot has."""
        return sum(owner is not None for owner in self.owners)

    def resize(self, size: int) -> None:
        """The same rows in a batch of another size. Layer by layer, so that there is one more layer than before at most."""
        owners = [owner for owner in self.owners if owner is not None]
        rows = np.array([*map(self.row, owners), *[0] * (size - len(owners))], np.int32)
        caches = self.state.caches
        self.state = self.state._replace(caches=[])
        self.state = programs.take(self.state, rows)
        for layer in range(len(caches)):
            caches[layer] = programs.take(caches[layer], rows)
        self.state = self.state._replace(caches=caches)
        self.owners = [*owners, *[None] * (size - len(owners))]

    def widen(self, columns: int) -> None:
        """Room for so many columns at least, in each KV cache."""
        if columns > self.columns:
            caches = self.state.caches
            for layer in range(len(caches)):
                caches[layer] = programs.widen(caches[layer], columns=columns)
            self.columns = columns
