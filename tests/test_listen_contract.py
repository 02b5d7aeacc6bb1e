"""What a Listen session tells its contract, and whose turns are answered: a real contract with a mouth that only takes notes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.contracts.contract import Contract
from server.respond.base import Responder
from tests.hearing import FakeVoiceActivity, hear_until, listening, send, sound, start
from tests.serving import Server, client, say, until

ANONYMOUS = "anonymous"
WORDLESS = 0.09  # a level in which the recogniser finds no word: a partial does not interrupt, however soon it comes


class NotedMouth:
    """Speaks on, until it is interrupted."""

    interruption = "confirm"

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.speaking = self.sounding = True

    def loudness(self, ago: float) -> float | None:
        return None

    def duck(self) -> None:
        self.notes.append("duck")

    def unduck(self) -> None:
        self.notes.append("unduck")

    def interrupt(self, audio_end_ms: int | None, *, asked: bool) -> None:
        self.notes.append("interrupt")
        self.speaking = self.sounding = False

    def answer(self, request_id: str) -> Any:
        raise NotImplementedError


def joined(server: Server) -> tuple[NotedMouth, Contract]:
    contract, mouth = server.context.contracts.of(ANONYMOUS, "c"), NotedMouth()
    contract.join(mouth)
    return mouth, contract


async def test_speech_ducks_at_once_and_half_a_second_of_it_interrupts(voices: Path) -> None:
    async with listening(voices, "hold") as server, client(server.url) as connection:
        mouth, _ = joined(server)
        mouth.sounding = False  # no echo to guard against
        await start(connection, contractId="c")
        await send(connection, sound((0, 0.32), (WORDLESS, 0.32)))
        await hear_until(connection, "speechStarted")
        await until(lambda: mouth.notes == ["duck"])
        await send(connection, sound((WORDLESS, 0.32)))
        await until(lambda: mouth.notes == ["duck", "interrupt"])
        (voices.parent / "go").touch()


async def test_a_recognised_word_interrupts_and_a_cough_or_mm_hm_does_not(voices: Path) -> None:
    async with listening(voices, resume_after=10.0) as server, client(server.url) as connection:
        mouth, _ = joined(server)
        mouth.sounding = False
        await start(connection, contractId="c")
        for level in (WORDLESS, 0.08):  # nothing, and "Mm-hm."
            await send(connection, sound((0, 0.32), (level, 0.256), (0, 0.64)))
            await until(lambda: mouth.notes == ["duck", "unduck"])
            mouth.notes.clear()
        await send(connection, sound((0, 0.32), (0.5, 0.256), (0, 0.64)))
        await until(lambda: mouth.notes == ["duck", "interrupt"])


async def test_what_is_too_short_or_cleared_was_no_speech(voices: Path) -> None:
    async with listening(voices, "hold", resume_after=10.0) as server, client(server.url) as connection:
        mouth, _ = joined(server)
        mouth.sounding = False
        await start(connection, contractId="c", turnDetection={"minSpeechMs": 200})
        await send(connection, sound((0, 0.32), (WORDLESS, 0.128), (0, 0.64)))
        await until(lambda: mouth.notes == ["duck", "unduck"])
        await send(connection, sound((0, 0.32), (WORDLESS, 0.256)))
        await say(connection, type="clear")
        await until(lambda: mouth.notes == ["duck", "unduck"] * 2)
        (voices.parent / "go").touch()


async def test_the_echo_of_an_answer_does_not_even_duck_it(voices: Path) -> None:
    async with listening(voices) as server, client(server.url) as connection:
        mouth, _ = joined(server)
        await start(connection, contractId="c")
        await send(connection, sound((0, 0.32), (0.1, 3.0), (0, 0.64), (0.12, 1.0)))
        await say(connection, type="commit")  # nobody has spoken: answered at once, with nothing
        assert [(one["type"], one["text"]) for one in await hear_until(connection, "final")] == [("final", "")]
        assert mouth.notes == []
        await send(connection, sound((0.5, 1.0)))
        await until(lambda: mouth.notes == ["duck", "interrupt"])


async def test_what_may_be_speech_ducks_the_answer_for_a_moment_and_is_no_turn(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeVoiceActivity, "feed", lambda self, window: 0.3 * float(abs(window).mean() > 0.05))
    async with listening(voices) as server, client(server.url) as connection:
        mouth, contract = joined(server)
        await start(connection, contractId="c")
        await send(connection, sound((0, 1.12), (0.5, 0.064), (0, 0.16)))  # an answer's first second is for its echo
        await until(lambda: mouth.notes == ["duck", "unduck"])
        await say(connection, type="commit")
        assert [one["type"] for one in await hear_until(connection, "final")] == ["final"], "no speech has started"
        mouth.sounding = False
        await send(connection, sound((0, 1.12), (0.5, 0.064), (0, 0.16)))
        await say(connection, type="commit")
        await hear_until(connection, "final")
        assert mouth.notes == ["duck", "unduck"] and contract.epoch == 0, "where no answer sounds there is nothing to duck"


async def test_a_client_that_leaves_while_it_speaks_gives_the_floor_back(voices: Path) -> None:
    async with listening(voices, "hold") as server:
        mouth, contract = joined(server)
        mouth.sounding = False
        async with client(server.url) as connection:
            await start(connection, contractId="c")
            await send(connection, sound((0, 0.32), (WORDLESS, 0.256)))
            await until(lambda: mouth.notes == ["duck"])
        await until(lambda: mouth.notes == ["duck", "unduck"])
        (voices.parent / "go").touch()
        contract.leave(mouth)
        assert contract.empty


class NotedAnswers:
    """Takes notes of turns."""

    def __init__(self) -> None:
        self.turns: list[str] = []
        self.closed = False

    def __call__(self, responder: Responder, contract: Contract, tell: Callable[[str], None]) -> "NotedAnswers":
        self.tell = tell
        return self

    def turn(self, text: str) -> None:
        self.turns.append(text)
        self.tell("the model is away")

    async def close(self) -> None:
        self.closed = True


async def test_turns_are_answered_where_the_client_asks_for_it(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = NotedAnswers()
    monkeypatch.setattr("server.ws.floor.Conversation", answers)
    async with listening(voices) as server:
        async with client(server.url) as connection:
            assert not (await start(connection, contractId="c"))["respond"]
            await send(connection, sound((0, 0.32), (0.5, 0.32), (0, 0.64)))
            await hear_until(connection, "final")
            assert (await start(connection, contractId="c", respond=True))["respond"]
            await send(connection, sound((0, 0.32), (0.4, 0.32), (0, 0.64)))
            await hear_until(connection, "final")
            error = (await hear_until(connection, "error"))[-1]
            assert (error["code"], error["message"], error["final"]) == ("RESPONDER_ERROR", "the model is away", False)
        await until(lambda: answers.closed)
    assert answers.turns == ["level40 3"]
