"""How much each slot makes in the next launch, how much prompt is read before it, and how long a first packet is: slots in, numbers out.

How many frames a launch makes: one as long as anybody waits for the first packet or a prompt is being read; else each slot's packets
grow (1, 2, 4 ...) up to what the device makes in ``call_ms``, or in half the time for which the listener with the least audio in
hand has enough. A slot takes no part while its consumer's queue is full, its text has run out, or (if others wait for their first packet)
it is ``lead_ms`` ahead of real time; the others go on. A slot that is ahead is not paused for those who wait for a slot: the sooner
it ends, the sooner they have it.

The first packet is one frame where the next one is made well within the 80 ms for which that lasts. On a device that is slower, or while
prompts are read that take the time, it waits for as many as are heard until the next one comes (`first_packet`): later, but without a
gap. Nor is a prompt read while a listener would hear all that he has before the round ends (`budget`).

Where each row of a batch costs, an owner that holds no other slot does not wait for a step of the others: its first packet is made by a
step of its own row, as long as every listener has enough in hand for that (`next`). And while a slot is free, a step is not launched much
before the one before it ends, so that whoever comes meanwhile takes part in it (`hold`).
"""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from qwen3_jax.engine.options import FRAME_SECONDS, Counters, Options
from qwen3_jax.engine.slots import Device, Slot

FIRST_MOST = 5  # frames that a first packet waits for, at most
POSTPONED = 4  # rounds in a row in which no prompt is read for the sake of those who listen
SPARE, LEAST_SPARE = 0.15, 0.004  # of a step, and seconds: so long before its end, as fast steps have it, the next one is launched
CROWD = 4  # rows of a batch from which on a newcomer makes its first packet alone
_RECENT, _MOST, _JITTER = 24, 0.9, 1.15  # of the last steps so many took no longer, and the next may take so much longer than those
_FILLED = 0.7  # of a first packet's time the next one is expected in: one step in a thousand takes 1.4 to 1.5 times as long as nine in ten


class Flight(NamedTuple):
    """A launch that has not been collected."""

    launched: Any
    serials: list[int]
    quotas: list[int]
    limit: int
    at: float
    read: bool | None  # whether a piece of prompt was read before it; None: many, for nobody spoke
    rows: int  # of the batch
    alone: bool = False  # a first packet, whole


class Pace:
    """See the module's docstring. For the engine's thread.

    Args:
        device: whose limits hold.
        slots, flights: the scheduler's own, as they stand whenever something is asked.
        started: on the scheduler's clock.
    """

    def __init__(
        self, device: Device, slots: list[Slot], flights: deque[Flight], options: Options, counters: Counters, started: float
    ) -> None:
        self.slots, self.flights, self.options, self.counters = slots, flights, options, counters
        self._device, self._frames, self._piece = device, device.frames, device.piece
        self._ready_at = started
        # Of each number of rows, for a step costs what its rows cost: seconds of the last steps, plain and after a piece; and smoothed.
        self._recent: defaultdict[tuple[int, bool], deque[float]] = defaultdict(lambda: deque(maxlen=_RECENT))
        self._seconds: dict[int, float] = {}
        self._postponed = 0

    def collected(self, flight: Flight, now: float) -> None:
        """Take note of how long a launch took."""
        each = (now - max(flight.at, self._ready_at)) / flight.limit
        self._ready_at = now
        if flight.read is not None and each < FIRST_MOST * FRAME_SECONDS:  # else it was compiled, or is too slow for any first packet
            self._recent[flight.rows, flight.read].append(each)
        self.counters.steps += 1
        before = self._seconds.get(flight.rows, 0.0)
        self._seconds[flight.rows] = before + (each - before) * (0.1 if self.counters.steps > 10 and before else 0.5)
        self.counters.step_seconds = self._seconds[flight.rows]

    @property
    def _step(self) -> float:
        """Seconds that a frame of the batch takes, as it is now; 0: not known."""
        rows = self._device.batch
        size = self._nearest([*self._seconds], rows)
        return self._seconds.get(size, 0.0) * self._times(size, rows)

    def _nearest(self, sizes: list[int], rows: int) -> int:
        """Of the numbers of rows that have been timed, the one that tells most about ``rows``."""
        return min(sizes, key=lambda size: abs(size - rows), default=0)

    def _times(self, size: int, rows: int) -> float:
        """How often as long a step of ``rows`` takes as one of ``size``, at most."""
        return max(1.0, rows / size) if size else 1.0

    ahead = 1  # launches that the device may work on while the host hands over the last one's audio

    @property
    def queue(self) -> int:
        """Frames that may lie in a consumer's queue."""
        return int(self.options.buffer_ms / 1000 / FRAME_SECONDS)

    def budget(self, now: float) -> int:
        """Rows of prompt that may be read before the next launch while somebody speaks: none if a listener would have heard all before it
        ends; but such launches are no more than `POSTPONED` in a row, and one where an owner of one slot waits for an owner of several."""
        held = self._held()
        poor = any(held[slot.handle.request.owner] == 1 for slot in self.slots if slot.reading and slot.handle)
        most = 1 if poor and max(held.values()) > 1 else POSTPONED
        self._postponed = self._postponed + 1 if self._postponed < most and self._short(self._may_take(True), now) else 0
        return 0 if self._postponed else self._piece

    def next(self, now: float) -> tuple[int | None, list[int], int]:
        """The next launch: of which slot alone, if it is; frames that each row may make; and the most of them, 0: nothing to launch."""
        first = self._alone(now)
        if first is None:
            return None, *self.quotas(now)
        index, frames = first
        return index, [frames if slot.index == index else 0 for slot in self.slots], frames

    def _alone(self, now: float) -> tuple[int, int] | None:
        """A slot that is launched at once, without the others, and the frames of its first packet. None: nobody's is."""
        if not self._device.alone or self._device.batch < CROWD or len(self.flights) > self.ahead:
            return None
        held = self._held()
        for slot in self.slots:
            handle = slot.handle
            if handle and slot.speaking and not slot.launched and handle.first_audio is None and held[handle.request.owner] == 1:
                frames = min(self.first_packet(), self.allowance(slot, now), self._frames)
                step = max(self._may_take(False), self._may_take(True))
                if frames and not self._short(step + frames * self._may_take(False, 1), now, least=-math.inf):
                    return slot.index, frames
        return None

    def hold(self, now: float) -> float:
        """Seconds for which the next launch can wait for a newcomer, because the device is at work on the one before."""
        if len(self.flights) != 1 or not any(slot.handle is None for slot in self.slots):
            return 0.0
        flight = self.flights[0]
        known = sorted(self._recent[flight.rows, bool(flight.read)])
        if not known:
            return 0.0
        step = flight.limit * known[len(known) // 4]
        return max(0.0, max(flight.at, self._ready_at) + step - max(SPARE * step, LEAST_SPARE) - now)

    def _held(self) -> Counter[Hashable]:
        """Slots by owner."""
        return Counter(slot.handle.request.owner for slot in self.slots if slot.handle is not None)

    def _short(self, seconds: float, now: float, least: float = 0.0) -> bool:
        """Whether a listener whose speech goes on has audio for less than so long, but for more than ``least``: it is late already."""
        waits = [slot for slot in self.slots if slot.speaking and slot.released and (slot.flying or self.allowance(slot, now))]
        return any(least < self._in_hand(slot, now) < seconds for slot in waits)

    def quotas(self, now: float) -> tuple[list[int], int]:
        """Frames that each row may make in the next launch, and the most of them; 0: nothing to launch."""
        allowed = [self.allowance(slot, now) if slot.speaking else 0 for slot in self.slots]
        unheard = any(
            slot.reading or (most and not slot.released and not slot.flying) for slot, most in zip(self.slots, allowed, strict=True)
        )
        hands = [self._in_hand(slot, now) for slot, most in zip(self.slots, allowed, strict=True) if most]
        # who has nothing in hand is late already: single frames would only make all of them later
        largest = 1 if unheard else self._largest(min((hand for hand in hands if hand > 0), default=float("inf")))
        quotas = []
        for slot, most in zip(self.slots, allowed, strict=True):
            ahead = unheard and self.lead(slot, now) > self.options.lead_ms / 1000
            quotas.append(0 if ahead else min(most, largest, 2 * slot.launched if slot.launched else 1))
        return quotas, max(quotas, default=0)

    def _largest(self, in_hand: float) -> int:
        each = self._step
        return 1 if each == 0 else min(self._frames, max(1, int(min(self.options.call_ms / 1000, in_hand / 2) / each)))

    def _in_hand(self, slot: Slot, now: float) -> float:
        """Seconds of audio that its listener will have when what is in flight has come."""
        coming = sum(flight.limit for flight in self.flights) * self._step
        heard = slot.handle is not None and slot.handle.first_audio is not None
        return slot.flying * FRAME_SECONDS + (self.lead(slot, now) - coming if heard else 0.0)

    def allowance(self, slot: Slot, now: float) -> int:
        """What text and the consumer's queue allow."""
        assert slot.handle is not None
        room = self.queue - slot.handle.buffered - slot.flying - len(slot.held)
        if slot.text_open:
            room = min(room, slot.text - slot.made - slot.flying)
        if room > 0:
            slot.idle_since = None
        elif slot.idle_since is None and not slot.flying:
            slot.idle_since = now
        return max(room, 0)

    def lead(self, slot: Slot, now: float) -> float:
        began = None if slot.handle is None else slot.handle.first_audio
        return 0.0 if began is None else slot.released * FRAME_SECONDS - (now - began)

    def first_packet(self) -> int:
        """Frames that last until the next packet comes, though every prompt that waits were read before it."""
        reading = sum(slot.reading for slot in self.slots)
        seconds = max(self._may_take(False), self._may_take(True)) if reading else self._may_take(False)
        late = reading * max(0.0, seconds / _JITTER - FRAME_SECONDS)
        return min(FIRST_MOST, max(1, math.ceil((seconds + late) / (_FILLED * FRAME_SECONDS))))

    def _may_take(self, read: bool, rows: int | None = None) -> float:
        """Seconds of the next step, of the batch or of so many rows, judged by the last ones like it. One that was late alone does not
        count."""
        rows = self._device.batch if rows is None else rows
        size = self._nearest([size for (size, after), taken in self._recent.items() if after == read and taken], rows)
        known = sorted(self._recent[size, read])
        return _JITTER * known[int(_MOST * (len(known) - 1))] * self._times(size, rows) if known else 0.0


PaceOf = Callable[[Device, list[Slot], deque[Flight], Options, Counters, float], Pace]
