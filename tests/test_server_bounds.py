"""What a client sends costs work that is bounded before it begins: over a real socket, with what was worst of each kind."""

import asyncio
import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwen3_jax.text import nfc
from qwen3_jax.text.nfc import MARKS, SLICE
from server.http.bodies import MAX_BOUNDARY, MAX_FIELD, MAX_PART_HEAD, MAX_PARTS, BoundedBody
from server.http.http1 import MAX_HEAD, MAX_LINES, MAX_TARGET
from server.http.web import HttpError
from server.ops.auth import MAX_TOKEN
from tests.fake_engine import LIMIT, FakeEngine, pcm16
from tests.serving import Server, client, hear, running, say, utterance
from tests.test_nfc import Counting, run
from tests.test_server_transport import HANDSHAKE

SPEECH, VOICES = "/v1/audio/speech", "/api/v1/voices"
MOST_ANSWER = 4000  # bytes of any refusal


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    """Lengths of all that is normalised."""
    made = Counting()
    monkeypatch.setattr(nfc, "unicodedata", made)
    yield made
    assert max(made.asked, default=0) <= SLICE + MARKS, "never more at a time than the loop can wait for"


def speech(text: str, **more: Any) -> bytes:
    return json.dumps({"input": text, **more}, ensure_ascii=False).encode()


async def refused(http: httpx.AsyncClient, path: str, **request: Any) -> tuple[int, str, str]:
    answer = await http.post(path, **request)
    assert len(answer.content) < MOST_ANSWER
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["message"]


LONG_SPEECH = [
    (speech(run(2000)), 400, "INVALID_TEXT", "more than 30 combining marks"),
    (speech("a" + run(MARKS + 1)), 400, "INVALID_TEXT", "more than 30 combining marks"),
    (speech(run(20_000)), 400, "INVALID_TEXT", "text of 20000 characters: must be 1 to 4096"),
    (speech("x" * 4097), 400, "INVALID_TEXT", "text of 4097 characters"),
    (speech("\U0001d160" * 1400), 400, "INVALID_TEXT", "text of 4200 characters"),  # NFC makes three of each
    (speech(" " * 60_000), 400, "INVALID_TEXT", "text of 0 characters"),
    (speech("Hello.", voice="x" * 60_000), 400, "INVALID_MESSAGE", "at most 128 characters"),
    (speech("Hello.", voice={"id": "x" * 60_000}), 400, "INVALID_MESSAGE", "at most 128 characters"),
    (speech("Hello.", voice="x" * 100), 404, "VOICE_NOT_FOUND", "x... (100 characters)"),
    (speech("Hello.", language="İ" * 60_000), 413, "BODY_TOO_BIG", "bytes"),
    (speech("Hello.", language="İ" * 30_000), 400, "INVALID_MESSAGE", "at most 128 characters"),
    (speech("Hello.", response_format="x" * 60_000), 400, "INVALID_MESSAGE", "response_format 'xxx"),
    (b'{"input":' + b"[" * 60_000, 400, "INVALID_MESSAGE", "nested too deep"),
    (b'{"input":"a","x":' + b"[" * 40_000 + b"]" * 40_000 + b"}", 400, "INVALID_MESSAGE", "nested too deep"),
    (b'{"input":"a","seed":' + b"9" * 60_000 + b"}", 400, "INVALID_MESSAGE", "out of range"),
    (speech(run(100_000)), 413, "BODY_TOO_BIG", "a body of more than 114688 bytes"),
    (b"x" * 5_000_000, 413, "BODY_TOO_BIG", "a body of more than 114688 bytes"),
]


async def test_speech_that_is_too_much_is_refused_for_its_length(voices: Path, counting: Counting) -> None:
    async with running(voices, FakeEngine()) as server, server.http_client() as http:
        for body, *expected, said in LONG_SPEECH:
            *answer, message = await refused(http, SPEECH, content=body)
            assert answer == expected, said
            assert said in message
        assert sum(counting.asked) < 5000, "of a megabyte, what is short enough"
        counting.asked.clear()
        whole = ("a" + run(MARKS)) * 64
        done = await http.post(SPEECH, content=speech(whole, response_format="pcm"))
        assert (done.status_code, done.content) == (200, pcm16(1, 3))


async def test_the_longest_text_that_can_be_allowed(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100,000 characters: in slices, after each of which the loop goes round; what shrinks to so many is taken as well."""
    engine, rounds, seen = FakeEngine(), 0, []

    class Seen(Counting):
        def normalize(self, form: str, text: str) -> str:
            if len(text) > MARKS + 1:
                seen.append(rounds)
            return super().normalize(form, text)

    async def go_round() -> None:
        nonlocal rounds
        while True:
            await asyncio.sleep(0)
            rounds += 1

    counting = Seen()
    monkeypatch.setattr(nfc, "unicodedata", counting)
    everything: dict[str, Any] = {"max_text_chars": 100_000, "max_message_bytes": 10**6, "limit_characters": 10**7}
    async with running(voices, engine, **everything) as server, server.http_client() as http:
        going = asyncio.create_task(go_round())
        for text in ("\ufb2c" * 33_333, "e\u0302\u0301" * 100_000):
            seen.clear()
            done = await http.post(SPEECH, content=speech(text, response_format="pcm"))
            assert (done.status_code, len(seen), len(set(seen))) == (200, -(-len(text) // SLICE), len(seen))
        going.cancel()
        assert await refused(http, SPEECH, content=speech("e\u0301" * 100_001)) == (
            400,
            "INVALID_TEXT",
            "text of 100001 characters: must be 1 to 100000 after trimming",
        )
        counting.asked.clear()
        assert (await refused(http, SPEECH, content=speech("a" * 399_000 + run(1000))))[1] == "INVALID_TEXT"
        assert (await refused(http, SPEECH, content=speech("a" * 400_001)))[2].startswith("text of 400001 characters")
        assert sum(counting.asked) <= 399_000 + SLICE
        async with client(server.url) as connection:
            await say(connection, type="speak", text="\ufb2c" * 33_333)
            assert (await utterance(connection))[1]["charactersProcessed"] == 99_999
            await say(connection, type="speak", text="a" * 99_000 + run(1000))
            assert "more than 30 combining marks" in (await hear(connection))["message"]
    assert [len(request.text) for request in engine.requests] == [99_999, 100_000, 99_999]
    assert max(counting.asked) <= SLICE + MARKS


async def test_a_session_lives_on_after_all_that_is_too_much(voices: Path, counting: Counting) -> None:
    speak = {"type": "speak", "requestId": "r"}
    frames: list[tuple[str, str, str]] = [
        (json.dumps(speak | {"text": run(32_000)}, ensure_ascii=False), "INVALID_TEXT", "text of 32000 characters"),
        (json.dumps(speak | {"text": run(2000)}), "INVALID_TEXT", "more than 30 combining marks"),
        (json.dumps(speak | {"text": "今" * 21_000}, ensure_ascii=False), "INVALID_TEXT", "text of 21000 characters"),
        (json.dumps(speak | {"text": "a", "voice": "x" * 60_000}), "INVALID_MESSAGE", "at most 128 characters"),
        (json.dumps(speak | {"text": "a", "priority": "x" * 60_000}), "INVALID_MESSAGE", "priority 'xxx"),
        (json.dumps(speak | {"text": 1}), "INVALID_MESSAGE", "text 1 must be a text"),
        (json.dumps(speak), "INVALID_MESSAGE", "text"),
        ('{"requestId":"r","type":"speak","text":"a","topP":5}', "INVALID_MESSAGE", "topP"),
        ('{"requestId":"r","type":"speak","text":"a","seed":' + "9" * 60_000 + "}", "INVALID_MESSAGE", "out of range"),
    ]
    nameless: list[tuple[str, str, str]] = [
        ('{"type":"start","sampleRate":' + "9" * 4000 + "}", "INVALID_MESSAGE", "sampleRate 999"),
        (json.dumps({"type": "start", "encoding": "x" * 60_000}), "INVALID_MESSAGE", "encoding 'xxx"),
        (json.dumps(speak | {"text": "a", "requestId": "x" * 60_000}), "INVALID_MESSAGE", "at most 128 characters"),
        ('{"type":"speak","x":' + "[" * 30_000 + "]" * 30_000 + "}", "INVALID_MESSAGE", "nested too deep"),
        ("[" * 60_000, "INVALID_MESSAGE", "object"),
        ("x" * 60_000, "INVALID_MESSAGE", "malformed"),
    ]
    async with running(voices, FakeEngine(), limit_characters=10**6) as server, client(server.url) as connection:
        for sent in (frames, nameless):
            for frame, code, said in sent:
                await connection.send(frame)
                error = await hear(connection)
                assert (error["code"], error.get("requestId")) == (code, "r" if sent is frames else None), said
                assert said in error["message"] and len(error["message"]) < 300
        assert sum(counting.asked) == 0
        await say(connection, type="speak", text="Hello.", requestId="s")
        assert (await utterance(connection))[0] == pcm16(1, 3)


async def test_marks_that_come_one_by_one(voices: Path, counting: Counting) -> None:
    """The run is refused when it is too long, whichever piece has it; what came before stays, and can go on."""
    async with running(voices, FakeEngine()) as server, client(server.url) as connection:
        for mark in "a" + run(MARKS):
            await say(connection, type="speak", text=mark, requestId="r", **{"continue": True})
        for _ in range(3):
            await say(connection, type="speak", text="\u0301", requestId="r", **{"continue": True})
            error = await hear(connection)
            assert (error["code"], error["requestId"]) == ("INVALID_TEXT", "r")
        await say(connection, type="speak", text=" end", requestId="r", **{"continue": True})
        await say(connection, type="flush", requestId="r")
        _, complete = await utterance(connection)
        assert (complete["type"], complete["charactersProcessed"]) == ("complete", len(nfc.nfc("a" + run(MARKS))) + 4)
    assert sum(counting.asked) < 50 * MARKS


async def test_a_text_of_many_messages_costs_what_it_is_long(voices: Path, counting: Counting) -> None:
    engine = FakeEngine()
    async with running(voices, engine) as server, client(server.url) as connection:
        for _ in range(1999):
            await say(connection, type="speak", text="é", **{"continue": True})
        await say(connection, type="flush")
        _, complete = await utterance(connection)
        assert (complete["type"], complete["charactersProcessed"]) == ("complete", 1999)
    assert sum(counting.asked) <= 4 * 1999, "each character when it is held, and when it is settled"


async def cpu(server: Server, data: bytes) -> float:
    """Seconds of the loop's thread, which is this one, from sending that to the end of its answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    begun = time.thread_time()
    writer.write(data)
    assert await asyncio.wait_for(reader.read(), 3 * LIMIT)
    writer.close()
    return time.thread_time() - begun


def post(path: str, body: bytes, kind: bytes = b"application/json") -> bytes:
    head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
    return head % (path.encode(), kind, len(body)) + body


async def test_hostile_bytes_cost_about_what_plain_ones_do(voices: Path) -> None:
    """As much of each: what cost a hundred to a thousand times as much before costs no more than thirty times now."""
    form = b"multipart/form-data; boundary=x"
    cases = {
        "marks": (post(SPEECH, speech("x" * 120_000)), post(SPEECH, speech(run(60_000)))),
        "names": (post(SPEECH, speech("x" * 2_000_000)), post(SPEECH, speech("", language="İ" * 1_000_000))),
        "fields": (
            post(VOICES, b"x" * 2_000_000, b"application/octet-stream"),
            post(VOICES, b"a&" * 1_000_000, b"application/x-www-form-urlencoded"),
        ),
        "heads of parts": (
            post(VOICES, b"x" * 2_000_000, b"application/octet-stream"),
            post(VOICES, b'--x\r\nContent-Disposition: form-data; name="a"\r\n' + b"a:\r\n" * 500_000 + b"\r\n", form),
        ),
    }
    async with running(voices, FakeEngine(), limit_uploads=1000) as server:
        await cpu(server, post(SPEECH, b""))
        for name, (plain, hostile) in cases.items():
            usual = max(await cpu(server, plain), 0.002)
            assert await cpu(server, hostile) < 30 * usual, name


@pytest.mark.parametrize(
    ("target", "headers", "status"),
    [
        ("/healthz", "a: b\r\n" * (MAX_LINES - 4), 200),
        ("/healthz", "a: b\r\n" * MAX_LINES, 431),
        ("/healthz", "a: " + "x\r\n " * MAX_LINES + "\r\n", 431),
        ("/healthz", "a: " + "x" * (MAX_HEAD - 200) + "\r\n", 200),
        ("/healthz", "a: " + "x" * MAX_HEAD + "\r\n", 431),
        ("/healthz?" + "a&" * (MAX_TARGET // 2), "", 414),
        ("/api/v1/voices/" + "x" * (MAX_TARGET - 100) + "/sample.wav", "", 404),
        ("/healthz", "Content-Length: " + "9" * 5000 + "\r\n", 400),
        ("/healthz", "Origin: http://" + "x" * 8000 + "\r\n", 403),
    ],
)
async def test_heads_are_measured_before_they_are_taken_apart(voices: Path, target: str, headers: str, status: int) -> None:
    async with running(voices, FakeEngine()) as server:
        for before in ("", "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"):  # alone, and behind another request
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(f"{before}GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n".encode())
            answer = await asyncio.wait_for(reader.read(), LIMIT)
            writer.close()
            assert f"HTTP/1.1 {status} ".encode() in answer and answer.count(b"HTTP/1.1 ") == (2 if before else 1)
            assert len(answer) < MOST_ANSWER


async def test_a_handshake_has_a_head_as_well(voices: Path) -> None:
    async with running(voices, FakeEngine()) as server:
        for path, more, status in (("/api/v1/speak?" + "%" * 9000, "", 414), ("/api/v1/speak", "a: b\r\n" * 200, 431)):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(HANDSHAKE.format(key="A" * 22 + "==", more=more).replace("/api/v1/speak", path).encode())
            assert (await asyncio.wait_for(reader.read(), LIMIT)).startswith(f"HTTP/1.1 {status} ".encode())
            writer.close()


def part(name: str, value: bytes, more: bytes = b"") -> bytes:
    return b'--x\r\nContent-Disposition: form-data; name="%s"\r\n%s\r\n%s\r\n' % (name.encode(), more, value)


async def test_forms_are_bounded_in_every_direction(voices: Path) -> None:
    kind = "multipart/form-data; boundary=x"
    cases: list[tuple[str, bytes, int, str]] = [
        (kind, part("a", b"") * (MAX_PARTS + 1) + b"--x--\r\n", 413, "FORM_TOO_BIG"),
        (kind, part("a", b"") * 20_000 + b"--x--\r\n", 413, "FORM_TOO_BIG"),
        (kind, part("name", b"x" * (MAX_FIELD + 1)) + b"--x--\r\n", 413, "FORM_TOO_BIG"),
        (kind, part("name", b"x", b"a:\r\n" * MAX_PART_HEAD) + b"--x--\r\n", 413, "FORM_TOO_BIG"),
        (kind, b"x" * 100_000, 413, "FORM_TOO_BIG"),  # no boundary in sight
        (kind, part("a", b"") * MAX_PARTS + b"--x--\r\n", 400, "AUDIO_MISSING"),
        (kind, part("audio", b"x") + b"--x--\r\n", 400, "AUDIO_MISSING"),  # no file
        (kind, b"--x\r\n\r\n\r\n--x--\r\n", 400, "FORM_UNREADABLE"),
        (f"multipart/form-data; boundary={'x' * (MAX_BOUNDARY + 1)}", b"--x", 400, "FORM_UNREADABLE"),
        ("multipart/form-data", b"--x", 400, "FORM_UNREADABLE"),
        ("application/x-www-form-urlencoded", b"a&" * 1_000_000, 400, "AUDIO_MISSING"),
        (kind, b"x" * (21 * 1024 * 1024), 413, "BODY_TOO_BIG"),
    ]
    async with running(voices, FakeEngine(), limit_uploads=1000) as server, server.http_client() as http:
        for content_type, body, status, code in cases:
            *answer, _ = await refused(http, VOICES, content=body, headers={"Content-Type": content_type})
            assert answer == [status, code], (content_type, body[:60])


async def test_a_body_that_does_not_say_its_length_is_bounded_all_the_same() -> None:
    for most, read, sent, kept in ((100, 1000, 100, True), (100, 1000, 101, False), (100, 1000, 1001, False), (100, 50, 101, False)):
        body = BoundedBody(None, most, read)
        for _ in range(sent):
            body.append(b"x")
            assert len(body._data) <= most
        assert body._complete.is_set() == (sent > max(most, read)), "a client that sends on and on is cut off"
        body.set_complete()
        if kept:
            assert await body == b"x" * sent
            continue
        with pytest.raises(HttpError, match="a body of more than 100 bytes"):
            await body
        with pytest.raises(HttpError, match="a body of more than 100 bytes"):
            [piece async for piece in body]
    with pytest.raises(HttpError):
        await BoundedBody(1001, 100, 1000)


async def test_tokens_are_measured_before_they_are_looked_at(voices: Path) -> None:
    token = "x" * (MAX_TOKEN + 1)
    async with running(voices, FakeEngine(), jwt_secret="a secret of more than thirty-two bytes") as server:
        async with server.http_client() as http:
            answer = await http.get("/v1/models", headers={"Authorization": f"Bearer {token}"})
            assert (answer.status_code, answer.json()["error"]["message"]) == (401, "a token of 8193 characters: at most 8192 are taken")
        async with client(server.url) as connection:
            await say(connection, type="start", authToken=token * 7)
            assert "at most 8192" in (await hear(connection))["message"]


@pytest.mark.parametrize("coding", ["gzip", "GZIP, identity", "br"])
async def test_a_compressed_body_is_refused_by_name(voices: Path, coding: str) -> None:
    body = gzip.compress(json.dumps({"input": "Hello.", "response_format": "pcm"}).encode())
    async with running(voices, FakeEngine()) as server, server.http_client() as http:
        for route in ("/v1/audio/speech", "/api/v1/voices", "/api/v1/contracts/c/interrupt"):
            answer = await http.post(route, content=body, headers={"Content-Type": "application/json", "Content-Encoding": coding})
            assert (answer.status_code, answer.json()["error"]["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
            assert answer.json()["error"]["message"] == f"Content-Encoding {coding}: send the body as it is, not compressed"
            assert answer.headers["accept-encoding"] == "identity"
        plain = await http.post("/v1/audio/speech", content=gzip.decompress(body), headers={"Content-Encoding": "identity"})
        assert plain.status_code == 200
