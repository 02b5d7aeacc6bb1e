"""A recogniser's process without a model: ``python -m tests.fake_recogniser FOLDER [BEHAVIOUR]``.

Speech of level 0.NN and n tenths of a second is recognised as "levelNN n"; level .09 as nothing, .08 as "mm-hm". A pause is judged to be
the end of a turn with the probability of its level. Behaviours: ``die`` over the first job, ``die always``, ``hold`` finals until FOLDER/go
is there, ``load`` until FOLDER/go is there, ``refuse`` to load, ``fail`` at every job.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from server.listen.base import RATE, HeardSpeech, HeardWord
from server.listen.messages import Failed, packed
from server.listen.worker import Worker


class FakeRecogniser:
    """See the module's docstring."""

    languages = ("English", "German")

    def __init__(self, folder: Path, behaviour: str) -> None:
        self._folder, self._behaviour = folder, behaviour

    def transcribe(self, pcm: np.ndarray, language: str, *, words: bool) -> HeardSpeech:
        mark = self._folder / "died"
        if self._behaviour == "die always" or (self._behaviour == "die" and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), 9)
        if self._behaviour == "fail":
            raise ValueError("this speech is too much")
        while words and self._behaviour == "hold" and not (self._folder / "go").exists():
            time.sleep(0.01)
        speech = np.abs(pcm) > 0.05
        level = round(100 * float(np.median(np.abs(pcm[speech]))) if speech.any() else 0)
        text = {9: "", 8: "Mm-hm."}.get(level, f"level{level} {round(10 * np.count_nonzero(speech) / RATE)}")
        first = 1000 * int(np.argmax(speech)) // RATE
        heard = tuple(
            HeardWord(word=word, start_ms=first + 100 * place, end_ms=first + 100 * place + 90) for place, word in enumerate(text.split())
        )
        return HeardSpeech(text=text, words=heard if words else None, language=language or "German")


class FakeEndOfTurn:
    """As sure as the turn is loud."""

    def probability(self, pcm: np.ndarray) -> float:
        return round(float(np.abs(pcm).max()), 2)


def main(folder: str, behaviour: str = "") -> None:
    replies: Any = sys.stdout.buffer
    if behaviour == "refuse":
        replies.write(packed(Failed(message="no such model: name another one")))
        replies.flush()
        return
    while behaviour == "load" and not (Path(folder) / "go").exists():
        time.sleep(0.01)
    Worker(FakeRecogniser(Path(folder), behaviour), FakeEndOfTurn(), replies).run(sys.stdin.buffer)


if __name__ == "__main__":
    main(*sys.argv[1:])
