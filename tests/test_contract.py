"""A contract by itself: every order of what may happen to it, against a model; time is the test's."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.contracts.bus import MemoryBus
from server.contracts.contract import HELD_SECONDS, SUSPECTED_SECONDS, Contract, InterruptionRules, SpeechEvent, SpeechState
from server.contracts.registry import LINGERS, Contracts
from tests.timers import Timers


class FakeMouth:
    """Remembers what the contract did to it."""

    def __init__(self, interruption: str) -> None:
        self.interruption: Any = interruption
        self.speaking = self.sounding = False
        self.ducked = False
        self.log: list[Any] = []

    def speak(self) -> None:
        self.speaking = self.sounding = True

    def loudness(self, ago: float) -> float | None:
        return None

    def duck(self) -> None:
        assert not self.ducked, "ducked twice"
        self.ducked = True
        self.log.append("duck")

    def unduck(self) -> None:
        assert self.ducked, "resumed, and was not ducked"
        self.ducked = False
        self.log.append("unduck")

    def interrupt(self, audio_end_ms: int | None, *, asked: bool) -> None:
        self.asked = asked
        self.speaking = self.sounding = self.ducked = False
        self.log.append(("interrupt", audio_end_ms))

    def answer(self, request_id: str) -> Any:
        raise NotImplementedError


RULES = InterruptionRules(500, 1, 2.0)


class Speech(RuleBasedStateMachine):
    """The model: whether speech is ``unconfirmed``, whether answers are ``held`` for it, and until when for what may be speech."""

    @initialize(policies=st.lists(st.sampled_from(["confirm", "immediate", "off"]), min_size=1, max_size=3))
    def begin(self, policies: list[str]) -> None:
        self.timers, self.counted = Timers(), []
        self.contract = Contract(RULES, lambda: self.timers.now, self.timers.later, count=self.counted.append)
        self.mouths = [FakeMouth(policy) for policy in policies]
        for mouth in self.mouths:
            self.contract.join(mouth)
        self.held = self.unconfirmed = False
        self.ends: float | None = None  # when they are resumed, if nothing happens
        self.suspected: float | None = None  # the same, where speech has not begun yet
        self.epoch = 0

    def resumed(self) -> None:
        self.held, self.ends = False, None

    @rule(which=st.integers(0, 2))
    def speak(self, which: int) -> None:
        self.mouths[which % len(self.mouths)].speak()

    @rule()
    def suspects(self) -> None:
        before = [len(mouth.log) for mouth in self.mouths if mouth.interruption != "confirm"]
        self.contract.speech_suspected()
        if not self.held and self.suspected is None:
            self.suspected = self.timers.now + SUSPECTED_SECONDS
        assert [len(mouth.log) for mouth in self.mouths if mouth.interruption != "confirm"] == before, "nobody is interrupted by it"

    @rule()
    def started(self) -> None:
        cut = [] if self.held else [mouth for mouth in self.mouths if mouth.interruption == "immediate"]
        rises = any(mouth.speaking for mouth in cut)
        self.contract.speech_started()
        self.epoch += rises
        self.held = self.unconfirmed = True
        self.suspected = None
        self.ends = self.timers.now + HELD_SECONDS
        assert not any(mouth.speaking for mouth in cut)

    @rule(ms=st.sampled_from([0, 100, 499, 500, 2000]), words=st.integers(0, 2))
    def goes_on(self, ms: int, words: int) -> None:
        enough = self.unconfirmed and (ms >= RULES.min_ms or words >= RULES.min_words)
        cut = [mouth for mouth in self.mouths if mouth.interruption != "off"] if enough else []
        rises = any(mouth.speaking for mouth in cut)
        before = [len(mouth.log) for mouth in self.mouths]
        self.contract.speech_goes_on(ms, words)
        if enough:
            self.epoch += rises
            self.held = self.unconfirmed = False
            self.suspected = None
            assert all(mouth.log[-1] == ("interrupt", None) and not mouth.asked for mouth in cut)
        else:
            assert [len(mouth.log) for mouth in self.mouths] == before, "too little, or confirmed already: nothing happens"

    @rule()
    def ended(self) -> None:
        self.contract.speech_ended()
        if self.held:
            self.ends = self.timers.now + RULES.resume_after

    @rule()
    def false_alarm(self) -> None:
        self.contract.false_alarm()
        self.resumed()

    @rule(ms=st.none() | st.integers(0, 9000))
    def interrupt(self, ms: int | None) -> None:
        rises = any(mouth.speaking for mouth in self.mouths)
        self.contract.interrupt(ms)
        self.epoch += rises
        if self.held:
            self.held = self.unconfirmed = False
        self.suspected = None
        assert all(mouth.log[-1] == ("interrupt", ms) and mouth.asked for mouth in self.mouths), "all of them, whatever speech does to them"

    @rule(seconds=st.sampled_from([0.1, 0.4, 1.9, 2.0, 9.9, 10.0]))
    def time_passes(self, seconds: float) -> None:
        self.timers.advance(seconds)
        if self.held and self.ends is not None and self.timers.now >= self.ends:
            self.resumed()
        if self.suspected is not None and self.timers.now >= self.suspected - 1e-9:
            self.suspected = None

    @rule(policy=st.sampled_from(["confirm", "off"]))
    def joins(self, policy: str) -> None:
        if len(self.mouths) < 4:
            self.mouths.append(FakeMouth(policy))
            self.contract.join(self.mouths[-1])

    @precondition(lambda self: len(self.mouths) > 1)
    @rule()
    def leaves(self) -> None:
        mouth = self.mouths.pop(0)
        self.contract.leave(mouth)
        assert not mouth.ducked

    @invariant()
    def as_the_model_has_it(self) -> None:
        if not hasattr(self, "contract"):
            return
        assert self.contract.epoch == self.epoch
        assert (self.contract.state is SpeechState.HELD) == self.held
        assert (self.contract.state is SpeechState.SUSPECTED) == (self.suspected is not None)
        holds = self.held or self.suspected is not None
        for mouth in self.mouths:
            assert mouth.ducked == (holds and mouth.interruption == "confirm"), "ducked while speech is held, and only then"
        assert self.counted.count("confirmed") + self.counted.count("requested") == self.epoch
        speaking = [mouth for mouth in self.mouths if mouth.speaking]
        assert self.contract.mouth is (speaking or self.mouths)[-1]
        assert self.contract.playing == bool(speaking)


TestSpeech = Speech.TestCase
TestSpeech.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def contract(timers: Timers, **given: Any) -> Contract:
    return Contract(RULES, lambda: timers.now, timers.later, **given)


def test_a_cough_is_resumed_and_counted_as_false() -> None:
    timers, counted = Timers(), []
    made, mouth = contract(timers, count=counted.append), FakeMouth("confirm")
    made.join(mouth)
    mouth.speak()
    made.speech_started()
    made.speech_goes_on(300)
    made.speech_ended()
    timers.advance(1.9)
    assert mouth.log == ["duck"]
    timers.advance(0.1)
    assert (mouth.log, counted, made.epoch) == (["duck", "unduck"], ["false"], 0)


def test_what_may_be_speech_ducks_for_a_moment_and_never_interrupts() -> None:
    timers, counted = Timers(), []
    made, mouth = contract(timers, count=counted.append), FakeMouth("confirm")
    made.join(mouth)
    mouth.speak()
    made.speech_suspected()
    made.speech_goes_on(5000, 9)
    timers.advance(SUSPECTED_SECONDS)
    assert (mouth.log, counted, made.state) == (["duck", "unduck"], ["false"], SpeechState.SILENT)
    made.speech_suspected()
    timers.advance(SUSPECTED_SECONDS - 0.01)
    made.speech_started()
    timers.advance(1)
    assert mouth.log == ["duck", "unduck", "duck"], "it was speech: ducked once, and held"
    assert made.since_speech == pytest.approx(1 + SUSPECTED_SECONDS - 0.01)
    made.speech_goes_on(500)
    assert mouth.log[-1] == ("interrupt", None)


def test_words_that_are_recognised_late_interrupt_once() -> None:
    timers = Timers()
    made, mouth = contract(timers), FakeMouth("confirm")
    made.join(mouth)
    mouth.speak()
    made.speech_started()
    made.speech_ended()
    timers.advance(3)
    made.speech_goes_on(200, 1)
    made.speech_goes_on(200, 2)
    assert mouth.log == ["duck", "unduck", ("interrupt", None)]
    assert made.state is SpeechState.SILENT


def test_the_last_ear_to_leave_resumes_what_it_had_ducked() -> None:
    timers, one, other = Timers(), object(), object()
    made, mouth = contract(timers), FakeMouth("confirm")
    for member in (one, other):
        made.attend(member)
    made.join(mouth)
    made.speech_started()
    made.leave(one)
    assert mouth.log == ["duck"]
    made.leave(other)
    assert mouth.log == ["duck", "unduck"]
    assert made.state is SpeechState.SILENT


def test_what_sounds_in_another_process_is_playing_for_so_long() -> None:
    timers, told = Timers(), []
    here, there = contract(timers, publish=told.append), contract(timers)
    here.sounds(1.0)
    here.sounds(1.0)
    assert told == [SpeechEvent(kind="sounds", ms=1000)], "and not for every frame"
    there.apply(told[0])
    assert there.playing
    timers.advance(1.6)
    assert not there.playing


class Wire(MemoryBus):
    """Between two registries in one process."""

    def __init__(self) -> None:
        self.receivers: list[Callable[..., None]] = []
        self.end: Wire | None = None

    def subscribe(self, receive: Any) -> None:
        self.receivers.append(receive)

    def publish(self, principal_id: str, contract_id: str, event: SpeechEvent) -> None:
        assert self.end is not None
        for receive in self.end.receivers:
            receive(principal_id, contract_id, event)


def test_two_processes_are_of_one_mind() -> None:
    timers, wires = Timers(), (Wire(), Wire())
    wires[0].end, wires[1].end = wires[1], wires[0]
    ears, mouths = (Contracts(RULES, timers.later, bus=wire, clock=lambda: timers.now) for wire in wires)
    mouth, stranger = FakeMouth("confirm"), FakeMouth("confirm")
    mouths.of("me", "c").join(mouth)
    mouths.of("you", "c").join(stranger)
    mouth.speak()
    heard = ears.of("me", "c")
    heard.speech_started()
    assert mouth.ducked
    heard.speech_goes_on(500)
    heard.speech_ended()
    assert mouth.log == ["duck", ("interrupt", None)] and not stranger.log


def test_a_contract_is_forgotten_when_nobody_has_been_in_it_for_a_while() -> None:
    timers, mouth = Timers(), FakeMouth("confirm")
    contracts = Contracts(RULES, timers.later, clock=lambda: timers.now)
    made = contracts.of("me", "c")
    assert contracts.get("you", "c") is None
    timers.advance(LINGERS - 1)
    made.join(mouth)
    timers.advance(LINGERS * 2)
    assert contracts.get("me", "c") is made
    made.leave(mouth)
    timers.advance(LINGERS - 1)
    assert contracts.of("me", "c") is made
    timers.advance(LINGERS)
    assert contracts.get("me", "c") is None and len(contracts) == 0


def test_contracts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.contracts.registry.MOST", 3)
    timers, mouth = Timers(), FakeMouth("off")
    contracts = Contracts(RULES, timers.later, clock=lambda: timers.now)
    contracts.of("me", "kept").join(mouth)
    for number in range(9):
        contracts.of("me", f"c{number}")
    assert len(contracts) == 3 and contracts.get("me", "kept") is not None and contracts.get("me", "c8") is not None
    contracts.of("you", "c")
    assert contracts.get("you", "c") is not None and contracts.get("me", "c7") is None, "whoever has most makes room"


def test_one_principal_cannot_push_out_the_contracts_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.contracts.registry.MOST_OF_ONE", 3)
    timers, mouth = Timers(), FakeMouth("off")
    contracts = Contracts(RULES, timers.later, clock=lambda: timers.now)
    contracts.of("you", "c")
    contracts.of("me", "kept").join(mouth)
    for number in range(9):
        contracts.of("me", f"c{number}")
    assert [contracts.get("me", name) is not None for name in ("kept", "c6", "c7", "c8")] == [True, False, True, True]
    assert contracts.get("you", "c") is not None
    timers.advance(LINGERS)
    assert len(contracts) == 1
