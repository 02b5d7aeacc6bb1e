"""Sessions that a contract joins, over real sockets with the fake engine: held, resumed, interrupted, lost and taken up again."""

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.client import ClientConnection

from server.contracts.contract import Contract
from server.engines.base import SpeechRequest
from server.ws import protocol
from server.ws.session import ClientSession
from tests.fake_engine import FRAME, LIMIT, FakeEngine, FakeHandle, pcm16
from tests.serving import Clock, Server, audio, client, closed, connect, hear, running, say, until, utterance
from tests.test_server_auth import SECRET, token

TEXT = "One two three four five six seven eight."


async def join(connection: ClientConnection, **more: Any) -> None:
    await say(connection, type="start", contractId="c", **more)
    assert (await hear(connection))["type"] == "started"


def contract_of(server: Server, principal: str = "anonymous") -> Contract:
    contract = server.context.contracts.get(principal, "c")
    assert contract is not None
    return contract


def playing(contract: Contract) -> bool:
    return contract.playing


async def both(connection: ClientConnection, spoken: str | None = None) -> dict[str, Any]:
    """``interrupted`` and what must follow it."""
    message = await hear(connection)
    assert message["type"] == "interrupted"
    assert message["spokenText"] + message["remainingText"] == (TEXT if spoken is None else spoken)
    error = await hear(connection)
    assert (error["code"], error["final"], error.get("requestId")) == ("CANCELLED", True, message.get("requestId"))
    return message


async def test_ducked_and_resumed_from_the_very_sample(voices: Path) -> None:
    engine = FakeEngine(frames=6, gate=asyncio.Semaphore(2))
    async with running(voices, engine) as server, client(server.url) as connection:
        await join(connection)
        await say(connection, type="speak", text=TEXT, requestId="a")
        heard = await audio(connection) + await audio(connection)
        contract_of(server).speech_started()
        ducked = await hear(connection)
        assert (ducked["type"], ducked["requestId"]) == ("ducked", "a") and 0 <= ducked["atMs"] <= 160
        for _ in range(4):
            engine.gate.release()
        await until(lambda: engine.handles[0].made >= 3)  # it is made, and kept
        contract_of(server).speech_ended()
        contract_of(server).false_alarm()
        assert await hear(connection) == {"type": "resumed", "requestId": "a"}
        rest, complete = await utterance(connection)
        assert heard + rest == pcm16(1, 6)
        assert (complete["type"], complete["audioLengthMs"]) == ("complete", 480)
    text = server.context.metrics.render().decode()
    assert 'tts_interruptions_total{outcome="false"} 1.0' in text and "tts_speech_to_duck_seconds_count 1.0" in text


async def test_nothing_follows_the_end_of_an_utterance_that_was_cancelled_while_it_was_ducked(voices: Path) -> None:
    engine = FakeEngine(frames=6, gate=asyncio.Semaphore(2))
    async with running(voices, engine) as server, client(server.url) as connection:
        await join(connection)
        await say(connection, type="speak", text=TEXT, requestId="a")
        await audio(connection), await audio(connection)
        contract_of(server).speech_started()
        assert (await hear(connection))["type"] == "ducked"
        await say(connection, type="cancel", requestId="a")
        assert (await hear(connection))["code"] == "CANCELLED"
        contract_of(server).speech_ended()
        contract_of(server).false_alarm()
        await say(connection, type="stop")
        assert (await hear(connection))["type"] == "stopped", "and no `resumed`"


async def test_silence_resumes_by_itself(voices: Path) -> None:
    engine = FakeEngine(frames=3, gate=asyncio.Semaphore(1))
    async with running(voices, engine, resume_after=0.05) as server, client(server.url) as connection:
        await join(connection)
        await say(connection, type="speak", text=TEXT)
        await audio(connection)
        contract_of(server).speech_started()
        contract_of(server).speech_ended()
        assert [(await hear(connection))["type"] for _ in range(2)] == ["ducked", "resumed"]


@pytest.mark.parametrize("enough", [{"ms": 500, "words": 0}, {"ms": 100, "words": 1}])
async def test_confirmed_speech_interrupts_all_that_is_spoken_or_waits(voices: Path, enough: dict[str, int]) -> None:
    engine = FakeEngine(frames=6, gate=asyncio.Semaphore(2))
    async with running(voices, engine) as server, client(server.url) as connection:
        await join(connection)
        await say(connection, type="speak", text=TEXT, requestId="a")
        await say(connection, type="speak", text=TEXT, requestId="b")
        await audio(connection)
        await audio(connection)
        contract = contract_of(server)
        contract.speech_started()
        assert (await hear(connection))["type"] == "ducked"
        contract.speech_goes_on(**enough)
        first, second = await both(connection), await both(connection)
        assert (first["requestId"], second["requestId"]) == ("a", "b")
        assert (second["audioEndMs"], second["spokenText"]) == (0, "")
        assert 0 <= first["audioEndMs"] <= 160 and contract.epoch == 1
        for _ in range(9):
            engine.gate.release()
        await say(connection, type="speak", text="After.", requestId="c")  # somebody speaks still: it is the client's to know
        heard, complete = await utterance(connection)
        assert (complete["type"], complete["requestId"], heard) == ("complete", "c", pcm16(2, 6))
    assert engine.handles[0].cancelled.is_set() and len(engine.requests) == 2
    text = server.context.metrics.render().decode()
    assert 'tts_interruptions_total{outcome="confirmed"} 1.0' in text and "tts_speech_to_silence_seconds_count 2.0" in text


async def test_immediate_is_not_ducked_first_and_off_hears_nothing_of_speech(voices: Path, clock: Clock) -> None:
    engine = FakeEngine(frames=20)  # of which a second goes out while the clock stands still
    async with running(voices, engine) as server, client(server.url) as one, client(server.url) as other:
        for connection, interruption in ((one, "Immediate"), (other, "off")):
            await join(connection, interruption=interruption)
            await say(connection, type="speak", text=TEXT)
            await audio(connection)
        contract_of(server).speech_started()
        assert (await utterance(one))[1]["type"] == "interrupted"
        contract_of(server).speech_goes_on(900, 3)
        clock.now += 9
        heard, complete = await utterance(other)
        assert complete["type"] == "complete" and len(heard) == 19 * 2 * FRAME


async def test_two_sessions_of_one_contract_are_held_together(voices: Path, clock: Clock) -> None:
    engine = FakeEngine(frames=20)
    async with running(voices, engine) as server, client(server.url) as one, client(server.url) as other:
        for connection in (one, other):
            await join(connection)
            await say(connection, type="speak", text=TEXT)
            await audio(connection)
        contract = contract_of(server)
        contract.speech_started()
        assert [(await utterance(connection))[1]["type"] for connection in (one, other)] == ["ducked", "ducked"]
        contract.speech_goes_on(600)
        await both(one)
        await both(other)
        assert contract.epoch == 1


async def test_how_loud_an_answer_is_where_it_sounds(voices: Path, clock: Clock) -> None:
    """For whoever hears its echo: without a report the loudest of the last half second counts, with one the place that it names."""
    engine = FakeEngine(frames=8)
    async with running(voices, engine) as server, client(server.url) as connection:
        await join(connection)
        await say(connection, type="speak", text=TEXT, requestId="a")
        for _ in range(8):
            await audio(connection)
        contract = contract_of(server)
        assert contract.loudness(0.0) == pytest.approx(20 * np.log10(100 / 32767), abs=0.5)
        clock.now += 0.3
        assert contract.loudness(0.0) == pytest.approx(20 * np.log10(103 / 32767), abs=0.1)
        await say(connection, type="played", requestId="a", ms=640)
        await until(lambda: not contract.playing)
        assert contract.loudness(0.0) is None


async def test_what_the_client_has_played_is_what_was_heard(voices: Path, clock: Clock) -> None:
    """By its reports, a little time after one included; without any, what was released, less what an ideal client still has."""
    engine = FakeEngine(frames=8, gate=asyncio.Semaphore(4))
    async with running(voices, engine) as server, client(server.url) as connection, server.http_client() as http:
        await join(connection)
        for name, reported, passed, expected in (
            ("a", None, 0.1, 100),
            ("b", None, 9.0, 320),
            ("c", 160, 0.0, 160),
            ("d", 160, 0.1, 260),
            ("e", 40, 5.0, 290),
            ("f", 10**6, 0.0, 320),
        ):
            engine.gate = asyncio.Semaphore(4)
            await say(connection, type="speak", text=TEXT, requestId=name)
            for _ in range(4):
                await audio(connection)
            if reported is not None:
                await say(connection, type="played", requestId=name, ms=reported)
                await say(connection, type="played", requestId="nobody", ms=7)
                await say(connection, type="flush")
                assert (await hear(connection))["code"] == "INVALID_MESSAGE"  # so that the report has been read
            clock.now += passed
            assert (await http.post("/api/v1/contracts/c/interrupt")).status_code == 204
            assert (name, (await both(connection))["audioEndMs"]) == (name, expected)


class Voiced(FakeEngine):
    """Syllables of noise instead of tones, for whoever looks for words in the sound."""

    def submit(self, request: SpeechRequest) -> FakeHandle:
        self.requests.append(request)
        self.handles.append(VoicedHandle(self, request, len(self.requests)))
        return self.handles[-1]


class VoicedHandle(FakeHandle):
    async def __anext__(self) -> np.ndarray:
        frame = await super().__anext__()
        loud = np.repeat(np.random.default_rng(self.made).uniform(0.02, 0.3, 4), FRAME // 4)
        return np.random.default_rng(1).normal(0, 1, len(frame)).astype(np.float32) * loud.astype(np.float32) * 0.3


async def test_spoken_text_grows_with_what_was_heard(voices: Path, clock: Clock) -> None:
    spoken = []
    for ms in (0, 800, 1600, 10**6):
        engine = Voiced(frames=40, gate=asyncio.Semaphore(30))
        async with running(voices, engine, lead=10) as server, client(server.url) as connection, server.http_client() as http:
            await join(connection)
            await say(connection, type="speak", text=TEXT)
            for _ in range(30):
                await audio(connection)
            assert (await http.post("/api/v1/contracts/c/interrupt", json={"audioEndMs": ms})).status_code == 204
            message = await both(connection)
            assert message["audioEndMs"] == min(ms, 2400)
            spoken.append(message["spokenText"])
    assert spoken[0] == "" and all(later.startswith(earlier) for earlier, later in itertools.pairwise(spoken))
    assert len(set(spoken)) > 2, spoken


async def test_what_has_ended_and_still_sounds_is_interrupted_without_a_second_end(voices: Path, clock: Clock) -> None:
    async with running(voices, FakeEngine(frames=6)) as server, client(server.url) as connection, server.http_client() as http:
        await join(connection)
        await say(connection, type="speak", text=TEXT, requestId="a")
        assert (await utterance(connection))[1]["type"] == "complete"
        contract = contract_of(server)
        assert playing(contract)
        clock.now += 0.2
        assert (await http.post("/api/v1/contracts/c/interrupt")).status_code == 204
        message = await hear(connection)
        assert (message["type"], message["audioEndMs"], message["requestId"]) == ("interrupted", 200, "a")
        assert not playing(contract) and contract.epoch == 1
        assert (await http.post("/api/v1/contracts/c/interrupt")).status_code == 204  # nothing is spoken: nothing happens
        await say(connection, type="speak", text=TEXT, requestId="b")
        heard, complete = await utterance(connection)
        assert (complete["type"], heard, contract.epoch) == ("complete", pcm16(2, 6), 1)


async def test_pieces_of_a_text_that_was_interrupted_come_too_late(voices: Path) -> None:
    engine = FakeEngine()
    async with running(voices, engine) as server, client(server.url) as connection:
        await join(connection)
        await say(connection, type="speak", text="One two ", requestId="a", **{"continue": True})
        assert await audio(connection) + await audio(connection) == pcm16(1, 2)
        contract_of(server).interrupt()
        await both(connection, "One two ")
        await say(connection, type="speak", text="three four ", requestId="a", **{"continue": True})
        await say(connection, type="flush", requestId="a")
        await say(connection, type="speak", text="New.", requestId="b")
        heard, complete = await utterance(connection)
        assert (heard, complete["type"], complete["requestId"]) == (pcm16(2, 3), "complete", "b")
        assert len(engine.requests) == 2, "the late pieces have opened no utterance"
        await say(connection, type="speak", text="Once more ", requestId="a", **{"continue": True})  # its client had read what happened
        await say(connection, type="flush", requestId="a")
        assert (await utterance(connection))[1]["requestId"] == "a"


async def test_somebody_elses_contract_is_not_there(voices: Path, clock: Clock) -> None:
    engine = FakeEngine(frames=20)
    async with running(voices, engine, jwt_secret=SECRET) as server, server.http_client() as http:
        async with client(server.url) as mine, client(server.url) as theirs:
            for connection, name in ((mine, "me"), (theirs, "them")):
                await join(connection, authToken=token(sub=name))
                await say(connection, type="speak", text=TEXT)
                await audio(connection)
            route = "/api/v1/contracts/c/interrupt"
            answers = [
                await http.post(route, headers={} if name is None else {"Authorization": f"Bearer {token(sub=name)}"})
                for name in (None, "nobody", "me", "me")
            ]
            assert [answer.status_code for answer in answers] == [401, 404, 204, 204]
            assert answers[1].json()["error"]["code"] == "CONTRACT_NOT_FOUND"
            assert (await utterance(mine))[1]["type"] == "interrupted"
            why = (await hear(mine))["message"]
            assert why == "interrupted: a request to end it came (POST /api/v1/contracts/{contractId}/interrupt)"
            clock.now += 9
            heard, complete = await utterance(theirs)
            assert (len(heard), complete["type"]) == (19 * 2 * FRAME, "complete"), "theirs goes on"
            assert (contract_of(server, "jwt:them").epoch, contract_of(server, "jwt:me").epoch) == (0, 1)
            wrong = await http.post(route, headers={"Authorization": f"Bearer {token(sub='me')}"}, content=b'{"audioEndMs": "x"}')
            assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "audioEndMs")


async def test_interrupts_over_http_are_limited_like_all_else(voices: Path) -> None:
    async with running(voices, FakeEngine(), jwt_secret=SECRET, limit_interrupts=2) as server, server.http_client() as http:

        async def status(name: str) -> int:
            headers = {"Authorization": f"Bearer {token(sub=name)}"}
            answer = await http.post("/api/v1/contracts/c/interrupt", headers=headers)
            assert answer.status_code == 404 or answer.json()["error"]["retryAfterMs"] > 0
            return int(answer.status_code)

        assert [await status(name) for name in ("me", "me", "me", "them")] == [404, 404, 429, 404]


async def test_a_clients_names_are_none_of_the_servers_answers(voices: Path) -> None:
    async with running(voices, FakeEngine(frames=1)) as server, client(server.url) as connection:
        await say(connection, type="speak", text=TEXT, requestId="answer-1")
        assert (await utterance(connection))[1]["requestId"] == "answer-1", "without a contract there are no answers"
        await join(connection)
        for continued in (False, True):
            await say(connection, type="speak", text=TEXT, requestId="answer-7", **({"continue": True} if continued else {}))
            error = await hear(connection)
            assert (error["code"], error["requestId"], error["final"]) == ("INVALID_MESSAGE", "answer-7", True)
            assert error["message"].startswith("requestId 'answer-7': answer-1, answer-2, ... are the server's own answers")
        for mine in ("answer", "answer-", "answer-a", "my-answer-1", "Answer-1"):
            await say(connection, type="speak", text=TEXT, requestId=mine)
            assert (await utterance(connection))[1]["type"] == "complete"


# A socket that is lost


async def lose(server: Server, connection: ClientConnection) -> None:
    """The connection dies without a word."""
    connection.transport.abort()
    await until(lambda: any(session.seat is None for session, _ in server.context.sessions))


async def take_up(server: Server, session_id: str, **more: Any) -> ClientConnection:
    connection = await connect(server.url)
    assert (await hear(connection))["type"] == "ready"
    await say(connection, type="resume", sessionId=session_id, **more)
    return connection


@pytest.mark.parametrize("rate", [24000, 8000])
@pytest.mark.parametrize("ms", [0, 57, 160, 301])
async def test_lost_in_mid_answer_and_resumed_from_what_was_played(voices: Path, ms: int, rate: int) -> None:
    """What was played before, and what comes after, are the whole utterance, to the sample."""
    width = 2 * rate // 1000
    engine = FakeEngine(frames=12)
    async with running(voices, engine) as server:
        async with connect(server.url) as connection:
            ready = await hear(connection)
            await join(connection, sampleRate=rate, encoding="pcm16")
            await say(connection, type="speak", text=TEXT, requestId="whole")
            whole, _ = await utterance(connection)
            engine.requests.clear()  # the next one sounds like the first
            engine.gate = asyncio.Semaphore(5)
            await say(connection, type="speak", text=TEXT, requestId="a")
            heard = b""
            while len(heard) < ms * width:
                heard += await audio(connection)
            await lose(server, connection)
        for _ in range(7):
            engine.gate.release()
        async with await take_up(server, ready["sessionId"], requestId="a", playedMs=ms) as resumed:
            started = await hear(resumed)
            assert (started["type"], started["sampleRate"]) == ("started", rate)
            rest, complete = await utterance(resumed)
            assert (complete["type"], complete["requestId"]) == ("complete", "a")
            assert heard[: ms * width] + rest == whole
            engine.gate = None
            await say(resumed, type="speak", text="On.", requestId="b")
            assert (await utterance(resumed))[1]["requestId"] == "b"
        await until(lambda: not server.context.sessions)
        assert "tts_session_resumes_total 1.0" in server.context.metrics.render().decode()


async def test_without_a_number_it_goes_on_from_the_last_report(voices: Path, clock: Clock) -> None:
    async with running(voices, FakeEngine(frames=6)) as server:
        async with connect(server.url) as connection:
            session_id = (await hear(connection))["sessionId"]
            for name, ms in (("a", 480), ("b", 80)):
                await say(connection, type="speak", text=TEXT, requestId=name)
                assert (await utterance(connection))[1]["type"] == "complete"
                await say(connection, type="played", requestId=name, ms=ms)  # whoever says that may come back, contract or none
            await say(connection, type="flush")
            await hear(connection)
            await lose(server, connection)
        async with await take_up(server, session_id) as resumed:
            assert (await hear(resumed))["type"] == "started"
            rest, complete = await utterance(resumed)
            assert (complete["requestId"], rest) == ("b", pcm16(2, 6, 1))


async def test_interrupted_while_it_was_lost(voices: Path) -> None:
    engine = FakeEngine(frames=6, gate=asyncio.Semaphore(2))
    async with running(voices, engine) as server, server.http_client() as http:
        async with connect(server.url) as connection:
            session_id = (await hear(connection))["sessionId"]
            await join(connection)
            await say(connection, type="speak", text=TEXT, requestId="a")
            await audio(connection)
            await lose(server, connection)
        assert (await http.post("/api/v1/contracts/c/interrupt")).status_code == 204
        async with await take_up(server, session_id, requestId="a", playedMs=0) as resumed:
            assert (await hear(resumed))["type"] == "started"
            await both(resumed)
            for _ in range(9):
                engine.gate.release()
            await say(resumed, type="speak", text="New.", requestId="b")
            while isinstance(frame := await asyncio.wait_for(resumed.recv(), LIMIT), str):  # what ended it may be told again
                assert json.loads(frame)["requestId"] == "a"
            assert set(np.frombuffer(frame, "<i2").tolist()) == {200}


async def test_taken_up_before_the_server_knew_that_it_was_lost(voices: Path) -> None:
    """A phone changes its network: the old socket is dead, and nothing tells."""
    engine = FakeEngine(frames=6, gate=asyncio.Semaphore(3))
    async with running(voices, engine) as server, connect(server.url) as old:
        session_id = (await hear(old))["sessionId"]
        await join(old)
        await say(old, type="speak", text=TEXT, requestId="a")
        for _ in range(3):
            await audio(old)
        async with await take_up(server, session_id, requestId="a", playedMs=80) as new:
            assert (await hear(new))["type"] == "started"
            for _ in range(3):
                engine.gate.release()
            assert (await utterance(new))[0] == pcm16(1, 6, 1)
            assert await closed(old) == 1012
            await say(new, type="stop")
            assert (await hear(new))["type"] == "stopped"
            assert await closed(new) == 1000


class KeptSocket:
    """A socket that keeps what is sent on it."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    async def receive(self) -> str | bytes | None:
        raise NotImplementedError

    async def send(self, data: str | bytes) -> None:
        self.sent.append(json.loads(data)["type"])

    async def close(self, code: int, reason: str = "") -> None:
        self.sent.append(f"closed {code}")


async def test_of_many_that_take_it_up_at_once_the_last_is_told_once(voices: Path) -> None:
    async with running(voices, FakeEngine()) as server, connect(server.url) as old:
        await hear(old)
        await join(old)
        await lose(server, old)
        session = next(session for session, _ in server.context.sessions if isinstance(session, ClientSession))
        sockets = [KeptSocket() for _ in range(6)]
        for one in sockets:  # before anything can be sent
            session._out.attach(one, session._started())
        await session._out.send(protocol.Stopped(reason="enough"))
        assert [one.sent for one in sockets] == [[]] * 5 + [["started", "stopped"]]


async def test_what_cannot_be_taken_up(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(frames=6, gate=asyncio.Semaphore(1))
    async with running(voices, engine, jwt_secret=SECRET) as server:
        async with connect(server.url) as connection:
            session_id = (await hear(connection))["sessionId"]
            await join(connection, authToken=token(sub="me"))
            await say(connection, type="speak", text=TEXT, requestId="a")
            await audio(connection)
            await lose(server, connection)
        for name, wanted in (("them", session_id), ("me", "nobody")):
            async with await take_up(server, wanted, authToken=token(sub=name)) as other:
                error = await hear(other)
                assert (error["code"], error["recoverable"]) == ("INVALID_MESSAGE", True)
                await join(other)  # it is a session like any other
                await say(other, type="resume", sessionId=session_id)
                assert "first message" in (await hear(other))["message"]
        monkeypatch.setattr("server.ws.session.LOST_SECONDS", 0.0)
        lost = next(session for session, _ in server.context.sessions if session.id == session_id)
        lost._look_again()
        await until(lambda: not server.context.sessions)
        assert engine.handles[0].cancelled.is_set()
        assert 'tts_utterances_ended_total{end="left"} 1.0' in server.context.metrics.render().decode()


async def test_a_client_that_says_goodbye_does_not_come_back(voices: Path) -> None:
    engine = FakeEngine(frames=6, gate=asyncio.Semaphore(1))
    async with running(voices, engine) as server:
        async with client(server.url) as connection:
            await join(connection)
            await say(connection, type="speak", text=TEXT)
            await audio(connection)
        await asyncio.wait_for(engine.handles[0].cancelled.wait(), LIMIT)
        assert not server.context.sessions


# Answers of the server


async def test_an_answer_is_spoken_as_it_is_written(voices: Path) -> None:
    engine = FakeEngine()
    async with running(voices, engine) as server, client(server.url) as connection:
        await join(connection)
        answer = contract_of(server).mouth.answer("answer-1")
        answer.append("One two ")
        assert await hear(connection) == {"type": "answer", "requestId": "answer-1", "text": "One two ", "isFinal": False}
        assert await audio(connection) + await audio(connection) == pcm16(1, 2)
        await say(connection, type="speak", text="Mine ", requestId="mine", **{"continue": True})  # the client's own beside it
        answer.append("three.")
        answer.finish()
        kinds, heard = [], b""
        while "complete" not in kinds:
            frame = await asyncio.wait_for(connection.recv(), LIMIT)
            if isinstance(frame, bytes):
                heard += frame
            else:
                kinds.append(json.loads(frame)["type"])
        assert kinds[-1] == "complete" and heard == pcm16(1, 3, 2)
        await say(connection, type="played", requestId="answer-1", ms=240)
        assert await asyncio.wait_for(answer.heard(), LIMIT) == "One two three."
        await say(connection, type="flush", requestId="mine")
        assert (await utterance(connection))[1]["requestId"] == "mine"


async def test_of_an_answer_that_is_interrupted_the_heard_part_is_known(voices: Path, clock: Clock) -> None:
    async with running(voices, Voiced()) as server, client(server.url) as connection:
        await join(connection)
        contract = contract_of(server)
        answer = contract.mouth.answer("answer-1")
        answer.append(TEXT + " ")
        assert (await hear(connection))["type"] == "answer"
        for _ in range(8):
            await audio(connection)
        clock.now += 0.5
        contract.interrupt()
        message = await both(connection, TEXT + " ")
        assert await asyncio.wait_for(answer.heard(), LIMIT) == message["spokenText"] != ""
        answer.append("more")
        answer.finish()
        mouth = contract.mouth
        unspoken = mouth.answer("answer-2")
        unspoken.append("Never ")
        unspoken.cancel()
        assert await asyncio.wait_for(unspoken.heard(), LIMIT) == ""
        empty = mouth.answer("answer-3")
        empty.finish()
        assert await asyncio.wait_for(empty.heard(), LIMIT) == ""
        refused = mouth.answer("answer-4")
        refused.append("x" * 5000)
        assert await asyncio.wait_for(refused.heard(), LIMIT) == ""
        left = mouth.answer("answer-5")
        left.append("Good ")
    assert await asyncio.wait_for(left.heard(), LIMIT) in ("", "Good")
    assert await asyncio.wait_for(mouth.answer("answer-6").heard(), LIMIT) == "", "the session has ended"


async def test_word_times_come_before_the_audio_that_they_belong_to(voices: Path) -> None:
    async with running(voices, Voiced(frames=40), lead=10) as server, client(server.url) as connection:
        await say(connection, type="speak", text=TEXT, requestId="a", wordTimes=True)
        told: list[Any] = []
        seconds = 0.0
        while True:
            frame = await asyncio.wait_for(connection.recv(), LIMIT)
            if isinstance(frame, bytes):
                seconds += len(frame) / 48000
                continue
            message = json.loads(frame)
            if message["type"] != "words":
                break
            new = message["words"][max(0, len(told) - message["first"]) :]
            assert seconds > 3 or all(word["startMs"] is None or word["startMs"] >= 1000 * seconds - 2000 for word in new)
            told[message["first"] :] = message["words"]
        assert message["type"] == "complete"
        assert [word["word"] for word in told] == TEXT.split()
        starts = [word["startMs"] for word in told]
        assert starts == sorted(starts) and told[-1]["endMs"] <= 3200


async def test_silence_is_no_idleness_while_somebody_is_heard(voices: Path) -> None:
    async with running(voices, FakeEngine(), idle_timeout=0.1) as server, client(server.url) as connection:
        await join(connection)
        ear = object()
        contract_of(server).attend(ear)
        await asyncio.sleep(0.3)
        await say(connection, type="flush")
        assert (await hear(connection))["code"] == "INVALID_MESSAGE", "it lives"
        contract_of(server).leave(ear)
        assert (await hear(connection))["code"] == "TIMEOUT"
        assert await closed(connection) == 4408
