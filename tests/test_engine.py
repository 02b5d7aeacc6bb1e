"""The engine's thread: serving, faults, restarts, draining. The device is fake_device.py's; nothing here sleeps to let things happen."""

import asyncio
import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import jax
import pytest

from qwen3_jax.engine import Closed, ConsumerFailed, DeviceFailed, DeviceOutOfMemory, Engine, Handle
from qwen3_jax.engine.loop import LoopConsumer
from tests.fake_device import FakeDevice, expected
from tests.test_engine_scheduler import request

LIMIT = 60.0


def heard(handle: Handle) -> list[tuple]:
    codes: list[tuple] = []
    while (packet := handle.next(LIMIT)) is not None:
        codes += [tuple(row) for row in packet.codes.tolist()]
    return codes


class Gate(FakeDevice):
    """Launches wait for a release each once ``closed`` is set."""

    closed = False

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.gate = threading.Semaphore(0)

    def collect(self, launched: Any) -> Any:
        assert not self.closed or self.gate.acquire(timeout=LIMIT)
        return super().collect(launched)


def test_requests_are_served_from_many_threads() -> None:
    with Engine(lambda slots, on_cpu: FakeDevice(slots=slots), slots=3) as engine:
        results: dict[int, list[tuple]] = {}

        def one(number: int) -> None:
            results[number] = heard(engine.submit(request(20 + number, seed=number)))

        threads = [threading.Thread(target=one, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        assert results == {number: expected(request(20 + number, seed=number)) for number in range(12)}
        stats = engine.stats()
        assert (stats.state, stats.slots, stats.counters["completed"]) == ("running", 3, 12)


def test_a_wait_for_audio_has_a_limit() -> None:
    device = Gate(slots=1)
    device.closed = True
    with Engine(lambda slots, on_cpu: device, slots=1) as engine:
        handle = engine.submit(request(3))
        with pytest.raises(TimeoutError, match=r"no audio for 0\.01 s"):
            handle.next(0.01)
        device.gate.release(100)
        assert len(heard(handle)) == 3


def test_a_fault_is_told_to_all_and_the_engine_serves_again_once(caplog: pytest.LogCaptureFixture) -> None:
    devices = [FakeDevice(slots=2, fail_at=launch, error=RuntimeError("broken")) for launch in (3, 10)]
    built: list[tuple[int, bool]] = []

    def build(slots: int, on_cpu: bool) -> FakeDevice:
        built.append((slots, on_cpu))
        return devices[len(built) - 1]

    asked, launch = threading.Event(), devices[0].launch

    def launch_when_asked(quotas: list[int], limit: int) -> Any:
        assert asked.wait(LIMIT)
        return launch(quotas, limit)

    devices[0].launch = launch_when_asked  # type: ignore[method-assign]
    with Engine(build, slots=2) as engine, caplog.at_level(logging.WARNING):
        handles = [engine.submit(request(500, seed=number)) for number in range(4)]
        asked.set()
        for handle in handles:
            with pytest.raises(DeviceFailed, match="is being restarted"):
                heard(handle)
        until(lambda: engine.state == "running")
        again = engine.submit(request(1))
        assert heard(again) == expected(again.request)
        assert engine.stats().restarts == 1
        last = engine.submit(request(500))
        with pytest.raises(DeviceFailed, match="could not be restarted"):
            heard(last)
        until(lambda: engine.state == "failed")
        with pytest.raises(Closed, match="the engine is failed"):
            engine.submit(request(1))
    assert built == [(2, False), (2, False)]
    assert "broken" in caplog.text and "serves again" in caplog.text


def test_a_lost_device_is_let_go_of_though_the_program_has_frozen_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("qwen3_jax.engine.engine"), "disabled", True)  # pytest keeps the records, and their frames
    made: list[weakref.ref[Any]] = []

    def build(slots: int, on_cpu: bool) -> FakeDevice:
        device: Any = FakeDevice(slots=slots, fail_at=None if made else 2, error=RuntimeError("broken"))
        device.itself = device  # only the collector frees it
        made.append(weakref.ref(device))
        return device

    with Engine(build, slots=1) as engine:
        gc.freeze()
        try:
            with pytest.raises(DeviceFailed, match="is being restarted"):
                heard(engine.submit(request(500)))
            until(lambda: engine.state == "running")
            assert made[0]() is None and made[1]() is not None and gc.get_freeze_count() > 0
        finally:
            gc.unfreeze()


def test_out_of_memory_halves_the_slots_and_ends_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte")
    built: list[tuple[int, bool]] = []
    cleared: list[int] = []
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(1))

    def build(slots: int, on_cpu: bool) -> FakeDevice:
        built.append((slots, on_cpu))
        if len(built) == 2:
            raise error  # building it again may fail in the same way
        return FakeDevice(slots=slots, fail_at=None if on_cpu else 2, error=error)

    with Engine(build, slots=4) as engine:
        with pytest.raises(DeviceOutOfMemory, match="memory was used up; it is being restarted"):
            heard(engine.submit(request(500)))
        until(lambda: engine.state == "running")
        with pytest.raises(DeviceOutOfMemory):
            heard(engine.submit(request(500)))
        until(lambda: engine.state == "running")
        assert len(heard(engine.submit(request(500)))) == 500
        stats = engine.stats()
    assert built == [(4, False), (2, False), (1, False), (1, True)]
    assert (stats.on_cpu, stats.slots, stats.out_of_memory, stats.restarts) == (True, 1, 3, 0)
    assert len(cleared) == 3


def test_what_cannot_be_built_is_told_at_once() -> None:
    def build(slots: int, on_cpu: bool) -> FakeDevice:
        raise ValueError("too large")

    with pytest.raises(ValueError, match="too large"):
        Engine(build, slots=2)


def test_closing_drains() -> None:
    engine = Engine(lambda slots, on_cpu: FakeDevice(slots=1), slots=1)
    handles = [engine.submit(request(50, seed=number)) for number in range(3)]
    engine.close(grace=LIMIT)
    assert [len(heard(handle)) for handle in handles] == [50, 50, 50]
    assert engine.state == "closed"
    with pytest.raises(Closed, match="the engine is closed"):
        engine.submit(request(1))


def test_closing_does_not_wait_for_ever() -> None:
    engine = Engine(lambda slots, on_cpu: FakeDevice(slots=1), slots=1)
    handle = engine.submit(request(5000))  # its queue fills up, and nobody reads
    assert handle.next(LIMIT) is not None
    engine.close(grace=0.01)
    with pytest.raises(Closed, match="closed"):
        heard(handle)


def test_cancel_wakes_who_waits() -> None:
    device = Gate(slots=1)
    device.closed = True
    with Engine(lambda slots, on_cpu: device, slots=1) as engine:
        handle = engine.submit(request(500))
        waits, wait = threading.Event(), handle._changed.wait

        def told(timeout: float | None = None) -> bool:
            waits.set()  # the lock is held until the reader waits
            return wait(timeout)

        handle._changed.wait = told  # type: ignore[method-assign]

        def cancel() -> None:
            assert waits.wait(LIMIT)
            handle.cancel()

        canceller = threading.Thread(target=cancel)
        canceller.start()
        assert handle.next(LIMIT) is None
        canceller.join(LIMIT)
        device.gate.release(1000)


async def test_an_event_loop_is_told_once_a_step() -> None:
    """Two streams and their sentinel over one consumer; calls to the loop are at most one a step."""
    calls: list[Any] = []
    loop = asyncio.get_running_loop()
    plain = loop.call_soon_threadsafe

    def counted(*args: Any) -> Any:
        calls.append(args)
        return plain(*args)

    loop.call_soon_threadsafe = counted  # type: ignore[assignment, method-assign]  # counts, then does it
    consumer = LoopConsumer(loop)
    engine = Engine(lambda slots, on_cpu: FakeDevice(slots=slots), slots=2)
    try:

        async def read(number: int) -> list[tuple]:
            one = request(30, seed=number, notify=consumer.notify)
            handle = engine.submit(one)
            return [tuple(row) async for packet in consumer.packets(handle, LIMIT) for row in packet.codes.tolist()]

        got = list(await asyncio.gather(read(1), read(2), read(3)))
        assert got == [expected(request(30, seed=number)) for number in (1, 2, 3)]
        assert len(calls) <= engine.stats().counters["steps"] + 3
    finally:
        await asyncio.to_thread(engine.close)
        loop.call_soon_threadsafe = plain  # type: ignore[method-assign]


async def test_errors_and_limits_reach_the_event_loop() -> None:
    consumer = LoopConsumer(asyncio.get_running_loop())
    device = Gate(slots=1)
    engine = Engine(lambda slots, on_cpu: device, slots=1)
    try:
        device.closed = True
        handle = engine.submit(request(100, notify=consumer.notify))
        with pytest.raises(TimeoutError, match=r"no audio for 0\.01 s"):
            async for _ in consumer.packets(handle, 0.01):
                pass
        assert handle.cancelled, "who gives up frees his slot"
        device.closed = False
        device.gate.release(10)
        doomed = engine.submit(request(5000, notify=consumer.notify))
        await asyncio.to_thread(engine.close)
        with pytest.raises(Closed):
            async for _ in consumer.packets(doomed, LIMIT):
                pass
    finally:
        await asyncio.to_thread(engine.close)


async def test_a_packet_outlives_a_wait_that_is_cancelled() -> None:
    """A limit of the wait is no end of the request."""
    consumer, device = LoopConsumer(asyncio.get_running_loop()), Gate(slots=1)
    engine = Engine(lambda slots, on_cpu: device, slots=1)
    try:
        device.closed = True
        handle = engine.submit(request(3, notify=consumer.notify))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await consumer.next(handle)
        assert not handle.cancelled
        device.closed = False
        device.gate.release(10)
        codes = []
        async with asyncio.timeout(LIMIT):
            while (packet := await consumer.next(handle)) is not None:
                codes += [tuple(row) for row in packet.codes.tolist()]
            assert codes == expected(handle.request)
            await consumer.until(handle, lambda: handle.ended)
        assert not consumer._news
    finally:
        await asyncio.to_thread(engine.close)


def test_a_notify_that_raises_does_not_look_like_a_fault_of_the_device() -> None:
    """Nor does it when all are told of a real fault: then the engine would never come back."""
    loop = asyncio.new_event_loop()
    consumer = LoopConsumer(loop)
    loop.close()
    devices = [FakeDevice(slots=2, fail_at=12, error=RuntimeError("broken")), FakeDevice(slots=2)]
    first = devices[0]
    with Engine(lambda slots, on_cpu: devices.pop(0), slots=2) as engine:
        lost = engine.submit(request(500, notify=consumer.notify))
        with pytest.raises(ConsumerFailed, match="raised RuntimeError: Event loop is closed"):
            heard(lost)
        assert len(heard(engine.submit(request(5)))) == 5
        assert (engine.stats().restarts, engine.state) == (0, "running")

        def notify(handles: list[Handle]) -> None:
            if any(handle.ended for handle in handles):
                raise SystemExit(1)

        doomed = engine.submit(request(500, notify=notify))
        with pytest.raises(DeviceFailed):
            heard(doomed)
        until(lambda: engine.state == "running")
        engine.rebuilt.result(LIMIT)
        assert len(heard(engine.submit(request(5)))) == 5
        counters = engine.stats().counters
    assert counters["submitted"] == 4 == counters["completed"] + counters["failed"] and first.log


def test_who_waits_for_a_restart_is_told_of_its_end() -> None:
    """Whether it goes well, or the engine is closed meanwhile."""
    for close in (False, True):
        rebuild, built = threading.Event(), []

        def build(slots: int, on_cpu: bool) -> FakeDevice:
            built.append(slots)  # noqa: B023  # used in this round only
            assert len(built) == 1 or rebuild.wait(LIMIT)  # noqa: B023
            return FakeDevice(slots=slots, fail_at=2 if len(built) == 1 else None, error=RuntimeError("broken"))  # noqa: B023

        engine = Engine(build, slots=1)
        assert engine.rebuilt.done(), "it is running"
        with pytest.raises(DeviceFailed, match="is being restarted"):
            heard(engine.submit(request(500)))
        waits = engine.rebuilt
        assert not waits.done()
        with pytest.raises(DeviceFailed, match="is being restarted"):
            engine.submit(request(5))
        if close:
            closing = threading.Thread(target=engine.close)
            closing.start()
        rebuild.set()
        waits.result(LIMIT)
        if close:
            closing.join(LIMIT)
        else:
            assert len(heard(engine.submit(request(5)))) == 5
            engine.close()


def until(true: Callable[[], bool]) -> None:
    """Wait, for LIMIT at most."""
    end = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)
