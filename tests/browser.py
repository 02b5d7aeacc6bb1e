"""A headless Chromium for the tests of the page, and a tap on what its loudspeaker gets.

The tap is the test's own: a script that runs before the page's wraps ``AudioNode.connect``, so that what goes to the loudspeaker goes to a
second worklet as well. That worklet's file is served by the test (route ``/tap.js``), because the page's policy forbids scripts of others.
"""

import asyncio
import base64
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import soundfile
from quart import Quart, Response, ResponseReturnValue

from tests.fake_engine import LIMIT

playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed: it comes with the extra dev")

ROOT = Path(__file__).parent.parent
RATE = 24000
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium, or set CHROMIUM to it")
FLAGS = (
    "--no-sandbox",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP page.test 127.0.0.1",  # a name by which no page is secure
    "--font-render-hinting=none",
)
TAP = """
registerProcessor("tap", class extends AudioWorkletProcessor {
  process([[samples]]) {
    this.port.postMessage({ samples: samples ? samples.slice() : new Float32Array(128), at: currentTime });
    return true;
  }
});
"""
HOOK = """
window.__tap = { rate: 0, pieces: [], at: [] };
const addModule = AudioWorklet.prototype.addModule;
AudioWorklet.prototype.addModule = async function (...given) {
  await addModule.call(this, "/tap.js");
  return addModule.apply(this, given);
};
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (to, ...rest) {
  if (to === this.context.destination) {
    const tap = new AudioWorkletNode(this.context, "tap", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
    window.__tap.rate = this.context.sampleRate;
    tap.port.onmessage = ({ data }) => { window.__tap.pieces.push(data.samples); window.__tap.at.push(data.at); };
    connect.call(this, tap);
  }
  return connect.call(this, to, ...rest);
};
const Socket = window.WebSocket;
window.__sockets = [];
window.WebSocket = class extends Socket {
  constructor(...given) {
    super(...given);
    window.__sockets.push(this);
  }
};
window.__heard = () => {
  const { rate, pieces } = window.__tap;
  const all = new Float32Array(128 * pieces.length);
  pieces.forEach((piece, index) => all.set(piece, 128 * index));
  const bytes = new Uint8Array(all.buffer);
  let text = "";
  for (let at = 0; at < bytes.length; at += 32768) text += String.fromCharCode(...bytes.subarray(at, at + 32768));
  return { rate, data: btoa(text) };
};
"""


def serve_tap(app: Quart) -> None:
    """For ``running(change=...)``: the tap's file."""

    @app.get("/tap.js")
    async def tap() -> ResponseReturnValue:
        return Response(TAP, content_type="text/javascript")


@asynccontextmanager
async def browser(*flags: str) -> AsyncIterator[Any]:
    """Chromium."""
    async with playwright.async_playwright() as started:
        chromium = await started.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *flags])
        try:
            yield chromium
        finally:
            await chromium.close()


@asynccontextmanager
async def page(chromium: Any, url: str, *, tap: bool = True, microphone: bool = True, **options: Any) -> AsyncIterator[Any]:
    """A page of its own context, opened at ``url``. No error of a script, and no breach of the page's policy, may happen in it."""
    context = await chromium.new_context(permissions=["microphone"] if microphone else [], reduced_motion="reduce", **options)
    context.set_default_timeout(1000 * LIMIT)
    faults: list[str] = []
    try:
        if tap:
            await context.add_init_script(HOOK)
        opened = await context.new_page()
        opened.on("pageerror", lambda error: faults.append(str(error)))
        opened.on("console", lambda told: faults.append(told.text) if "Content Security Policy" in told.text else None)
        await opened.goto(url)
        yield opened
        assert not faults, faults
    finally:
        await context.close()


async def heard(opened: Any) -> np.ndarray:
    """All that the loudspeaker has got, float32 at 24 kHz."""
    told = await opened.evaluate("window.__heard()")
    assert told["rate"] in (0, 24000)
    return np.frombuffer(base64.b64decode(told["data"]), np.float32)


def trimmed(samples: np.ndarray) -> np.ndarray:
    """Without the silence around."""
    sounding = np.flatnonzero(samples)
    return samples[sounding[0] : sounding[-1] + 1] if len(sounding) else samples[:0]


async def wait_for(opened: Any, condition: str) -> None:
    """Until an expression of JavaScript is true, in a hidden tab too."""
    try:
        async with asyncio.timeout(LIMIT):
            while not await opened.evaluate(f"() => Boolean({condition})"):  # noqa: ASYNC110
                await asyncio.sleep(0.03)
    except TimeoutError:
        said = await opened.evaluate("document.body.innerText")
        raise AssertionError(f"it never came true that {condition}; the page says:\n{said}") from None


async def text_of(opened: Any, place: str) -> str:
    """What stands at an element's id."""
    return " ".join((await opened.text_content(f"#{place}") or "").split())


async def wait_for_text(opened: Any, place: str, said: str) -> None:
    """Until an element says it, whole or as a part."""
    await wait_for(opened, f"document.getElementById({json.dumps(place)}).textContent.includes({json.dumps(said)})")


def microphone(*parts: float) -> np.ndarray:
    """For a fake microphone: silence and real speech in turns, seconds each, beginning with silence; float32 at 24 kHz."""
    spoken, rate = soundfile.read(ROOT / "voices" / "heart" / "reference.wav", dtype="float32")
    assert rate == RATE
    loud = np.tile(spoken[np.flatnonzero(np.abs(spoken) > 0.05)[0] :], 3)
    pieces = [np.zeros(int(RATE * part), np.float32) if index % 2 == 0 else loud[: int(RATE * part)] for index, part in enumerate(parts)]
    return np.concatenate(pieces)


@asynccontextmanager
async def browser_hearing(file: Path, *parts: float) -> AsyncIterator[Any]:
    """Chromium whose microphone plays these parts once, from the moment that a page opens it."""
    soundfile.write(file, microphone(*parts), RATE, subtype="PCM_16")
    async with browser(f"--use-file-for-fake-audio-capture={file}%noloop") as started:
        yield started


def user(*parts: float) -> Any:
    """A module's fixture: `browser_hearing` these parts."""

    @pytest_asyncio.fixture(scope="module", loop_scope="module")
    async def listening(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Any]:
        async with browser_hearing(tmp_path_factory.mktemp("microphone") / "said.wav", *parts) as started:
            yield started

    return listening


LATE_PERMISSION = """() => {
  const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  window.__streams = [];
  window.__allow = [];
  navigator.mediaDevices.getUserMedia = async (wanted) => {
    await new Promise((done) => window.__allow.push(done));
    const stream = await open(wanted);
    window.__streams.push(stream);
    return stream;
  };
}"""


async def microphones(opened: Any, number: int) -> list[str]:
    """For ``LATE_PERMISSION``: the user allows all that was asked for; whether each of so many microphones is `live` or `ended`."""
    await wait_for(opened, f"window.__allow.length === {number}")
    await opened.evaluate("window.__allow.forEach((allow) => allow())")
    await wait_for(opened, f"window.__streams.length === {number}")
    await opened.evaluate("new Promise((done) => setTimeout(done))")
    states: list[str] = await opened.evaluate("window.__streams.map((stream) => stream.getTracks()[0].readyState)")
    return states


def floats(data: bytes) -> np.ndarray:
    """PCM16 as the page turns it into samples."""
    return (np.frombuffer(data, "<i2").astype(np.float64) / 32767).astype(np.float32)
