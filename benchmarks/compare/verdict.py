"""What is to be reached, and whether it is: rows of (what, ours, vox-tts's, must, goal, verdict)."""

from typing import Any, NamedTuple

from rich.table import Table


class Aim(NamedTuple):
    """A figure of ours that must not exceed a limit.

    Attributes:
        key: of the figures.
        what: for people.
        must, goal: limits; of a relative one times vox-tts's figure.
        relative: to vox-tts's figure.
    """

    key: str
    what: str
    must: float
    goal: float
    relative: bool = False


AIMS = (
    Aim("rtf", "RTF", 0.65, 0.5, relative=True),
    Aim("rss_gb", "peak RSS of say, cloning included, GB", 2.0, 1.4),
    Aim("first_audio_s", "first audio, prepared voice, 20 text tokens, s", 1.0, 0.5, relative=True),
    Aim("load_s", "load until the first frame, s", 6.0, 3.0),
    Aim("step_8_slots_ratio", "a step of 8 slots over one of 1 slot", 2.2, 1.6),
)


def judge(aim: Aim, ours: dict[str, Any], vox: dict[str, Any]) -> str:
    """``goal``, ``must`` or ``MISSED``."""
    unit = vox[aim.key] if aim.relative else 1.0
    return "goal" if ours[aim.key] <= aim.goal * unit else "must" if ours[aim.key] <= aim.must * unit else "MISSED"


def table(ours: dict[str, Any], vox: dict[str, Any]) -> Table:
    found = Table("", "ours", "vox-tts", "ours / vox-tts", "must", "goal", "reached")
    for aim in AIMS:
        mine, theirs = ours[aim.key], vox.get(aim.key)
        unit = "x" if aim.relative else ""
        found.add_row(
            aim.what, f"{mine:.2f}", "" if theirs is None else f"{theirs:.2f}", "" if theirs is None else f"{mine / theirs:.2f}",
            f"{aim.must:g}{unit}", f"{aim.goal:g}{unit}", judge(aim, ours, vox),
        )  # fmt: skip
    return found
