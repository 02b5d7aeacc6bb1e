"""A session against a model of the protocol: hypothesis invents conversations, the model says every message and frame that must come.

The session is the real one with the fake engine, on a socket in memory. After each step the loop runs until nothing moves any more, so
the model knows exactly what has been sent: an utterance's frames in one run, nothing of it after its last message, ``high`` first.
"""

import asyncio
import itertools
import json
import tempfile
import unicodedata
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.context import Context
from server.ops.auth import Authenticator
from server.ops.limits import Quotas
from server.ops.metrics import Metrics
from server.settings import Settings
from server.voices.store import VoiceStore
from server.ws.machine import NEXT, Machine, Rejection, SessionState, SessionUtterance
from server.ws.protocol import Cancel, Flush, Speak, Stop
from server.ws.sockets import handle
from tests.fake_engine import LIMIT, FakeEngine
from tests.serving import make_voices
from tests.test_server_protocol import NEAR

MAX_WAITING, FRAMES = 3, 2
TURNS = 60  # of the event loop: more than any step needs, or the model would be ahead of what was sent


class MemorySocket:
    """The socket's two ends in one process."""

    def __init__(self) -> None:
        self.inbound: asyncio.Queue[str] = asyncio.Queue()
        self.sent: list[Any] = []

    async def receive(self) -> str:
        return await self.inbound.get()

    async def send(self, data: str | bytes) -> None:
        await asyncio.sleep(0)  # where others may come in between
        self.sent.append(data if isinstance(data, bytes) else json.loads(data))

    async def close(self, code: int, reason: str = "") -> None:
        self.sent.append(code)


class Modelled:
    """An utterance, as the model has it."""

    def __init__(self, name: str, high: bool, text: str, text_open: bool) -> None:
        self.name, self.high, self.text, self.open = name, high, text, text_open
        self.number = 0  # in the order in which the engine got them
        self.incremental = False
        self.made = 0

    @property
    def frames(self) -> int:
        return len(self.text.split()) if self.incremental else FRAMES


class Conversation(RuleBasedStateMachine):
    """The rules are what a client, and the engine, may do."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.names = 0
        self.live: list[Modelled] = []
        self.spoken: Modelled | None = None
        self.submitted = 0
        self.tokens = 0
        self.expected: list[tuple[Any, ...]] = []

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    @initialize()
    def connect(self) -> None:
        voices = make_voices(Path(self.folder.name) / "voices")
        chosen = Settings(voices_dir=voices, max_waiting=MAX_WAITING, lead=3600, limit_utterances=10_000, limit_characters=10**6)
        self.socket = MemorySocket()

        async def begin() -> None:
            self.gate = asyncio.Semaphore(0)
            self.engine = FakeEngine(frames=FRAMES, gate=self.gate)
            store = VoiceStore(voices)
            context = Context(chosen, self.engine, store, Authenticator(chosen), Quotas(chosen), Metrics())
            context.load()
            self.session = asyncio.create_task(handle(self.socket, context, "memory"))
            await turn()

        async def turn() -> None:
            for _ in range(TURNS):
                await asyncio.sleep(0)

        self.turn = turn
        self.run(begin())
        assert self.socket.sent.pop(0)["type"] == "ready"

    def say(self, **message: Any) -> None:
        async def send() -> None:
            self.socket.inbound.put_nowait(json.dumps({name.rstrip("_"): value for name, value in message.items() if value is not None}))
            await self.turn()

        self.run(send())

    def advance(self) -> None:
        """What the engine and the speaker do with the tokens that are left."""
        while True:
            if self.spoken is None:
                if not self.live:
                    return
                self.spoken = max(self.live, key=lambda one: one.high)
                self.submitted += 1
                self.spoken.number, self.spoken.incremental = self.submitted, self.spoken.open
            one = self.spoken
            while one.made < one.frames and self.tokens:
                self.expected.append(("audio", one.number, one.made))
                one.made += 1
                self.tokens -= 1
            if one.open or one.made < one.frames:
                return
            self.expected.append(("complete", one.name))
            self.end(one)

    def end(self, one: Modelled) -> None:
        self.live.remove(one)
        if self.spoken is one:
            self.spoken = None

    @property
    def open(self) -> Modelled | None:
        return next((one for one in self.live if one.open), None)

    @rule(high=st.booleans(), text_open=st.booleans(), text=st.sampled_from(["one ", "two three ", "a. b "]))
    def speak(self, high: bool, text_open: bool, text: str) -> None:
        self.names += 1
        name = f"u{self.names}"
        self.say(type="speak", text=text, requestId=name, priority="high" if high else "normal", continue_=text_open or None)
        if text_open and self.open is not None:
            self.expected.append(("INVALID_MESSAGE", name))
        elif len(self.live) >= MAX_WAITING:
            self.expected.append(("RATE_LIMITED", name))
        else:
            self.live.append(Modelled(name, high, text, text_open))
            self.advance()

    @precondition(lambda self: self.open is not None)
    @rule(text=st.sampled_from(["four ", "five six "]), named=st.booleans())
    def write_on(self, text: str, named: bool) -> None:
        assert self.open is not None
        self.say(type="speak", text=text, requestId=self.open.name if named else None, continue_=True)
        self.open.text += text
        self.advance()

    @rule(named=st.booleans())
    def flush(self, named: bool) -> None:
        name = self.open.name if self.open is not None and named else None
        self.say(type="flush", requestId=name)
        if self.open is None:
            self.expected.append(("INVALID_MESSAGE", None))
        else:
            self.open.open = False
            self.advance()

    @rule(which=st.none() | st.integers(0, 4))
    def cancel(self, which: int | None) -> None:
        name = None if which is None else self.live[which].name if which < len(self.live) else "nobody"
        self.say(type="cancel", requestId=name)
        dropped = [one for one in self.live if name in (None, one.name)]
        for one in dropped:
            self.end(one)
            self.expected.append(("CANCELLED", one.name))
        if not dropped:
            self.expected.append(("CANCELLED", name))
        self.advance()

    @rule(good=st.booleans())
    def start(self, good: bool) -> None:
        self.say(type="start", sampleRate=24000 if good else 1)
        self.expected.append(("INVALID_MESSAGE", None) if self.live or not good else ("started",))

    @rule(count=st.integers(1, 4))
    def make(self, count: int) -> None:
        async def release() -> None:
            for _ in range(count):
                self.gate.release()
            await self.turn()

        if self.spoken is None:
            return  # a token that nobody waits for would let a frame pass while a cancel is under way
        missing = sum(one.frames for one in [self.spoken]) - self.spoken.made
        count = min(count, missing)
        self.tokens = count
        self.run(release())
        self.advance()

    @invariant()
    def all_that_was_sent_is_what_the_model_says(self) -> None:
        if hasattr(self, "socket"):
            assert [seen(frame) for frame in self.socket.sent] == self.expected

    def teardown(self) -> None:
        """Let everything be spoken, stop, and look once more."""
        if hasattr(self, "socket"):
            if self.open is not None:
                self.flush(named=True)
            while self.live:
                self.make(4)
            self.all_that_was_sent_is_what_the_model_says()
            self.say(type="stop", reason="bye")
            assert self.socket.sent[-2:] == [{"type": "stopped", "reason": "bye"}, 1000]
            assert self.session.done()
            assert self.engine.active == 0
        self.runner.close()
        self.folder.cleanup()


def seen(frame: Any) -> tuple[Any, ...]:
    """A frame as the model names it."""
    if isinstance(frame, bytes):
        [value] = set(np.frombuffer(frame, "<i2").tolist())
        return "audio", value // 100, value % 100
    if frame["type"] == "error":
        return frame["code"], frame.get("requestId")
    return ("complete", frame["requestId"]) if frame["type"] == "complete" else (frame["type"],)


TestConversation = Conversation.TestCase
TestConversation.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


@given(turns=st.integers(0, 120), transport=st.sampled_from(["binary", "json"]), rate=st.sampled_from([24000, 8000]), one=st.booleans())
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_not_a_byte_follows_a_cancel_whenever_it_comes(voices: Path, turns: int, transport: str, rate: int, one: bool) -> None:
    """The engine never waits here, and the cancel comes after any number of turns of the loop: between any two steps of anybody."""

    async def converse() -> list[Any]:
        socket, chosen = MemorySocket(), Settings(voices_dir=voices, lead=3600)
        store = VoiceStore(voices)
        context = Context(chosen, FakeEngine(frames=20), store, Authenticator(chosen), Quotas(chosen), Metrics())
        context.load()
        session = asyncio.create_task(handle(socket, context, "memory"))
        for message in (
            {"type": "start", "transport": transport, "sampleRate": rate},
            {"type": "speak", "text": "Long.", "requestId": "a"},
            {"type": "speak", "text": "Next.", "requestId": "b"},
        ):
            socket.inbound.put_nowait(json.dumps(message))
        for _ in range(turns):
            await asyncio.sleep(0)
        socket.inbound.put_nowait(json.dumps({"type": "cancel", "requestId": "a"} if one else {"type": "cancel"}))
        for _ in range(400):
            await asyncio.sleep(0)
        session.cancel()
        await asyncio.wait({session})
        return socket.sent

    sent = asyncio.run(converse())
    kinds = ["audio" if isinstance(item, bytes) or item["type"] == "audioChunk" else item["type"] for item in sent]
    told = kinds.index("error")
    assert sent[told]["code"] == "CANCELLED"
    ended = [item["requestId"] for item in sent if not isinstance(item, bytes) and item["type"] == "complete"]
    if one:
        assert kinds.count("complete") == (1 if sent[told]["message"] == "cancelled by the client" else 2)
        assert "b" in ended
    else:
        assert set(kinds[told:]) == {"error"}, "nothing but the other CANCELLED"


@given(frames=st.lists(NEAR | st.text(max_size=50), max_size=12))
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_no_conversation_is_a_fault_of_ours(voices: Path, frames: list[str]) -> None:
    """Whatever is said, the session answers in order or ends by ``stop``: never an internal error, never silence at the end."""

    async def converse() -> list[Any]:
        socket, chosen = MemorySocket(), Settings(voices_dir=voices, lead=3600, limit_utterances=10_000)
        store = VoiceStore(voices)
        context = Context(chosen, FakeEngine(), store, Authenticator(chosen), Quotas(chosen), Metrics())
        context.load()
        session = asyncio.create_task(handle(socket, context, "memory"))
        for frame in [*frames, '{"type": "flush"}', '{"type": "cancel"}', '{"type": "stop", "reason": "enough"}']:
            socket.inbound.put_nowait(frame)
        await asyncio.wait_for(session, LIMIT)
        return socket.sent

    sent = asyncio.run(converse())
    assert sent[-1] == 1000
    assert sent[-2]["type"] == "stopped"
    assert not [item for item in sent[:-1] if not isinstance(item, bytes) and "internal error" in item.get("message", "")]


@given(text=st.text(st.sampled_from("ae\u0301\u0308 \u1100\u1161\u11a8.x"), max_size=12), cuts=st.lists(st.integers(0, 12), max_size=4))
@settings(deadline=None)
def test_text_in_pieces_is_the_text_whole(text: str, cuts: list[int]) -> None:
    """NFC across the joints: pieces put together are the normal form of the whole, but for the blanks at its end."""
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    utterance = SessionUtterance(Speak(text="", continue_=True), 1000)
    whole = unicodedata.normalize("NFC", text).strip()
    pieces = [utterance.take(text[begin:end], last=False) for begin, end in itertools.pairwise(edges)]
    if not whole:
        with pytest.raises(Rejection):
            utterance.take("", last=True)
        return
    pieces.append(utterance.take("", last=True))
    assert unicodedata.normalize("NFC", "".join(pieces)).strip() == whole
    assert utterance.characters == len("".join(pieces))


def test_every_state_is_in_the_table_and_two_are_final() -> None:
    assert set(NEXT) == set(SessionState)
    assert NEXT[SessionState.STOPPED] == NEXT[SessionState.ERROR] == {}
    assert all(Stop in NEXT[state] for state in (SessionState.READY, SessionState.STARTED, SessionState.SPEAKING))


def test_the_states_of_the_specification() -> None:
    def state(machine: Machine) -> str:
        return machine.state.value

    machine = Machine(2, 100)
    assert state(machine) == "connecting"
    with pytest.raises(Rejection, match="while connecting"):
        machine.start()
    machine.connected()
    machine.start()
    assert state(machine) == "started"
    utterance, settled, new = machine.speak(Speak(text=" Hello. "))
    assert (settled, new, state(machine)) == ("Hello.", True, "speaking")
    machine.ended(utterance)
    assert state(machine) == "ready"
    with pytest.raises(Rejection, match="no such text"):
        machine.flush(Flush())
    machine.speak(Speak(text="Hello."))
    assert [one.live for one in machine.cancel(Cancel())] == [False]
    machine.stop()
    assert state(machine) == "stopped"
    with pytest.raises(Rejection, match="while stopped"):
        machine.speak(Speak(text="Hello."))
    machine.fail()
    machine.stop()
    assert state(machine) == "error"
