"""Processes that speak a corpus side by side: each has its own teacher, and ends with the process that started it."""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

from training.corpus.sentences import CorpusSentence
from training.corpus.shards import SHARD, SpeechSource, cut_into_shards, make_shard
from training.corpus.teachers import SAMPLE_RATE, Teacher, TeacherVoice

_TEACHER: list[SpeechSource] = []  # of a worker process


def end_with_parent() -> None:
    """In a worker process: be gone as soon as the process that started it is, however that ended. (A pool's workers wait for ever.)"""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only in a worker"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="watches-parent", daemon=True).start()


def start(voices: Path | None) -> None:
    """Begin a worker; ``voices``: of `Teacher`."""
    end_with_parent()
    _TEACHER[:] = [Teacher(voices)]


def _work(folder: Path, index: int, who: TeacherVoice, batch: list[CorpusSentence]) -> int:
    return make_shard(folder, index, who, batch, _TEACHER[0])


def fill(folder: Path, who: TeacherVoice, texts: list[CorpusSentence], seconds: float, pool: Any, workers: int) -> Iterator[int]:
    """Make shards until there are ``seconds`` of the voice; yields the samples of each as it is done, old ones included.

    Shards are started in order, one a worker, and only while those under way will not do; so a run ends with few too many, and
    with the first N of the voice.
    """
    waiting: set[Future[int]] = set()
    have, mean = 0, SHARD * 3.0 * SAMPLE_RATE
    plan = enumerate(cut_into_shards(who, texts))
    more = True
    while more or waiting:
        while more and len(waiting) < workers and have + len(waiting) * mean < seconds * SAMPLE_RATE:
            job = next(plan, None)
            if job is None:
                more = False
                break
            waiting.add(pool.submit(_work, folder / who.name, job[0], who, job[1]))
        if not waiting:
            return
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            have += future.result()
            yield future.result()
