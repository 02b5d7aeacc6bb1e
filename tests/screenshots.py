"""``python -m tests.screenshots [FOLDER]``: every view of the page, desktop and phone, light and dark, as docs/page/ shows them.

The server is the real one with the shipped voices. Its engine hands out a recording instead of making speech, and the Talk view's two
sockets are the tests' own (tests/fake_talk.py), whose answer is long enough to be photographed.
"""

import asyncio
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image
from quart import Quart

from qwen3_jax.runtime.extras import MissingExtra
from tests import fake_talk
from tests.browser import browser_hearing, page, wait_for, wait_for_text
from tests.fake_engine import FRAME, FakeEngine
from tests.serving import running

ROOT = Path(__file__).parent.parent
SIZES = {"desktop": ({"width": 1200, "height": 860}, 1), "phone": ({"width": 390, "height": 844}, 2)}
ANSWER = "It rained in the night, and the garden is green again. Shall I open the window?"
MARKED = "document.querySelector('#conversation mark')"
SAID = "document.querySelector('#conversation .said').textContent"
QUESTION = "What is it like outside this morning?"


class Recorded(FakeEngine):
    """Speaks by playing a recording."""

    def __init__(self) -> None:
        samples, _ = soundfile.read(ROOT / "voices" / "makima" / "reference.wav", dtype="float32")
        self.recording = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
        super().__init__(frames=len(self.recording))

    def frame(self, utterance: int, index: int) -> np.ndarray:
        frame: np.ndarray = self.recording[index]
        return frame


class Talk(fake_talk.FakeTalk):
    """One question, one answer."""

    def final(self, turn: int) -> str:
        return QUESTION

    def frame(self, number: int, index: int) -> np.ndarray:
        time = np.arange(index * FRAME, (index + 1) * FRAME) / 24000
        voice: np.ndarray = 0.2 * np.sin(2 * np.pi * 180 * time) * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * time))
        return voice


def deaf(app: Quart) -> None:
    """A server without the extra `listen`."""

    def check() -> None:
        raise MissingExtra("/api/v1/listen needs the extra listen (faster_whisper is not installed)")

    app.extensions["context"].ears.check = check


async def take(folder: Path) -> None:
    """Write the pictures to a folder."""
    fake_talk.WORDS[:] = ANSWER.split()
    with tempfile.TemporaryDirectory() as scratch:
        for scheme in ("light", "dark"):
            for size, (viewport, scale) in SIZES.items():
                async with browser_hearing(Path(scratch) / "question.wav", 0.5, 1.0, 20.0) as chromium:
                    await _views(chromium, folder, f"{size}-{scheme}", scheme, viewport=viewport, device_scale_factor=scale)


async def _views(chromium: Any, folder: Path, name: str, scheme: str, **options: Any) -> None:
    async def picture(opened: Any, view: str) -> None:
        taken = Image.open(io.BytesIO(await opened.screenshot()))
        taken.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(folder / f"{view}-{name}.png", optimize=True)

    with tempfile.TemporaryDirectory() as voices:
        async with (
            running(voices, Recorded(), change=Talk().install, shipped_voices=True) as server,
            page(chromium, server.http, tap=False, color_scheme=scheme, **options) as opened,
        ):
            await wait_for(opened, "document.querySelectorAll('#voice-list [data-voice]').length > 2")
            await picture(opened, "talk-start")
            await opened.click("#talk-button")
            await wait_for(opened, f"{MARKED}?.textContent && {MARKED}.parentElement.textContent.indexOf('garden') <= {SAID}.length")
            await picture(opened, "talk")
        async with (
            running(voices, Recorded(), change=deaf, shipped_voices=True) as server,
            page(chromium, f"{server.http}/#speak", tap=False, color_scheme=scheme, **options) as opened,
        ):
            await wait_for(opened, "document.querySelectorAll('#voice-list [data-voice]').length > 2")
            await opened.click("nav [data-view=talk]")
            await wait_for(opened, "!document.getElementById('talk-missing').hidden")
            await picture(opened, "talk-missing")
            await opened.click("nav [data-view=speak]")
            await opened.click("#speak-go")
            await wait_for(opened, "parseFloat(document.getElementById('figure-length').textContent) > 5")
            await picture(opened, "speak")
            await wait_for_text(opened, "speak-state", "Done.")
            await opened.click("nav [data-view=voices]")
            await picture(opened, "voices")
            await opened.click("#voices-add")
            await picture(opened, "voices-add")


if __name__ == "__main__":
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "page"
    where.mkdir(parents=True, exist_ok=True)
    asyncio.run(take(where))
