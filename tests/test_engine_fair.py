"""Slots and the line are shared out between owners: the line by its properties, the scheduler by turns on a device of arithmetic."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.engine.errors import ConsumerFailed, Full, Stalled
from qwen3_jax.engine.line import Line
from qwen3_jax.engine.options import Options
from qwen3_jax.engine.pace import SPARE
from qwen3_jax.engine.requests import Handle, Request
from qwen3_jax.engine.reserve import KEPT_SECONDS
from qwen3_jax.model.sampling import Sampling
from tests.fake_device import FakeDevice, expected, segment
from tests.test_engine_scheduler import BIG, Paced, Stage, heard, request

SENTENCE = 10  # frames


@dataclass(eq=False)
class Asker:
    """What waits in a line."""

    owner: str
    priority: Any = "normal"
    begun: bool = False
    standing: Any = "ready"

    @property
    def place(self) -> Any:
        return self.priority, self.owner


owners = st.sampled_from("abcd")
events = st.lists(
    st.tuples(st.sampled_from(["enter", "turn", "short turn", "free"]), owners, st.sampled_from(["high", "normal"])), max_size=80
)


@settings(max_examples=200, deadline=None)
@given(events, events, st.integers(1, 4))
def test_who_holds_no_slot_waits_for_one_turn_of_each_other_owner_at_most(before: Any, after: Any, patience: int) -> None:
    """Whatever the others have in line, hold, and add meanwhile; ``high`` ones come ``patience`` times as often, and no more."""
    line: Line[Asker] = Line(patience, 1000)
    held: Counter[str] = Counter()
    turns: list[str] = []

    def play(kind: str, owner: str, priority: str) -> bool:
        if kind == "enter":
            line.enter(Asker(owner, priority))
        elif kind == "free":
            held[owner] = max(0, held[owner] - 1)
        elif (one := line.pop(held)) is not None:
            held[one.owner] += kind == "turn"
            turns.append(one.priority)
            return one.owner == "quiet"
        return False

    for event in before:
        play(*event)
    line.enter(Asker("quiet"))
    turns.clear()
    served = any(play(*event) for event in after) or any(play("turn", "", "") for _ in range(200))
    assert served
    assert turns.count("normal") - 1 <= 4
    assert turns.count("high") <= patience * turns.count("normal")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(owners, st.booleans(), st.sampled_from(["high", "normal"])), max_size=60), st.integers(1, 12))
def test_a_full_line_has_room_for_whoever_has_less_than_its_share(entering: Any, bound: int) -> None:
    line: Line[Asker] = Line(4, bound)
    for owner, leaves, priority in entering:
        counts = Counter(one.owner for one in line)
        shares = bound // len({owner, *counts})
        if len(line) == bound and max(counts.values()) <= counts[owner] + 1:
            assert counts[owner] >= shares
            with pytest.raises(
                Full, match=f"^{bound} requests wait already, {counts[owner]} of them for this client, whose share is {shares}"
            ):
                line.enter(Asker(owner, priority))
            continue
        displaced = line.enter(Asker(owner, priority))
        after = Counter(one.owner for one in line)
        assert sum(after.values()) <= bound and after[owner] == counts[owner] + 1
        if displaced is not None:
            assert after[displaced.owner] >= after[owner], "nobody loses a place to an owner that has as many"
        if leaves:
            line.pop({})


def test_an_owner_may_fill_the_line_while_it_is_alone() -> None:
    line: Line[Asker] = Line(4, 4)
    first = [Asker("loud") for _ in range(4)]
    assert [line.enter(one) for one in first] == [None] * 4
    with pytest.raises(Full, match="4 requests wait already, 4 of them for this client, whose share is 4; try again later"):
        line.check("loud")
    line.check("quiet")
    assert [line.enter(Asker("quiet")) for _ in range(2)] == [first[3], first[2]], "the newest leave"
    with pytest.raises(Full, match="whose share is 2"):
        line.enter(Asker("quiet"))
    assert line.enter(Asker("third")) in first[:2]


def test_who_gave_a_slot_back_goes_before_those_who_had_none_and_leaves_last() -> None:
    line: Line[Asker] = Line(4, 3)
    fresh = [Asker("a"), Asker("a")]
    for one in fresh:
        line.enter(one)
    parked = [Asker("a", begun=True), Asker("a", begun=True)]
    for one in parked:
        line.back(one)
    assert len(line) == 4, "one more than the bound"
    assert line.enter(Asker("b")) is fresh[1]
    parked[0].standing = "text"
    assert [line.pop({"b": 1}) for _ in range(2)] == [parked[1], fresh[0]], "the other one waits for its text"


def long(seed: int, owner: str, **more: Any) -> Request:
    """Twelve sentences."""
    return request(*[SENTENCE] * 12, seed=seed, owner=owner, **more)


def opened(stage: Stage) -> list[int]:
    """Seeds, whenever a slot gets a segment."""
    return [entry[2] for entry in stage.device.log if entry[0] == "open"]


def first_heard(stage: Stage, handle: Handle, seconds: float, most: int) -> int:
    for turn in range(most):
        if handle.buffered:
            return turn
        stage.rounds(1, seconds)
    raise AssertionError(f"nothing was heard in {most} turns")


@pytest.mark.parametrize("priority", ["high", "normal"])
def test_an_owner_that_holds_all_slots_with_long_texts_gives_way_between_two_sentences(priority: str) -> None:
    """In real time and with nothing in hand: it lost a slot as soon as one of its sentences ended."""
    stage = Stage(FakeDevice(slots=4, frames=1))
    loud = [stage.submit(long(seed, "loud", priority=priority)) for seed in range(20)]
    stage.rounds(6, 0.08)
    quiet = stage.submit(request(5, 5, seed=100, owner="quiet"))
    assert first_heard(stage, quiet, 0.08, 100) <= SENTENCE + 4
    more = [stage.submit(request(5, seed=101 + number, owner=f"another {number}")) for number in range(6)]
    for handle in more:
        assert first_heard(stage, handle, 0.08, 100) <= 4 * SENTENCE, "six owners, four slots"
    stage.until_idle(0.08)
    for handle in [*loud, quiet, *more]:
        assert heard(handle) == expected(handle.request), "nothing is lost, and nothing is said twice"
        assert handle.finish_reason == "eos"
    counters = stage.scheduler.counters
    assert 1 <= counters.parked <= 8 and counters.completed == counters.submitted == 27


def test_the_last_slot_is_kept_for_an_owner_that_holds_none() -> None:
    """While it has spoken within the last minute; so its next utterance waits for nobody's sentence."""
    stage = Stage(FakeDevice(slots=4, frames=1))
    loud = [stage.submit(long(seed, "loud")) for seed in range(40)]
    stage.rounds(6, 0.08)
    assert Counter(stage.scheduler.lending.held()) == {"loud": 4}, "an owner that is alone has them all"
    quiet = stage.submit(request(5, seed=100, owner="quiet"))
    while not quiet.ended:
        stage.rounds(1, 0.08)
        heard(quiet)
    for number in range(3):
        stage.rounds(100, 0.08)
        assert stage.scheduler.lending.held() == {"loud": 3} and stage.scheduler.waiting
        again = stage.submit(request(5, seed=101 + number, owner="quiet"))
        assert first_heard(stage, again, 0.08, 10) <= 4
        while not again.ended:
            stage.rounds(1, 0.08)
            heard(again)
    stage.rounds(round((KEPT_SECONDS + 1) / 0.08), 0.08)
    assert stage.scheduler.lending.held() == {"loud": 4}, "nobody else has spoken for a minute"
    for handle in loud:
        handle.cancel()
    stage.until_idle(0.08)


@pytest.mark.parametrize("part", [0.1, 0.4, 0.6])
def test_an_owner_without_a_slot_waits_for_no_step_but_the_one_under_way(part: float) -> None:
    """A step of the batch takes 50 ms, one of a row 12.5. It comes after ``part`` of a step; a first packet has two frames."""
    device = Paced(0.05, 0.0, slots=8, frames=1, alone=True)
    stage = device.stage
    loud = [stage.submit(long(seed, "loud")) for seed in range(6)]
    stage.rounds(60, 0)
    assert not [entry for entry in device.log if entry[0] == "alone"], "those of one owner begin together"
    before = stage.now
    for owner, most in (("quiet", 0.05 + 2 * device.row_seconds), ("loud", 3 * 0.05)):
        while not (held := stage.scheduler.pace.hold(stage.now)):
            stage.scheduler.run_round()
        stage.now += held - (1 - SPARE - part) * 0.05  # from where a step ended to where the newcomer comes
        asked = stage.now
        handle = stage.submit(request(5, seed=100, owner=owner))
        while not handle.buffered:
            stage.rounds(1, 0)
        assert handle.first_audio is not None and handle.first_audio - asked <= most - part * 0.05 + 0.001
        while not handle.ended:
            stage.rounds(1, 0)
        assert heard(handle) == expected(handle.request)
    assert [entry[0] for entry in device.log].count("alone") == 1
    late = [slot for slot in stage.scheduler.slots if slot.handle and stage.scheduler.pace.lead(slot, stage.now) <= 0]
    assert stage.now > before and not late, "nobody has heard silence"
    stage.until_idle(0)
    assert all(heard(one) == expected(one.request) for one in loud)


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_prompt_is_read_while_all_others_are_so_far_ahead_that_nothing_is_launched(pieces: int) -> None:
    device = Paced(0.01, 0.0, slots=8, alone=True)
    stage = device.stage
    loud = [stage.submit(request(2000, seed=seed, owner="loud")) for seed in range(6)]
    stage.rounds(100, 0)
    assert all(stage.scheduler.pace.lead(slot, stage.now) > 3 for slot in stage.scheduler.slots[:6])
    quiet = stage.submit(request(5, seed=100, owner="quiet", rows=8 * pieces))
    assert first_heard(stage, quiet, 0, 10) <= pieces + 3
    for handle in [*loud, quiet]:
        handle.cancel()
    stage.until_idle(0)


def test_a_newcomer_begins_with_the_others_where_a_listener_has_little_in_hand() -> None:
    """A frame takes 79 of its 80 ms, so that nobody gets ahead."""
    device = Paced(0.079, 0.0, slots=8, frames=1, alone=True)
    stage = device.stage
    loud = [stage.submit(long(seed, "loud")) for seed in range(6)]
    stage.rounds(20, 0)
    quiet = stage.submit(request(5, seed=100, owner="quiet"))
    stage.until_idle(0)
    assert not [entry for entry in device.log if entry[0] == "alone"]
    assert all(heard(one) == expected(one.request) for one in [*loud, quiet])


def test_sentences_of_one_owner_do_not_give_way_to_each_other() -> None:
    stage = Stage(FakeDevice(slots=2))
    handles = [stage.submit(long(seed, "loud")) for seed in range(6)]
    stage.until_idle(0.5)
    assert stage.scheduler.counters.parked == 0 and Counter(opened(stage)) == dict.fromkeys(range(6), 12)
    assert all(heard(handle) == expected(handle.request) for handle in handles)


def test_who_holds_no_more_slots_than_others_is_interrupted_only_where_it_cannot_be_heard_or_for_who_has_waited_long() -> None:
    """One slot, two owners. A frame takes 75 ms, so nobody gets ahead; then 20 ms."""
    for frame, parked, turns in ((0.075, False, 10.0), (0.075, True, 3.0), (0.02, True, 1e9)):
        device = Paced(frame, 0.0, slots=1, frames=1)
        device.stage = stage = Stage(device, replace(BIG, turn_seconds=turns))
        first = stage.submit(long(1, "a"))
        stage.rounds(1)
        second = stage.submit(request(5, seed=2, owner="b"))
        stage.until_idle(0)
        order = opened(stage)
        assert (order.index(2) < 12) is parked
        if parked:
            assert first.request.segments and second.first_audio is not None
            done = order.index(2) * SENTENCE
            lead = done * 0.08 - second.first_audio
            assert lead > 2.0 - 10 * 0.08 if frame == 0.02 else second.first_audio >= 3.0
        assert heard(first) == expected(first.request) and heard(second) == expected(second.request)


def written(**more: Any) -> Request:
    return Request((), Sampling(), 1, open=True, **more)


def test_a_text_without_words_between_its_sentences_gives_its_slot_back() -> None:
    """To anybody, its own owner included; and gets one again when there are words."""
    stage = Stage(FakeDevice(slots=1))
    live = stage.submit(written())
    live.add(segment(4))
    stage.rounds(12)
    assert len(heard(live)) == 4
    other = stage.submit(request(30, seed=2))
    stage.rounds(3)
    assert opened(stage) == [1, 2]
    live.add(segment(6))
    live.finish()
    stage.until_idle()
    assert heard(other) == expected(other.request) and stage.scheduler.counters.parked == 1
    assert [code[:4] for code in heard(live)] == [(1, 1, 0, step) for step in range(6)] and live.finish_reason == "eos"


def test_a_text_that_ends_while_it_has_no_slot_needs_none() -> None:
    stage = Stage(FakeDevice(slots=1))
    live = stage.submit(written())
    live.add(segment(9, max_frames=4))
    stage.rounds(12)
    stage.submit(request(30, seed=2))
    stage.rounds(2)
    live.finish()
    stage.rounds(1)
    assert len(heard(live)) == 4 and live.finish_reason == "length", "what happened before is not forgotten"


def test_a_text_that_stops_inside_a_sentence_gives_its_slot_back_and_goes_on_where_it_was() -> None:
    stage = Stage(FakeDevice(slots=1))
    live = stage.submit(Request((segment(5), segment(12, text=3, open=True)), Sampling(), 1, open=True, owner="a"))
    stage.rounds(20)
    said = heard(live)
    assert len(said) == 5 + 3
    other = stage.submit(request(30, seed=2, owner="b"))
    wait = stage.scheduler.run_round()
    assert wait is not None and wait <= 0.5, "it comes back when the text is late"
    assert opened(stage) == [1, 1], "it has a moment"
    stage.rounds(60)
    assert heard(other) == expected(other.request), "before any more text came"
    live.append([200, 201, 202])
    stage.rounds(20)
    said += heard(live)
    live.append([203])
    live.end_segment(100)
    live.finish()
    stage.until_idle()
    said += heard(live)
    assert said == expected(live.request, [[100, 101, 102], [100, 101, 102, 200, 201, 202, 203]]), "no frame is heard twice"
    assert opened(stage) == [1, 1, 2, 1] and live.finish_reason == "eos"


def test_a_consumer_that_takes_nothing_gives_its_slot_back_and_is_let_go_in_the_end() -> None:
    stage = Stage(FakeDevice(slots=1), Options(buffer_ms=800, stall_seconds=5))
    slow, never = stage.submit(request(60)), stage.submit(request(60, seed=3))
    stage.rounds(70)
    other = stage.submit(request(5, seed=2))
    stage.rounds(80)
    assert heard(other) == expected(other.request) and stage.scheduler.counters.parked == 2
    got = []
    for _ in range(700):
        got += heard(slow)
        stage.rounds(1)
    assert got == expected(slow.request)
    assert len(heard(never)) == 10 and isinstance(never.error, Stalled) and "no audio was taken" in str(never.error)


def test_the_loud_one_s_newest_leaves_a_full_line_and_all_are_counted() -> None:
    stage = Stage(FakeDevice(slots=1), Options(max_waiting=4, buffer_ms=100_000))
    loud = [stage.submit(request(5, seed=seed, owner="loud")) for seed in range(4)]
    stage.rounds(1)
    loud.append(stage.submit(request(5, seed=9, owner="loud")))
    with pytest.raises(Full, match="whose share is 4"):
        stage.submit(request(5, owner="loud"))
    quiet = stage.submit(request(5, owner="quiet"))
    stage.until_idle()
    assert isinstance(loud[-1].error, Full) and "others had fewer requests in it" in str(loud[-1].error)
    assert heard(quiet) == expected(quiet.request) and [heard(one) for one in loud[:-1]] == [expected(one.request) for one in loud[:-1]]
    counters = stage.scheduler.counters
    assert (counters.submitted, counters.completed, counters.failed, counters.refused, counters.displaced) == (6, 5, 1, 1, 1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 12), st.booleans()), min_size=1, max_size=30),
    st.integers(1, 3),
    st.integers(2, 4),
    st.integers(0, 40),
)
def test_the_quiet_owner_is_heard_in_turns_that_do_not_depend_on_how_much_the_loud_one_asks(
    flood: list[tuple[int, int, bool]], slots: int, loud_owners: int, at: int
) -> None:
    """Turns: for each owner the longest sentence, its prompt, and the step by which the device is ahead."""
    stage = Stage(FakeDevice(slots=slots, frames=1), replace(BIG, turn_seconds=0.001))
    for number, (sentences, frames, open) in enumerate(flood):
        loud = stage.submit(request(*[frames] * sentences, seed=number, owner=number % loud_owners, open=open))
        loud.add(segment(3, text=2, open=True)) if open else None
    stage.rounds(at, 0.08)
    quiet = stage.submit(request(5, seed=1000, owner="quiet"))
    bound = (loud_owners + 1) * (12 + 8) + 10
    assert first_heard(stage, quiet, 0.08, 1000) <= bound


def raises(error: BaseException) -> Callable[[list[Handle]], None]:
    def notify(handles: list[Handle]) -> None:
        raise error

    return notify


@pytest.mark.parametrize("error", [RuntimeError("Event loop is closed"), SystemExit(1), KeyError("x")])
def test_a_notify_that_raises_ends_its_own_request_only(error: BaseException) -> None:
    stage = Stage(FakeDevice(slots=2))
    lost = [stage.submit(request(30, seed=seed, notify=raises(error))) for seed in range(2)]
    other, later = stage.submit(request(30, seed=5)), stage.submit(request(5, seed=6))
    stage.until_idle()
    for handle in lost:
        assert isinstance(handle.error, ConsumerFailed) and handle.error.__cause__ is error
        assert f"raised {type(error).__name__}: {error}" in str(handle.error)
    assert heard(other) == expected(other.request) and heard(later) == expected(later.request)
    assert (stage.scheduler.counters.failed, stage.scheduler.counters.completed) == (2, 2)


def test_what_the_engine_could_not_sort_by_is_refused() -> None:
    for change, message in (
        ({"owner": ["a", "list"]}, "owner of type list has no hash"),
        ({"notify": "print"}, "notify of type str: must be a function"),
    ):
        with pytest.raises(ValueError, match=message):
            request(1, **change)
