"""The page's Voices view in a headless Chromium, against the real server and its store of voices."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.browser import LATE_PERMISSION, microphones, needs_chromium, page, text_of, user, wait_for, wait_for_text
from tests.fake_engine import FakeEngine
from tests.serving import running
from tests.test_server_voices import speech

pytestmark = [needs_chromium, pytest.mark.asyncio(loop_scope="module")]

IN_REACH = """() => {
  const [button, dialog] = ["voice-save", "voice-dialog"].map((id) => document.getElementById(id).getBoundingClientRect());
  return button.bottom <= dialog.bottom && dialog.bottom <= innerHeight;
}"""


speaker = user(0.0, 12.0, 5.0)  # all the time


async def cards(opened: Any) -> list[str]:
    ids: list[str] = await opened.evaluate("[...document.querySelectorAll('#voice-list [data-voice]')].map((card) => card.dataset.voice)")
    return ids


async def test_voices_are_listed_heard_added_and_deleted(chromium: Any, voices: Path, tmp_path: Path) -> None:
    clip = tmp_path / "Narrator.wav"
    soundfile.write(clip, speech(), 24000, subtype="PCM_16")
    async with running(voices, engine := FakeEngine()) as server, page(chromium, f"{server.http}/#voices", tap=False) as opened:
        await wait_for(opened, "document.querySelectorAll('#voice-list [data-voice]').length === 2")
        assert await cards(opened) == ["anna", "makima"]
        assert await opened.locator("[data-voice=makima] .tag").text_content() == "default"
        assert await opened.locator("#voice-list button:has-text('Delete')").count() == 0, "what is not one's own cannot be deleted"
        listen = opened.get_by_role("button", name="Listen to anna")
        async with opened.expect_response("**/anna/sample.wav") as answer:
            await listen.click()
        assert (await answer.value).status == 200 and await listen.get_attribute("aria-pressed") == "true"
        await wait_for(opened, "document.querySelector('[data-voice=anna] .play').getAttribute('aria-pressed') === 'false'")  # at its end
        await opened.click("#voices-add")
        await opened.set_viewport_size({"width": 1100, "height": 600})
        assert await opened.evaluate(IN_REACH), "the form is higher than the window: its button is in reach"
        await opened.click("#voice-save")
        assert await text_of(opened, "voice-error") == "Record the voice, or choose a file."
        await opened.set_input_files("#voice-file", clip)
        assert await opened.input_value("#voice-name") == "Narrator"
        await opened.click("#voice-save")
        assert await text_of(opened, "voice-error") == "The speaker must agree: tick the box if that is so."
        await opened.check("#voice-consent")
        await opened.fill("#voice-transcript", "x")
        await opened.click("#voice-save")
        await wait_for_text(opened, "voice-error", "Transcript of 1 characters for ")
        await opened.fill("#voice-transcript", "These are the words that are said in the clip.")
        await opened.select_option("#voice-language", "German")
        await opened.click("#voice-save")
        await wait_for_text(opened, "voices-state", "Narrator has been added.")
        [added] = set(await cards(opened)) - {"anna", "makima"}
        stored = server.context.store.voices[added]
        assert (stored.metadata.language, stored.transcript) == ("German", "These are the words that are said in the clip.")
        assert stored.metadata.consent == "I am the speaker, or the speaker has agreed that this voice is cloned and used here."
        await opened.click(f"[data-voice='{added}'] button:has-text('Speak with it')")
        assert await opened.input_value("#speak-voice") == added
        await opened.click("#speak-go")
        await wait_for_text(opened, "speak-state", "Done.")
        assert engine.requests[-1].voice.id == added
        await opened.click("nav [data-view=voices]")
        await opened.click(f"[data-voice='{added}'] button:has-text('Delete')")
        await opened.click("#delete-dialog button[value=keep]")
        assert added in server.context.store.voices
        await opened.click(f"[data-voice='{added}'] button:has-text('Delete')")
        await opened.click("#delete-dialog button[value=delete]")
        await wait_for_text(opened, "voices-state", "Narrator has been deleted.")
        assert await cards(opened) == ["anna", "makima"] and added not in server.context.store.voices


@pytest.mark.slow
async def test_a_voice_is_recorded_from_the_microphone(speaker: Any, voices: Path) -> None:
    async with running(voices, FakeEngine()) as server, page(speaker, f"{server.http}/#voices", tap=False) as opened:
        await opened.click("#voices-add")
        await opened.click("#voice-record")
        await wait_for(opened, "parseFloat(document.getElementById('voice-seconds').textContent) > 0.1")
        await opened.click("#voice-record")
        await wait_for_text(opened, "voice-error", "s are too short: record at least 3 s.")
        await opened.click("#voice-record")
        await wait_for(opened, "parseFloat(document.getElementById('voice-seconds').textContent) > 3.2")
        await opened.click("#voice-record")
        await wait_for(opened, "document.getElementById('voice-preview').duration > 3")
        seconds = float((await text_of(opened, "voice-seconds")).split()[0])
        await opened.fill("#voice-name", "Beeps")
        await opened.check("#voice-consent")
        await opened.click("#voice-save")
        await wait_for_text(opened, "voices-state", "Beeps has been added.")
        [stored] = [voice for voice in server.context.store.voices.values() if voice.metadata.name == "Beeps"]
        samples, rate = soundfile.read(voices / stored.id / "reference.wav")
        assert len(samples) / rate == pytest.approx(seconds, abs=0.06) and np.abs(samples).max() > 0.05


async def test_a_microphone_that_is_allowed_when_the_form_is_closed_stays_off(chromium: Any, voices: Path) -> None:
    async with running(voices, FakeEngine()) as server, page(chromium, f"{server.http}/#voices", tap=False) as opened:
        await opened.evaluate(LATE_PERMISSION)
        await opened.click("#voices-add")
        await opened.click("#voice-record")
        await wait_for(opened, "window.__allow.length === 1")
        await opened.keyboard.press("Escape")
        assert await microphones(opened, 1) == ["ended"]


async def test_without_permission_there_is_a_word_about_it(chromium: Any, voices: Path) -> None:
    async with running(voices, FakeEngine()) as server:
        async with page(chromium, f"{server.http}/#voices", tap=False, microphone=False) as opened:
            await opened.click("#voices-add")
            await opened.click("#voice-record")
            await wait_for_text(opened, "voice-error", "The microphone is not allowed. Allow it in the browser's address bar")
            assert (await text_of(opened, "voice-error")).endswith("Or choose a file.")
