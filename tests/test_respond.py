"""Answers: the echo, a chat endpoint with its faults, and a conversation whose history has only what was heard."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from qwen3_jax.runtime.extras import MissingExtra
from server.respond import factory
from server.respond.base import Said, Unanswered
from server.respond.conversation import MOST_CHARACTERS, MOST_TURNS, Conversation
from server.respond.echo import Echo
from server.respond.openai import LONGEST_LINE, OpenAI
from server.settings import Settings
from tests.fake_engine import LIMIT

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
QUESTION = [Said("user", "What is the tide like?")]
Send = Callable[[bytes], Awaitable[None]]


def event(text: str | None, finish: str | None = None) -> bytes:
    """A chunk, as chat endpoints stream it."""
    delta = {} if text is None else {"content": text}
    chunk = {"id": "1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


class ChatEndpoint:
    """One on a free port of 127.0.0.1. ``script`` is sent after the request has been read; ``asked`` are the requests' bodies."""

    def __init__(self, script: Callable[[Send], Awaitable[None]]) -> None:
        self.script, self.asked, self.heads = script, list[dict[str, Any]](), list[bytes]()
        self.left = asyncio.Event()  # the client has closed a connection

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        self.heads.append(head)
        self.asked.append(json.loads(await reader.readexactly(length)))

        async def send(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        sending, leaving = asyncio.ensure_future(self.script(send)), asyncio.ensure_future(reader.read())
        await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if leaving.done():
            self.left.set()
        for task in (sending, leaving):
            task.cancel()
        await asyncio.gather(sending, leaving, return_exceptions=True)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def endpoint(script: Callable[[Send], Awaitable[None]]) -> AsyncIterator[tuple[ChatEndpoint, str]]:
    """It, and its address."""
    chat, served = ChatEndpoint(script), set[asyncio.Task[None]]()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.add(asyncio.ensure_future(chat.serve(reader, writer)))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield chat, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        await asyncio.wait_for(asyncio.gather(*served, return_exceptions=True), LIMIT)


def sending(*pieces: bytes, stall: bool = False) -> Callable[[Send], Awaitable[None]]:
    """A script of those bytes; ``stall``: the connection stays open, and nothing more comes."""

    async def script(send: Send) -> None:
        for piece in pieces:
            await send(piece)
        if stall:
            await asyncio.Event().wait()

    return script


def responder(url: str, *, key: str | None = None, instructions: str = "", timeout: float = LIMIT, most: int = 1000) -> OpenAI:
    return OpenAI(url, "small", key, instructions, timeout, most)


async def answered(chat: OpenAI, history: Sequence[Said] = QUESTION) -> list[str]:
    try:
        return [piece async for piece in chat.answer(history)]
    finally:
        await chat.close()


GOOD = (HEAD, event("Low, "), event("and "), event("rising."), event(None, "stop"), b"data: [DONE]\n\n")


async def test_an_answer_comes_in_pieces_and_the_request_is_a_chat_completion() -> None:
    async with endpoint(sending(*GOOD)) as (chat, url):
        assert await answered(responder(url, key="sesame", instructions="Be brief.")) == ["Low, ", "and ", "rising."]
    assert chat.asked == [
        {
            "model": "small",
            "stream": True,
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the tide like?"}],
        }
    ]
    assert chat.heads[0].startswith(b"POST /v1/chat/completions ") and b"bearer sesame" in chat.heads[0].lower()


async def test_no_key_is_sent_where_there_is_none() -> None:
    async with endpoint(sending(*GOOD)) as (chat, url):
        await answered(responder(url))
    assert b"authorization" not in chat.heads[0].lower()


@pytest.mark.parametrize(
    "pieces",
    [
        (HEAD, *(bytes([byte]) for byte in b"".join(GOOD[1:]))),  # byte by byte
        (HEAD, b"".join(GOOD[1:]).replace(b"\n", b"\r\n")),
        (HEAD, b": keep-alive\n\nevent: message\n", b"".join(GOOD[1:])),
        (HEAD, b"".join(GOOD[1:4]), event(None, "length")),  # no [DONE], but an end
        (HEAD, b"".join(GOOD[1:4]), b"data: [DONE]"),  # and no blank line
        (HEAD, b'data: {"choices": []}\n\n', *GOOD[1:]),  # with usage
    ],
)
async def test_streams_of_other_habits_are_read(pieces: tuple[bytes, ...]) -> None:
    async with endpoint(sending(*pieces)) as (_, url):
        assert "".join(await answered(responder(url))) == "Low, and rising."


BAD = {
    "it stalls before its head": ((), True, "sent nothing for 0.2 s"),
    "it stalls in the middle": ((HEAD, event("Low, ")), True, "sent nothing for 0.2 s"),
    "it only says that it lives": ((HEAD, b": keep-alive\n\n" * 3), True, "sent nothing for 0.2 s"),
    "it dies in the middle": ((HEAD, event("Low, ")), False, "broke off"),
    "it dies inside an event": ((HEAD, event("Low, "), b'data: {"cho'), False, "no chat completion"),
    "it dies before its head": ((), False, "broke off"),
    "it is no HTTP": ((b"SSH-2.0-OpenSSH_9\r\n",), False, "broke off"),
    "it sends a page": ((HEAD, b"<html>Welcome</html>"), False, "broke off"),
    "it sends garbage": ((HEAD, b"data: \xff\xfe\x00\n\n"), False, "no chat completion"),
    "it sends other JSON": ((HEAD, b'data: {"choices": [{"delta": {"content": 7}}]}\n\n'), False, "no chat completion"),
    "it sends a list": ((HEAD, b"data: []\n\n"), False, "no chat completion"),
    "it sends a line without end": ((HEAD, b"data: " + b"a" * (LONGEST_LINE + 1)), True, "no stream of events"),
    "it tells of an error": ((HEAD, b'data: {"error": {"message": "overloaded"}}\n\n'), False, "an error of its own"),
    "it says nothing": ((HEAD, event(None, "stop"), b"data: [DONE]\n\n"), False, "without text"),
    "it refuses the key": ((b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n",), False, "HTTP 401: see TTS_RESPONDER_KEY"),
    "it has no such model": ((b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n",), False, "HTTP 404: see TTS_RESPONDER_URL"),
    "it redirects": ((b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n",), False, "HTTP 302"),
}


@pytest.mark.parametrize("name", BAD)
async def test_faults_of_the_endpoint_are_told_in_words(name: str) -> None:
    pieces, stall, message = BAD[name]
    async with endpoint(sending(*pieces, stall=stall)) as (_, url):
        with pytest.raises(Unanswered, match=message):
            await answered(responder(url, timeout=0.2 if "sent nothing" in message else LIMIT))


async def test_an_endpoint_that_is_not_there() -> None:
    async with endpoint(sending()) as (_, url):
        pass
    with pytest.raises(Unanswered, match="cannot be reached"):
        await answered(responder(url))


async def test_an_answer_that_never_ends_is_ended() -> None:
    async def script(send: Send) -> None:
        await send(HEAD)
        while True:
            await send(event(""))
            await asyncio.sleep(0.01)

    async with endpoint(script) as (_, url):
        with pytest.raises(Unanswered, match="or no end"):
            await answered(responder(url, timeout=0.1))


async def test_a_long_answer_is_cut_after_a_word_and_the_connection_let_go() -> None:
    async def script(send: Send) -> None:
        await send(HEAD)
        while True:
            await send(event("word and "))

    async with endpoint(script) as (chat, url):
        text = "".join(await answered(responder(url, most=100)))
        assert text.split() == ["word", "and"] * 11 and 95 <= len(text) <= 100
        await asyncio.wait_for(chat.left.wait(), LIMIT)


# The conversation


class FakeMouth:
    """A mouth whose answers sound until a test ends them; itself the contract that it is in."""

    def __init__(self) -> None:
        self.answers: list[FakeAnswer] = []
        self.asked = 0
        self.opened = asyncio.Semaphore(0)

    @property
    def mouth(self) -> "FakeMouth | None":
        return self

    def next_answer(self) -> str:
        self.asked += 1
        return f"answer-{self.asked}"

    def answer(self, request_id: str) -> "FakeAnswer":
        self.answers.append(FakeAnswer(request_id))
        self.opened.release()
        return self.answers[-1]

    async def next(self) -> "FakeAnswer":
        await asyncio.wait_for(self.opened.acquire(), LIMIT)
        return self.answers[-1]


class FakeAnswer:
    def __init__(self, request_id: str) -> None:
        self.request_id, self.text = request_id, ""
        self.finished, self.cancelled = asyncio.Event(), False
        self._heard: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def append(self, text: str) -> None:
        assert not self._heard.done() and not self.finished.is_set()
        self.text += text

    def finish(self) -> None:
        assert not self._heard.done()
        self.finished.set()

    def cancel(self) -> None:
        self.cancelled = True
        self.end(self.text[:3])

    def end(self, heard: str | None = None) -> None:
        """It does not sound any more; default: all of it was heard."""
        if not self._heard.done():
            self._heard.set_result(self.text if heard is None else heard)

    async def heard(self) -> str:
        return await self._heard


class Scripted:
    """A responder whose pieces a test brings."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        self.histories: list[list[Said]] = []
        self.left = 0

    async def answer(self, history: Sequence[Said]) -> AsyncGenerator[str, None]:
        self.histories.append(list(history))
        try:
            while (piece := await self.pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self.left += 1

    async def close(self) -> None: ...


async def settled(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():  # noqa: ASYNC110  # nothing tells when a task has ended
            await asyncio.sleep(0)


async def test_echo_is_spoken_and_remembered() -> None:
    mouth = FakeMouth()
    conversation = Conversation(Echo(), mouth, pytest.fail)
    conversation.turn(" Hello there. ")
    answer = await mouth.next()
    await asyncio.wait_for(answer.finished.wait(), LIMIT)
    assert (answer.request_id, answer.text) == ("answer-1", "Hello there.")
    assert list(conversation.history) == [Said("user", "Hello there.")], "nothing has been heard yet"
    answer.end()
    await settled(lambda: len(conversation.history) == 2)
    assert conversation.history[1] == Said("assistant", "Hello there.")
    conversation.turn("   ")
    assert len(mouth.answers) == 1
    await conversation.close()


async def test_a_turn_cancels_the_answer_under_way_and_history_keeps_what_was_heard() -> None:
    mouth, script = FakeMouth(), Scripted()
    conversation = Conversation(script, mouth, pytest.fail)
    conversation.turn("One?")
    await script.pieces.put("Yes, one and more.")
    first = await mouth.next()
    await settled(lambda: bool(first.text))
    conversation.turn("Two?")
    conversation.turn("Or three?")  # before the first has ended
    await settled(lambda: len(script.histories) == 2)
    assert first.cancelled and script.left == 1
    assert script.histories[1] == [Said("user", "One?"), Said("assistant", "Yes"), Said("user", "Two?\nOr three?")]
    await conversation.close()
    assert script.left == 2


async def test_an_interruption_ends_the_writing() -> None:
    mouth, script = FakeMouth(), Scripted()
    conversation = Conversation(script, mouth, pytest.fail)
    conversation.turn("Tell me all.")
    await script.pieces.put("It began long ago, ")
    answer = await mouth.next()
    await settled(lambda: bool(answer.text))
    answer.end("It began")  # as the mouth does when it is interrupted
    await settled(lambda: answer._heard.done())
    await script.pieces.put("when ")
    await settled(lambda: len(conversation.history) == 2)
    assert answer.text == "It began long ago, " and not answer.finished.is_set()
    assert conversation.history[1] == Said("assistant", "It began") and script.left == 1
    await conversation.close()


async def test_a_fault_is_told_once_and_the_next_turn_is_answered() -> None:
    mouth, script, told = FakeMouth(), Scripted(), list[str]()
    conversation = Conversation(script, mouth, told.append)
    conversation.turn("One?")
    await script.pieces.put("Yes, ")
    await script.pieces.put(Unanswered("it broke off"))
    answer = await mouth.next()
    await asyncio.wait_for(answer.finished.wait(), LIMIT)
    assert told == ["it broke off"] and answer.text == "Yes, ", "what was written is spoken to its end"
    answer.end()
    conversation.turn("Two?")
    await script.pieces.put(Unanswered("it is away"))
    await settled(lambda: len(told) == 2)
    assert len(mouth.answers) == 1, "there was nothing to say"
    conversation.turn("Three?")
    await script.pieces.put("Three.")
    assert (await mouth.next()).request_id == "answer-3"
    assert script.histories[-1][-1] == Said("user", "Two?\nThree?")
    await conversation.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_fault_of_ours_is_told_too(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    script = Scripted()
    conversation = Conversation(script, FakeMouth(), told.append)
    conversation.turn("One?")
    await script.pieces.put(KeyError("oops"))
    await settled(lambda: bool(told))
    assert "internal error" in told[0] and "oops" not in told[0] and "oops" in caplog.text
    await conversation.close()


async def test_without_a_mouth_nothing_is_asked_and_the_client_is_told() -> None:
    class Nobody:
        mouth = None

    script, told = Scripted(), list[str]()
    conversation = Conversation(script, Nobody(), told.append)
    conversation.turn("One?")
    await settled(lambda: bool(told))
    assert len(told) == 1 and "no Speak session has this contractId" in told[0]
    assert conversation.history and not script.histories
    await conversation.close()


async def test_the_history_is_bounded() -> None:
    mouth = FakeMouth()
    conversation = Conversation(Echo(), mouth, pytest.fail)
    for number in range(MOST_TURNS):
        conversation.turn(f"Turn {number}.")
        answer = await mouth.next()
        await asyncio.wait_for(answer.finished.wait(), LIMIT)
        answer.end()
        await settled(lambda: conversation.history[-1].role == "assistant")
    assert len(conversation.history) <= MOST_TURNS and conversation.history[0].role == "user"
    conversation.turn("a" * 2 * MOST_CHARACTERS)
    await mouth.next()
    assert [len(said.text) for said in conversation.history] == [MOST_CHARACTERS]
    await conversation.close()


# The settings


def test_the_settings_choose_the_responder() -> None:
    assert isinstance(factory.create(Settings()), Echo)
    chat = factory.create(Settings(responder_url="http://127.0.0.1:1/v1/chat/completions", responder_model="small"))
    assert isinstance(chat, OpenAI) and chat._url == "http://127.0.0.1:1/v1/chat/completions"
    with pytest.raises(ValueError, match="set both"):
        Settings(responder_url="http://127.0.0.1:1/v1")
    with pytest.raises(ValueError, match="set both"):
        Settings(responder_model="small")
    with pytest.raises(ValueError, match="address of a chat endpoint"):
        Settings(responder_url="127.0.0.1:1/v1", responder_model="small")
    secret = Settings(responder_url="http://user:word@127.0.0.1:1/v1", responder_model="small", responder_key="sesame").changed()
    assert "sesame" not in secret and "word" not in secret


def test_an_endpoint_without_its_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "httpx", None)
    with pytest.raises(MissingExtra, match=r"TTS_RESPONDER_URL needs the extra respond .*pip install"):
        factory.create(Settings(responder_url="http://127.0.0.1:1/v1", responder_model="small"))
