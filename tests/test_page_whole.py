"""The page's Talk view in a headless Chromium against the server's own two sockets: turns, contract and echo guard are the real ones."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from quart import Quart

from qwen3_jax.evaluate.judges import assign
from server.engines import factory
from server.listen.base import HeardSpeech
from server.listen.messages import Hello
from server.listen.whisper import Whisper
from server.respond.base import Said
from tests.browser import (
    RATE,
    browser,
    heard,
    needs_chromium,
    page,
    serve_tap,
    text_of,
    trimmed,
    user,
    wait_for,
    wait_for_text,
)
from tests.fake_engine import FRAME, LIMIT, FakeEngine
from tests.hearing import FakeVoiceActivity
from tests.serving import Server, running, until
from tests.test_listen_real import words_of

pytestmark = [needs_chromium, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]
ROOT = Path(__file__).parent.parent
WORDS = 60  # of an answer, a frame of 80 ms each: its values are 100 n to 100 n + 59
SOUNDS = "window.__tap.pieces.some((piece) => piece[0] * 32767 > 109.5)"  # the tenth frame of the first answer, 0.8 s
HIDE = """() => {
  window.__hidden = true;
  for (const [name, value] of [["visibilityState", () => (window.__hidden ? "hidden" : "visible")], ["hidden", () => window.__hidden]])
    Object.defineProperty(document, name, { get: value });
  const paint = window.requestAnimationFrame.bind(window);
  window.requestAnimationFrame = (work) => (window.__hidden ? 1 : paint(work)); // a hidden tab paints nothing
  document.dispatchEvent(new Event("visibilitychange"));
}"""
SHOW = """() => {
  window.__hidden = false;
  document.dispatchEvent(new Event("visibilitychange"));
}"""


class Loud(FakeVoiceActivity):
    """A window is speech if it is louder than a quiet room."""

    def feed(self, window: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(window))) > 0.01)


class Ear:
    """In place of the recogniser's process: all speech is "Tell me more."."""

    restarts, queued_seconds = 0, 0.0

    async def ready(self) -> Hello:
        return Hello(languages=("English",))

    def busy(self, owner: str) -> bool:
        return False

    async def hear(self, pcm: np.ndarray, language: str, owner: str, *, final: bool) -> HeardSpeech:
        return HeardSpeech(text="Tell me more.", words=None, language="English")

    async def close(self) -> None: ...


class Talkative:
    """Answers with many words; ``histories``: what it was asked."""

    def __init__(self) -> None:
        self.histories: list[list[Said]] = []

    async def answer(self, history: Sequence[Said]) -> AsyncGenerator[str, None]:
        self.histories.append(list(history))
        for number in range(WORDS):
            yield f"word{number} "

    async def close(self) -> None: ...


@asynccontextmanager
async def conversing(voices: Path) -> AsyncIterator[tuple[Server, Talkative]]:
    """A server with the fake engine, ears that take what is loud for speech, and long answers."""
    responder = Talkative()

    def change(app: Quart) -> None:
        context = app.extensions["context"]

        async def voice_activity() -> Loud:
            return Loud()

        context.ears.voice_activity = voice_activity
        context.ears.__dict__["process"] = Ear()
        context.responder.answer = responder.answer
        serve_tap(app)

    async with running(voices, FakeEngine(frames=WORDS), change=change) as server:
        yield server, responder


talker = user(0.6, 1.0, 3.0, 1.2, 30.0)  # something, and 3 s later, when the answer is under way, something else
asker = user(0.6, 1.0, 60.0)  # one thing only


def places(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each sample at full volume: which answer it is of, 0 for none; and which of its frames."""
    values = np.round(samples.astype(np.float64) * 32767).astype(int)
    known = (values >= 100) & (values % 100 < WORDS)
    return np.where(known, values // 100, 0), np.where(known, values % 100, -1)


def assert_whole(samples: np.ndarray, number: int) -> None:
    """Each frame of that answer was heard once, in its order; a gap may soften the beginning of one."""
    which, frames = places(samples)
    mine = frames[which == number]
    assert (np.diff(mine) >= 0).all(), "nothing is heard twice"
    counts = np.bincount(mine, minlength=WORDS)
    assert counts.min() >= FRAME - 130 and counts.max() <= FRAME, counts


async def test_a_conversation_goes_on_in_the_background_and_nothing_stale_is_heard(talker: Any, voices: Path) -> None:
    async with conversing(voices) as (server, responder), page(talker, server.http) as opened:
        await opened.click("#talk-button")
        await wait_for(opened, SOUNDS)
        await opened.evaluate(HIDE)
        front = await opened.context.new_page()
        await front.bring_to_front()
        await wait_for(opened, "document.querySelectorAll('#conversation .answer.over').length === 2")
        assert "interrupted" in await text_of(opened, "conversation")
        heard_seconds = server.context.metrics.heard._value.get()
        await until(lambda: server.context.metrics.heard._value.get() > heard_seconds + 1)  # the microphone is heard all the time
        before = await opened.evaluate("window.__tap.pieces.length")
        await opened.bring_to_front()
        await opened.evaluate(SHOW)
        await wait_for(opened, f"window.__tap.pieces.length > {before} + 200")
        samples = await heard(opened)
        which, _ = places(samples)
        assert np.flatnonzero(which == 1)[-1] < np.flatnonzero(which == 2)[0]
        assert_whole(samples, 2)
        assert not samples[128 * before :].any(), "nothing that was made meanwhile is caught up on"
        assert len(responder.histories) == 2
        await wait_for_text(opened, "talk-state", "Say something.")


async def test_two_tabs_on_one_contract(asker: Any, voices: Path) -> None:
    """What is said in one tab interrupts what the other one speaks; one that is closed takes nothing with it."""
    same = "crypto.randomUUID = () => '00000000-0000-4000-8000-000000000000'"
    async with conversing(voices) as (server, responder), page(asker, server.http) as first:
        await first.evaluate(same)
        await first.click("#talk-button")
        await wait_for(first, SOUNDS)
        async with page(asker, server.http) as second:
            await second.evaluate(same)
            await second.click("#talk-button")
            await wait_for_text(second, "talk-state", "Say something.")
            assert len(server.context.contracts) == 1
            async with server.http_client() as http:
                answer = await http.post("/api/v1/contracts/00000000-0000-4000-8000-000000000000/interrupt")
            assert answer.status_code == 204
            await wait_for(first, "document.querySelector('#conversation .answer.cut')")
            assert await text_of(first, "notices") == ""
        heard_seconds = server.context.metrics.heard._value.get()
        await until(lambda: server.context.metrics.heard._value.get() > heard_seconds + 1)
        assert await text_of(first, "talk-button-said") != "Start", "it goes on when the other tab is closed"
        samples = trimmed(await heard(first))
        assert 0 < len(samples) < WORDS * FRAME
        assert len(responder.histories) == 1


class Wire:
    """A TCP proxy before a server, whose connections can be cut without a word."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._open: list[tuple[bytes, asyncio.StreamWriter]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n")
        above, below = await asyncio.open_connection("127.0.0.1", self.port)
        below.write(head)
        self._open += [(head, writer), (head, below)]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._copy(reader, below))
            tasks.create_task(self._copy(above, writer))

    async def _copy(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                to.write(data)
                await to.drain()
        except ConnectionError:
            pass
        finally:
            to.close()

    def cut(self, path: str) -> None:
        """All connections for that path."""
        for head, writer in self._open:
            if path.encode() in head:
                writer.transport.abort()
        self._open = [(head, writer) for head, writer in self._open if path.encode() not in head]


async def test_a_socket_that_is_cut_in_mid_answer_loses_no_sample(asker: Any, voices: Path) -> None:
    async with conversing(voices) as (server, responder):
        wire = Wire(server.port)
        async with await asyncio.start_server(wire.serve, "127.0.0.1", 0) as proxy:
            url = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
            async with page(asker, url) as opened:
                await opened.click("#talk-button")
                await wait_for(opened, SOUNDS)
                wire.cut("/api/v1/speak")
                await wait_for(opened, "document.querySelector('#conversation .answer.over')")
                samples = await heard(opened)
                assert_whole(samples, 1)
                assert server.context.metrics.resumes._value.get() == 1 and len(responder.histories) == 1
                assert "interrupted" not in await text_of(opened, "conversation") and await text_of(opened, "notices") == ""


async def test_what_the_page_plays_is_understood(tmp_path: Path, voices: Path) -> None:
    """The whole of it, nothing faked but the microphone: a recording is heard, echoed by the voice that ships, and read back by Whisper."""
    spoken, rate = soundfile.read(ROOT / "voices" / "george" / "reference.wav", dtype="float32")
    assert rate == RATE
    quiet = np.zeros(RATE // 2, np.float32)
    file = tmp_path / "question.wav"
    soundfile.write(file, np.concatenate([np.tile(quiet, 6), spoken, np.tile(quiet, 240)]), RATE, subtype="PCM_16")
    chosen: dict[str, Any] = {"model_id": "embedded", "shipped_voices": True, "warmup": "first", "limit": 10 * LIMIT, "change": serve_tap}
    async with (
        running(voices, factory.create, **chosen) as server,
        browser(f"--use-file-for-fake-audio-capture={file}%noloop") as chromium,
        page(chromium, server.http) as opened,
    ):
        await server.context.ears.process.ready()  # or it is loaded while the user speaks
        await server.context.ears.voice_activity()
        await opened.click("#talk-button")
        await wait_for(opened, "document.querySelector('#conversation .answer.over')")
        text = await opened.evaluate("document.querySelector('#conversation .answer p').textContent")
        question = await opened.evaluate("document.querySelector('#conversation .mine p').textContent")
        played = soxr.resample(trimmed(await heard(opened)), RATE, 16000)
    said = words_of((ROOT / "voices" / "george" / "transcript.txt").read_text("utf-8"))
    assert words_of(text) == words_of(question)
    assert set(words_of(question)) & set(said)
    understood = Whisper().transcribe(played[: 30 * 16000], "English", words=True).text
    [errors] = assign([words_of(text)], words_of(understood))
    assert errors.errors / errors.words <= 1 / 3, json.dumps([text, understood])
