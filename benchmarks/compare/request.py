"""The request that both programs of a comparison get, as command line arguments: JSON of this."""

import dataclasses
import json
import os
from pathlib import Path

TEXT = "A small boat came slowly in through the morning mist, long before anyone in the village woke up."  # 20 tokens
VOICE = Path(__file__).parents[2] / "voices" / "makima"


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is said, in which voice.

    Attributes:
        model: folder or file of the program's own form.
        voice: file of the voice that ``prepare`` makes of ``recording``, timbre only.
        recording, transcript: what is cloned, and what it says.
        text: 20 tokens.
        frames: of 80 ms, after which speech is cut; random weights do not end it.
        utterances: that are timed.
        threads: of the program, where it can be told.
        dtype: of our weights.
    """

    model: str
    voice: str
    frames: int
    dtype: str = "float32"
    utterances: int = 2
    recording: str = str(VOICE / "reference.wav")
    transcript: str = (VOICE / "transcript.txt").read_text("utf-8").strip()
    text: str = TEXT
    language: str = "english"
    threads: int = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def json(self) -> str:
        return json.dumps(dataclasses.asdict(self))
