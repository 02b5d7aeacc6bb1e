"""What the engine does next. Pure Python: requests and a Device in, packets in the requests' queues out; one thread, no waiting.

A round: drop who is gone -> give free slots away -> read at most one piece of prompt -> launch a step, if it is time -> collect the step
before it -> tell the consumers, all of a step at once.

The step before: while the device makes one step, the host hands over the last one's audio, so nothing waits for copies. A row that has
ended is found out one step late, which costs nothing: the device has stopped it itself. How long a launch is, and when: see pace.py.

Whose turn it is when a slot gets free: see lending.py, line.py and reserve.py. An utterance keeps its slot only if nobody needs it more:

between two segments  it gives the slot to a request whose owner holds fewer slots: at once if that owner has at least two fewer; else if
                      its own listener has ``lead_ms`` in hand, or the other one has waited for ``turn_seconds`` or hears a pause already.
                      So those who hold as many slots as the others speak without a pause, as long as the device is fast enough for all.
while it waits        for text or for its consumer, it gives the slot to anybody: between segments at once, inside one after ``SETTLES``.

Nothing of an utterance is lost by that. The device keeps where the last segment has left the codec, so it goes on without a seam in
another slot. A segment that was left in its middle is made again from its beginning, which gives the same frames, and what was handed
over of it is dropped: that costs steps of one row, but no memory.
"""

from collections import deque
from collections.abc import Callable

import numpy as np

from qwen3_jax.engine.errors import ConsumerFailed, EngineError, Full, NotFinite
from qwen3_jax.engine.lending import Lending
from qwen3_jax.engine.news import News
from qwen3_jax.engine.options import FRAME_SECONDS, Counters, Options
from qwen3_jax.engine.pace import Flight, Pace, PaceOf
from qwen3_jax.engine.patience import SETTLES, End, end_in_line, end_in_slot, soonest
from qwen3_jax.engine.requests import Handle, Packet, Rest
from qwen3_jax.engine.segment import MOST
from qwen3_jax.engine.slots import NEVER, RUNAWAY, Device, Frame, Opening, Outcome, Slot, frame_of, text_of
from qwen3_jax.model.frame import DAMAGED, LENGTH, NOT_FINITE, RUNNING

ROOM = 5.0  # seconds of audio that a consumer that was late must have taken before its utterance goes on


class Scheduler:
    """Lends the device's slots to requests, and gives the device its next piece of work.

    A request is submitted, waits in line, gets a slot, has its prompt read, speaks, and leaves the slot at its end. The engine's thread
    calls ``run_round`` again and again; each call moves every request on by one step. Who gets a free slot is decided in lending.py, how
    many frames each slot makes in pace.py; this class does what they say.

    Only ``submit`` may be called from any thread (one call at a time). ``clock`` tells seconds, and never goes back. ``lending``: that of
    several schedulers, which share their line; ``wake`` tells this one's thread that there is something to do.
    """

    def __init__(
        self, device: Device, options: Options, clock: Callable[[], float], counters: Counters | None = None, pace: PaceOf = Pace,
        *, lending: Lending | None = None, wake: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.device, self.options, self.clock = device, options, clock
        self.counters = counters or Counters()
        self.slots = [Slot(index) for index in range(device.slots)]
        self.lending = lending or Lending(options)
        self.line = self.lending.line
        self._displaced: deque[Handle] = deque()  # no more than are submitted between two rounds
        self._flights: deque[Flight] = deque()
        self._asked = self._has_read = False  # since the last launch: whether a prompt might be read, and whether one was
        self.news = News()  # no cycle: the device goes with whoever lets go of the scheduler
        self.pace = pace(device, self.slots, self._flights, options, self.counters, clock())
        self._member = self.lending.join(self.slots, wake, device.check)

    def submit(self, handle: Handle) -> None:
        """From any thread (one at a time).

        Raises:
            Full: ``max_waiting`` wait already, and nobody has more of them than this request's owner.
            ValueError: it can never fit.
        """
        self.device.check(handle.request)
        handle.check, handle.wake = self.lending.reach.check, self.lending.reach.wake
        try:
            displaced = self.line.enter(handle)
        except Full:
            self.counters.refused += 1
            raise
        if displaced is not None:
            self._displaced.append(displaced)
        self.counters.submitted += 1

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self.line)

    @property
    def idle(self) -> bool:
        """Nobody is served or waits."""
        return not (self.waiting or self._displaced or self._flights or any(slot.handle for slot in self.slots))

    def run_round(self) -> float | None:
        """Do what can be done now. Returns the seconds after which to come again at the latest: 0 at once, None when woken."""
        now = self.clock()
        self._drop(now)
        self._admit(now)
        for slot in self.slots:
            self._update(slot, now)
        spoken = any(slot.speaking for slot in self.slots)
        read = self._read(spoken, now)
        alone, quotas, limit = self.pace.next(now)
        held = self.pace.hold(now) if limit and alone is None else 0.0
        if limit and not held:
            self._launch(quotas, limit, now, self._has_read if spoken and alone is None else None, alone)
        self._asked = self._asked and limit > 0  # else the next round asks again, for no launch comes
        if self._flights and (len(self._flights) > self.pace.ahead or not limit):
            self._collect(self._flights.popleft())
        self.news.tell(self._lose)
        if read or self._flights or any(slot.reading for slot in self.slots):
            return held
        delays = (self.lending.rest(self._member, now), soonest([*self.line], self.slots, self.options, now))
        return min((delay for delay in delays if delay is not None), default=None)

    def fail_all(self, error: EngineError) -> None:
        """The device is lost: everybody who is here is told, and nobody is left; those in line, if no other device is."""
        waiting = self.lending.leave(self._member)
        self._flights.clear()
        self._end_displaced()
        for handle in [*waiting, *(slot.handle for slot in self.slots if slot.handle is not None)]:
            self._end(handle, "error", error)
        for slot in self.slots:
            slot.release()
        self.news.tell(self._lose)

    def drop_device(self) -> None:
        """Let go of the device's memory. Nothing can be done here afterwards."""
        for name in ("device", "pace"):
            vars(self).pop(name, None)

    # Who comes and goes

    def _drop(self, now: float) -> None:
        self._end_displaced()
        ends: dict[Handle, End] = {}

        def leaves(handle: Handle) -> bool:
            if (end := end_in_line(handle, self.options, now)) is not None:
                ends[handle] = end
            return end is not None

        for handle in self.line.drop(leaves):
            self._end(handle, *ends[handle])
        for slot in self.slots:
            if slot.handle is not None and (end := end_in_slot(slot, slot.handle, self.options, now)) is not None:
                self._end(slot.handle, *end)
                self._release(slot)

    def _end_displaced(self) -> None:
        while self._displaced:
            self.counters.displaced += 1
            self._end(self._displaced.popleft(), "error", Full("the line is full, and others had fewer requests in it; try again later"))

    # Who gets a slot, and who gives his back

    def _admit(self, now: float) -> None:
        with self.lending.lock:
            self.lending.begin(self._member, now)
            for slot in [slot for slot in self.slots if slot.handle is None]:
                if (handle := self.lending.take(self._member, now)) is None:
                    break
                self._give(slot, handle)
            for slot in self.slots:
                if slot.waits(now, SETTLES) and (handle := self.lending.take_over(now)) is not None:
                    self._hand_over(slot, handle, now)

    def _parts_with(self, slot: Slot, now: float) -> bool:
        """Between two segments: whether the slot has gone to a request whose owner holds fewer."""
        assert slot.handle is not None
        owner = slot.handle.request.owner
        with self.lending.lock:
            other, held = self.lending.poorer(owner, now)
            if other is None:
                return False
            fair = held[other.request.owner] + 2 <= held[owner]
            willing = fair or self.pace.lead(slot, now) > self.options.lead_ms / 1000 or now >= self._due(other)
            if not willing or (handle := self.line.pop(held, below=held[owner])) is None:
                return False
            self._hand_over(slot, handle, now)
            return True

    def _hand_over(self, slot: Slot, handle: Handle, now: float) -> None:
        try:
            self._park(slot, now)
        except BaseException:
            self.line.back(handle)  # the device is lost, and nobody has the request
            raise
        self._give(slot, handle)

    def _due(self, handle: Handle) -> float:
        """When it has waited so long that a pause in another's speech is the lesser evil."""
        if handle.first_audio is None:
            return handle.rest.since + self.options.turn_seconds
        return handle.first_audio + handle.rest.released * FRAME_SECONDS

    def _park(self, slot: Slot, now: float) -> None:
        """Back into the line. Whatever is not in its `Rest` is made again."""
        handle = slot.handle
        assert handle is not None
        queue, state = self.pace.queue, None if slot.before is None else self.device.lend(slot.before)
        rest = Rest(released=slot.released, cut=slot.cut, pause=slot.pause, since=now, state=state)
        if slot.between:
            handle.rest = rest._replace(segment=slot.segment + 1)
        else:
            handle.rest = rest._replace(
                segment=slot.segment,
                heard=slot.made - len(slot.held) + slot.skip,
                said=slot.text if slot.text_open and slot.made >= slot.text else -1,
                room=queue - min(queue // 2, round(ROOM / FRAME_SECONDS)),
            )
        self.counters.parked += 1
        self._release(slot)
        handle.wake = self.lending.reach.wake
        self.line.back(handle)

    def _give(self, slot: Slot, handle: Handle) -> None:
        rest = handle.rest
        handle.wake = self._member.wake
        slot.handle, slot.before = handle, rest.state
        slot.released, slot.cut, slot.pause = rest.released, rest.cut, rest.pause
        slot.left = MOST if handle.request.max_frames is None else handle.request.max_frames - rest.released + max(rest.heard, 0)
        if not handle.begun:
            handle.begun = True
            self.news.add(handle)
        self._open(slot, rest.segment, carry=False)
        if rest.heard >= 0:
            slot.skip, slot.pause = rest.heard, rest.pause

    def _open(self, slot: Slot, index: int, *, carry: bool) -> None:
        assert slot.handle is not None
        request, found = slot.handle.request, slot.handle.segment(index)
        assert found is not None
        segment, ids = found
        text = text_of(segment, ids, request.watch, self.device.columns, slot.left)
        state = None if carry else slot.before
        opening = Opening(segment.prompt, text, request.sampling, request.seed, index, request.watch, state, carry)
        pieces = self.device.open(slot.index, opening)
        slot.begin(index, len(segment.prompt.text), pieces, len(ids), segment.open)
        slot.pause += segment.pause

    def _update(self, slot: Slot, now: float) -> None:
        """Text or segments that have come."""
        handle = slot.handle
        if handle is None:
            return
        if slot.between:
            if handle.segment(slot.segment + 1) is not None:
                if not self._parts_with(slot, now):
                    self._open(slot, slot.segment + 1, carry=True)
            elif not handle.more_after(slot.segment):
                self._finish(slot)
            return
        if slot.text_open:
            found = handle.segment(slot.segment)
            assert found is not None
            segment, ids = found
            if len(ids) != slot.text or not segment.open:
                self.device.write_text(slot.index, text_of(segment, ids, handle.request.watch, self.device.columns, slot.left))
                slot.text, slot.text_open = len(ids), segment.open

    # What the device does

    def _read(self, spoken: bool, now: float) -> bool:
        """Pieces of prompts, oldest request first: of one largest piece for each launch, or all of them if nobody speaks."""
        reading = sorted((slot for slot in self.slots if slot.reading), key=lambda slot: slot.handle.submitted if slot.handle else 0.0)
        if not reading or (spoken and self._asked):
            return False
        self._asked = spoken
        budget, done = self.pace.budget(now) if spoken else NEVER, False
        for slot in reading:
            while slot.pieces and slot.pieces[0] <= budget:
                budget -= slot.pieces.popleft()
                self.device.read(slot.index)
                done = True
        self._has_read |= done
        return done

    def _launch(self, quotas: list[int], limit: int, now: float, read: bool | None, alone: int | None) -> None:
        """A step of the batch, or of one slot ``alone``."""
        launched = self.device.launch(quotas, limit) if alone is None else self.device.launch_alone(alone, limit)
        rows, self._asked, self._has_read = self.device.batch if alone is None else 1, False, False
        flight = Flight(launched, [slot.serial for slot in self.slots], quotas, limit, now, read, rows, alone is not None)
        for slot, quota in zip(self.slots, quotas, strict=True):
            slot.flying += quota
            slot.launched = quota or slot.launched
        self._flights.append(flight)

    def _collect(self, flight: Flight) -> None:
        outcome = self.device.collect(flight.launched)
        now = self.clock()
        self.pace.collected(flight, now)
        for slot, serial, quota in zip(self.slots, flight.serials, flight.quotas, strict=True):
            if quota and slot.serial == serial and slot.handle is not None:  # else the row is not, or no longer, this request's
                slot.flying -= quota
                self._deliver(slot, outcome, now, whole=flight.alone)

    def _deliver(self, slot: Slot, outcome: Outcome, now: float, *, whole: bool) -> None:
        row, handle = slot.index, slot.handle
        assert handle is not None
        count, reason, held = int(outcome.counts[row]), int(outcome.reason[row]), int(outcome.held[row])
        slot.made += count
        slot.held += [frame_of(outcome, frame, row) for frame in range(count)]
        ready = len(slot.held) - (held if reason in (RUNNING, RUNAWAY, NOT_FINITE) else 0)
        again = min(slot.skip, ready)
        del slot.held[:again]
        slot.skip, ready = slot.skip - again, ready - again
        begins = reason == RUNNING and not whole and not slot.released and self.pace.allowance(slot, now) > 0
        if ready >= (self.pace.first_packet() if begins else 1):
            self._put(slot, slot.held[:ready], now)
            del slot.held[:ready]
        if reason == RUNAWAY:
            self._runaway(slot)
        elif reason == NOT_FINITE:
            self._not_finite(slot)
        elif reason != RUNNING:
            slot.cut |= reason == LENGTH
            self.counters.cut += reason == LENGTH
            self._next_segment(slot, now)

    def _put(self, slot: Slot, frames: list[Frame], now: float) -> None:
        assert slot.handle is not None
        codes, pcm, hidden = zip(*frames, strict=True)
        silence, slot.pause = np.zeros(round(slot.pause / FRAME_SECONDS * len(pcm[0])), np.float32), 0.0
        states = None if hidden[0] is None else np.stack(hidden)
        slot.handle.put(Packet(np.concatenate([silence, *pcm]), np.stack(codes), slot.segment, states), now)
        slot.released += len(frames)
        self.counters.frames += len(frames)
        self.news.add(slot.handle)

    def _runaway(self, slot: Slot) -> None:
        """Its held frames are never heard."""
        handle = slot.handle
        assert handle is not None and handle.request.watch is not None
        slot.made -= len(slot.held)
        slot.held.clear()
        slot.attempts += 1
        self.device.rewind(slot.index, handle.request.seed, slot.segment, slot.attempts)  # the next segment, too, follows what was heard
        if slot.attempts > handle.request.watch.retries:
            self.counters.runaways_ended += 1
            slot.cut = True
            self._next_segment(slot, self.clock())
            return
        self.counters.runaways += 1
        slot.serial += 1
        slot.flying = 0

    def _not_finite(self, slot: Slot) -> None:
        """The request ends; the slot is as good as any, for `Device.open` clears it."""
        assert slot.handle is not None
        self.counters.not_finite += 1
        where = f"after {slot.released} frames, in segment {slot.segment}"
        self._end(slot.handle, "error", NotFinite(f"what the model computed is NaN or infinite {where}; {DAMAGED}"))
        self._release(slot)

    def _next_segment(self, slot: Slot, now: float) -> None:
        assert slot.handle is not None
        slot.serial += 1  # what is in flight for the old segment is nothing
        slot.flying = 0
        slot.between, slot.idle_since = True, now
        slot.left -= slot.made
        if slot.handle.more_after(slot.segment):
            if slot.left <= 0:
                slot.cut = True
                self._finish(slot)
                return
            slot.before = self.device.keep(slot.index)
        self._update(slot, now)

    def _finish(self, slot: Slot) -> None:
        assert slot.handle is not None
        self._end(slot.handle, "length" if slot.cut else "eos")
        self._release(slot)

    def _release(self, slot: Slot) -> None:
        slot.release()
        self.device.close(slot.index)

    def _end(self, handle: Handle, reason: str, error: EngineError | None = None) -> None:
        if reason == "cancelled" or handle.cancelled:
            self.counters.cancelled += 1
        elif error is not None:
            self.counters.failed += 1
        else:
            self.counters.completed += 1
        handle.end(reason, error)
        self.news.add(handle)

    # Failing

    def _lose(self, handles: list[Handle], failure: ConsumerFailed) -> None:
        """Nobody can be told of these any more."""
        self.line.drop(lambda one: one in handles)
        for slot in self.slots:
            if slot.handle in handles:
                self._release(slot)
        for handle in handles:
            if not handle.ended:
                self._end(handle, "error", failure)
