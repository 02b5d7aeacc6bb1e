"""One part of a text as the engine takes it, in ids, and when speech of it that does not end is taken back."""

from dataclasses import dataclass, fields
from typing import TypeGuard

import numpy as np

from qwen3_jax.text.prompt import Prompt, as_arrays

MOST = 2**30  # that is counted on the device, in int32, which holds the sum of two
LONGEST_PAUSE = 60.0  # seconds


def is_whole(value: object) -> TypeGuard[int]:
    """Whether it is an integer; True and False are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_count(name: str, value: int, least: int) -> None:
    """Refuse what the device could not count to: it would fail in the engine's thread, and with it everybody."""
    if not is_whole(value) or not least <= value <= MOST:
        raise ValueError(f"{name} = {value!r}: must be an integer from {least} to {MOST}")


@dataclass(frozen=True)
class Watch:
    """When speech that does not end is taken back. A frame is suspect from ``hold`` repeats or frame ``overdue`` on, and then held back;
    at ``repeats`` or ``overdue_end`` all that is held is dropped, and drawn again from before it with a fresh key, ``retries`` times.

    Attributes:
        hold, repeats: frames in a row whose book 0 is what it was a fixed number (1 to 8) of frames before.
        overdue_base, overdue_per_token: frame = base + per_token * text tokens, once the text is complete.
        overdue_span: frames from there to the end.
        retries: per segment; after them it ends before what was held, with ``length``.
    """

    hold: int = 8
    repeats: int = 30
    overdue_base: int = 38
    overdue_per_token: int = 10
    overdue_span: int = 38
    retries: int = 2

    def __post_init__(self) -> None:
        for one in fields(self):
            check_count(one.name, getattr(self, one.name), 0)


@dataclass(frozen=True, eq=False)
class Segment:
    """One part of a text: a prompt, and the frames that are made from it.

    Attributes:
        prompt: its rows; ``prompt.trailing`` ends with tts_eos unless the segment is open.
        max_frames: at most. For an open segment: see ``Handle.end_segment``.
        open: more text ids may follow (`Handle.append`).
        tokens: of the text, for `Watch`; None: as many as ``prompt.trailing`` has.
        pause: seconds of silence before it, at most a minute; they have no frames.
    """

    prompt: Prompt
    max_frames: int
    open: bool = False
    tokens: int | None = None
    pause: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", as_arrays(self.prompt))
        check_count("max_frames", self.max_frames, 1)
        if self.tokens is not None:
            check_count("tokens", self.tokens, 0)
        if not 0 <= self.pause <= LONGEST_PAUSE:
            raise ValueError(f"pause = {self.pause}: must be from 0 to {LONGEST_PAUSE:g} seconds")
