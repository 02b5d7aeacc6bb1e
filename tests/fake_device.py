"""A Device without arrays of a model: what a row says follows from its request by arithmetic, so a test can say what must be heard.

A prompt's ``text`` is [frames until eos, loops until attempt n, the frame (from 1) that is not finite, *padding]. Frame s of a segment
has the codes (seed, segment, attempt that made it, s, text id it consumed) and a wave of 4 samples. Every call is checked against what
a device may be asked.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qwen3_jax.engine.requests import Request
from qwen3_jax.engine.segment import Segment
from qwen3_jax.engine.slots import RUNAWAY, Opening, Outcome, Text
from qwen3_jax.model.frame import EOS, LENGTH, NOT_FINITE, RUNNING
from qwen3_jax.text.prompt import Prompt

NO_TEXT = -7


def segment(
    frames: int, *, rows: int = 4, text: int = 3, loops: int = 0, breaks: int = 0, max_frames: int = 500, open: bool = False
) -> Segment:
    """A sentence of so many frames. ``loops``: attempts that repeat themselves from frame 2 on without end; ``breaks``: its so-manieth
    frame, counted from 1, is not finite."""
    prompt = Prompt(
        np.array([frames, loops, breaks][:rows] + [0] * (rows - 3), np.int32),
        np.zeros((rows, 5), np.int32),
        np.zeros(rows, bool),
        None,
        np.arange(100, 100 + text, dtype=np.int32),
    )
    return Segment(prompt, max_frames, open)


def expected(request: Request, texts: list[list[int]] | None = None) -> list[tuple[int, ...]]:
    """The codes of all frames, said by one who is alone, up to the first that is not finite."""
    made: list[tuple[int, ...]] = []
    for index, one in enumerate(request.segments):
        text = one.prompt.trailing.tolist() if texts is None else texts[index]
        frames, loops = one.prompt.text[:2].tolist()
        breaks = int(one.prompt.text[2]) if len(one.prompt.text) > 2 else 0
        for step in range(min(frames, one.max_frames)):
            if step + 1 == breaks:
                return made
            attempt = loops if step >= 2 else 0
            made.append((request.seed, index, attempt, step, text[step] if step < len(text) else NO_TEXT))
    return made


@dataclass
class Row:
    opening: Opening
    text: Text
    pieces: list[int]
    step: int = 0
    reason: int = RUNNING
    attempt: int = 0
    held: int = 0
    mark: int = 0

    @property
    def whose(self) -> tuple[int, int]:
        return self.opening.seed, self.opening.segment


@dataclass
class FakeDevice:
    """``log`` has every call. A row that loops is held from frame 2 on and has gone too far after four held frames. A slot in which a frame
    was not finite makes no finite frame until it is opened for another owner."""

    slots: int = 2
    frames: int = 4
    columns: int = 1000
    piece: int = 8
    alone: bool = False
    fail_at: int | None = None  # raises at this launch
    error: BaseException | None = None
    rows: dict[int, Row] = field(default_factory=dict)
    log: list[tuple] = field(default_factory=list)
    pending: int = 0
    tainted: set[int] = field(default_factory=set)

    @property
    def batch(self) -> int:
        """As many as there are slots: a step always costs the same."""
        return self.slots

    def check(self, request: Request) -> None:
        for one in request.segments:
            if len(one.prompt.text) > self.columns:
                raise ValueError("too long")

    def open(self, slot: int, opening: Opening) -> list[int]:
        before = (opening.seed, opening.segment - 1)
        if opening.carry:
            assert opening.segment > 0 and self.rows[slot].whose == before, "the codec goes on from another segment"
        else:
            assert opening.codec_state == (before if opening.segment > 0 else None), "the codec goes on from another segment"
            self.tainted.discard(slot)
        rows = len(opening.prompt.text)
        self.rows[slot] = Row(opening, opening.text, [self.piece] * -(-rows // self.piece))
        self.log.append(("open", slot, opening.seed, opening.segment))
        return list(self.rows[slot].pieces)

    def read(self, slot: int) -> None:
        self.log.append(("read", slot, self.rows[slot].pieces.pop(0)))

    def write_text(self, slot: int, text: Text) -> None:
        row = self.rows[slot]
        assert text.ids[: len(row.text.ids)] == row.text.ids, "text only grows"
        row.text = text
        self.log.append(("write_text", slot, len(text.ids)))

    def rewind(self, slot: int, seed: int, segment: int, attempt: int) -> None:
        row = self.rows[slot]
        assert row.reason == RUNAWAY
        row.step, row.held, row.reason, row.attempt = row.mark, 0, RUNNING, attempt
        self.log.append(("rewind", slot, attempt))

    def keep(self, slot: int) -> Any:
        row = self.rows[slot]
        assert row.reason in (EOS, LENGTH) or (row.attempt and row.step == row.mark), "the segment has not ended"
        return self.rows[slot].whose

    def lend(self, state: Any) -> Any:
        return state

    def close(self, slot: int) -> None:
        self.rows.pop(slot, None)
        self.log.append(("close", slot))

    def launch(self, quotas: list[int], limit: int) -> Outcome:
        assert 1 <= limit <= self.frames
        assert max(quotas) == limit
        self.log.append(("launch", tuple(quotas), limit))
        launches = sum(entry[0] == "launch" for entry in self.log)
        if self.fail_at is not None and launches == self.fail_at:
            assert self.error is not None
            raise self.error
        outcome = Outcome(
            np.full((self.frames, self.slots, 5), -1, np.int32), np.zeros((self.frames, self.slots, 4), np.float32),
            *(np.zeros(self.slots, np.int32) for _ in range(3)),
        )  # fmt: skip
        for slot, quota in enumerate(quotas):
            if quota:
                assert not self.rows[slot].pieces, "a row speaks before its prompt is read"
                for _ in range(quota):
                    self._frame(slot, outcome)
        for slot, row in self.rows.items():
            outcome.reason[slot], outcome.held[slot] = row.reason, row.held
        self.pending += 1
        assert self.pending <= 2, "at most one step is ahead of the host"
        return outcome

    def _frame(self, slot: int, outcome: Outcome) -> None:
        row = self.rows[slot]
        if row.reason != RUNNING:
            return
        frames, loops = row.opening.prompt.text[:2].tolist()
        looping = row.attempt < loops and row.step >= 2
        if row.step >= frames and not looping:
            row.reason = EOS
            return
        if slot in self.tainted or (len(row.opening.prompt.text) > 2 and row.step + 1 == row.opening.prompt.text[2]):
            self.tainted.add(slot)
            row.reason = NOT_FINITE
            return
        text, count = row.text.ids, outcome.counts[slot]
        outcome.codes[count, slot] = (
            row.opening.seed, row.opening.segment, row.attempt, row.step, text[row.step] if row.step < len(text) else NO_TEXT
        )  # fmt: skip
        outcome.pcm[count, slot] = row.step
        outcome.counts[slot] += 1
        if looping:
            row.mark = row.step if not row.held else row.mark
            row.held += 1
        row.step += 1
        if row.step >= row.text.limit:
            row.reason = LENGTH
        elif row.held >= 4:
            row.reason = RUNAWAY

    def launch_alone(self, slot: int, limit: int) -> Outcome:
        row = self.rows[slot]
        assert self.alone and row.step == 0 and not row.opening.carry
        launched = self.launch([limit if other == slot else 0 for other in range(self.slots)], limit)
        self.log.append(("alone", slot, limit))
        return launched

    def collect(self, launched: Outcome) -> Outcome:
        self.pending -= 1
        self.log.append(("collect",))
        return launched
