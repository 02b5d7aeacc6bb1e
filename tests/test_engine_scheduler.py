"""The scheduler with a device of arithmetic (fake_device.py) and a clock that the test holds: no JAX, no threads, no waiting."""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.engine.errors import Closed, DeadlineExceeded, Full, NotFinite, Stalled
from qwen3_jax.engine.options import Options
from qwen3_jax.engine.requests import Handle, Request
from qwen3_jax.engine.scheduler import Scheduler
from qwen3_jax.engine.segment import Segment, Watch
from qwen3_jax.model.sampling import Sampling
from tests.fake_device import FakeDevice, expected, segment

BIG = Options(buffer_ms=100_000)


class Stage:
    """A scheduler, its device and the time."""

    def __init__(self, device: FakeDevice | None = None, options: Options = BIG) -> None:
        self.now = 0.0
        self.device = device or FakeDevice()
        self.scheduler = Scheduler(self.device, options, lambda: self.now)
        self.made: dict[int, list[tuple]] = {}

    def submit(self, request: Request) -> Handle:
        handle = Handle(request, lambda: None, self.now)
        self.scheduler.submit(handle)
        return handle

    def rounds(self, count: int, seconds: float = 0.01) -> None:
        """Each with a launch, if there is anything to launch."""
        for _ in range(count):
            while (delay := self.scheduler.run_round()) and self.scheduler._flights:
                self.now += delay  # until then the launch is held
            self.now += seconds

    def until_idle(self, seconds: float = 0.01) -> None:
        for _ in range(2000):
            if self.scheduler.idle:
                return
            self.rounds(1, seconds)
        raise AssertionError("it never ends")

    @property
    def launches(self) -> list[tuple]:
        return [entry for entry in self.device.log if entry[0] == "launch"]


def request(*lengths: int, seed: int = 1, **more: Any) -> Request:
    kinds = {name: more.pop(name) for name in ("rows", "text", "loops", "breaks", "max_frames") if name in more}
    return Request(tuple(segment(length, **kinds) for length in lengths), Sampling(), seed, **more)


def heard(handle: Handle) -> list[tuple]:
    """All codes that are there to be taken."""
    codes: list[tuple] = []
    while (packet := handle.take()) is not None:
        assert len(packet.pcm) == 4 * len(packet.codes)
        assert [int(value) for value in packet.pcm[::4]] == packet.codes[:, 3].tolist(), "sound and codes belong together"
        codes += [tuple(row) for row in packet.codes.tolist()]
    return codes


def sizes(handle: Handle) -> list[int]:
    found = []
    while (packet := handle.take()) is not None:
        found.append(len(packet.codes))
    return found


def test_first_packet_is_one_frame_then_they_grow() -> None:
    stage = Stage()
    first = stage.submit(request(14))
    stage.until_idle(seconds=0.001)
    assert sizes(first) == [1, 1, 2, 4, 4, 2], "the second was launched before the first told how fast the device is"
    handle = stage.submit(request(14))
    stage.until_idle(seconds=0.001)
    assert sizes(handle) == [1, 2, 4, 4, 3]
    assert (handle.finish_reason, handle.done, handle.error) == ("eos", True, None)


def test_packets_are_as_long_as_the_device_makes_in_a_call() -> None:
    stage = Stage(options=Options(call_ms=40, buffer_ms=100_000))
    handle = stage.submit(request(12))
    clock = stage.device.launch

    def slow(quotas: list[int], limit: int) -> Any:
        stage.now += 0.03 * limit
        return clock(quotas, limit)

    stage.device.launch = slow  # type: ignore[method-assign]
    stage.until_idle(seconds=0)
    assert sizes(handle) == [1] * 12


def test_who_has_little_audio_in_hand_keeps_launches_short() -> None:
    """A frame takes 25 ms, so a launch of four frames would outlast the first packet's 80 ms."""
    device = Paced(0.025, 0.0)
    device.stage = stage = Stage(device, Options(call_ms=110, buffer_ms=100_000))
    first = stage.submit(request(60))
    launch, leads, limits = stage.device.launch, [], []

    def noted(quotas: list[int], limit: int) -> Any:
        limits.append(limit)
        leads.extend(stage.scheduler.pace.lead(slot, stage.now) for slot in stage.scheduler.slots if slot.speaking)
        return launch(quotas, limit)

    stage.device.launch = noted  # type: ignore[method-assign]
    stage.rounds(12, seconds=0)
    assert limits[-1] == 4, "alone and far ahead"
    second, before = stage.submit(request(60, seed=2)), len(limits)
    stage.until_idle(seconds=0)
    assert len(heard(first)) == len(heard(second)) == 60
    assert min(leads) >= 0, "nobody has heard silence"
    assert limits[before : before + 2] == [1, 1] and max(limits[before:]) == 4


class Paced(FakeDevice):
    """What it is asked it does in order, a frame and a piece of prompt in so many seconds; `stage` waits for it when it collects."""

    def __init__(self, frame: float, piece: float, **more: Any) -> None:
        super().__init__(**more)
        self.frame_seconds, self.piece_seconds, self.free_at, self.ends = frame, piece, 0.0, deque[float]()
        self.row_seconds = frame / 4  # of a step of one row
        self.stage = Stage(self)

    def work(self, seconds: float) -> float:
        self.free_at = max(self.free_at, self.stage.now) + seconds
        return self.free_at

    def read(self, slot: int) -> None:
        super().read(slot)
        self.work(self.piece_seconds)

    def launch(self, quotas: list[int], limit: int) -> Any:
        self.ends.append(self.work(self.frame_seconds * limit))
        return super().launch(quotas, limit)

    def launch_alone(self, slot: int, limit: int) -> Any:
        batch, self.frame_seconds = self.frame_seconds, self.row_seconds
        try:
            return super().launch_alone(slot, limit)
        finally:
            self.frame_seconds = batch

    def collect(self, launched: Any) -> Any:
        self.stage.now = max(self.stage.now, self.ends.popleft())
        return super().collect(launched)


@pytest.mark.parametrize(("frame", "piece", "sizes"), [(0.045, 0.0, {1}), (0.06, 0.0, {2}), (0.06, 0.04, {2, 3})])
def test_the_first_packet_lasts_until_the_next_one_comes(frame: float, piece: float, sizes: set[int]) -> None:
    """Six begin at once, and six more while they speak, on a device whose pace is known."""
    stage = Paced(frame, piece, slots=12).stage
    stage.submit(request(30))
    stage.until_idle(seconds=0)
    handles = [stage.submit(request(30, seed=seed, rows=8)) for seed in range(6)]
    arrived: dict[int, list[tuple[float, int]]] = {seed: [] for seed in range(12)}
    while not stage.scheduler.idle:
        stage.rounds(1, seconds=0)
        if len(handles) == 6 and arrived[0]:
            handles += [stage.submit(request(30, seed=seed, rows=8)) for seed in range(6, 12)]
        for seed, handle in enumerate(handles):
            arrived[seed] += [(stage.now, len(found.codes)) for found in iter(handle.take, None)]
    for packets in arrived.values():
        (begun, first), *later = packets
        heard_until = begun + 0.08 * first
        for now, frames in later:
            assert now <= heard_until + 1e-9, "silence"
            heard_until += 0.08 * frames
    assert {packets[0][1] for packets in arrived.values()} == sizes


def test_a_step_that_takes_twice_as_long_is_not_heard() -> None:
    """Every thirteenth: of all that begin, one after the other, somebody meets it right after his first packet."""

    class Hiccups(Paced):
        launches = 0

        def launch(self, quotas: list[int], limit: int) -> Any:
            self.launches += 1
            self.work(0.05 if self.launches % 13 == 0 else 0.0)
            return super().launch(quotas, limit)

    stage = Hiccups(0.05, 0.0, slots=1).stage
    for number in range(40):
        handle = stage.submit(request(6, seed=number))
        arrived: list[tuple[float, int]] = []
        while not stage.scheduler.idle:
            stage.rounds(1, seconds=0)
            arrived += [(stage.now, len(found.codes)) for found in iter(handle.take, None)]
        heard_until = arrived[0][0]
        for now, frames in arrived:
            assert number < 2 or now <= heard_until + 1e-9, f"silence in utterance {number}"
            heard_until += 0.08 * frames


def test_a_step_that_compiles_says_nothing_of_the_pace() -> None:
    device = Paced(0.01, 0.0)
    device.free_at = 20.0  # busy until then
    handles = [device.stage.submit(request(8, seed=seed)) for seed in range(2)]
    device.stage.until_idle(seconds=0)
    assert [sizes(handle)[0] for handle in handles] == [1, 1]


def test_a_first_packet_does_not_wait_for_text_that_nobody_has_written() -> None:
    stage = Paced(0.2, 0.0).stage
    stage.submit(request(5))
    stage.until_idle(seconds=0)
    handle = stage.submit(Request((segment(30, text=1, open=True),), Sampling(), 1, open=True))
    stage.rounds(6, seconds=0)
    assert sizes(handle) == [1], "its one token has been said"


def test_more_requests_than_slots() -> None:
    stage = Stage()
    requests = [request(5 + number, seed=number) for number in range(5)]
    handles = [stage.submit(one) for one in requests]
    stage.until_idle()
    for one, handle in zip(requests, handles, strict=True):
        assert heard(handle) == expected(one)
    assert stage.scheduler.counters.completed == 5


def test_high_goes_before_normal_but_nobody_starves() -> None:
    stage = Stage(FakeDevice(slots=1))
    for number in range(3):
        stage.submit(request(1, seed=number))
    for number in range(10, 20):
        stage.submit(request(1, seed=number, priority="high"))
    stage.until_idle()
    order = [entry[2] for entry in stage.device.log if entry[0] == "open"]
    assert order == [10, 11, 12, 13, 0, 14, 15, 16, 17, 1, 18, 19, 2]


def test_cancel_frees_the_slot_at_once_and_the_next_owner_hears_only_himself() -> None:
    stage = Stage(FakeDevice(slots=1))
    first, second = stage.submit(request(100)), stage.submit(request(4, seed=2))
    stage.rounds(6)
    assert first.take() is not None
    first.cancel()
    assert first.take() is None and first.done and first.finish_reason == "cancelled"
    stage.rounds(1)
    assert stage.device.log[-2][0] == "launch" or ("open", 0, 2, 0) in stage.device.log
    stage.until_idle()
    assert heard(second) == expected(second.request)
    assert first.take() is None
    assert (stage.scheduler.counters.cancelled, stage.scheduler.counters.completed) == (1, 1)


def test_a_request_that_its_text_ends_is_told_why_and_leaves_its_slot_or_the_line() -> None:
    stage, refused = Stage(FakeDevice(slots=1)), ValueError("text that cannot be spoken")
    spoken, waiting, later = stage.submit(request(100)), stage.submit(request(5, seed=2)), stage.submit(request(4, seed=3))
    stage.rounds(6)
    assert spoken.take() is not None
    for handle in (spoken, waiting):
        handle.fail(refused)
        handle.cancel()  # as whoever iterates does at last
        assert (handle.take(), handle.done, handle.finish_reason, handle.error) == (None, True, "error", refused)
        with pytest.raises(ValueError, match="cannot be spoken"):
            handle.next(1.0)
    stage.until_idle()
    assert heard(later) == expected(later.request)
    later.fail(refused)
    assert (later.finish_reason, later.error) == ("eos", None), "it had ended"
    cancelled = stage.submit(request(5))
    cancelled.cancel()
    cancelled.fail(refused)
    assert (cancelled.finish_reason, cancelled.error) == ("cancelled", None)
    stage.until_idle()
    assert (stage.scheduler.counters.cancelled, stage.scheduler.counters.completed, stage.scheduler.counters.failed) == (3, 1, 0)


def test_cancel_in_line() -> None:
    stage = Stage(FakeDevice(slots=1))
    first, second = stage.submit(request(5)), stage.submit(request(4))
    second.cancel()
    stage.until_idle()
    assert len(heard(first)) == 5
    assert [entry for entry in stage.device.log if entry[0] == "open"] == [("open", 0, 1, 0)]


def test_cancel_after_the_end_changes_nothing() -> None:
    stage = Stage()
    handle = stage.submit(request(2))
    stage.until_idle()
    heard(handle)
    handle.cancel()
    assert handle.finish_reason == "eos"


def test_a_full_queue_pauses_its_slot_only() -> None:
    stage = Stage(options=Options(buffer_ms=800))
    slow, quick = stage.submit(request(60, seed=1)), stage.submit(request(60, seed=2))
    others: list[tuple] = []
    for _ in range(100):
        stage.rounds(1)
        others += heard(quick)
        assert slow.buffered <= 10
    assert others == expected(quick.request)
    taken = heard(slow)
    assert taken == expected(slow.request)[:10]
    for _ in range(100):
        stage.rounds(1)
        taken += heard(slow)
    assert taken == expected(slow.request)


def test_a_consumer_that_takes_nothing_for_too_long_loses_its_slot() -> None:
    stage = Stage(options=Options(buffer_ms=800, stall_seconds=5))
    handle = stage.submit(request(60))
    stage.rounds(100, seconds=0.1)
    assert stage.scheduler.idle
    assert len(heard(handle)) == 10
    assert handle.finish_reason == "error" and isinstance(handle.error, Stalled)


def test_a_long_prompt_stalls_the_others_by_one_piece_at_most() -> None:
    stage = Stage()
    speaking = stage.submit(request(60))
    stage.rounds(5)
    long = stage.submit(request(5, rows=80, seed=2))
    stage.until_idle()
    calls = [entry[0] for entry in stage.device.log]
    joined = "".join({"read": "r", "launch": "L"}.get(call, "") for call in calls)
    assert "rr" not in joined[1:]
    assert joined.count("r") == 1 + 10
    assert heard(speaking) == expected(speaking.request)
    assert heard(long) == expected(long.request)


def test_short_prompts_share_a_piece_and_nobody_waits_while_nobody_speaks() -> None:
    stage = Stage(FakeDevice(slots=4, piece=8))
    for number in range(4):
        stage.submit(request(5, rows=30, seed=number))
    stage.rounds(1)
    assert [entry[0] for entry in stage.device.log].count("read") == 16
    assert stage.launches == [("launch", (1, 1, 1, 1), 1)]


def test_the_device_works_while_the_host_hands_over() -> None:
    stage = Stage()
    stage.submit(request(9))
    stage.rounds(4)
    order = [entry[0] for entry in stage.device.log if entry[0] in ("launch", "collect")]
    assert order[:5] == ["launch", "launch", "collect", "launch", "collect"]


def test_who_is_far_ahead_lets_a_prompt_be_read_first() -> None:
    stage = Stage(options=Options(lead_ms=500, buffer_ms=100_000))
    ahead = stage.submit(request(200))
    stage.rounds(20, seconds=0.001)  # far more than real time
    before = len(heard(ahead))
    stage.submit(request(5, rows=80, seed=2))
    start = len(stage.device.log)
    for _ in range(100):
        stage.rounds(1, seconds=0.001)
        if any(entry[0] == "launch" and entry[1][1] for entry in stage.device.log[start:]):
            break
    quotas = [entry[1] for entry in stage.device.log[start:] if entry[0] == "launch"]
    assert before > 10
    assert all(quota[0] == 0 for quota in quotas), "the one that is ahead waited for the newcomer's first frame"


def open_request(frames: int, text: int, **more: Any) -> Request:
    return Request((segment(frames, text=text, open=True),), Sampling(), 1, open=True, **more)


def test_text_as_it_is_written() -> None:
    """A slot makes one frame a token while its text is open, waits without making frames up, and goes on when more comes."""
    stage = Stage()
    handle = stage.submit(open_request(12, 2))
    stage.rounds(10)
    assert len(heard(handle)) == 2
    handle.append([200, 201, 202])
    stage.rounds(10)
    assert len(heard(handle)) == 3
    handle.append([203])
    handle.end_segment(100)
    handle.finish()
    stage.until_idle()
    rest = heard(handle)
    assert [code[4] for code in rest] == [203, -7, -7, -7, -7, -7, -7]
    assert handle.finish_reason == "eos"
    with pytest.raises(ValueError, match="complete"):
        handle.append([1])


def test_no_text_for_too_long() -> None:
    stage = Stage(options=Options(stall_seconds=5))
    handle = stage.submit(open_request(12, 2))
    stage.rounds(100, seconds=0.1)
    assert stage.scheduler.idle and isinstance(handle.error, Stalled) and "no text" in str(handle.error)


def test_a_request_without_words_takes_no_slot() -> None:
    stage = Stage(FakeDevice(slots=1), Options(stall_seconds=5))
    early = stage.submit(Request((), Sampling(), 9, open=True))
    silent = stage.submit(Request((), Sampling(), 8, open=True))
    other = stage.submit(request(5))
    silent.finish()
    stage.rounds(20)
    assert heard(other) == expected(other.request)
    assert (silent.done, silent.finish_reason) == (True, "eos")
    early.add(segment(3))
    early.finish()
    stage.rounds(10)
    assert len(heard(early)) == 3 and early.finish_reason == "eos"
    late = stage.submit(Request((), Sampling(), 7, open=True))
    stage.rounds(60, seconds=0.1)
    assert isinstance(late.error, Stalled) and stage.scheduler.idle


def test_segments_follow_in_one_slot() -> None:
    stage = Stage(FakeDevice(slots=1))
    handle = stage.submit(request(5, 3, 7))
    stage.until_idle()
    assert heard(handle) == expected(handle.request)
    assert [entry for entry in stage.device.log if entry[0] == "open"] == [("open", 0, 1, index) for index in range(3)]


def test_segments_that_come_later() -> None:
    stage = Stage()
    handle = stage.submit(Request((segment(3),), Sampling(), 1, open=True))
    stage.rounds(20)
    assert len(heard(handle)) == 3 and not handle.done
    handle.add(segment(4, text=1, open=True))
    with pytest.raises(ValueError, match="after end_segment"):
        handle.add(segment(4))
    stage.rounds(20)
    assert len(heard(handle)) == 1
    handle.end_segment(100)
    handle.finish()
    stage.until_idle()
    assert len(heard(handle)) == 3 and handle.finish_reason == "eos"


def test_the_limit_is_told() -> None:
    stage = Stage()
    handle = stage.submit(request(50, max_frames=6))
    stage.until_idle()
    assert len(heard(handle)) == 6 and handle.finish_reason == "length"
    assert stage.scheduler.counters.cut == 1


def test_runaway_speech_is_drawn_again_before_it_is_heard() -> None:
    stage = Stage()
    handle, other = stage.submit(request(9, loops=2, watch=Watch())), stage.submit(request(30, seed=2))
    stage.until_idle()
    assert heard(handle) == expected(handle.request), "frames 0 and 1 of the first attempt, the rest of the third"
    assert heard(other) == expected(other.request)
    assert [entry for entry in stage.device.log if entry[0] == "rewind"] == [("rewind", 0, 1), ("rewind", 0, 2)]
    assert (stage.scheduler.counters.runaways, handle.finish_reason) == (2, "eos")


def test_speech_that_never_ends_is_cut_before_the_bad_part() -> None:
    stage = Stage()
    handle = stage.submit(request(9, 4, loops=99, watch=Watch(retries=1)))
    stage.until_idle()
    assert [code[1:4] for code in heard(handle)] == [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1)]
    assert (stage.scheduler.counters.runaways, stage.scheduler.counters.runaways_ended, handle.finish_reason) == (2, 2, "length")


@pytest.mark.parametrize("breaks", [1, 4])
def test_what_is_not_finite_ends_its_request_and_nobody_else_s(breaks: int) -> None:
    """The frames before are handed over; the slot serves the next owner, and neighbours notice nothing."""
    stage = Stage(FakeDevice(slots=2))
    first, other = stage.submit(request(9, breaks=breaks)), stage.submit(request(30, seed=2))
    after = [stage.submit(request(5, seed=3)), stage.submit(request(5, seed=4))]
    stage.until_idle()
    assert heard(first) == expected(first.request) and len(expected(first.request)) == breaks - 1
    assert isinstance(first.error, NotFinite) and isinstance(first.error, FloatingPointError) and first.finish_reason == "error"
    assert f"NaN or infinite after {breaks - 1} frames, in segment 0; the voice, or the checkpoint" in str(first.error)
    for handle in (other, *after):
        assert heard(handle) == expected(handle.request) and handle.finish_reason == "eos"
    counters = stage.scheduler.counters
    assert (counters.not_finite, counters.failed, counters.completed) == (1, 1, 3)
    assert [entry[1:3] for entry in stage.device.log if entry[0] == "open"] == [(0, 1), (1, 2), (0, 3), (0, 4)]


def test_a_later_sentence_that_is_not_finite_ends_the_request() -> None:
    stage = Stage(FakeDevice(slots=1))
    broken = Request((segment(4), segment(6, breaks=2), segment(5)), Sampling(), 1)
    handle, after = stage.submit(broken), stage.submit(request(5, seed=2))
    stage.until_idle()
    assert heard(handle) == expected(broken) and len(expected(broken)) == 4 + 1
    assert isinstance(handle.error, NotFinite) and "after 5 frames, in segment 1" in str(handle.error)
    assert heard(after) == expected(after.request)


def test_suspect_frames_before_one_that_is_not_finite_are_not_heard() -> None:
    stage = Stage()
    handle = stage.submit(request(9, loops=1, breaks=5, watch=Watch()))
    stage.until_idle()
    assert [code[3] for code in heard(handle)] == [0, 1], "frames 2 and 3 repeat, and were held"
    assert isinstance(handle.error, NotFinite)


def test_what_is_added_is_checked_where_it_is_added() -> None:
    """In the thread of who adds it: in the engine's it would be taken for a fault of the device, and end everybody's speech."""
    stage = Stage()
    handle = stage.submit(Request((segment(3),), Sampling(), 1, open=True))
    with pytest.raises(ValueError, match="too long"):
        handle.add(segment(3, rows=2000))
    handle.add(segment(4, text=1, open=True))
    stage.device.columns = 3
    with pytest.raises(ValueError, match="too long"):
        handle.append([7])
    stage.device.columns = 1000
    handle.end_segment(100)
    handle.finish()
    stage.until_idle()
    assert len(heard(handle)) == 3 + 4 and handle.finish_reason == "eos"
    assert handle.check is None, "it lets go of the device"


def test_deadlines() -> None:
    stage = Stage(FakeDevice(slots=1))
    first = stage.submit(request(100, deadline=1.0))
    late = stage.submit(request(5, deadline=0.05))
    assert stage.scheduler.run_round() == 0
    stage.rounds(6)
    assert isinstance(late.error, DeadlineExceeded) and late.finish_reason == "error"
    stage.until_idle()
    assert first.finish_reason is None and len(heard(first)) == 100, "audio within the deadline: it is kept"


def test_the_line_is_bounded() -> None:
    stage = Stage(options=Options(max_waiting=2))
    stage.submit(request(5)), stage.submit(request(5))
    with pytest.raises(Full, match="2 requests wait already"):
        stage.submit(request(5))
    with pytest.raises(ValueError, match="too long"):
        stage.submit(request(5, rows=2000))


def test_one_call_per_turn_and_consumer() -> None:
    stage = Stage()
    calls: list[list[Handle]] = []

    def notify(handles: list[Handle]) -> None:
        calls.append(handles)

    handles = [stage.submit(request(5, seed=number, notify=notify)) for number in range(2)]
    stage.rounds(2)
    assert calls == [handles, handles], "they have slots; and their first frames"
    stage.until_idle()
    assert len(calls) <= 1 + sum(entry[0] == "collect" for entry in stage.device.log)


def test_everybody_is_told_of_a_fault() -> None:
    stage = Stage(FakeDevice(slots=1))
    handles = [stage.submit(request(50)) for _ in range(3)]
    stage.rounds(4)
    handles.append(stage.submit(request(50)))
    stage.scheduler.fail_all(Closed("gone"))
    assert stage.scheduler.idle
    for handle in handles:
        heard(handle)
        assert handle.finish_reason == "error" and str(handle.error) == "gone"


def test_an_idle_scheduler_waits_to_be_woken_and_others_for_their_next_moment() -> None:
    stage = Stage(options=Options(stall_seconds=3))
    assert stage.scheduler.run_round() is None
    stage.submit(open_request(5, 0, deadline=2.0))
    for _ in range(3):
        wait = stage.scheduler.run_round()
    assert wait == pytest.approx(2.0)
    stage.now = 1.5
    assert stage.scheduler.run_round() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Request((), Sampling(), 1), "without segments"),
        (lambda: request(1, seed=-1), "seed = -1"),
        (lambda: request(1, priority="urgent"), "priority 'urgent': use 'high' or 'normal'"),
        (lambda: request(1, deadline=0), "deadline = 0: must be above 0"),
        (lambda: Request((segment(1, open=True),), Sampling(), 1), "segment 0 is open"),
        (lambda: Request((segment(1),), {}, 1), "sampling of type dict: must be a Sampling"),
        (lambda: segment(1, max_frames=0), "max_frames = 0: must be an integer from 1"),
        (lambda: segment(1, max_frames=2**31), "max_frames = 2147483648: must be an integer from 1 to 1073741824"),
        (lambda: segment(1, max_frames=2.5), "max_frames = 2.5: must be an integer"),
        (lambda: Segment(segment(1).prompt, 1, tokens=-1), "tokens = -1: must be an integer from 0"),
        (lambda: Watch(hold=2**40), "hold = 1099511627776: must be an integer from 0"),
        (lambda: Options(buffer_ms=10), "buffer_ms = 10: must be at least 80"),
        (lambda: Options(stall_seconds=0), "stall_seconds = 0: must be above 0"),
    ],
)
def test_bad_requests_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@st.composite
def plays(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Random arrivals, lengths, texts in pieces, cancels and consumers."""
    return draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "at": st.integers(0, 30),
                    "frames": st.lists(st.integers(0, 12), min_size=1, max_size=3),
                    "rows": st.integers(2, 30),
                    "text": st.lists(st.integers(0, 5), min_size=1, max_size=4),
                    "open": st.booleans(),
                    "loops": st.integers(0, 2),
                    "breaks": st.just(0) | st.integers(1, 6),
                    "cancel": st.none() | st.integers(1, 60),
                    "reads": st.integers(1, 7),
                    "priority": st.sampled_from(["high", "normal"]),
                    "owner": st.integers(0, 2),
                }
            ),
            min_size=1,
            max_size=8,
        )
    )


def broken(part: dict[str, Any], request: Request) -> bool:
    """Whether one of its frames is not finite."""
    frames = part["frames"][:1] if part["open"] else part["frames"]
    return part["rows"] > 2 and any(1 <= part["breaks"] <= length for length in frames)


@settings(max_examples=150, deadline=None)
@given(plays(), st.integers(1, 4), st.integers(1, 4), st.integers(1, 16), st.sampled_from([0.02, 0.3]), st.sampled_from([0.0, 10.0]))
def test_whatever_happens_each_hears_exactly_his_own(
    play: list[dict[str, Any]], slots: int, frames: int, piece: int, seconds: float, turn: float
) -> None:
    """Random load: what a consumer gets is what he would get alone, or a prefix of it if he cancelled, however often he lost his slot
    to others; queues keep their bound, and all are counted."""
    options = Options(buffer_ms=640, max_waiting=100, stall_seconds=1000, turn_seconds=turn)
    stage = Stage(FakeDevice(slots=slots, frames=frames, piece=piece), options)
    running: list[tuple[dict[str, Any], Handle, list[tuple], list[int]]] = []
    for tick in range(1500):
        for number, part in enumerate(play):
            if part["at"] == tick:
                text = list(range(100, 100 + part["text"][0]))
                kinds = {"rows": part["rows"], "loops": 0 if part["breaks"] else part["loops"], "breaks": part["breaks"]}
                if part["open"]:
                    one = segment(part["frames"][0], text=len(text), open=True, **kinds)
                    made = Request((one,), Sampling(), number, open=True, watch=Watch(), priority=part["priority"], owner=part["owner"])
                else:
                    many = tuple(segment(length, text=len(text), **kinds) for length in part["frames"])
                    made = Request(many, Sampling(), number, watch=Watch(), priority=part["priority"], owner=part["owner"])
                running.append((part, stage.submit(made), [], text))
        for part, handle, got, text in running:
            age = tick - part["at"]
            if part["cancel"] == age:
                handle.cancel()
            if part["open"] and not handle.cancelled and handle.error is None:
                if 0 < age // 9 < len(part["text"]) and age % 9 == 0:
                    more = [1000 + age + each for each in range(part["text"][age // 9])]
                    handle.append(more)
                    text += more
                if age == 9 * len(part["text"]):
                    handle.end_segment(500)
                    handle.finish()
            if age % part["reads"] == 0 and (packet := handle.take()) is not None:
                got += [tuple(row) for row in packet.codes.tolist()]
            assert handle.buffered <= 8
        stage.rounds(1, seconds)
        if tick > 40 and all(handle.done for _, handle, _, _ in running) and stage.scheduler.idle:
            break
    else:
        raise AssertionError("it never ends")
    for part, handle, got, text in running:
        whole = expected(handle.request, [text] if part["open"] else None)
        if handle.cancelled:
            assert got == whole[: len(got)]
        else:
            assert got == whole
            assert handle.finish_reason == ("error" if isinstance(handle.error, NotFinite) else "eos")
            assert (handle.error is None) == (not broken(part, handle.request))
    assert np.sum([slot.handle is not None for slot in stage.scheduler.slots]) == 0
    counters = stage.scheduler.counters
    assert counters.submitted == counters.completed + counters.cancelled + counters.failed == len(running)


def test_a_pause_goes_before_a_segments_first_packet() -> None:
    """A frame of the fake has 4 samples and lasts 80 ms."""
    stage = Stage()
    asked = request(3, 2)
    first, second = asked.segments
    paused = replace(asked, segments=(replace(first, pause=0.16), replace(second, pause=0.24)))
    handle = stage.submit(paused)
    stage.until_idle()
    silent: dict[int, int] = {}
    codes = []
    while (packet := handle.take()) is not None:
        extra = len(packet.pcm) - 4 * len(packet.codes)
        assert not packet.pcm[:extra].any()
        silent[packet.segment] = silent.get(packet.segment, 0) + extra
        codes += [tuple(row) for row in packet.codes.tolist()]
    assert silent == {0: 8, 1: 12}
    assert codes == expected(asked), "silence has no codes"
    with pytest.raises(ValueError, match=r"pause = 61: must be from 0 to 60 seconds"):
        replace(first, pause=61)


def test_a_request_of_other_types_is_refused_where_it_is_made() -> None:
    asked = request(3)
    for change, message in (
        ({"watch": {}}, "watch of type dict"),
        ({"seed": 1.5}, "seed = 1.5: must be a whole number"),
        ({"seed": "3"}, "seed"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(asked, **change)
    with pytest.raises(ValueError, match="prompt of type NoneType: must be a Prompt"):
        replace(asked.segments[0], prompt=None)
