"""What the host knows of a slot, and the protocol of the device that holds the rest. No arrays of a model here.

A slot's life:  free -> reading (its prompt, piece by piece) -> speaking -> the next segment: reading -> ... -> free.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from qwen3_jax.codec import DecoderState
from qwen3_jax.engine.requests import Handle, Request
from qwen3_jax.engine.segment import MOST, Segment, Watch
from qwen3_jax.model.sampling import Sampling
from qwen3_jax.shapes import F32, I32
from qwen3_jax.text.prompt import Prompt

RUNAWAY = 3  # a finish reason beside those of model/frame.py: the row is to be rewound, or ended
NEVER = MOST  # frames; no utterance gets there


class Text(NamedTuple):
    """A segment's trailing ids as they stand, and what follows from their number. Limits are in frames."""

    ids: list[int]
    limit: int
    overdue: int
    overdue_end: int


def text_of(segment: Segment, ids: list[int], watch: Watch | None, columns: int, most: int) -> Text:
    """A segment's trailing ids as they stand, for a slot of so many columns and ``most`` frames."""
    room = min(most, columns - len(segment.prompt.text))
    if segment.open:
        return Text(ids, room, NEVER, NEVER)
    overdue = NEVER
    if watch is not None:
        tokens = len(ids) if segment.tokens is None else segment.tokens
        overdue = min(NEVER, watch.overdue_base + watch.overdue_per_token * tokens)
    return Text(ids, min(segment.max_frames, room), overdue, min(NEVER, overdue + (watch.overdue_span if watch else 0)))


class Opening(NamedTuple):
    """A segment for a slot."""

    prompt: Prompt
    text: Text
    sampling: Sampling
    seed: int
    segment: int
    watch: Watch | None
    codec_state: DecoderState | None  # one row: where the codec begins
    carry: bool  # instead: it goes on from where the slot is


class Outcome(NamedTuple):
    """What a launch made, on the host, by slot. Slot b's frames are the first counts[b]."""

    codes: I32[np.ndarray, "N B K"]
    pcm: F32[np.ndarray, "N B F"]
    counts: I32[np.ndarray, " B"]
    reason: I32[np.ndarray, " B"]  # frame.RUNNING, EOS, LENGTH, NOT_FINITE or RUNAWAY
    held: I32[np.ndarray, " B"]  # of a row's newest frames, how many must not be released yet
    hidden: F32[np.ndarray, "N B H"] | None = None  # the talker's normed hidden states that book 0 was drawn from, where they are asked for


class Frame(NamedTuple):
    """One frame, on the host."""

    codes: I32[np.ndarray, " K"]
    pcm: F32[np.ndarray, " F"]
    hidden: F32[np.ndarray, " H"] | None


def frame_of(outcome: Outcome, frame: int, row: int) -> Frame:
    """One of a launch, with arrays of its own."""
    hidden = None if outcome.hidden is None else outcome.hidden[frame, row].copy()
    return Frame(outcome.codes[frame, row].copy(), outcome.pcm[frame, row].copy(), hidden)


class Device(Protocol):
    """The arrays of all slots and what can be done to them, in the order of the calls."""

    slots: int
    frames: int  # most of a launch
    columns: int  # positions of a slot
    piece: int  # rows of a prompt's largest piece

    @property
    def alone(self) -> bool:
        """Whether one row costs less than the batch, so that ``launch_alone`` pays."""

    @property
    def batch(self) -> int:
        """Rows that a step computes, as things stand."""

    def check(self, request: Request) -> None:
        """Raises ValueError for a request that cannot fit, or that the model cannot read. Called in the submitter's thread, and in that
        of whoever adds to the request, with what it would be then."""

    def open(self, slot: int, opening: Opening) -> list[int]:
        """A segment begins. Returns the rows of each piece of its prompt, to be read in this order. Unless it carries on, nothing is left
        of what the slot held: no owner reads another's, not even times 0, which NaN would survive."""

    def read(self, slot: int) -> None:
        """Read the next piece of the slot's prompt."""

    def write_text(self, slot: int, text: Text) -> None:
        """The slot's text has grown, or is complete."""

    def rewind(self, slot: int, seed: int, segment: int, attempt: int) -> None:
        """Back to before the held frames, with another key."""

    def close(self, slot: int) -> None:
        """Nobody speaks in the slot any more."""

    def keep(self, slot: int) -> DecoderState:
        """A copy of where the segment that has ended leaves the slot's codec (one row), for `open`."""

    def lend(self, state: DecoderState) -> DecoderState:
        """What `keep` returned, as `open` of whichever device may serve the request next takes it."""

    def launch(self, quotas: list[int], limit: int) -> Any:
        """Begin to make up to quotas[b] frames of each row, ``limit`` at most. A row whose frame is not finite is stopped before it."""

    def launch_alone(self, slot: int, limit: int) -> Any:
        """As ``launch``, of ``limit`` frames of one row whose prompt has been read and that has not been in a launch yet."""

    def collect(self, launched: Any) -> Outcome:
        """Wait for a launch."""


@dataclass
class Slot:
    """One row of the batch and its owner."""

    index: int
    serial: int = 0  # changes whenever what was launched for this slot is no longer wanted
    handle: Handle | None = None
    segment: int = 0
    rows: int = 0  # of the segment's prompt
    pieces: deque[int] = field(default_factory=deque)  # of the prompt, still to be read
    between: bool = False  # the segment has ended, the next one is not there yet
    text: int = 0  # trailing ids on the device
    text_open: bool = False
    made: int = 0  # frames of this segment
    flying: int = 0  # frames launched and not yet collected
    launched: int = 0  # frames of the last launch: packets grow
    attempts: int = 0
    released: int = 0  # frames handed over, of all segments
    cut: bool = False  # a segment met its limit
    before: DecoderState | None = None  # where the segment before this one has left the codec
    skip: int = 0  # frames of this segment, still to be made, that were handed over before the request came here
    held: list[Frame] = field(default_factory=list)
    idle_since: float | None = None  # waits for text or for the consumer
    pause: float = 0.0  # seconds of silence that go before its next packet
    left: int = MOST  # frames that the request may still make, those of this segment included

    @property
    def reading(self) -> bool:
        return self.handle is not None and bool(self.pieces)

    @property
    def speaking(self) -> bool:
        return self.handle is not None and not self.pieces and not self.between

    def waits(self, now: float, settles: float) -> bool:
        """Whether it has nothing to do until text comes or audio is taken: between segments, or for ``settles`` seconds already."""
        if self.handle is None or self.idle_since is None or self.flying:
            return False
        return self.between or now - self.idle_since >= settles

    def release(self) -> None:
        """Nobody's."""
        self.handle = None
        self.serial += 1
        self.pieces.clear()
        self.held.clear()
        self.between, self.cut, self.before, self.skip = False, False, None, 0
        self.flying, self.launched, self.released, self.idle_since, self.pause = 0, 0, 0, None, 0.0

    def begin(self, segment: int, rows: int, pieces: list[int], text: int, text_open: bool) -> None:
        """A segment has been opened on the device."""
        self.serial += 1
        self.segment, self.rows, self.pieces = segment, rows, deque(pieces)
        self.text, self.text_open = text, text_open
        self.between, self.made, self.flying, self.attempts, self.skip, self.idle_since = False, 0, 0, 0, 0, None
        self.held.clear()
