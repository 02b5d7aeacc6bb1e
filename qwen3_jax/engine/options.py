"""What an operator chooses about the engine, and what it counts."""

from dataclasses import dataclass, fields

FRAME_SECONDS = 0.08


@dataclass(frozen=True)
class Options:
    """How the engine shares itself out.

    Attributes:
        buffer_ms: audio made and not yet taken, per request; a slot whose queue is full pauses.
        lead_ms: ahead of real time, while others wait for their first packet.
        call_ms: what one launch may take, once everybody speaks.
        max_waiting: requests in line; more are refused with ``Full``, those of the owner that has most of them first (line.py).
        patience: ``high`` requests in a row that may overtake a ``normal`` one.
        turn_seconds: how long a request waits before others' utterances make room for it though a pause may be heard (scheduler.py).
        stall_seconds: how long a slot waits for text, or for a consumer that takes nothing.
    """

    buffer_ms: int = 10_000
    lead_ms: int = 2_000
    call_ms: int = 40
    max_waiting: int = 256
    patience: int = 4
    turn_seconds: float = 10.0
    stall_seconds: float = 30.0

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            least = FRAME_SECONDS * 1000 if one.name == "buffer_ms" else 0
            if not value >= least or (one.name == "stall_seconds" and value == 0):
                raise ValueError(f"{one.name} = {value}: must be {f'at least {least:.0f}' if least else 'above 0'}")


@dataclass
class Counters:
    """What has happened since the start; `Engine.stats` shows them."""

    submitted: int = 0  # = completed + cancelled + failed + what is still here
    completed: int = 0
    cancelled: int = 0
    failed: int = 0
    refused: int = 0  # never submitted: the line was full and their owner had its share
    displaced: int = 0  # failed: left the full line for a request of an owner that had fewer
    parked: int = 0  # times that an utterance gave its slot back before its end
    frames: int = 0  # released
    steps: int = 0
    runaways: int = 0  # rolled back before they were heard
    runaways_ended: int = 0  # retries used up
    cut: int = 0  # segments that met their limit
    not_finite: int = 0  # requests that ended because the model computed NaN or infinity
    step_seconds: float = 0.0  # smoothed, per frame of the batch
