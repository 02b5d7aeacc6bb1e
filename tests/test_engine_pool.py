"""Several devices in one process: one line, slots on each, and a device that fails alone. The devices are fake_device.py's."""

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
import pytest

from qwen3_jax.engine import Closed, DeviceFailed, DeviceOutOfMemory, Full, Handle, Options, Pool
from qwen3_jax.engine.lending import STUCK, Lending
from qwen3_jax.engine.requests import Request
from qwen3_jax.engine.reserve import KEPT_SECONDS
from qwen3_jax.engine.scheduler import Scheduler
from qwen3_jax.engine.segment import Segment
from qwen3_jax.model.sampling import Sampling
from tests.fake_device import FakeDevice, expected, segment
from tests.test_engine import LIMIT, Gate, heard, until
from tests.test_engine_scheduler import BIG, request
from tests.test_engine_scheduler import heard as taken


class Stages:
    """Schedulers that share one Lending, moved by hand, and the time."""

    def __init__(self, devices: int = 2, slots: int = 2, options: Options = BIG) -> None:
        self.now, self.woken = 0.0, Counter[int]()
        self.devices = [FakeDevice(slots=slots) for _ in range(devices)]
        self.lending = Lending(options)
        self.schedulers = [
            Scheduler(device, options, lambda: self.now, lending=self.lending, wake=lambda number=number: self.woken.update([number]))  # type: ignore[misc]
            for number, device in enumerate(self.devices)
        ]

    def submit(self, request: Request) -> Handle:
        handle = Handle(request, self.lending.reach.wake, self.now)
        self.schedulers[0].submit(handle)
        return handle

    def rounds(self, count: int, *numbers: int) -> None:
        """Rounds of these schedulers, or of all, in turn."""
        for _ in range(count):
            for number in numbers or range(len(self.schedulers)):
                self.schedulers[number].run_round()
            self.now += 0.01

    def until_idle(self) -> None:
        for _ in range(3000):
            if all(scheduler.idle for scheduler in self.schedulers):
                return
            self.rounds(1)
        raise AssertionError("it never ends")

    def held(self, number: int) -> Counter[Any]:
        """Of one device, its slots by owner."""
        return Counter(slot.handle.request.owner for slot in self.schedulers[number].slots if slot.handle is not None)


def test_requests_go_where_most_slots_are_free_and_say_the_same_everywhere() -> None:
    stages = Stages(devices=3, slots=2)
    handles = [stages.submit(request(20, 9, seed=seed)) for seed in range(5)]
    stages.rounds(3)
    assert sorted(stages.held(number).total() for number in range(3)) == [1, 2, 2]
    stages.until_idle()
    for handle in handles:
        assert taken(handle) == expected(handle.request)


def test_nobody_waits_while_any_device_has_a_free_slot() -> None:
    """Though all came while one device was busy with a step, and the others slept: whoever leaves somebody waiting wakes them."""
    stages = Stages(devices=2, slots=2)
    for seed in range(3):
        stages.submit(request(500, seed=seed))
    stages.woken.clear()
    stages.rounds(1, 0)
    assert stages.held(0).total() == 1 and stages.woken == {1: 1}, "it takes one, and wakes the one with more room"
    stages.rounds(1, 1)
    stages.rounds(1, 0, 1)
    assert stages.lending.held().total() == 3 and not len(stages.lending.line)


def test_a_device_that_does_not_come_back_from_a_step_keeps_nobody_waiting() -> None:
    stages = Stages(devices=2, slots=2)
    stages.rounds(1)
    stages.submit(request(5, seed=1))
    with stages.lending.lock:
        stages.lending.begin(stages.schedulers[1]._member, stages.now)  # its round begins, and does not end
    stages.submit(request(5, seed=2))
    assert stages.schedulers[0].run_round() is not None and stages.held(0).total() == 1
    assert stages.schedulers[0].lending.rest(stages.schedulers[0]._member, stages.now) == STUCK, "it looks again"
    stages.now += STUCK + 0.01
    stages.rounds(1, 0)
    assert stages.held(0).total() == 2 and not len(stages.lending.line)


def test_an_owner_with_every_slot_of_all_devices_makes_room_for_another() -> None:
    """Slots are counted over all devices: who holds none is served first, and the last one is kept for whoever spoke lately."""
    stages = Stages(devices=2, slots=2)
    long = [stages.submit(request(*[10] * 30, seed=seed, owner="loud")) for seed in range(8)]
    stages.rounds(4)
    assert stages.lending.held() == {"loud": 4}, "an owner that is alone has them all, on both devices"
    quiet = stages.submit(request(10, seed=100, owner="quiet"))
    for _ in range(40):
        stages.rounds(1)
        if quiet.begun:
            break
    assert quiet.begun and stages.lending.held()["quiet"] == 1
    while not quiet.ended:
        stages.rounds(1)
    stages.rounds(20)
    assert stages.lending.held() == {"loud": 3}, "one slot of all devices is kept, not one of each"
    again = stages.submit(request(10, seed=101, owner="quiet"))
    stages.rounds(2)
    assert again.begun
    stages.now += 1.0
    while not again.ended:
        stages.rounds(1)
    stages.now += KEPT_SECONDS
    stages.rounds(4)
    assert stages.lending.held() == {"loud": 4}
    for handle in long:
        handle.cancel()
    stages.until_idle()


def test_an_utterance_goes_on_on_another_device_without_losing_a_frame() -> None:
    """It gave its slot back while its text did not come; when it comes, only the other device has a free one."""
    stages = Stages(devices=2, slots=1)
    other = stages.submit(request(1000, seed=9))
    stages.rounds(1)
    [busy] = [number for number in (0, 1) if stages.held(number)]
    late = stages.submit(Request((segment(4), segment(40, text=2, open=True)), Sampling(), 3, open=True))
    stages.rounds(30)
    stages.now += 1.0
    waits = stages.submit(request(6, seed=8))
    while not waits.ended:
        stages.rounds(1)
        taken(other)
    third = stages.submit(request(2000, seed=7))
    stages.rounds(3)
    assert third.begun
    other.cancel()
    stages.rounds(2)
    heard_before = taken(late)
    late.append([102] * 50)
    late.end_segment(500)
    late.finish()
    while not late.ended:
        stages.rounds(1)
        taken(third)
    said = expected(Request((segment(4), segment(40, text=2)), Sampling(), 3), [[100, 101, 102], [100, 101, *[102] * 50]])
    assert heard_before + taken(late) == said
    opened = [entry[1:] for entry in stages.devices[busy].log if entry[0] == "open"]
    assert (0, 3, 1) in opened, "it went on where the other one had been"
    third.cancel()
    stages.until_idle()


def test_a_line_is_one_and_refuses_by_its_one_bound() -> None:
    stages = Stages(devices=2, slots=1, options=Options(buffer_ms=100_000, max_waiting=2))
    held = []
    for seed in range(2):
        held.append(stages.submit(request(2000, seed=seed)))
        stages.rounds(2)
    waiting = [stages.submit(request(5, seed=seed)) for seed in (5, 6)]
    with pytest.raises(Full, match="2 requests wait already"):
        stages.submit(request(5, seed=7))
    held[1].cancel()
    stages.rounds(2)
    assert [handle.begun for handle in waiting] == [True, False]
    for handle in held:
        handle.cancel()
    stages.until_idle()
    assert [len(taken(handle)) for handle in waiting] == [5, 5]


# The threads


def pool_of(*devices: list[FakeDevice], slots: int = 2, **more: Any) -> Pool:
    """A pool whose devices are built from these lists, one after the other."""

    def builds(left: list[FakeDevice]) -> Any:
        return lambda slots, on_cpu: left.pop(0)

    return Pool({f"fake:{number}": builds(left) for number, left in enumerate(devices)}, slots=slots, **more)


def gates(pool: Pool) -> list[Gate]:
    return [engine._scheduler.device for engine in pool.engines]  # type: ignore[misc]


@pytest.fixture
def rebuild() -> Iterator[threading.Event]:
    """What a device waits for that is built again; set when the test ends, however it does."""
    event = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        close = Pool.close

        def set_and_close(pool: Pool, grace: float = 0.0) -> None:
            event.set()
            close(pool, grace)

        patch.setattr(Pool, "close", set_and_close)
        yield event


def step(pool: Pool, condition: Callable[[], bool]) -> None:
    """Let the devices make one launch after another until it is true."""

    def look() -> bool:
        for gate in gates(pool):
            gate.gate.release()
        return condition()

    until(look)


def kill(device: Gate) -> None:
    """Its next launch fails."""

    def launch(quotas: list[int], limit: int) -> Any:
        raise RuntimeError("the device is lost")

    device.launch = launch  # type: ignore[method-assign]
    device.gate.release(100)


def test_two_devices_speak_for_twice_as_many() -> None:
    with pool_of([Gate(slots=2)], [Gate(slots=2)]) as pool:
        for gate in gates(pool):
            gate.closed = True
        handles = [pool.submit(request(500, seed=seed)) for seed in range(6)]
        step(pool, lambda: pool.stats().active == 4)
        stats = pool.stats()
        assert (stats.slots, stats.waiting, stats.state) == (4, 2, "running")
        assert {name: (one.slots, one.active) for name, one in pool.devices().items()} == {"fake:0": (2, 2), "fake:1": (2, 2)}
        for gate in gates(pool):
            gate.gate.release(10_000)
        for handle in handles:
            assert heard(handle) == expected(handle.request)
        assert pool.stats().counters["completed"] == 6


def test_a_device_that_dies_in_mid_speech_is_noticed_by_its_own_sessions_only(
    caplog: pytest.LogCaptureFixture, rebuild: threading.Event
) -> None:
    broken, second = Gate(slots=2), Gate(slots=2)
    built: list[FakeDevice] = []

    def first(slots: int, on_cpu: bool) -> FakeDevice:
        assert not built or rebuild.wait(LIMIT)
        built.append(broken if not built else FakeDevice(slots=slots))
        return built[-1]

    with Pool({"fake:0": first, "fake:1": lambda slots, on_cpu: second}, slots=2) as pool:
        broken.closed = second.closed = True
        handles = [pool.submit(request(500, seed=seed)) for seed in range(4)]
        step(pool, lambda: pool.stats().active == 4)
        waiting = [pool.submit(request(5, seed=10 + seed)) for seed in range(3)]
        theirs, others = ([slot.handle for slot in engine._scheduler.slots] for engine in pool.engines)
        step(pool, lambda: all(handle.buffered for handle in handles))  # in mid-speech: some of it has been heard
        kill(broken)
        for handle in theirs:
            assert handle is not None
            with pytest.raises(DeviceFailed, match="is being restarted"):
                heard(handle)
        assert (pool.state, pool.failure) == ("running", None)
        assert {name: one.state for name, one in pool.devices().items()} == {"fake:0": "restarting", "fake:1": "running"}
        assert pool.rebuilt.done() and pool.first_running == 1 and pool.stats().slots == 2
        late = pool.submit(request(7, seed=20))
        second.gate.release(10_000)
        for handle in [*others, *waiting, late]:
            assert handle is not None and heard(handle) == expected(handle.request), "no frame is lost"
        rebuild.set()
        until(lambda: pool.devices()["fake:0"].state == "running")
        again = [pool.submit(request(30, seed=seed)) for seed in range(4)]
        assert [heard(handle) for handle in again] == [expected(handle.request) for handle in again]
        assert any(entry[0] == "launch" for entry in built[1].log), "it speaks again"
        counters = pool.stats().counters
        assert (counters["submitted"], counters["completed"], counters["failed"]) == (12, 10, 2)
    assert "the engine's device failed: fake:0" in caplog.text and "serves again: fake:0" in caplog.text


def test_what_an_utterance_holds_of_a_device_is_let_go_of_with_it() -> None:
    """A handle that another device serves does not hold the dead one, nor does the line."""
    with pool_of([Gate(slots=1), Gate(slots=1)], [Gate(slots=1)], slots=1) as pool:
        dead, alive = gates(pool)
        dead.closed = alive.closed = True
        handles = [pool.submit(request(500, seed=seed)) for seed in range(3)]
        step(pool, lambda: pool.stats().active == 2)
        kill(dead)
        until(lambda: pool.stats().restarts == 1 and pool.devices()["fake:0"].state == "running")
        assert dead.check not in [check for _, check in pool._lending.reach.members]
        alive.gate.release(10_000)
        gates(pool)[0].gate.release(10_000)
        assert sorted(len(list(heard_or_none(handle))) for handle in handles) == [0, 500, 500]


def heard_or_none(handle: Handle) -> list[tuple]:
    try:
        return heard(handle)
    except DeviceFailed:
        return []


def test_the_pool_fails_when_its_last_device_does() -> None:
    error = RuntimeError("lost")
    doomed = [[FakeDevice(slots=1, fail_at=1, error=error) for _ in range(2)] for _ in range(2)]
    with pool_of(*doomed, slots=1) as pool:
        while pool.state != "failed":
            pool.rebuilt.result(LIMIT)
            with pytest.raises((DeviceFailed, Closed)):
                heard(pool.submit(request(500)))
        assert pool.stats().restarts == 4, "each device was built again once"
        with pytest.raises(Closed, match="the engine is failed"):
            pool.submit(request(1))
        assert pool.failure is not None and pool.rebuilt.done()


def test_who_waits_is_told_when_no_device_is_left_and_may_come_again_when_one_is(rebuild: threading.Event) -> None:
    error = RuntimeError("lost")

    def build(number: int, built: list[int]) -> Any:
        def one(slots: int, on_cpu: bool) -> FakeDevice:
            built.append(number)
            assert len(built) == 1 or rebuild.wait(LIMIT)
            return FakeDevice(slots=1, fail_at=2 if len(built) == 1 else None, error=error)

        return one

    with Pool({f"fake:{number}": build(number, []) for number in range(2)}, slots=1) as pool:
        handles = [pool.submit(request(500, seed=seed)) for seed in range(4)]
        for handle in handles:
            with pytest.raises(DeviceFailed, match="is being restarted"):
                heard(handle)
        until(lambda: pool.state == "restarting")
        with pytest.raises(DeviceFailed, match="is being restarted"):
            pool.submit(request(5))
        back = pool.rebuilt
        assert not back.done()
        rebuild.set()
        back.result(LIMIT)
        assert len(heard(pool.submit(request(5)))) == 5


def test_a_full_memory_leaves_the_others_what_they_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiled program is dropped, and no device moves to the CPU: with one slot left it ends."""
    cleared: list[int] = []
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(1))
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    built: list[tuple[int, bool]] = []

    def build(slots: int, on_cpu: bool) -> FakeDevice:
        built.append((slots, on_cpu))
        return FakeDevice(slots=slots, fail_at=2, error=error)

    with Pool({"fake:0": build, "fake:1": lambda slots, on_cpu: FakeDevice(slots=1)}, slots=2) as pool:
        while pool.devices()["fake:0"].state != "failed":
            for handle in [pool.submit(request(400, seed=seed)) for seed in range(2)]:
                with contextlib.suppress(DeviceOutOfMemory):
                    assert heard(handle) == expected(handle.request)
        assert (pool.state, pool.stats().out_of_memory) == ("running", 2)
        assert len(heard(pool.submit(request(5)))) == 5
    assert built == [(2, False), (1, False)] and not cleared


def test_closing_drains_every_device_and_cancels_reach_the_line() -> None:
    pool = pool_of([FakeDevice(slots=1)], [FakeDevice(slots=1)], slots=1)
    handles = [pool.submit(request(50, seed=seed)) for seed in range(5)]
    cancelled = pool.submit(request(50, seed=9))
    cancelled.cancel()
    pool.close(grace=LIMIT)
    assert [len(heard(handle)) for handle in handles] == [50] * 5
    assert (pool.state, cancelled.finish_reason) == ("closed", "cancelled")
    with pytest.raises(Closed, match="the engine is closed"):
        pool.submit(request(1))


def test_what_cannot_be_built_on_one_device_is_told_at_once_and_the_others_are_closed() -> None:
    begun: list[FakeDevice] = []

    def good(slots: int, on_cpu: bool) -> FakeDevice:
        begun.append(FakeDevice(slots=slots))
        return begun[-1]

    def bad(slots: int, on_cpu: bool) -> FakeDevice:
        raise ValueError("too large")

    threads = threading.active_count()
    with pytest.raises(ValueError, match="too large"):
        Pool({"fake:0": good, "fake:1": bad, "fake:2": good}, slots=1)
    assert len(begun) == 2
    until(lambda: threading.active_count() <= threads)


def test_a_request_that_does_not_fit_is_refused_once_for_all() -> None:
    with pool_of([FakeDevice(slots=1, columns=8)], [FakeDevice(slots=1, columns=8)], slots=1) as pool:
        with pytest.raises(ValueError, match="too long"):
            pool.submit(Request((segment(3, rows=9),), Sampling(), 1))
        live = pool.submit(Request((), Sampling(), 1, open=True))
        with pytest.raises(ValueError, match="too long"):
            live.add(Segment(segment(3, rows=9).prompt, 9))
        live.add(segment(3))
        live.finish()
        assert len(heard(live)) == 3
