"""Both sides of a contract against a model: hypothesis invents what a client says and what is heard, the model says all that must be sent.

The session is the real one with the fake engine, on a socket in memory; its time, and the contract's, are the test's. After each step the
loop runs until nothing moves any more. The model knows every frame and message, in their order, so nothing of an older epoch can follow
the acknowledgement of an interruption, nothing is sent while an answer is held, and what is resumed goes on from the very sample.
"""

import asyncio
import json
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.context import Context
from server.contracts.contract import HELD_SECONDS, SUSPECTED_SECONDS, InterruptionRules
from server.contracts.registry import Contracts
from server.ops.auth import Authenticator
from server.ops.limits import Quotas
from server.ops.metrics import Metrics
from server.settings import Settings
from server.voices.store import VoiceStore
from server.ws.sockets import handle
from tests.fake_engine import FakeEngine
from tests.serving import SPEAKERS, make_voices
from tests.test_server_machine import TURNS, MemorySocket
from tests.timers import Timers

FRAMES, FRAME_MS, MAX_WAITING = 3, 80, 4
RULES = InterruptionRules(500, 1, 2.0)


class Spoken:
    """An utterance, as the model has it."""

    def __init__(self, name: str, text: str, *, text_open: bool) -> None:
        self.name, self.text, self.open, self.incremental = name, text, text_open, text_open
        self.number = 0  # in the order in which the engine got them
        self.made = self.sent = 0
        self.heard = 0.0  # ms, of a client that reports nothing
        self.reported: tuple[float, float] | None = None  # ms, and when

    @property
    def frames(self) -> int:
        return len(self.text.split()) if self.incremental else FRAMES

    def heard_by(self, now: float) -> float:
        if self.reported is None:
            return self.heard
        return min(FRAME_MS * self.sent, self.reported[0] + min(250, 1000 * (now - self.reported[1])))


class Duplex(RuleBasedStateMachine):
    """The rules are what a client says, what is heard, and what the engine makes."""

    def __init__(self) -> None:
        super().__init__()
        self.runner, self.folder, self.patch = asyncio.Runner(), tempfile.TemporaryDirectory(), pytest.MonkeyPatch()
        self.timers = Timers()
        self.timers.now = 1000.0
        self.names = self.submitted = 0
        self.live: list[Spoken] = []
        self.ended: list[Spoken] = []  # completed, and not interrupted: they may still sound
        self.spoken: Spoken | None = None
        self.cut: set[str] = set()  # open texts that were interrupted
        self.held = self.suspected = self.unconfirmed = False  # suspected: held, and speech has not begun
        self.told: list[Spoken] = []  # that are ducked, as the client knows
        self.ends = 0.0  # when what is held is resumed
        self.rings_until = float("-inf")  # the ideal client's end
        self.tokens = 0
        self.expected: list[tuple[Any, ...]] = []

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    async def turn(self) -> None:
        for _ in range(TURNS):
            await asyncio.sleep(0)

    @initialize(interruption=st.sampled_from(["confirm", "confirm", "confirm", "immediate", "off"]))
    def connect(self, interruption: str) -> None:
        self.interruption = interruption
        for module in SPEAKERS:
            self.patch.setattr(f"server.ws.{module}.monotonic", lambda: self.timers.now)
        voices = make_voices(Path(self.folder.name) / "voices")
        chosen = Settings(voices_dir=voices, max_waiting=MAX_WAITING, lead=3600, limit_utterances=10_000, limit_characters=10**6)
        self.socket = MemorySocket()

        async def begin() -> None:
            self.gate = asyncio.Semaphore(0)
            self.engine = FakeEngine(frames=FRAMES, gate=self.gate)
            context = Context(chosen, self.engine, VoiceStore(voices), Authenticator(chosen), Quotas(chosen), Metrics())
            context.__dict__["contracts"] = Contracts(RULES, self.timers.later, clock=lambda: self.timers.now)
            context.load()
            self.session = asyncio.create_task(handle(self.socket, context, "memory"))
            self.socket.inbound.put_nowait(json.dumps({"type": "start", "contractId": "c", "interruption": interruption}))
            await self.turn()
            contract = context.contracts.get("anonymous", "c")
            assert contract is not None
            self.contract = contract

        self.run(begin())
        assert [message["type"] for message in self.socket.sent] == ["ready", "started"]
        self.socket.sent.clear()

    # What is done

    def say(self, **message: Any) -> None:
        async def send() -> None:
            self.socket.inbound.put_nowait(json.dumps({name.rstrip("_"): value for name, value in message.items() if value is not None}))
            await self.turn()

        self.run(send())

    def hear(self, call: Callable[[], None]) -> None:
        async def heard() -> None:
            call()
            await self.turn()

        self.run(heard())

    # What the model makes of it

    @property
    def open(self) -> Spoken | None:
        return next((one for one in self.live if one.open), None)

    @property
    def sounding(self) -> list[Spoken]:
        """In the order in which their turns came."""
        begun = [*self.ended, *([self.spoken] if self.spoken is not None else [])]
        rung_out = self.timers.now >= self.rings_until + 2
        return [] if rung_out else [one for one in begun if one.heard_by(self.timers.now) < FRAME_MS * one.sent - 20]

    def advance(self) -> None:
        """What the engine and the speaker do with the tokens that are left."""
        while True:
            if self.spoken is None:
                if not self.live:
                    return
                self.spoken = self.live[0]
                self.submitted += 1
                self.spoken.number, self.spoken.incremental = self.submitted, self.spoken.open
            one = self.spoken
            if one.made > one.sent:
                if self.held and self.interruption == "confirm":
                    if one not in self.told:
                        self.told.append(one)
                        self.expected.append(("ducked", one.name, round(one.heard_by(self.timers.now))))
                    return
                self.expected.append(("audio", one.number, one.sent))
                one.sent += 1
                self.rings_until = max(self.rings_until, self.timers.now) + FRAME_MS / 1000
            elif one.made < one.frames and self.tokens:
                one.made += 1
                self.tokens -= 1
            elif one.open or one.made < one.frames:
                return
            else:
                self.expected.append(("complete", one.name))
                self.end(one)
                self.ended.append(one)

    def end(self, one: Spoken) -> None:
        self.live.remove(one)
        if self.spoken is one:
            self.spoken = None

    def duck(self) -> None:
        if self.interruption == "confirm":
            for one in self.sounding[:1]:
                self.told.append(one)
                self.expected.append(("ducked", one.name, round(one.heard_by(self.timers.now))))

    def resume(self) -> None:
        self.held = self.suspected = False
        self.expected += [("resumed", one.name) for one in self.told]
        self.told = []
        self.advance()

    def interrupted(self, audio_end_ms: int | None = None) -> None:
        """All that is spoken, waits or sounds has ended."""
        self.told = []
        first = True
        turns = [*self.sounding]
        turns += [one for one in self.live if one not in turns]
        for one in turns:
            heard = one.heard_by(self.timers.now)
            if first and audio_end_ms is not None:
                heard = min(audio_end_ms, FRAME_MS * one.sent)
            first = False
            self.expected.append(("interrupted", one.name, round(heard)))
            if one in self.live:
                self.expected.append(("CANCELLED", one.name))
                if one.open:
                    self.cut.add(one.name)
        if turns:
            self.ended = []  # their epoch is over
        for one in [*self.live]:
            self.end(one)
        self.silence()

    def silence(self) -> None:
        """The client has thrown away what it had."""
        self.rings_until = float("-inf")
        for one in [*self.ended, *self.live]:
            one.heard = FRAME_MS * one.sent

    # What a client says

    @rule(text_open=st.booleans(), text=st.sampled_from(["one ", "two three ", "a. b c d "]), count=st.integers(0, 3))
    def speak(self, text_open: bool, text: str, count: int) -> None:
        self.names += 1
        name = f"u{self.names}"
        self.say(type="speak", text=text, requestId=name, continue_=text_open or None)
        if text_open and self.open is not None:
            self.expected.append(("INVALID_MESSAGE", name))
        elif len(self.live) >= MAX_WAITING:
            self.expected.append(("RATE_LIMITED", name))
        else:
            self.live.append(Spoken(name, text, text_open=text_open))
            self.advance()
            self.make(count)

    @precondition(lambda self: self.cut or self.open is not None)
    @rule(late=st.booleans(), text=st.sampled_from(["four ", "five six "]))
    def write_on(self, late: bool, text: str) -> None:
        """A piece of the open text, or of one that was interrupted while it was on its way."""
        if late and self.cut:
            self.say(type="speak", text=text, requestId=sorted(self.cut)[0], continue_=True)
        elif self.open is not None:
            self.say(type="speak", text=text, requestId=self.open.name, continue_=True)
            self.open.text += text
            self.advance()

    @precondition(lambda self: self.cut or self.open is not None)
    @rule(late=st.booleans())
    def flush(self, late: bool) -> None:
        if late and self.cut:
            name = sorted(self.cut)[0]
            self.cut.remove(name)
            self.say(type="flush", requestId=name)
        elif self.open is not None:
            self.say(type="flush", requestId=self.open.name)
            self.open.open = False
            self.advance()

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 3))
    def cancel(self, which: int) -> None:
        if which < len(self.live):
            one = self.live[which]
            self.say(type="cancel", requestId=one.name)
            self.expected.append(("CANCELLED", one.name))
            spoken = self.spoken is one
            self.end(one)
            self.told = [other for other in self.told if other is not one]
            if spoken:
                self.silence()
            self.advance()

    @precondition(lambda self: self.spoken is not None)
    @rule(ms=st.integers(0, 400))
    def played(self, ms: int) -> None:
        one = self.spoken
        if one is not None:
            self.say(type="played", requestId=one.name, ms=ms)
            before = one.reported[0] if one.reported is not None else 0
            one.reported = min(max(before, ms), FRAME_MS * one.sent), self.timers.now

    # What is heard

    @rule(text_open=st.booleans(), count=st.integers(1, 3))
    def speech_over_speech(self, text_open: bool, count: int) -> None:
        self.speak(text_open=text_open, text="a. b c d ", count=count)
        self.speech_starts()
        self.make(1)

    @rule()
    def speech_is_suspected(self) -> None:
        self.hear(self.contract.speech_suspected)
        if not self.held:
            self.ends = self.timers.now + SUSPECTED_SECONDS
            self.held = self.suspected = True
            self.duck()

    @rule()
    def speech_starts(self) -> None:
        held, begun = self.held, self.held and not self.suspected
        self.hear(self.contract.speech_started)
        self.ends = self.timers.now + HELD_SECONDS
        self.held, self.suspected, self.unconfirmed = True, False, True
        if not held:
            self.duck()
        if not begun and self.interruption == "immediate":
            self.interrupted()

    @precondition(lambda self: self.unconfirmed)
    @rule(ms=st.sampled_from([100, 100, 500]), words=st.integers(0, 1))
    def speech_goes_on(self, ms: int, words: int) -> None:
        self.hear(lambda: self.contract.speech_goes_on(ms, words))
        if self.unconfirmed and (ms >= 500 or words):
            self.held = self.suspected = self.unconfirmed = False
            if self.interruption != "off":
                self.interrupted()
            self.advance()

    @precondition(lambda self: self.held)
    @rule()
    def speech_ends(self) -> None:
        self.hear(self.contract.speech_ended)
        if self.held and not self.suspected:
            self.ends = self.timers.now + RULES.resume_after

    @precondition(lambda self: self.held)
    @rule()
    def false_alarm(self) -> None:
        self.hear(self.contract.false_alarm)
        if self.held and not self.suspected:
            self.resume()

    @precondition(lambda self: self.sounding or self.live)
    @rule(ms=st.none() | st.integers(0, 400))
    def interrupt(self, ms: int | None) -> None:
        self.hear(lambda: self.contract.interrupt(ms))
        self.interrupted(ms)
        if self.held:
            self.unconfirmed = self.unconfirmed and self.suspected
            self.held = self.suspected = False

    @rule(seconds=st.sampled_from([0.02, 0.05, 0.1, 2.5, 12.0]))
    def time_passes(self, seconds: float) -> None:
        ahead = 1000 * max(0.0, self.rings_until - self.timers.now - seconds)
        resumes = self.held and self.timers.now + seconds >= self.ends - 1e-9

        def pass_() -> None:
            self.timers.advance(seconds)

        self.hear(pass_)
        for one in reversed([*self.ended, *([self.spoken] if self.spoken is not None else [])]):
            unheard = min(ahead, FRAME_MS * one.sent)
            one.heard = FRAME_MS * one.sent - unheard
            ahead -= unheard
        if resumes:
            self.resume()

    # What the engine makes

    @precondition(lambda self: self.spoken is not None)
    @rule(count=st.integers(1, 3))
    def go_on(self, count: int) -> None:
        self.make(count)

    def make(self, count: int) -> None:
        one = self.spoken
        if one is None or one.made > one.sent:
            return  # a token that nobody waits for would let a frame pass at another time than the model has it
        count = min(count, one.frames - one.made)
        if self.held and self.interruption == "confirm":
            count = min(count, 1)

        async def release() -> None:
            for _ in range(count):
                self.gate.release()
            await self.turn()

        self.tokens = count
        self.run(release())
        self.advance()

    @invariant()
    def all_that_was_sent_is_what_the_model_says(self) -> None:
        if hasattr(self, "contract"):
            assert [seen(frame) for frame in self.socket.sent] == self.expected

    def teardown(self) -> None:
        if hasattr(self, "contract"):
            self.say(type="stop", reason="bye")
            assert self.socket.sent[-2:] == [{"type": "stopped", "reason": "bye"}, 1000]
            assert self.session.done() and self.engine.active == 0 and self.contract.empty
        self.runner.close()
        self.patch.undo()
        self.folder.cleanup()


def seen(frame: Any) -> tuple[Any, ...]:
    """A frame as the model names it."""
    if isinstance(frame, bytes):
        [value] = set(np.frombuffer(frame, "<i2").tolist())
        return "audio", value // 100, value % 100
    kind, name = frame["type"], frame.get("requestId")
    if kind == "error":
        return frame["code"], name
    if kind == "ducked":
        return kind, name, frame["atMs"]
    return (kind, name, frame["audioEndMs"]) if kind == "interrupted" else (kind, name)


TestDuplex = Duplex.TestCase
TestDuplex.settings = settings(
    max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


@given(turns=st.integers(0, 120), transport=st.sampled_from(["binary", "json"]), held=st.booleans(), rate=st.sampled_from([24000, 8000]))
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_not_a_byte_follows_an_interruption_whenever_it_comes(voices: Path, turns: int, transport: str, held: bool, rate: int) -> None:
    """The engine never waits here, and the interruption comes after any number of turns of the loop: between any two steps of anybody."""

    async def converse() -> list[Any]:
        socket, chosen = MemorySocket(), Settings(voices_dir=voices, lead=3600)
        context = Context(chosen, FakeEngine(frames=20), VoiceStore(voices), Authenticator(chosen), Quotas(chosen), Metrics())
        context.load()
        session = asyncio.create_task(handle(socket, context, "memory"))
        for message in (
            {"type": "start", "transport": transport, "sampleRate": rate, "contractId": "c"},
            {"type": "speak", "text": "Long.", "requestId": "a"},
            {"type": "speak", "text": "Next.", "requestId": "b"},
        ):
            socket.inbound.put_nowait(json.dumps(message))
        for _ in range(turns):
            await asyncio.sleep(0)
        contract = context.contracts.of("anonymous", "c")
        if held:
            contract.speech_started()
            for _ in range(40):
                await asyncio.sleep(0)
        contract.interrupt()
        epoch = contract.epoch
        for _ in range(400):
            await asyncio.sleep(0)
        session.cancel()
        await asyncio.wait({session})
        socket.sent.append(epoch)
        return socket.sent

    *sent, epoch = asyncio.run(converse())
    kinds = ["audio" if isinstance(item, bytes) or item["type"] == "audioChunk" else item["type"] for item in sent]
    if epoch:
        told = max(number for number, kind in enumerate(kinds) if kind == "interrupted")
        names = {item["requestId"] for item in sent if not isinstance(item, bytes) and item["type"] == "interrupted"}
        if names == {"a", "b"}:
            assert "audio" not in kinds[told:], "not one byte of either follows"
        first = kinds.index("interrupted")
        if "ducked" in kinds[:first]:
            assert "audio" not in kinds[kinds.index("ducked") : first], "what is held is not sent"
        assert not any(kind == "audio" for kind in kinds[first : told + 1]), "nor comes between the acknowledgements"
