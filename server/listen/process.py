"""The recogniser's process, as the server sees it: started when first wanted, fed one job at a time, started again once when it dies.

Jobs that wait are bounded in seconds of audio. Where it dies, the job that it had fails; those that wait are kept for the next.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from time import monotonic
from typing import Literal

import numpy as np

from qwen3_jax.shapes import F32
from server.listen.base import RATE, HeardSpeech
from server.listen.messages import LENGTH, MOST_BYTES, Done, Failed, Hello, Job, packed, reply_decoder

LOAD_SECONDS, JOB_SECONDS = 120.0, 60.0  # limits
AGAIN_SECONDS = 60.0  # a process that dies so soon after it was started again is given up; so much later it is tried anew
log = logging.getLogger(__name__)
Urgency = Literal[0, 1]  # finals go before partials


class RecogniserGone(RuntimeError):
    """The recogniser's process has died, or could not be started; the message says which."""


class RecogniserBehind(RuntimeError):
    """More audio waits to be recognised than may."""


class WaitingJob:
    """A job with its place in line."""

    def __init__(self, job: Job, owner: str, urgency: Urgency) -> None:
        self.job, self.owner, self.urgency = job, owner, urgency
        self.seconds = len(job.pcm) / 4 / RATE
        self.done: asyncio.Future[Done] = asyncio.get_running_loop().create_future()


class RecogniserProcess:
    """Its owner. All is done in the event loop.

    Args:
        command: the process's.
        most_seconds: of audio, of one owner, that may wait.
    """

    def __init__(self, command: Sequence[str], most_seconds: float) -> None:
        self.restarts = 0
        self._command, self._most_seconds = command, most_seconds
        self._waiting: list[WaitingJob] = []
        self._under_way: dict[str, WaitingJob] = {}  # by kind
        self._number = 0
        self._wake = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[Hello] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._given_up = float("-inf")
        self._why = "the server goes down"

    @property
    def queued_seconds(self) -> float:
        """Of audio that waits, or is being recognised."""
        return sum(one.seconds for one in (*self._waiting, *self._under_way.values()) if one.job.kind == "hear")

    def busy(self, owner: str) -> bool:
        """Whether partials of the owner would only make others wait."""
        return len(self._waiting) > 1 or self._seconds_of(owner) > 0

    async def ready(self) -> Hello:
        """Start it, unless it runs. Raises RecogniserGone."""
        if self._running is None or self._running.done():
            if monotonic() - self._given_up < AGAIN_SECONDS:
                raise RecogniserGone(f"{self._why}; it is tried again after {AGAIN_SECONDS:g} s")
            self._ready = asyncio.get_running_loop().create_future()
            self._running = asyncio.create_task(self._run())
        assert self._ready is not None
        return await asyncio.shield(self._ready)

    async def hear(self, pcm: F32[np.ndarray, " F"], language: str, owner: str, *, final: bool) -> HeardSpeech:
        """Recognise speech. Leaving early takes the job out of the line.

        Raises:
            RecogniserBehind: too much of the owner's waits already.
            RecogniserGone: the process died over this job, or cannot be started; or the recogniser refused it.
        """
        if self._seconds_of(owner) + len(pcm) / RATE > self._most_seconds:
            raise RecogniserBehind(
                f"{self._most_seconds:g} s of speech wait to be recognised: this turn is lost; send no faster than it sounds"
            )
        done = await self._do(pcm, "hear", owner, 0 if final else 1, language, words=final)
        assert done.heard is not None
        return done.heard

    async def turn_over(self, pcm: F32[np.ndarray, " F"], owner: str) -> float:
        """The probability that a turn is over. Leaving early takes the job out of the line. Errors as ``hear``."""
        waiting = sum(one.seconds for one in (*self._waiting, *self._under_way.values()) if one.owner == owner)
        if waiting + len(pcm) / RATE > self._most_seconds:
            raise RecogniserBehind(f"{self._most_seconds:g} s of speech wait to be recognised: this pause is not judged")
        done = await self._do(pcm, "turn", owner, 0, "", words=False)
        assert done.probability is not None
        return done.probability

    async def close(self) -> None:
        """End the process."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})

    async def _do(
        self, pcm: F32[np.ndarray, " F"], kind: Literal["hear", "turn"], owner: str, urgency: Urgency, language: str, *, words: bool
    ) -> Done:
        self._number += 1
        job = Job(number=self._number, kind=kind, pcm=np.ascontiguousarray(pcm, np.float32).tobytes(), language=language, words=words)
        mine = WaitingJob(job, owner, urgency)
        self._waiting.append(mine)  # before the process is there, for the bound
        self._wake.set()
        try:
            await self.ready()
            done = await mine.done
        finally:
            if mine in self._waiting:
                self._waiting.remove(mine)
        if done.failure:
            log.error("the recogniser failed: %s", done.failure)
            raise RecogniserGone("the recogniser failed over this speech; the server's log says more")
        return done

    def _seconds_of(self, owner: str) -> float:
        return sum(one.seconds for one in (*self._waiting, *self._under_way.values()) if one.owner == owner and one.job.kind == "hear")

    # The process

    async def _run(self) -> None:
        """Keep it running until it is given up."""
        assert self._ready is not None
        started = float("-inf")
        try:
            while True:
                why = await self._once()
                loaded, given_up = self._ready.done(), monotonic() - started < AGAIN_SECONDS
                told = f"{why}; {'it died before, and is given up' if given_up else 'it is started again'}"
                for one in self._under_way.values():
                    _fail(one, told)
                self._under_way.clear()
                if not loaded or given_up:
                    log.error("%s", told if loaded else why)
                    self._given_up, self._why = monotonic(), why
                    return
                log.error("%s", told)
                self.restarts += 1
                started = monotonic()
        finally:
            for one in (*self._under_way.values(), *self._waiting):
                _fail(one, self._why)
            self._under_way.clear()
            if not self._ready.done():
                self._ready.set_exception(RecogniserGone(self._why))
                self._ready.exception()  # whoever waits is told; nobody may

    async def _once(self) -> str:
        """From its start to its death. Returns what it died of."""
        assert self._ready is not None
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=MOST_BYTES,
            start_new_session=True,  # Ctrl-C is for the server, which ends it
        )
        self._process = process
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                first = await self._reply(process)
            if isinstance(first, Failed):
                return f"the recogniser could not be loaded: {first.message}"
            if not isinstance(first, Hello):
                return await _ended(process)
            if not self._ready.done():
                self._ready.set_result(first)
            async with asyncio.TaskGroup() as tasks:
                feeding = tasks.create_task(self._feed(process))
                while isinstance(reply := await self._reply(process), Done):
                    kind = next((kind for kind, one in self._under_way.items() if one.job.number == reply.number), None)
                    if kind is not None:
                        one = self._under_way.pop(kind)
                        if not one.done.done():
                            one.done.set_result(reply)
                        self._wake.set()
                feeding.cancel()
            return await _ended(process)
        except TimeoutError:
            return f"the recogniser loads for more than {LOAD_SECONDS:g} s"
        finally:
            self._process = None
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.wait()

    async def _reply(self, process: asyncio.subprocess.Process) -> Hello | Done | Failed | None:
        """The next one; None where the process has ended, or takes too long and is ended."""
        assert process.stdout is not None
        try:
            size = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))[0]
            return reply_decoder.decode(await process.stdout.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def _feed(self, process: asyncio.subprocess.Process) -> None:
        """Hand out jobs: one at a time of each kind; finals first, then who has least in line, then who came first."""
        assert process.stdin is not None
        with contextlib.suppress(ConnectionError):  # whoever reads the replies notices
            while True:
                self._wake.clear()
                for kind in ("hear", "turn"):
                    line = [one for one in self._waiting if one.job.kind == kind]
                    if line and kind not in self._under_way:
                        one = min(line, key=lambda one: (one.urgency, self._seconds_of(one.owner), one.job.number))
                        self._waiting.remove(one)
                        self._under_way[kind] = one
                        process.stdin.write(packed(one.job))
                        await process.stdin.drain()
                try:
                    async with asyncio.timeout(JOB_SECONDS if self._under_way else None):
                        await self._wake.wait()
                except TimeoutError:
                    log.error("the recogniser has worked for %g s at one job: ended", JOB_SECONDS)
                    process.kill()
                    return


async def _ended(process: asyncio.subprocess.Process) -> str:
    """What is said of a process that has closed its output."""
    try:
        async with asyncio.timeout(1.0):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
    code = process.returncode or 0
    return f"the recogniser's process has died ({f'signal {-code}' if code < 0 else f'status {code}'})"


def _fail(one: WaitingJob, why: str) -> None:
    if not one.done.done():
        one.done.set_exception(RecogniserGone(why))
        one.done.exception()  # its owner may have left
