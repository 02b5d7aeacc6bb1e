"""What is asked of the engine and what comes back: Request (ids) -> Handle -> Packets (pcm [N*1920] float32 at 24 kHz, codes [N 16]).

A Handle's queue is filled by the engine's thread and emptied by one consumer. It is bounded: the scheduler reads ``buffered`` and makes
no more frames than there is room for. Everything a consumer may call is safe from any thread.
"""

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from qwen3_jax.codec import DecoderState
from qwen3_jax.engine.errors import EngineError
from qwen3_jax.engine.segment import MOST, Segment, Watch, check_count, is_whole
from qwen3_jax.model.sampling import Sampling
from qwen3_jax.shapes import F32, I32

Priority = Literal["high", "normal"]
Notify = Callable[["list[Handle]"], None]  # called in the engine's thread, once a step, with all handles that have news


def _check_hashable(name: str, value: object) -> None:
    """Refuse what the engine's thread could not sort requests by."""
    try:
        hash(value)
    except TypeError as error:
        raise ValueError(f"{name} of type {type(value).__name__} has no hash: use what can be the key of a dict") from error


@dataclass(frozen=True, eq=False)
class Request:
    """What to say, and how.

    Attributes:
        segments: spoken one after the other, the codec's state carried over, each with keys of its own. Only an open request may
            have none yet; it waits for its first one outside the line.
        seed: 0 to 2^32 - 1. The same segments and seed give the same codes, whatever else the engine does.
        codec_state: in-context cloning: where the reference leaves the codec (one row).
        priority: ``high`` goes before waiting ``normal`` ones.
        deadline: seconds from submission in which the first audio must have been made.
        open: segments may follow (`Handle.add`) until `Handle.finish`.
        watch: None: speech is not watched.
        notify: where news go besides ``Handle.next``; the same object for all requests of one event loop, see loop.py. If it raises, the
            requests that it was called for end with ``ConsumerFailed``.
        owner: on whose behalf. Slots and the line are shared out between owners, see line.py; all requests without one have one in common.
        max_frames: of all segments together; None: as many as they have.
    """

    segments: tuple[Segment, ...]
    sampling: Sampling
    seed: int
    codec_state: DecoderState | None = None
    priority: Priority = "normal"
    deadline: float | None = None
    open: bool = False
    watch: Watch | None = None
    notify: Notify | None = None
    owner: Hashable = None
    max_frames: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.sampling, Sampling):
            raise ValueError(f"sampling of type {type(self.sampling).__name__}: must be a Sampling")
        if not self.segments and not self.open:
            raise ValueError("a request without segments: give at least one, or open it")
        if not is_whole(self.seed) or not 0 <= self.seed < 2**32:
            raise ValueError(f"seed = {self.seed!r}: must be a whole number from 0 to {2**32 - 1}")
        if not isinstance(self.watch, Watch | None):
            raise ValueError(f"watch of type {type(self.watch).__name__}: must be a Watch or None")
        if self.max_frames is not None:
            check_count("max_frames", self.max_frames, 1)
        if self.priority not in ("high", "normal"):
            raise ValueError(f"priority {self.priority!r}: use 'high' or 'normal'")
        if self.deadline is not None and not self.deadline > 0:
            raise ValueError(f"deadline = {self.deadline}: must be above 0 seconds")
        if self.notify is not None and not callable(self.notify):
            raise ValueError(f"notify of type {type(self.notify).__name__}: must be a function of a list of handles")
        for name in ("notify", "owner"):
            _check_hashable(name, getattr(self, name))
        for number, segment in enumerate(self.segments):
            if segment.open and (number < len(self.segments) - 1 or not self.open):
                raise ValueError(f"segment {number} is open: only the last one of an open request can be")


class Packet(NamedTuple):
    """What a slot made in one step."""

    pcm: F32[np.ndarray, " F"]  # 1920 samples a frame, after the silence before the segment
    codes: I32[np.ndarray, "N K"]
    segment: int  # index into the request's segments
    hidden: F32[np.ndarray, "N H"] | None = (
        None  # the talker's normed hidden states that book 0 was drawn from, where the device hands them out
    )


class Rest(NamedTuple):
    """Where a request goes on when it gets a slot: at its beginning, or where it gave its last slot back."""

    segment: int = 0  # to be opened
    state: DecoderState | None = None  # where the segment before it has left the codec (one row)
    heard: int = -1  # frames of the segment that were handed over: they are made again, and dropped. -1: it has not begun
    said: int = -1  # trailing ids of the segment that have been said: more must have come
    room: int = MOST  # frames that may lie in the consumer's queue when it goes on
    released: int = 0  # frames handed over, of all segments
    cut: bool = False  # a segment met its limit
    pause: float = 0.0  # seconds of silence before the next packet
    since: float = 0.0  # on the engine's clock, when it came or gave its slot back


Standing = Literal["ready", "text", "consumer", "over"]  # could speak; waits for text, or for room in its consumer's queue; all is said


@dataclass
class Script:
    """The segments of a request as they stand; written by the consumer's threads, read by the engine's, under the handle's lock."""

    segments: list[Segment]
    texts: list[list[int]]  # per segment: its trailing ids so far
    open: bool  # segments may follow


class Handle(Iterator[Packet]):
    """One request on its way. Made by ``Engine.submit``."""

    def __init__(self, request: Request, wake: Callable[[], None], now: float) -> None:
        self.request = request
        self.submitted = now
        self.begun = False  # it has got a slot
        self.rest = Rest(state=request.codec_state, since=now)
        self.first_audio: float | None = None  # on the engine's clock, when the first packet was handed over
        self.check: Callable[[Request], None] | None = None  # the device's, as long as the request lives; refuses what may not be added
        self.wake = wake  # tells the thread of the engine that serves it, or may, that something has changed here
        self._changed = threading.Condition()
        self._packets: deque[Packet] = deque()
        self._buffered = 0  # frames
        self._reason: str | None = None
        self._error: Exception | None = None
        self._cancelled = False
        self._script = Script(list(request.segments), [segment.prompt.trailing.tolist() for segment in request.segments], request.open)

    # The consumer's side

    def take(self) -> Packet | None:
        """The next packet, or None if there is none now; see ``done``. Never blocks."""
        with self._changed:
            if self._cancelled or not self._packets:
                return None
            packet = self._packets.popleft()
            self._buffered -= len(packet.codes)
        self.wake()
        return packet

    def next(self, timeout: float) -> Packet | None:
        """The next packet; None at the end.

        Raises:
            TimeoutError: none came in ``timeout`` seconds.
            EngineError: what the request died of, after all audio that was made before; or what `fail` was given.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._packets or self._reason is not None or self._cancelled, timeout):
                raise TimeoutError(f"no audio for {timeout} s")
        packet = self.take()
        if packet is None and (error := self.error) is not None:
            raise error
        return packet

    def __next__(self) -> Packet:
        packet = self.next(threading.TIMEOUT_MAX)
        if packet is None:
            raise StopIteration
        return packet

    @property
    def done(self) -> bool:
        """Nothing more will come: it has ended and every packet has been taken, or it was cancelled."""
        with self._changed:
            return self._cancelled or (self._reason is not None and not self._packets)

    @property
    def finish_reason(self) -> str | None:
        """``eos``, ``length``, ``cancelled`` or ``error``; None while it runs or packets are left."""
        with self._changed:
            if self._cancelled:
                return "cancelled" if self._error is None else "error"
            return None if self._packets else self._reason

    @property
    def error(self) -> Exception | None:
        """With finish_reason ``error``: which."""
        with self._changed:
            return self._error

    @property
    def cancelled(self) -> bool:
        """Whether ``cancel`` or ``fail`` came before the end."""
        return self._cancelled

    def cancel(self) -> None:
        """Give up, at any time: once this returns nothing is handed out, and the slot is free after the running step."""
        self._give_up(None)

    def fail(self, error: Exception) -> None:
        """As ``cancel``, where the request cannot go on: its ``error`` is this one. For whoever brings its text."""
        self._give_up(error)

    def _give_up(self, error: Exception | None) -> None:
        with self._changed:
            if self._cancelled or (self._reason is not None and not self._packets):
                return
            self._cancelled, self._error = True, error
            self._packets.clear()
            self._buffered = 0
            self._changed.notify_all()
        self.wake()

    # Text as it is written

    def append(self, ids: list[int]) -> None:
        """More trailing text of the last segment, which must be open.

        Raises:
            ValueError: it is not; or ids that the model does not have, or for which the slot has no room. Nothing is added then.
        """
        with self._changed:
            self._require_open_segment()
            last, text = self._script.segments[-1], [*self._script.texts[-1], *ids]
        self._check(replace(last, prompt=last.prompt._replace(trailing=np.array(text))))
        with self._changed:
            self._require_open_segment()
            self._script.texts[-1].extend(int(token) for token in ids)
        self.wake()

    def end_segment(self, max_frames: int, tokens: int | None = None) -> None:
        """The last segment's text is complete (tts_eos was the last id); it may have ``max_frames`` frames. ``tokens``: see Segment.

        Raises:
            ValueError: it is complete already.
        """
        with self._changed:
            self._require_open_segment()
            last = self._script.segments[-1]
            self._script.segments[-1] = replace(last, max_frames=max_frames, tokens=tokens, open=False)
        self.wake()

    def add(self, segment: Segment) -> None:
        """One more segment after the last, which must not be open.

        Raises:
            ValueError: the last one is open, or the request is complete; or a segment that the device refuses.
        """
        self._check(segment)
        with self._changed:
            if not self._script.open or self._open_segment:
                raise ValueError("a segment can follow only in an open request, after end_segment")
            self._script.segments.append(segment)
            self._script.texts.append(segment.prompt.trailing.tolist())
        self.wake()

    def finish(self) -> None:
        """No segment follows.

        Raises:
            ValueError: the last segment is open.
        """
        with self._changed:
            if self._open_segment:
                raise ValueError("the last segment is open: end_segment first")
            self._script.open = False
        self.wake()

    def _check(self, segment: Segment) -> None:
        if (check := self.check) is not None:
            check(replace(self.request, segments=(segment,), open=True, codec_state=None))

    @property
    def _open_segment(self) -> bool:
        return bool(self._script.segments) and self._script.segments[-1].open

    def _require_open_segment(self) -> None:
        if not self._open_segment:
            raise ValueError("the last segment is complete: no text can follow; add a segment")

    # The engine's side

    def late(self, now: float) -> bool:
        """Whether its deadline has passed without any audio."""
        deadline = self.request.deadline
        return deadline is not None and self.first_audio is None and now - self.submitted >= deadline

    @property
    def ended(self) -> bool:
        """Whether nothing more is made of it."""
        with self._changed:
            return self._reason is not None

    @property
    def buffered(self) -> int:
        """Frames made and not yet taken."""
        with self._changed:
            return self._buffered

    @property
    def place(self) -> tuple[Priority, Hashable]:
        """Its place in line."""
        return self.request.priority, self.request.owner

    @property
    def standing(self) -> Standing:
        """What it waits for, while it has no slot."""
        with self._changed:
            rest, script = self.rest, self._script
            if rest.segment >= len(script.segments):
                return "text" if script.open else "over"
            if script.segments[rest.segment].open and len(script.texts[rest.segment]) <= rest.said:
                return "text"
            return "ready" if self._buffered <= rest.room else "consumer"

    def segment(self, index: int) -> tuple[Segment, list[int]] | None:
        """Segment ``index`` and its text as they stand; None: there is none yet."""
        with self._changed:
            script = self._script
            return (script.segments[index], list(script.texts[index])) if index < len(script.segments) else None

    def more_after(self, index: int) -> bool:
        """Whether a segment follows, or may."""
        with self._changed:
            return self._script.open or index + 1 < len(self._script.segments)

    def put(self, packet: Packet, now: float) -> None:
        """Hand over audio; after a cancel it goes nowhere."""
        with self._changed:
            if self._cancelled or self._reason is not None:
                return
            if self.first_audio is None:
                self.first_audio = now
            self._packets.append(packet)
            self._buffered += len(packet.codes)
            self._changed.notify_all()

    def end(self, reason: str, error: EngineError | None = None) -> None:
        """The last thing that is heard of it."""
        with self._changed:
            if self._reason is None:
                self._reason = reason
                self._error = self._error if self._cancelled else error
            self.check = None  # lets go of the device
            self._changed.notify_all()
