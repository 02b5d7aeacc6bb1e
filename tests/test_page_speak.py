"""The page's Speak view in a headless Chromium, against the real server: what reaches the loudspeaker is compared sample by sample."""

import asyncio
import contextlib
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from server.admission import loading
from tests.browser import floats, heard, needs_chromium, page, serve_tap, text_of, trimmed, wait_for, wait_for_text
from tests.fake_engine import FakeEngine, pcm16
from tests.serving import running, until
from tests.test_server_auth import SECRET, token

pytestmark = [needs_chromium, pytest.mark.asyncio(loop_scope="module")]
FADE = 120  # samples: 5 ms in which a stop, and what follows a gap, is soft


async def speak(opened: Any, text: str) -> None:
    await opened.fill("#speak-text", text)
    await opened.click("#speak-go")


async def blocks(opened: Any) -> int:
    """How many blocks of 128 samples the loudspeaker has got."""
    count: int = await opened.evaluate("window.__tap.pieces.length")
    return count


async def test_what_is_spoken_is_heard_without_a_gap_and_downloads_as_it_was(chromium: Any, voices: Path) -> None:
    engine = FakeEngine(frames=20)
    async with running(voices, engine, change=serve_tap) as server, page(chromium, f"{server.http}/#speak") as opened:
        await wait_for(opened, "document.querySelector('#speak-voice').options.length === 2")
        await opened.select_option("#speak-voice", "anna")
        await opened.select_option("#speak-language", "German")
        await opened.click("#speak-view summary")
        for field, value in (("temperature", "0.5"), ("top-k", "7"), ("top-p", "0.9"), ("seed", "11")):
            await opened.fill(f"#speak-{field}", value)
        await speak(opened, "  Guten Abend. ")
        await wait_for_text(opened, "speak-state", "Done.")
        [asked] = engine.requests
        assert (asked.text, asked.language, asked.voice.id, asked.seed) == ("Guten Abend.", "German", "anna", 11)
        assert asked.draw == {"temperature": 0.5, "top_k": 7, "top_p": 0.9}
        np.testing.assert_array_equal(trimmed(await heard(opened)), floats(pcm16(1, 20)))
        first, gaps, factor, length = [await text_of(opened, f"figure-{name}") for name in ("first", "gaps", "rtf", "length")]
        assert first.endswith(" ms") and gaps == "none" and length == "1.60 s" and 0 < float(factor) < 20
        async with opened.expect_download() as download:
            await opened.click("#speak-download")
        saved = await download.value
        sound, rate = soundfile.read(io.BytesIO(Path(await saved.path()).read_bytes()), dtype="int16")
        assert (rate, saved.suggested_filename, sound.tobytes()) == (24000, "speech.wav", pcm16(1, 20))
        await opened.click("#speak-again")
        await wait_for_text(opened, "speak-state", "Done.")
        twice = await heard(opened)
        np.testing.assert_array_equal(twice[twice != 0], np.tile(floats(pcm16(1, 20)), 2))
        assert len(engine.requests) == 1, "what is there already is not asked for again"


async def test_stop_stops_and_nothing_of_it_comes_later(chromium: Any, voices: Path) -> None:
    engine = FakeEngine(frames=60, gate=asyncio.Semaphore(10))
    async with running(voices, engine, change=serve_tap) as server, page(chromium, f"{server.http}/#speak") as opened:
        await speak(opened, "One.")
        await wait_for_text(opened, "speak-state", "Speaking.")
        await opened.keyboard.press("Escape")
        await wait_for_text(opened, "speak-state", "Stopped.")
        assert engine.gate is not None
        for _ in range(60):
            engine.gate.release()
        await asyncio.wait_for(engine.handles[0].cancelled.wait(), 60)
        stopped = await blocks(opened)
        await wait_for(opened, f"window.__tap.pieces.length > {stopped} + 250")
        samples = await heard(opened)
        assert np.any(samples) and not np.any(samples[128 * (stopped + 2) + FADE :])
        engine.gate, engine.frames = None, 12
        await speak(opened, "Two.")
        await wait_for_text(opened, "speak-state", "Done.")
        np.testing.assert_array_equal(trimmed((await heard(opened))[len(samples) :]), floats(pcm16(2, 12)))


async def test_a_late_piece_is_a_gap_that_is_counted_and_nothing_is_lost(chromium: Any, voices: Path) -> None:
    engine = FakeEngine(frames=20, gate=asyncio.Semaphore(5))
    async with running(voices, engine, change=serve_tap) as server, page(chromium, f"{server.http}/#speak") as opened:
        await speak(opened, "Late.")
        await wait_for(opened, "document.querySelector('#figure-gaps').textContent.startsWith('1 ')")
        assert engine.gate is not None
        for _ in range(15):
            engine.gate.release()
        await wait_for_text(opened, "speak-state", "Done.")
        samples, expected = await heard(opened), floats(pcm16(1, 20))
        sounding = samples[samples != 0]
        edge = 5 * 1920
        assert len(expected) - len(sounding) <= 1, "only the very first sample after the gap is silent"
        np.testing.assert_array_equal(sounding[:edge], expected[:edge])
        np.testing.assert_array_equal(sounding[edge + FADE :], expected[len(expected) - len(sounding) + edge + FADE :])
        missed = int((await text_of(opened, "figure-gaps")).split("(")[1].split()[0])
        silence = len(trimmed(samples)) - len(sounding)
        assert missed == pytest.approx(silence / 24, abs=50)


async def test_refusals_say_what_is_wrong(chromium: Any, voices: Path) -> None:
    async with running(voices, FakeEngine()) as server, page(chromium, f"{server.http}/#speak", tap=False) as opened:
        await speak(opened, "refuse")
        await wait_for_text(opened, "notices", "Text 'refuse': is refused; say something else.")
        assert await opened.is_disabled("#speak-stop")
        await speak(opened, " ")
        assert await text_of(opened, "speak-state") == "Write something to say first."
        await speak(opened, "x" * 5000)
        await wait_for_text(opened, "notices", "must be 1 to 4096")
        await speak(opened, "Hello.")
        await wait_for_text(opened, "speak-state", "Done.")
        assert await text_of(opened, "notices") == ""


async def test_a_model_that_loads_is_waited_for(chromium: Any, voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "SOON", 100)
    engine = FakeEngine(hold_loading=True)
    async with running(voices, engine, wait=False, change=serve_tap) as server, page(chromium, f"{server.http}/#speak") as opened:
        await wait_for(opened, "!document.getElementById('loading').hidden")
        assert " s so far." in await text_of(opened, "loading-said") and await text_of(opened, "server-state") == "Loading"
        await speak(opened, "Early.")
        await wait_for_text(opened, "speak-state", "The model is loading; the text is spoken as soon as it is there.")
        engine.load().set_result(None)
        await wait_for_text(opened, "speak-state", "Done.")
        np.testing.assert_array_equal(trimmed(await heard(opened)), floats(pcm16(1, 3)))
        await wait_for(opened, "document.getElementById('loading').hidden")


NEVER_BY_ITSELF = """() => {
  const later = window.setTimeout.bind(window);
  window.setTimeout = (work, ms) => (ms >= 30000 ? 0 : later(work, ms)); // the page asks every half a minute how the server is
  document.dispatchEvent(new Event("visibilitychange")); // it asks now, and this is the last time
}"""


@pytest.mark.parametrize(
    ("cut", "told"), [(False, "The server stopped in mid-sentence."), (True, "The connection broke in mid-sentence.")], ids=["told", "cut"]
)
async def test_a_server_that_dies_in_mid_sentence_and_comes_back(chromium: Any, voices: Path, cut: bool, told: str) -> None:
    engine = FakeEngine(frames=40, gate=asyncio.Semaphore(5))
    async with contextlib.AsyncExitStack() as longer:
        async with running(voices, engine, change=serve_tap) as server:
            opened = await longer.enter_async_context(page(chromium, f"{server.http}/#speak"))
            await speak(opened, "Hello.")
            await wait_for_text(opened, "speak-state", "Speaking.")
            await opened.evaluate("() => (Math.random = () => 1e6)")  # no new try of the page's own comes within the test's limit
            await opened.evaluate(NEVER_BY_ITSELF)
            if cut:
                await opened.evaluate("() => window.__sockets.at(-1).close()")
            port = int(server.http.rpartition(":")[2])
        if cut:
            await opened.evaluate("() => document.dispatchEvent(new Event('visibilitychange'))")  # it went down after the connection
        await wait_for_text(opened, "notices", "The server does not answer.")  # at once, not within half a minute
        async with running(voices, again := FakeEngine(), change=serve_tap, at=port):
            await opened.click("#notices button:has-text('Try now')")
            await wait_for_text(opened, "server-state", "Ready")
            await wait_for_text(opened, "notices", f"{told} Press Speak to hear it from the start.")
            assert "does not answer" not in await text_of(opened, "notices")
            await opened.click("#notices button:has-text('Speak')")
            await wait_for_text(opened, "speak-state", "Done.")
            assert [request.text for request in again.requests] == ["Hello."] and await text_of(opened, "notices") == ""


@pytest.mark.slow
async def test_a_session_that_was_closed_for_idleness_is_opened_again(chromium: Any, voices: Path) -> None:
    engine = FakeEngine()
    async with running(voices, engine, idle_timeout=0.3, change=serve_tap) as server, page(chromium, f"{server.http}/#speak") as opened:
        for spoken in (1, 2):
            await speak(opened, "Hello.")
            await until(lambda spoken=spoken: len(engine.requests) == spoken)  # type: ignore[misc]
            await wait_for_text(opened, "speak-state", "Done.")
            await until(lambda: not server.context.sessions)
        assert await text_of(opened, "notices") == ""
        assert np.count_nonzero(await heard(opened)) == 2 * 3 * 1920


async def test_the_token_leaves_the_address_at_once_and_is_in_no_log(chromium: Any, voices: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    mine = token(sub="anna")
    async with running(voices, FakeEngine(), jwt_secret=SECRET, change=serve_tap) as server:
        async with page(chromium, f"{server.http}/#speak", tap=False) as opened:
            await wait_for_text(opened, "notices", "The server wants a token.")
            await speak(opened, "Hello.")
            await wait_for_text(opened, "notices", "Its operator has one for you.")
            await opened.click("#notices button:has-text('Enter a token')")
            await opened.fill("#access-token", mine)
            await opened.click("#access-form button[type=submit]")
            await wait_for(opened, "document.querySelector('#speak-voice').options.length === 2")
            assert await text_of(opened, "notices") == ""
        async with page(chromium, f"{server.http}/#speak&token={mine}") as opened:
            assert await opened.evaluate("location.href") == f"{server.http}/#speak"
            await speak(opened, "Hello.")
            await wait_for_text(opened, "speak-state", "Done.")
            assert len(trimmed(await heard(opened))) == 3 * 1920
            await opened.reload()
            await wait_for(opened, "document.querySelector('#speak-voice').options.length === 2")
    assert mine not in caplog.text and mine.split(".")[1] not in caplog.text


async def test_a_tab_in_the_background_goes_on_speaking(chromium: Any, voices: Path) -> None:
    async with running(voices, FakeEngine(frames=25), change=serve_tap) as server, page(chromium, f"{server.http}/#speak") as opened:
        await speak(opened, "Hello.")
        await opened.evaluate(
            """() => {
              for (const [name, value] of [["visibilityState", "hidden"], ["hidden", true]])
                Object.defineProperty(document, name, { get: () => value });
              document.dispatchEvent(new Event("visibilitychange"));
              window.requestAnimationFrame = () => 1; // a hidden tab paints nothing
            }"""
        )
        front = await opened.context.new_page()
        await front.bring_to_front()
        await wait_for_text(opened, "speak-state", "Done.")
        np.testing.assert_array_equal(trimmed(await heard(opened)), floats(pcm16(1, 25)))


async def test_a_page_that_is_not_secure_speaks_and_says_why_it_cannot_listen(chromium: Any, voices: Path) -> None:
    async with running(voices, FakeEngine(), allowed_hosts=("page.test",), change=serve_tap) as server:
        port = server.http.rpartition(":")[2]
        async with page(chromium, f"http://page.test:{port}/#speak", tap=False) as opened:
            assert not await opened.evaluate("isSecureContext")
            await speak(opened, "Hello.")
            await wait_for_text(opened, "speak-state", "Done.")
            await opened.click("nav [data-view=voices]")
            await opened.click("#voices-add")
            await opened.click("#voice-record")
            await wait_for_text(opened, "voice-error", "Browsers allow the microphone on secure pages only.")
            assert f"http://localhost:{port}" in await text_of(opened, "voice-error")
