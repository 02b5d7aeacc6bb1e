"""The page's Talk view in a headless Chromium with a WAV file as its microphone, against small sockets that speak the contract."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3_jax.runtime.extras import MissingExtra
from server.admission import loading
from server.listen.ears import Ears
from tests.browser import LATE_PERMISSION, heard, microphones, needs_chromium, page, text_of, user, wait_for, wait_for_text
from tests.fake_engine import FRAME, FakeEngine, pcm16
from tests.fake_talk import FRAMES, WORDS, FakeTalk
from tests.serving import running, until

pytestmark = [needs_chromium, pytest.mark.asyncio(loop_scope="module")]
MARKS = """
window.__marks = [];
window.__states = [];
const orb = document.getElementById("orb");
new MutationObserver(() => window.__states.push(orb.dataset.state)).observe(orb, { attributeFilter: ["data-state"] });
new MutationObserver(() => {
  for (const mark of document.querySelectorAll("#conversation mark"))
    if (mark.textContent && mark.textContent !== window.__marks.at(-1)) window.__marks.push(mark.textContent);
}).observe(document.getElementById("conversation"), { subtree: true, childList: true, characterData: true });
"""

MANY = """async () => {
  const { Conversation } = await import("/page/conversation.js");
  const { at } = await import("/page/dom.js");
  at("talk-view").toggleAttribute("data-compact", true);
  const conversation = new Conversation(at("conversation"));
  for (let turn = 0; turn < 30; turn++) conversation.heard(`This is turn ${turn}.`);
}"""


talker = user(0.6, 1.0, 2.5, 1.2, 12.0)  # something, and 2.5 s later, when the answer is under way, something else
asker = user(0.6, 1.0, 30.0)  # one thing only


def answer_of(samples: np.ndarray) -> np.ndarray:
    """Which answer, 1 or 2, each sample is of, by its value at full volume; 0: silence, or quieter."""
    values = np.round(samples.astype(np.float64) * 32767).astype(int)
    return np.where((values % 100 < FRAMES) & (values >= 100), values // 100, 0)


async def test_speech_over_the_answer_stops_it_and_nothing_stale_is_heard(talker: Any, voices: Path) -> None:
    fake = FakeTalk()
    async with running(voices, FakeEngine(), change=fake.install) as server, page(talker, server.http) as opened:
        await opened.evaluate(MARKS)
        assert await text_of(opened, "talk-button-said") == "Start"
        await opened.click("#talk-button")
        await wait_for_text(opened, "caption", "turn 1, ")
        await wait_for_text(opened, "talk-button-said", "Interrupt")
        await wait_for(opened, "document.querySelectorAll('#conversation .answer').length === 2")
        await wait_for(opened, "document.querySelectorAll('#conversation .answer')[1].classList.contains('over')")
        samples = await heard(opened)
        which = answer_of(samples)
        first, second = np.flatnonzero(which == 1), np.flatnonzero(which == 2)
        assert first[-1] < second[0], "nothing of the first answer is heard once the second one has begun"
        [told] = [message for message in fake.sent if message["type"] == "interrupted"]
        played = [message["ms"] for message in fake.said if message["type"] == "played" and message["requestId"] == "answer-1"]
        assert played == sorted(played) and max(np.diff(played)) < 500
        sounding = np.flatnonzero(samples[: second[0]])
        assert len(sounding) < FRAMES * FRAME and len(sounding) / 24 == pytest.approx(played[-1], abs=150)
        assert played[-1] >= told["audioEndMs"]
        np.testing.assert_array_equal(
            samples[second[0] : second[0] + FRAMES * FRAME], np.frombuffer(pcm16(2, FRAMES), "<i2") / np.float32(32767)
        )
        turns = await opened.evaluate(
            "[...document.querySelectorAll('#conversation .turn')].map((turn) => turn.innerText.split('\\n').filter(Boolean))"
        )
        assert [turn[0] for turn in turns] == ["You", "Voice", "You", "Voice"]
        assert turns[0][1] == "This is turn 1." and turns[2][1] == "This is turn 2." and "interrupted" in turns[1][-1]
        said = await opened.evaluate("document.querySelector('#conversation .cut .said').textContent.trim()")
        assert said == told["spokenText"]
        states = await opened.evaluate("window.__states.filter((state, index, all) => state !== all[index - 1])")
        once = ["hearing", "thinking", "answering"]
        assert states == ["opening", "listening", *once, "ducked", *once, "listening"]
        marks = await opened.evaluate("window.__marks.map((word) => word.trim())")
        restart = marks.index(WORDS[0], 1)
        assert marks[:restart] == WORDS[:restart] and set(marks[restart:]) >= set(WORDS[1:-1])
        start, listened = fake.said[0], fake.listened[0]
        assert start["contractId"] == listened["contractId"] and listened["respond"] is True and start["interruption"] == "confirm"
        await opened.focus("#talk-end")
        await opened.keyboard.press("Enter")
        assert await text_of(opened, "talk-button-said") == "Start"
        assert await opened.evaluate("document.activeElement.id") == "talk-button", "a keyboard goes on from there"
        taken = fake.samples
        await wait_for_text(opened, "talk-state", "Press Start")
        await until(lambda: fake.listened[-1]["type"] == "stop")
        assert fake.samples - taken < 16000


async def test_what_is_said_before_the_server_listens_is_heard(asker: Any, voices: Path) -> None:
    """On a fresh server the recogniser is loaded first; the microphone is open already."""
    fake = FakeTalk()
    fake.listens.clear()
    async with running(voices, FakeEngine(), change=fake.install) as server, page(asker, server.http) as opened:
        await opened.click("#talk-button")
        await wait_for_text(opened, "talk-state", "Speak already")
        await until(lambda: bool(fake.listened))
        await asyncio.sleep(2.0)  # the user says one thing, and nothing after it
        assert fake.samples == 0 and await text_of(opened, "talk-button-said") == "Starting"
        fake.listens.set()
        await wait_for_text(opened, "conversation", "This is turn 1.")
        assert fake.samples > 16000


async def test_a_key_interrupts_and_the_server_hears_what_was_heard(asker: Any, voices: Path) -> None:
    fake = FakeTalk()
    async with running(voices, FakeEngine(), change=fake.install) as server, page(asker, server.http) as opened:
        await opened.click("#talk-button")
        await wait_for(opened, "document.querySelector('#conversation mark')?.textContent.trim() === 'word2'")
        await opened.keyboard.press("Escape")
        await wait_for_text(opened, "talk-button-said", "Listening")
        await until(lambda: any(message["type"] == "error" for message in fake.sent))
        at_rest = await opened.evaluate("window.__tap.pieces.length")
        await wait_for(opened, f"window.__tap.pieces.length > {at_rest} + 150")
        samples = await heard(opened)
        sounding = np.flatnonzero(samples)
        assert not np.any(samples[128 * (at_rest + 2) :])
        kinds = [(message["type"], message.get("requestId")) for message in fake.said]
        assert kinds[-2:] == [("played", "answer-1"), ("cancel", "answer-1")]
        assert fake.said[-2]["ms"] == pytest.approx(len(sounding) / 24, abs=150)
        assert "interrupted" in await text_of(opened, "conversation")
        assert await opened.evaluate("document.querySelector('#conversation .rest').textContent.includes('word11')")


@pytest.mark.slow
async def test_a_socket_lost_in_mid_answer_is_resumed_without_losing_a_sample(asker: Any, voices: Path) -> None:
    fake = FakeTalk()
    fake.drop_after = 16
    async with running(voices, FakeEngine(), change=fake.install) as server, page(asker, server.http) as opened:
        await opened.click("#talk-button")
        await wait_for(opened, "document.querySelector('#conversation .answer.over')")
        resumed = [message for message in fake.said if message["type"] == "resume"]
        assert len(resumed) == 1 and resumed[0]["sessionId"] == "session-0" and resumed[0]["requestId"] == "answer-1"
        samples = await heard(opened)
        counts = np.bincount(np.round(samples[samples != 0] * 32767).astype(int), minlength=100 + FRAMES)[100 : 100 + FRAMES]
        assert counts.min() >= FRAME - 130 and counts.max() == FRAME, "each frame once; a gap may soften the beginning of one"
        assert await text_of(opened, "notices") == ""


async def test_a_start_that_is_refused_ends_the_conversation_with_the_servers_words(asker: Any, voices: Path) -> None:
    fake = FakeTalk()
    fake.capabilities = {"listen": {"languages": ["English", "Korean"]}, "speak": {"languages": ["German", "English"]}}
    said = "language 'English' is not known to the recogniser"
    fake.refusal = {"type": "error", "code": "INVALID_MESSAGE", "message": said, "recoverable": True, "final": False}
    async with running(voices, FakeEngine(), change=fake.install) as server, page(asker, server.http) as opened:
        languages = "[...document.getElementById('talk-language').options].map((one) => one.value)"
        assert await opened.evaluate(languages) == [""], "nothing is known yet"
        asked = "performance.getEntriesByType('resource').map(({ name }) => new URL(name).pathname)"
        assert "/api/v1/listen" not in await opened.evaluate(asked), (
            "a WebSocket's address is not asked over HTTP: the browser would show an error"
        )
        await opened.evaluate(
            """() => {
              const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
              navigator.mediaDevices.getUserMedia = async (wanted) => (window.__stream = await open(wanted));
            }"""
        )
        await opened.click("#talk-button")
        await wait_for_text(opened, "notices", f"The conversation cannot begin. L{said[1:]}.")
        assert await text_of(opened, "talk-button-said") == "Start"
        assert await opened.evaluate("window.__stream.getTracks().map((track) => track.readyState)") == ["ended"]
        await until(lambda: fake.listened[-1]["type"] == "stop" and (not fake.said or fake.said[-1]["type"] == "stop"))
        assert fake.samples == 0 and fake.listened[0]["turnDetection"] == {"silenceMs": 700}
        fake.refusal = {}
        await opened.evaluate("() => { document.getElementById('talk-pause').value = '1500'; }")
        await opened.click("#talk-button")
        await wait_for_text(opened, "talk-state", "Say something.")
        assert [one["turnDetection"] for one in fake.listened if one["type"] == "start"][-1] == {"silenceMs": 1500}
        await wait_for(opened, f"JSON.stringify({languages}) === JSON.stringify(['', 'English'])")


async def test_the_newest_message_is_in_view_and_its_marker_ends_with_it(asker: Any, voices: Path) -> None:
    fake = FakeTalk()
    async with running(voices, FakeEngine(), change=fake.install) as server:
        for size in ((1100, 750), (390, 664)):
            viewport = {"width": size[0], "height": size[1]}
            async with page(asker, server.http, viewport=viewport) as opened:
                shown = """() => {
                  const list = document.getElementById("conversation"), last = list.lastElementChild.getBoundingClientRect();
                  return last.bottom <= innerHeight + 1 && last.bottom <= list.getBoundingClientRect().bottom + 1;
                }"""
                await opened.evaluate(MANY)
                assert await opened.evaluate(shown), size
                await opened.click("#talk-button")
                await wait_for(opened, "document.querySelector('#conversation mark')?.textContent.trim() === 'word2'")
                assert await opened.evaluate(shown), size
                assert await opened.evaluate("document.querySelector('#conversation mark').checkVisibility()")
                await wait_for(opened, "document.querySelector('#conversation .answer.over')")
                assert not await opened.evaluate("document.querySelector('#conversation mark').checkVisibility()")
                await opened.click("#talk-end")
                assert await opened.evaluate(shown), size


async def test_a_server_that_cannot_listen_says_how_to_make_it(chromium: Any, voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "/api/v1/listen needs the extra listen (faster_whisper is not installed)"

    def check(ears: Ears) -> None:
        raise MissingExtra(said)

    monkeypatch.setattr(Ears, "check", check)
    async with running(voices, FakeEngine()) as server, page(chromium, server.http, tap=False) as opened:
        await wait_for(opened, "!document.getElementById('talk-missing').hidden")
        assert await text_of(opened, "talk-missing-said") == f"{said}."
        assert await text_of(opened, "talk-missing-command") == 'pip install "qwen3-jax[listen]"'
        assert not await opened.is_visible("#talk-button")
        await opened.click("#talk-missing a:has-text('Speak')")
        await opened.click("#speak-go")
        await wait_for_text(opened, "speak-state", "Done.")


async def test_a_recogniser_that_is_missing_is_named(asker: Any, voices: Path) -> None:
    fake = FakeTalk()
    fake.deaf = "/api/v1/listen needs the extra listen (faster_whisper is not installed)"
    async with running(voices, FakeEngine(), change=fake.install) as server, page(asker, server.http) as opened:
        await opened.click("#talk-button")
        await wait_for_text(opened, "talk-missing-said", f"{fake.deaf}.")
        assert await opened.is_visible("#talk-missing-command") and not await opened.is_visible("#talk-button")
        assert await opened.evaluate("document.getElementById('orb').dataset.state") == "idle"


async def test_without_permission_or_security_there_is_a_word_about_it(chromium: Any, voices: Path) -> None:
    fake = FakeTalk()
    async with running(voices, FakeEngine(), change=fake.install, allowed_hosts=("page.test",)) as server:
        async with page(chromium, server.http, microphone=False) as opened:
            await opened.click("#talk-button")
            await wait_for_text(opened, "notices", "The microphone is not allowed.")
            assert await text_of(opened, "talk-button-said") == "Start" and await opened.is_visible("#notices button:has-text('Try again')")
        async with page(chromium, f"http://page.test:{server.http.rpartition(':')[2]}/", tap=False) as opened:
            await opened.click("#talk-button")
            await wait_for_text(opened, "notices", "Browsers allow the microphone on secure pages only.")
            await opened.click("nav [data-view=speak]")
            await wait_for_text(opened, "notices", "")
            assert await text_of(opened, "notices") == "", "a notice of a view goes with the view"
    assert not fake.listened


async def test_a_microphone_that_is_allowed_when_the_conversation_is_left_stays_off(asker: Any, voices: Path) -> None:
    fake = FakeTalk()
    async with running(voices, FakeEngine(), change=fake.install) as server, page(asker, server.http, tap=False) as opened:
        await opened.evaluate(LATE_PERMISSION)
        await opened.click("#talk-button")
        await wait_for(opened, "window.__allow.length === 1")
        await opened.click("nav [data-view=speak]")
        await opened.click("nav [data-view=talk]")
        await opened.click("#talk-button")
        assert await microphones(opened, 2) == ["ended", "live"], "the second conversation has one microphone"
        await wait_for_text(opened, "talk-state", "Say something.")
        assert [message["type"] for message in fake.listened] == ["start"]
        await opened.click("#talk-end")
        assert await opened.evaluate("window.__streams[1].getTracks()[0].readyState") == "ended"


async def test_a_conversation_waits_for_the_model(asker: Any, voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "SOON", 100)
    fake, engine = FakeTalk(), FakeEngine(hold_loading=True)
    async with running(voices, engine, wait=False, change=fake.install) as server, page(asker, server.http, tap=False) as opened:
        await wait_for_text(opened, "server-state", "Loading")
        await opened.click("#talk-button")
        await wait_for_text(opened, "notices", "The model is loading. Press Start again when the state at the top says Ready.")
        assert not fake.listened
        engine.load().set_result(None)
        await wait_for(opened, "document.getElementById('notices').textContent === ''")
        await opened.click("#talk-button")
        await wait_for_text(opened, "talk-state", "Say something.")


async def test_while_nobody_listens_the_page_does_not_say_that_somebody_does(asker: Any, voices: Path) -> None:
    fake = FakeTalk()
    async with running(voices, FakeEngine(), change=fake.install) as server, page(asker, server.http) as opened:
        await opened.click("#talk-button")
        await wait_for_text(opened, "talk-state", "Say something.")
        fake.listens.clear()
        await opened.evaluate("window.__sockets.forEach((socket) => socket.close())")
        await wait_for_text(opened, "talk-state", "Connecting to the server again")
        assert (await text_of(opened, "notices")).count("The connection to the server is lost.") == 1, "one notice for both sockets"
        fake.listens.set()
        await wait_for_text(opened, "talk-state", "Say something.")
        await wait_for(opened, "document.getElementById('notices').textContent === ''")


async def test_a_turn_that_gets_no_answer_is_not_waited_for(asker: Any, voices: Path) -> None:
    fake = FakeTalk()
    said = "the chat endpoint does not answer"
    fake.unanswered = {"type": "error", "code": "RESPONDER_ERROR", "message": said, "recoverable": True, "final": False}
    async with running(voices, FakeEngine(), change=fake.install) as server, page(asker, server.http, tap=False) as opened:
        await opened.click("#talk-button")
        await wait_for_text(opened, "notices", f"There is no answer. T{said[1:]}.")
        assert await text_of(opened, "talk-state") == "Say something." and await text_of(opened, "caption") == ""


async def test_an_answer_that_fails_is_not_called_interrupted(asker: Any, voices: Path) -> None:
    fake = FakeTalk()

    def fail() -> None:
        fake.turns += 1
        told = {"type": "error", "code": "SYNTHESIS_ERROR", "message": "no sound", "recoverable": True, "final": True}
        for message in ({"type": "answer", "text": "Good evening.", "isFinal": True}, told):
            fake._outbox.put_nowait(message | {"requestId": "answer-1"})

    fake.answer = fail  # type: ignore[method-assign]
    async with running(voices, FakeEngine(), change=fake.install) as server, page(asker, server.http, tap=False) as opened:
        await opened.click("#talk-button")
        await wait_for_text(opened, "notices", "The speech failed. No sound.")
        assert await opened.locator("#conversation .answer .tag").all_text_contents() == ["not spoken"]


@pytest.mark.parametrize("file", ["player-worklet.js", "microphone-worklet.js"])
async def test_a_server_that_is_gone_is_no_fault_of_the_microphone(asker: Any, voices: Path, file: str) -> None:
    fake = FakeTalk()
    async with running(voices, FakeEngine(), change=fake.install) as server, page(asker, server.http, tap=False) as opened:
        await opened.evaluate(
            """(file) => {
              const load = AudioWorklet.prototype.addModule;
              AudioWorklet.prototype.addModule = async function (url) {
                if (window.__gone !== false && String(url).endsWith(file)) throw new DOMException("it did not load", "AbortError");
                return load.call(this, url);
              };
            }""",
            file,
        )
        await opened.click("#talk-button")
        await wait_for_text(opened, "notices", "The server does not answer. Start it, or check the network, then start again.")
        assert await text_of(opened, "talk-button-said") == "Start"
        await opened.evaluate("() => { window.__gone = false; }")
        await opened.focus("#notices button:has-text('Try again')")
        await opened.keyboard.press("Enter")
        await wait_for_text(opened, "talk-state", "Say something.")
        assert await opened.evaluate("document.activeElement.id") == "main"


@pytest.mark.slow
async def test_a_microphone_that_is_pulled_out_is_taken_again(asker: Any, voices: Path) -> None:
    fake = FakeTalk()
    async with running(voices, FakeEngine(), change=fake.install) as server, page(asker, server.http) as opened:
        await opened.evaluate(
            """() => {
              const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
              navigator.mediaDevices.getUserMedia = async (wanted) => {
                if (window.__unplugged) throw new DOMException("none", "NotFoundError");
                return (window.__stream = await open(wanted));
              };
            }"""
        )
        await opened.click("#talk-button")
        await wait_for_text(opened, "talk-state", "Say something.")
        await opened.evaluate(
            """() => {
              window.__unplugged = true;
              const [track] = window.__stream.getAudioTracks();
              track.stop();
              track.dispatchEvent(new Event("ended"));
            }"""
        )
        await wait_for_text(opened, "notices", "The microphone is gone.")
        before = fake.samples
        await opened.evaluate("() => { window.__unplugged = false; }")
        await until(lambda: fake.samples > before + 8000)
        await wait_for(opened, "document.getElementById('notices').textContent === ''")
        assert asyncio.get_running_loop().is_running()
