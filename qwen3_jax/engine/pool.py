"""Several devices of one process as one engine: an Engine for each, and one line for all of them (lending.py).

    pool = Pool({"cuda:0": build_on_first, "cuda:1": build_on_second}, slots=10)
    handle = pool.submit(request)

A device that fails is out until its engine has built it again; its running requests end as they would on a single device, those in line
and those on other devices go on. A device that fails for good stays out. The pool fails when all of its devices have failed.
"""

import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor

from qwen3_jax.engine.engine import Build, Engine, Stats
from qwen3_jax.engine.errors import Closed, DeviceFailed, EngineError
from qwen3_jax.engine.lending import Lending
from qwen3_jax.engine.options import Options
from qwen3_jax.engine.requests import Handle, Request

_ORDER = ("running", "restarting", "closing", "closed", "failed")  # the state of a pool: the first that one of its engines is in


class Pool:
    """See the module's docstring. The methods are those of Engine, and may be called from any thread.

    Args:
        builds: name of each device -> what makes it. The first device is built alone, the others side by side, so that they find
            what it has compiled.
        slots: requests that speak at a time on each device.
        options: how they share the devices; ``max_waiting`` is that of the one line.
        clock: seconds; for tests.

    Raises:
        whatever a build raises; the devices that have been built are closed.
    """

    def __init__(
        self, builds: Mapping[str, Build], *, slots: int, options: Options | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        lending = self._lending = Lending(options or Options())

        def begin(name: str) -> Engine:
            return Engine(builds[name], slots=slots, options=options, clock=clock, name=name, lending=lending)

        first, *others = builds
        self.engines = [begin(first)]
        with ThreadPoolExecutor(max(1, len(others)), "build") as threads:
            begun = [threads.submit(begin, name) for name in others]
        self.engines += [one.result() for one in begun if one.exception() is None]
        if (error := next((error for one in begun if (error := one.exception()) is not None), None)) is not None:
            self.close()
            raise error

    @property
    def state(self) -> str:
        """``running`` as long as one device is; else as Engine.state, of the device that is best off."""
        return min((engine.state for engine in self.engines), key=_ORDER.index)

    @property
    def failure(self) -> BaseException | None:
        """What the last device died of; None while one runs."""
        if self.state == "running":
            return None
        return next((engine.failure for engine in self.engines if engine.failure is not None), None)

    @property
    def first_running(self) -> int:
        """The index of the first device that runs; 0 if none does."""
        return next((index for index, engine in enumerate(self.engines) if engine.state == "running"), 0)

    @property
    def rebuilt(self) -> "Future[None]":
        """Done as soon as a device runs, or none is being restarted."""
        done: Future[None] = Future()

        def look(_: object = None) -> None:
            if self.state != "restarting" and not done.done():
                try:
                    done.set_result(None)
                except InvalidStateError:
                    return  # another device's thread was faster

        look()
        if not done.done():
            for engine in self.engines:
                engine.rebuilt.add_done_callback(look)
        return done

    def check_line(self, owner: Hashable) -> None:
        """Raises Full if a request of the owner would be refused now."""
        self._lending.line.check(owner)

    def submit(self, request: Request) -> Handle:
        """Queue a request. Errors as in ``Engine.submit``: DeviceFailed and Closed only where no device runs."""
        error: EngineError | None = None
        for engine in self.engines:
            try:
                return engine.submit(request)
            except DeviceFailed as failed:
                error = failed
            except Closed as closed:
                error = error or closed
        assert error is not None
        raise error

    def stats(self) -> Stats:
        """All devices together; slots are those of the devices that run."""
        each = [engine.stats() for engine in self.engines]
        counters: Counter[str] = Counter()
        for one in each:
            counters.update(one.counters)
        slowest = max(one.counters["step_seconds"] for one in each)
        return Stats(
            state=self.state,
            slots=sum(one.slots for one in each if one.state == "running"),
            active=sum(one.active for one in each),
            waiting=len(self._lending.line),
            restarts=sum(one.restarts for one in each),
            out_of_memory=sum(one.out_of_memory for one in each),
            on_cpu=any(one.on_cpu for one in each),
            counters={**counters, "step_seconds": slowest},
        )

    def devices(self) -> dict[str, Stats]:
        """How things stand, by the name of the device."""
        return {engine.name: engine.stats() for engine in self.engines}

    def close(self, grace: float = 0.0) -> None:
        """As ``Engine.close``, of all devices at once."""
        with ThreadPoolExecutor(len(self.engines), "close") as threads:
            closing = [threads.submit(engine.close, grace) for engine in self.engines]
        for one in closing:
            one.result()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
