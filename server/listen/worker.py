"""The recogniser's process: jobs on stdin -> results on stdout. It yields to speech (nice), and ends with its server.

python -m server.listen.worker RECOGNISER [SMART_TURN_FILE]
"""

import contextlib
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

from server.listen.base import EndOfTurn, Recogniser
from server.listen.messages import LENGTH, Done, Failed, Hello, Job, Reply, job_decoder, packed
from server.listen.smart_turn import SmartTurn
from server.listen.whisper import Whisper

NICE = 10  # speech that is spoken goes first


class Worker:
    """One of them.

    Args:
        end_of_turn: None: nobody asks.
    """

    def __init__(self, recogniser: Recogniser, end_of_turn: EndOfTurn | None, replies: BinaryIO) -> None:
        self._recogniser, self._end_of_turn, self._replies = recogniser, end_of_turn, replies
        self._lock = threading.Lock()

    def run(self, jobs: BinaryIO) -> None:
        """Until the server closes its end. A turn is judged beside what is heard, for it takes less time and is wanted at once."""
        self._reply(Hello(languages=self._recogniser.languages))
        with ThreadPoolExecutor(1) as hearing, ThreadPoolExecutor(1) as judging:
            while len(head := jobs.read(LENGTH.size)) == LENGTH.size:
                job = job_decoder.decode(jobs.read(LENGTH.unpack(head)[0]))
                (hearing if job.kind == "hear" else judging).submit(self._do, job)

    def _do(self, job: Job) -> None:
        pcm = np.frombuffer(job.pcm, np.float32)
        try:
            if job.kind == "hear":
                done = Done(number=job.number, heard=self._recogniser.transcribe(pcm, job.language, words=job.words))
            else:
                assert self._end_of_turn is not None
                done = Done(number=job.number, probability=self._end_of_turn.probability(pcm))
        except Exception as error:  # noqa: BLE001  # whatever a recogniser raises: this job has failed, and its session is told
            done = Done(number=job.number, failure=f"{type(error).__name__}: {error}")
        self._reply(done)

    def _reply(self, message: Reply) -> None:
        with self._lock, contextlib.suppress(BrokenPipeError):  # the server has gone; so will this process
            self._replies.write(packed(message))
            self._replies.flush()


def main(recogniser: str, smart_turn: str = "") -> None:
    """Load, and serve."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    if hasattr(os, "nice"):
        os.nice(NICE)
    try:
        hears, judges = Whisper(recogniser, min(2, os.cpu_count() or 1)), SmartTurn(Path(smart_turn)) if smart_turn else None
    except (ValueError, OSError, RuntimeError) as error:
        replies.write(packed(Failed(message=str(error))))
        replies.flush()
        return
    Worker(hears, judges, replies).run(sys.stdin.buffer)


if __name__ == "__main__":
    main(*sys.argv[1:])
