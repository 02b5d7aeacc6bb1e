"""What the engine does next. Pure Python: requests and a Device in, packets in the requests' queues out; one thread, no waiting.

A turn:  drop who is gone -> give free slots away -> read at most one piece of prompt -> launch a step -> collect the step before it
-> tell the consumers, all of a step at once.

The step before: while the device makes one step, the host hands over the last one's audio, so nothing waits for copies. A row that has
ended is found out one step late, which costs nothing: the device has stopped it itself.

How many frames a launch makes: one as long as anybody waits for the first packet or a prompt is being read; else each slot's packets
grow (1, 2, 4 ...) up to what the device makes in ``call_seconds``, or in half the time for which the listener with the least audio in
hand has enough. A slot takes no part while its consumer's queue is full, its text has run out, or (if others wait for their first packet)
it is ``lead_seconds`` ahead of real time; the others go on. A slot that is ahead is not paused for those who wait for a slot: the sooner
it ends, the sooner they have it.

The first packet is one frame where the next one is made well within the 80 ms for which that lasts. On a device that is slower, or while
prompts are read that take the time, it waits for as many as are heard until the next one comes (`_first_packet`): later, but without a
gap. Nor is a prompt read while a listener would hear all that he has before the turn ends (`_budget`).
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from qwen3_jax.engine.line import Line
from qwen3_jax.engine.options import FRAME_SECONDS, Counters, Options
from qwen3_jax.engine.requests import DeadlineExceeded, EngineError, Full, Handle, NotFinite, Notify, Packet, Segment, Stalled, Watch
from qwen3_jax.engine.slots import NEVER, RUNAWAY, Device, Opening, Outcome, Slot, Text
from qwen3_jax.generate import DAMAGED, LENGTH, NOT_FINITE, RUNNING
from qwen3_jax.shapes import NpF32, NpInt

FIRST_MOST = 5  # frames that a first packet waits for, at most
POSTPONED = 4  # turns in a row in which no prompt is read for the sake of those who listen
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


class Scheduler:
    """See the module's docstring. All methods but ``submit`` are for the engine's thread."""

    def __init__(self, device: Device, options: Options, clock: Callable[[], float], counters: Counters | None = None) -> None:
        self.device, self.options, self.clock = device, options, clock
        self.counters = counters or Counters()
        self.slots = [Slot(index) for index in range(device.slots)]
        self.line = Line(options.patience)
        self._inbox: deque[Handle] = deque()  # bounded by submit
        self._wordless: list[Handle] = []  # open requests without a first segment; bounded by submit
        self._flights: deque[Flight] = deque()
        self._news: list[Handle] = []
        self._ready_at = clock()
        self._recent = {read: deque[float](maxlen=_RECENT) for read in (False, True)}  # seconds of the last steps: plain, after a piece
        self._postponed = 0

    def submit(self, handle: Handle) -> None:
        """From any thread (one at a time).

        Raises:
            Full: ``max_waiting`` wait already.
            ValueError: it can never fit.
        """
        self.device.check(handle.request)
        handle.check = self.device.check
        if self.waiting >= self.options.max_waiting:
            raise Full(f"{self.options.max_waiting} requests wait already; try again later")
        self._inbox.append(handle)
        self.counters.submitted += 1

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._inbox) + len(self._wordless) + len(self.line)

    @property
    def idle(self) -> bool:
        """Nobody is served or waits."""
        return not (self.waiting or self._flights or any(slot.handle for slot in self.slots))

    def turn(self) -> float | None:
        """Do what can be done now. Returns the seconds after which to come again at the latest: 0 at once, None when woken."""
        now = self.clock()
        self._line_up(now)
        self._drop(now)
        self._admit()
        for slot in self.slots:
            self._update(slot, now)
        spoken = any(slot.speaking for slot in self.slots)
        read = self._read(self._budget(now) if spoken else NEVER)
        quotas, limit = self._quotas(now)
        if limit:
            self._launch(quotas, limit, now, read if spoken else None)
        if self._flights and (len(self._flights) > 1 or not limit):
            self._collect(self._flights.popleft())
        self._tell()
        return 0.0 if read or self._flights else self._soonest(now)

    def fail_all(self, error: EngineError) -> None:
        """The device is lost: everybody who is here is told, and nobody is left."""
        waiting = [*self.line.drop(lambda _: True), *self._inbox, *self._wordless]
        self._inbox.clear()
        self._wordless.clear()
        self._flights.clear()
        for handle in [*waiting, *(slot.handle for slot in self.slots if slot.handle is not None)]:
            self._end(handle, "error", error)
        for slot in self.slots:
            slot.release()
        self._tell()

    def drop_device(self) -> None:
        """Let go of the device's memory. Nothing can be done here afterwards."""
        vars(self).pop("device", None)

    # Who comes and goes

    def _line_up(self, now: float) -> None:
        """Who has something to say joins the line."""
        arrived = [*self._wordless]
        self._wordless.clear()
        while self._inbox:
            arrived.append(self._inbox.popleft())
        for handle in arrived:
            if handle.segment(0) is not None or handle.cancelled:
                self.line.push(handle)
            elif not handle.more_after(-1):
                self._end(handle, "eos")
            elif now - handle.submitted >= self.options.stall_seconds:
                self._end(handle, "error", Stalled(f"no text came for {self.options.stall_seconds} s"))
            else:
                self._wordless.append(handle)

    def _drop(self, now: float) -> None:
        def late(handle: Handle) -> bool:
            deadline = handle.request.deadline
            return deadline is not None and handle.first_audio is None and now - handle.submitted >= deadline

        for handle in self.line.drop(lambda one: one.cancelled or late(one)):
            self._dismiss(handle, f"no slot was free for {handle.request.deadline} s")
        for slot in self.slots:
            owner = slot.handle
            if owner is None:
                continue
            if owner.cancelled or late(owner):
                self._dismiss(owner, f"no audio in {owner.request.deadline} s")
                slot.release()
            elif slot.idle_since is not None and now - slot.idle_since >= self.options.stall_seconds:
                what = "no text came" if slot.between or slot.text_open else "no audio was taken"
                self._end(owner, "error", Stalled(f"{what} for {self.options.stall_seconds} s"))
                slot.release()

    def _dismiss(self, handle: Handle, why: str) -> None:
        if handle.cancelled:
            self._end(handle, "cancelled")
        else:
            self._end(handle, "error", DeadlineExceeded(why))

    def _admit(self) -> None:
        for slot in self.slots:
            if slot.handle is None and (handle := self.line.pop()) is not None:
                slot.handle = handle
                handle.begun = True
                self._news.append(handle)
                self._open(slot, 0)

    def _open(self, slot: Slot, index: int) -> None:
        assert slot.handle is not None
        request, found = slot.handle.request, slot.handle.segment(index)
        assert found is not None
        segment, ids = found
        text = self._text(request.watch, segment, ids)
        state = request.codec_state if index == 0 else None
        opening = Opening(segment.prompt, text, request.sampling, request.seed, index, request.watch, state, index > 0)
        pieces = self.device.open(slot.index, opening)
        slot.begin(index, len(segment.prompt.text), pieces, len(ids), segment.open)

    def _text(self, watch: Watch | None, segment: Segment, ids: list[int]) -> Text:
        room = self.device.columns - len(segment.prompt.text)
        if segment.open:
            return Text(ids, room, NEVER, NEVER)
        overdue = NEVER
        if watch is not None:
            tokens = len(ids) if segment.tokens is None else segment.tokens
            overdue = min(NEVER, watch.overdue_base + watch.overdue_per_token * tokens)
        return Text(ids, min(segment.max_frames, room), overdue, min(NEVER, overdue + (watch.overdue_span if watch else 0)))

    def _update(self, slot: Slot, now: float) -> None:
        """Text or segments that have come."""
        handle = slot.handle
        if handle is None:
            return
        if slot.between:
            if handle.segment(slot.segment + 1) is not None:
                self._open(slot, slot.segment + 1)
            elif not handle.more_after(slot.segment):
                self._finish(slot)
            return
        if slot.text_open:
            found = handle.segment(slot.segment)
            assert found is not None
            segment, ids = found
            if len(ids) != slot.text or not segment.open:
                self.device.write_text(slot.index, self._text(handle.request.watch, segment, ids))
                slot.text, slot.text_open = len(ids), segment.open

    # What the device does

    def _budget(self, now: float) -> int:
        """Rows of prompt that a turn may read while somebody speaks: none if a listener would have heard all before it ends; but such
        turns are no more than `POSTPONED` in a row."""
        turn = self._may_take(True)
        short = any(0 < self._in_hand(slot, now) < turn for slot in self.slots if slot.speaking and slot.released)
        self._postponed = self._postponed + 1 if short and self._postponed < POSTPONED else 0
        return 0 if self._postponed else self.device.piece

    def _read(self, budget: int) -> bool:
        """Pieces of prompts, oldest request first, of ``budget`` rows: of one largest piece, or all of them if nobody speaks."""
        reading = sorted((slot for slot in self.slots if slot.reading), key=lambda slot: slot.handle.submitted if slot.handle else 0.0)
        done = False
        for slot in reading:
            while slot.pieces and slot.pieces[0] <= budget:
                budget -= slot.pieces.popleft()
                self.device.read(slot.index)
                done = True
        return done

    def _quotas(self, now: float) -> tuple[list[int], int]:
        """Frames that each row may make in the next launch, and the most of them; 0: nothing to launch."""
        allowed = [self._allowance(slot, now) if slot.speaking else 0 for slot in self.slots]
        unheard = any(
            slot.reading or (most and not slot.released and not slot.flying) for slot, most in zip(self.slots, allowed, strict=True)
        )
        hands = [self._in_hand(slot, now) for slot, most in zip(self.slots, allowed, strict=True) if most]
        # who has nothing in hand is late already: single frames would only make all of them later
        largest = 1 if unheard else self._largest(min((hand for hand in hands if hand > 0), default=float("inf")))
        quotas = []
        for slot, most in zip(self.slots, allowed, strict=True):
            ahead = unheard and self._lead(slot, now) > self.options.lead_ms / 1000
            quotas.append(0 if ahead else min(most, largest, 2 * slot.launched if slot.launched else 1))
        return quotas, max(quotas, default=0)

    def _largest(self, in_hand: float) -> int:
        each = self.counters.step_seconds
        return 1 if each == 0 else min(self.device.frames, max(1, int(min(self.options.call_ms / 1000, in_hand / 2) / each)))

    def _in_hand(self, slot: Slot, now: float) -> float:
        """Seconds of audio that its listener will have when what is in flight has come."""
        coming = sum(flight.limit for flight in self._flights) * self.counters.step_seconds
        heard = slot.handle is not None and slot.handle.first_audio is not None
        return slot.flying * FRAME_SECONDS + (self._lead(slot, now) - coming if heard else 0.0)

    def _allowance(self, slot: Slot, now: float) -> int:
        """What text and the consumer's queue allow."""
        assert slot.handle is not None
        room = int(self.options.buffer_ms / 1000 / FRAME_SECONDS) - slot.handle.buffered - slot.flying - len(slot.held)
        if slot.text_open:
            room = min(room, slot.text - slot.made - slot.flying)
        if room > 0:
            slot.idle_since = None
        elif slot.idle_since is None and not slot.flying:
            slot.idle_since = now
        return max(room, 0)

    def _lead(self, slot: Slot, now: float) -> float:
        began = None if slot.handle is None else slot.handle.first_audio
        return 0.0 if began is None else slot.released * FRAME_SECONDS - (now - began)

    def _launch(self, quotas: list[int], limit: int, now: float, read: bool | None) -> None:
        flight = Flight(self.device.launch(quotas, limit), [slot.serial for slot in self.slots], quotas, limit, now, read)
        for slot, quota in zip(self.slots, quotas, strict=True):
            slot.flying += quota
            slot.launched = quota or slot.launched
        self._flights.append(flight)

    def _collect(self, flight: Flight) -> None:
        outcome = self.device.collect(flight.launched)
        now = self.clock()
        each = (now - max(flight.at, self._ready_at)) / flight.limit
        self._ready_at = now
        if flight.read is not None and each < FIRST_MOST * FRAME_SECONDS:  # else it was compiled, or is too slow for any first packet
            self._recent[flight.read].append(each)
        self.counters.steps += 1
        self.counters.step_seconds += (each - self.counters.step_seconds) * (0.1 if self.counters.steps > 10 else 0.5)
        for slot, serial, quota in zip(self.slots, flight.serials, flight.quotas, strict=True):
            if quota and slot.serial == serial and slot.handle is not None:  # else the row is not, or no longer, this request's
                slot.flying -= quota
                self._deliver(slot, outcome, now)

    def _deliver(self, slot: Slot, outcome: Outcome, now: float) -> None:
        row, handle = slot.index, slot.handle
        assert handle is not None
        count, reason, held = int(outcome.counts[row]), int(outcome.reason[row]), int(outcome.held[row])
        slot.made += count
        slot.held += [(outcome.codes[frame, row].copy(), outcome.pcm[frame, row].copy()) for frame in range(count)]
        ready = len(slot.held) - (held if reason in (RUNNING, RUNAWAY, NOT_FINITE) else 0)
        begins = reason == RUNNING and not slot.released and self._allowance(slot, now) > 0
        if ready >= (self._first_packet() if begins else 1):
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

    def _first_packet(self) -> int:
        """Frames that last until the next packet comes, though every prompt that waits were read before it."""
        reading = sum(slot.reading for slot in self.slots)
        turn = max(self._may_take(False), self._may_take(True)) if reading else self._may_take(False)
        late = reading * max(0.0, turn / _JITTER - FRAME_SECONDS)
        return min(FIRST_MOST, max(1, math.ceil((turn + late) / (_FILLED * FRAME_SECONDS))))

    def _may_take(self, read: bool) -> float:
        """Seconds of the next step, judged by the last ones like it; 0 before the first. One that was late alone does not count."""
        known = sorted(self._recent[read])
        return _JITTER * known[int(_MOST * (len(known) - 1))] if known else 0.0

    def _put(self, slot: Slot, frames: list[tuple[NpInt["K"], NpF32["F"]]], now: float) -> None:
        assert slot.handle is not None
        codes, pcm = zip(*frames, strict=True)
        slot.handle.put(Packet(np.concatenate(pcm), np.stack(codes), slot.segment), now)
        slot.released += len(frames)
        self.counters.frames += len(frames)
        self._news.append(slot.handle)

    def _runaway(self, slot: Slot) -> None:
        """Its held frames are never heard."""
        handle = slot.handle
        assert handle is not None and handle.request.watch is not None
        slot.made -= len(slot.held)
        slot.held.clear()
        slot.attempts += 1
        if slot.attempts > handle.request.watch.retries:
            self.counters.runaways_ended += 1
            slot.cut = True
            self._next_segment(slot, self.clock())
            return
        self.counters.runaways += 1
        self.device.rewind(slot.index, handle.request.seed, slot.segment, slot.attempts)
        slot.serial += 1
        slot.flying = 0

    def _not_finite(self, slot: Slot) -> None:
        """The request ends; the slot is as good as any, for `Device.open` clears it."""
        assert slot.handle is not None
        where = f"after {slot.released} frames, in segment {slot.segment}"
        self.counters.not_finite += 1
        self._end(slot.handle, "error", NotFinite(f"what the model computed is NaN or infinite {where}; {DAMAGED}"))
        slot.release()

    def _next_segment(self, slot: Slot, now: float) -> None:
        assert slot.handle is not None
        slot.serial += 1  # what is in flight for the old segment is nothing
        slot.flying = 0
        slot.between, slot.idle_since = True, now
        self._update(slot, now)

    def _finish(self, slot: Slot) -> None:
        assert slot.handle is not None
        self._end(slot.handle, "length" if slot.cut else "eos")
        slot.release()

    def _end(self, handle: Handle, reason: str, error: EngineError | None = None) -> None:
        if reason == "cancelled" or handle.cancelled:
            self.counters.cancelled += 1
        elif error is not None:
            self.counters.failed += 1
        else:
            self.counters.completed += 1
        handle.end(reason, error)
        self._news.append(handle)

    # Telling, and waiting

    def _tell(self) -> None:
        """One call for all handles of a consumer."""
        by_consumer: dict[Notify, list[Handle]] = {}
        for handle in dict.fromkeys(self._news):
            if handle.request.notify is not None:
                by_consumer.setdefault(handle.request.notify, []).append(handle)
        self._news.clear()
        for notify, handles in by_consumer.items():
            notify(handles)

    def _soonest(self, now: float) -> float | None:
        """Seconds to the next thing that time alone brings: a deadline, the end of patience, the end of a lead."""
        moments = []
        moments += [handle.submitted + self.options.stall_seconds for handle in self._wordless]
        for handle in [*self.line, *(slot.handle for slot in self.slots if slot.handle is not None)]:
            if handle.request.deadline is not None and handle.first_audio is None:
                moments.append(handle.submitted + handle.request.deadline)
        moments += [slot.idle_since + self.options.stall_seconds for slot in self.slots if slot.handle and slot.idle_since is not None]
        return max(0.001, min(moments) - now) if moments else None
