"""The device thread and its life: build -> serve -> (a fault: tell everybody, build again, once) -> drain -> end.

One thread calls the Scheduler. It is an executor's job, whose future is the owner that learns of its death: then every open request
gets an error, and a new job builds the device again. Out of memory is no such fault, but a device planned too large: the slots are
halved, as often as needed, and with one slot left the CPU takes over. Where there are other devices (pool.py), that one ends instead.
"""

import gc
import logging
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import jax

from qwen3_jax.engine.errors import Closed, DeviceFailed, DeviceOutOfMemory, EngineError
from qwen3_jax.engine.lending import Lending
from qwen3_jax.engine.options import Counters, Options
from qwen3_jax.engine.requests import Handle, Request
from qwen3_jax.engine.scheduler import Scheduler
from qwen3_jax.engine.slots import Device

HEARTBEAT = 5.0  # seconds; an idle thread looks around that often
LAST_STEP = 60.0  # seconds that a step, or building the device, may take when the engine closes
log = logging.getLogger(__name__)
Build = Callable[[int, bool], Device]  # (slots, on the CPU whatever was chosen) -> the device, warm


@dataclass(frozen=True)
class Stats:
    """A look at the engine. ``waiting``: in line, for any device; ``counters``: see options.Counters."""

    state: str
    slots: int
    active: int
    waiting: int
    restarts: int
    out_of_memory: int
    on_cpu: bool
    counters: dict[str, Any]


class Engine:
    """Many requests at once on one device. Every method may be called from any thread.

    Args:
        build: makes the device; called here, and in the engine's thread after a fault.
        slots: requests that speak at a time.
        options: how they share the device.
        clock: seconds; for tests.
        name: of the device, for the log.
        lending: that of several engines in this process, which share their line. Such an engine leaves alone what the others use: it
            neither clears JAX's caches nor moves to the CPU.

    Raises:
        whatever ``build`` raises, when it is called here.
    """

    def __init__(
        self, build: Build, *, slots: int, options: Options | None = None, clock: Callable[[], float] = time.monotonic,
        name: str = "device", lending: Lending | None = None,
    ) -> None:  # fmt: skip
        self._build, self._options, self._clock, self.name = build, options or Options(), clock, name
        self._pooled, self._lending = lending is not None, lending or Lending(self._options)
        self._slots, self._on_cpu = slots, False
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._close_at: float | None = None
        self._restarts = self._shortages = 0
        self._counters = Counters()
        self._rebuilt: Future[None] | None = None  # of the restart that is going on, or was the last
        self.failure: BaseException | None = None  # what the last device died of
        self._scheduler = self._new_scheduler()
        self._state = "running"
        self._ended = threading.Event()
        self._executor = ThreadPoolExecutor(1, "engine")
        self._watch(self._executor.submit(self._serve))

    @property
    def state(self) -> str:
        """``running``, ``restarting``, ``closing``, ``closed``, or ``failed`` for good."""
        return self._state

    @property
    def rebuilt(self) -> "Future[None]":
        """Done as soon as the engine is not being restarted, however that ends."""
        with self._lock:
            if self._state == "restarting" and self._rebuilt is not None:
                return self._rebuilt
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def check_line(self, owner: Hashable) -> None:
        """Raises Full if a request of the owner would be refused now."""
        self._lending.line.check(owner)

    def submit(self, request: Request) -> Handle:
        """Queue a request.

        Raises:
            ValueError: it can never fit.
            Full: too many wait, and none of the owners has more in line.
            Closed: the engine is closed or failed.
            DeviceFailed: it is being restarted; try again when `rebuilt` is done.
        """
        with self._lock:
            if self._state == "restarting":
                raise DeviceFailed("the engine is being restarted after a fault; try again in a few seconds")
            if self._state != "running":
                raise Closed(f"the engine is {self._state}")
            handle = Handle(request, self._lending.reach.wake, self._clock())
            self._scheduler.submit(handle)
        handle.wake()
        return handle

    def stats(self) -> Stats:
        """How things stand."""
        scheduler = self._scheduler
        return Stats(
            state=self._state,
            slots=self._slots,
            active=sum(slot.handle is not None for slot in scheduler.slots),
            waiting=scheduler.waiting,
            restarts=self._restarts,
            out_of_memory=self._shortages,
            on_cpu=self._on_cpu,
            counters=asdict(self._counters),
        )

    def devices(self) -> dict[str, Stats]:
        """How things stand, by the name of the device."""
        return {self.name: self.stats()}

    def close(self, grace: float = 0.0) -> None:
        """Take no more requests; let those that are here finish, for ``grace`` seconds at most; then end. Returns when all is over.

        Raises:
            TimeoutError: the device does not come back from what it is doing.
        """
        with self._lock:
            if self._state in ("running", "restarting"):
                self._state = "closing"
            if self._close_at is None:
                self._close_at = self._clock() + grace
        self._wake.set()
        if not self._ended.wait(grace + LAST_STEP):
            raise TimeoutError(f"the device has not come back for {LAST_STEP} s; end the process")
        self._executor.shutdown()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _new_scheduler(self) -> Scheduler:
        device = self._build(self._slots, self._on_cpu)
        return Scheduler(device, self._options, self._clock, self._counters, lending=self._lending, wake=self._wake.set)

    # In the engine's thread

    def _serve(self) -> None:
        while True:
            self._wake.clear()
            left = None if self._close_at is None else self._close_at - self._clock()
            if left is not None and (left <= 0 or self._scheduler.idle):
                return
            delay = self._scheduler.run_round()
            if delay != 0 and not (left is not None and self._scheduler.idle):
                self._wake.wait(min(each for each in (delay, left, HEARTBEAT) if each is not None))

    def _rebuild(self) -> None:
        self._scheduler = self._new_scheduler()
        with self._lock:
            if self._state == "restarting":
                self._state = "running"
        self._end_restart()
        log.warning("the engine serves again: %s, %d slots%s", self.name, self._slots, " on the CPU" if self._on_cpu else "")
        self._serve()

    def _end_restart(self) -> None:
        if self._rebuilt is not None and not self._rebuilt.done():
            self._rebuilt.set_result(None)

    def _watch(self, job: "Future[None]") -> None:
        job.add_done_callback(self._over)

    def _over(self, job: "Future[None]") -> None:
        """The thread's job has ended, one way or the other."""
        error = job.exception()
        if error is None:
            self._scheduler.fail_all(Closed("the engine was closed"))
            self._state = "closed"
            self._ended.set()
            self._end_restart()
            return
        self.failure = error
        shortage = out_of_memory(error)
        log.error("the engine's device failed: %s", self.name, exc_info=error)
        again = self._may_restart(shortage)
        with self._lock:
            if self._state == "closing":
                again = False
            self._state = "restarting" if again else ("closed" if self._state == "closing" else "failed")
            if again and (self._rebuilt is None or self._rebuilt.done()):
                self._rebuilt = Future()
        self._scheduler.fail_all(_told(shortage, again))
        if not again:
            self._ended.set()
            self._end_restart()
            return
        self._scheduler.drop_device()
        self.failure = error.with_traceback(None)  # its frames hold arrays
        if shortage and not self._pooled:
            jax.clear_caches()
        _collect()
        self._watch(self._executor.submit(self._rebuild))

    def _may_restart(self, shortage: bool) -> bool:
        if not shortage:
            self._restarts += 1
            return self._restarts <= 1
        self._shortages += 1
        if self._slots > 1:
            self._slots //= 2
        elif not self._on_cpu and not self._pooled:
            self._on_cpu = True
        else:
            return False
        return True


def _collect() -> None:
    """Free what only its own cycles hold, though a program have frozen it."""
    frozen = gc.get_freeze_count() > 0
    gc.unfreeze()
    gc.collect()
    if frozen:
        gc.freeze()


def _told(shortage: bool, again: bool) -> EngineError:
    after = "it is being restarted; send the request again" if again else "it could not be restarted"
    if shortage:
        return DeviceOutOfMemory(f"the device's memory was used up; {after}")
    return DeviceFailed(f"the engine's device failed; {after}")


def out_of_memory(error: BaseException) -> bool:
    """Whether a device's (or the host's) memory was used up."""
    return isinstance(error, MemoryError) or (isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error))
