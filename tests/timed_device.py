"""A Device that computes nothing and takes the time that a real one takes: frames of one level, on any clock.

On a clock that only its owner moves, the real scheduler is simulated (benchmarks/capacity.py); on the machine's own, it is loaded without
a model (tests/timed_engine.py). Times are those of one frame of all rows and of one piece of a prompt; the host's own time comes on top of
them only on the machine's clock.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from qwen3_jax.engine import Request, Segment
from qwen3_jax.engine.device import COLUMNS, FRAMES, PIECES
from qwen3_jax.engine.pieces import piece_for
from qwen3_jax.engine.slots import Opening, Outcome, Text
from qwen3_jax.model.frame import EOS, RUNNING
from qwen3_jax.text.prompt import Prompt

SAMPLES = 1920  # of a frame
TEXT_ROWS = 16  # of the prompt of ``segment``: a short sentence with an x-vector
Until = Callable[[float], None]


class HeldClock:
    """Seconds; it stands still until somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def until(self, moment: float) -> None:
        """It is that late now, or later."""
        self.now = max(self.now, moment)


def sleep_until(moment: float) -> None:
    """The same on the machine's clock: the device is at work so long."""
    time.sleep(max(0.0, moment - time.monotonic()))


class Times(NamedTuple):
    """Seconds of one frame by rows of the batch, whose sizes these are, and of one piece of a prompt."""

    step: Mapping[int, float]
    piece: float


@dataclass
class _Row:
    frames: int  # until its end
    pieces: int  # of its prompt, still to be read
    made: int = 0
    reason: int = RUNNING


class _Launched(NamedTuple):
    outcome: Outcome
    done: float


def segment(frames: int, rows: int = TEXT_ROWS) -> Segment:
    """A sentence that lasts so many frames."""
    empty = np.zeros((rows, 1), np.int32)
    return Segment(Prompt(np.zeros(rows, np.int32), empty, np.zeros(rows, bool), None, np.zeros(1, np.int32)), frames)


class TimedDevice:
    """See ``qwen3_jax.engine.slots.Device``. A segment ends with its ``max_frames``; texts that grow are not spoken here.

    Args:
        samples: of a frame.
        level: of all samples.
    """

    frames, columns, piece = FRAMES, COLUMNS, PIECES[-1]

    def __init__(
        self,
        times: Times,
        clock: Callable[[], float] = time.monotonic,
        until: Until = sleep_until,
        samples: int = SAMPLES,
        level: float = 0.0,
    ) -> None:
        self.slots, self._times, self._clock, self._until = max(times.step), times, clock, until
        self._samples, self._level = samples, level
        self._rows: dict[int, _Row] = {}
        self._busy = clock()  # until then

    @property
    def batch(self) -> int:
        speak = sum(not row.pieces for row in self._rows.values())
        return min(size for size in self._times.step if size >= speak)

    def check(self, request: Request) -> None:
        """All fit."""

    def open(self, slot: int, opening: Opening) -> list[int]:
        rows = len(opening.prompt.text)
        size = piece_for(PIECES, rows)
        self._rows[slot] = _Row(opening.text.limit, -(-rows // size))
        return [size] * self._rows[slot].pieces

    def read(self, slot: int) -> None:
        self._rows[slot].pieces -= 1
        self._work(self._times.piece)

    def write_text(self, slot: int, text: Text) -> None:
        raise NotImplementedError("no text grows here")

    def rewind(self, slot: int, seed: int, segment: int, attempt: int) -> None:
        raise NotImplementedError("no speech runs away here")

    def keep(self, slot: int) -> Any:
        return None

    def lend(self, state: Any) -> Any:
        return state

    def close(self, slot: int) -> None:
        self._rows.pop(slot, None)

    @property
    def alone(self) -> bool:
        return len(self._times.step) > 1

    def launch(self, quotas: list[int], limit: int) -> _Launched:
        return self._launch(quotas, limit, self.batch)

    def launch_alone(self, slot: int, limit: int) -> _Launched:
        return self._launch([limit if other == slot else 0 for other in range(self.slots)], limit, min(self._times.step))

    def _launch(self, quotas: list[int], limit: int, size: int) -> _Launched:
        counts, reason = np.zeros(self.slots, np.int32), np.zeros(self.slots, np.int32)
        self._work(limit * self._times.step[size])
        for slot, quota in enumerate(quotas):
            if quota and (row := self._rows[slot]).reason == RUNNING:
                counts[slot] = min(quota, row.frames - row.made)
                row.made += int(counts[slot])
                row.reason = RUNNING if counts[slot] == quota else EOS  # found out by the frame after the last
        for slot, row in self._rows.items():
            reason[slot] = row.reason
        codes = np.zeros((self.frames, self.slots, 1), np.int32)
        pcm = np.full((self.frames, self.slots, self._samples), self._level, np.float32)
        return _Launched(Outcome(codes, pcm, counts, reason, np.zeros(self.slots, np.int32)), self._busy)

    def collect(self, launched: _Launched) -> Outcome:
        self._until(launched.done)
        return launched.outcome

    def _work(self, seconds: float) -> None:
        self._busy = max(self._busy, self._clock()) + seconds
