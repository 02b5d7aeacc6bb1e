"""The page's parts that need no browser of their own: its files as they are served, and the arithmetic of its modules, run in Chromium."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.http import page as served
from tests.browser import needs_chromium, page, wait_for
from tests.fake_engine import FakeEngine
from tests.fake_talk import FakeTalk
from tests.serving import running

module_loop = pytest.mark.asyncio(loop_scope="module")
VIEWS = ("talk", "speak", "voices")
LONGEST = 400  # lines of a file


async def test_files_have_their_types_and_are_asked_for_once(voices: Path) -> None:
    async with running(voices, FakeEngine()) as server, server.http_client() as http:
        html = await http.get("/", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
        assert (html.status_code, html.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        policy = html.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';") and "unsafe" not in policy
        assert not re.search(r"<script(?! type=\"module\" src=\"page/)|style=|\son\w+=|https?://(?!www\.w3\.org)", html.text)
        names = re.findall(r'(?:href|src)="(page/[^"]+)"', html.text)
        assert names and [(await http.get(f"/{name}")).status_code for name in names] == [200] * len(names)
        for name, file in served.files().items():
            answer = await http.get(f"/page/{name}")
            assert answer.content == file.data and answer.headers["Content-Security-Policy"] == policy
            assert answer.headers["Cache-Control"] == "no-cache"
            again = await http.get(f"/page/{name}", headers={"If-None-Match": answer.headers["ETag"]})
            assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", answer.headers["ETag"])
        kinds = {name: (await http.get(f"/page/{name}")).headers["Content-Type"] for name in ("app.js", "theme.css", "icon.svg")}
        assert list(kinds.values()) == ["text/javascript; charset=utf-8", "text/css; charset=utf-8", "image/svg+xml"]
        for name in ("nope.js", "..%2f..%2fsettings.py", "%00"):
            assert (await http.get(f"/page/{name}")).status_code == 404
        for accept in ("*/*", "text/plain", "application/json"):
            assert (await http.get("/", headers={"Accept": accept})).headers["Content-Type"] == "text/plain; charset=utf-8"


def test_modules_import_only_what_is_there_and_are_short() -> None:
    files = {name: file.data.decode() for name, file in served.files().items()}
    imported = set()
    for name, text in files.items():
        assert text.count("\n") <= LONGEST, name
        if name.endswith(".js"):
            assert text.startswith("/**"), f"{name} says what it is"
            imported |= set(re.findall(r'from "\./([\w-]+\.js)"', text))
            assert (
                "import(" not in re.sub(r"import\(\"\./[\w-]+\.js\"\)\.", "", text) and "innerHTML" not in text and "console." not in text
            )
    assert imported <= set(files)
    loaded = imported | {"app.js", *re.findall(r"page/([\w-]+\.js)", "".join(files.values()))}
    assert {name for name in files if name.endswith(".js")} == loaded, "no module lies around"


def test_a_broken_installation_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no index\.html: install the package again"):
        served.files(tmp_path)


RESAMPLE = """async ([from, to, frequency]) => {
  const { Resampler } = await import("/page/resampler.js");
  const resampler = new Resampler(from, to), made = [];
  for (let at = 0; at < from; at += 128) {
    const piece = new Float32Array(128).map((_, index) => Math.sin((2 * Math.PI * frequency * (at + index)) / from));
    made.push(...resampler.write(piece));
  }
  return made;
}"""


@needs_chromium
@module_loop
async def test_the_arithmetic_of_the_page(chromium: Any, voices: Path) -> None:
    async with running(voices, FakeEngine()) as server, page(chromium, server.http, tap=False) as opened:
        for rate in (48000, 44100, 24000, 8000):
            made = np.array(await opened.evaluate(RESAMPLE, [rate, 16000, 1000]))
            assert len(made) == pytest.approx(16000, abs=300)
            at = np.arange(len(made))
            expected = np.sin(2 * np.pi * 1000 * at / 16000)
            assert np.abs(made - expected)[200:-200].max() < 0.01, rate
        aliased = np.array(await opened.evaluate(RESAMPLE, [48000, 16000, 12000]))
        assert np.abs(aliased[200:-200]).max() < 0.01, "what is above 8 kHz is gone, not folded down"
        waits = await opened.evaluate(
            """async () => {
              const { backOff } = await import("/page/link.js");
              return [0, 1, 5, 9, 60].map((tries) => backOff(tries, false, () => 1)).concat([backOff(0, true, () => 0)]);
            }"""
        )
        assert waits == [300, 600, 9600, 15000, 15000, 2500]
        placed = await opened.evaluate(
            """async () => {
              const { place } = await import("/page/conversation.js");
              const words = ["Well", "not-here", "well,", "Done"].map((word, index) => ({ word, startMs: index, endMs: index }));
              return place("well — well, done.", words).map(({ word, from, to }) => [word, from, to]);
            }"""
        )
        assert placed == [["Well", 0, 4], ["well,", 7, 12], ["Done", 13, 17]]
        order = await opened.evaluate(
            """async () => {
              const { Conversation } = await import("/page/conversation.js");
              const list = document.createElement("ol"), conversation = new Conversation(list);
              conversation.heard("1");
              conversation.answer("a", "one ");
              conversation.answer("b", "two");
              conversation.heard("2");
              conversation.over("b", null);
              conversation.answer("c", "of nobody's question");
              conversation.over("c", null);
              conversation.heard("3");
              return [...list.children].map((turn) => turn.querySelector("p").textContent.trim());
            }"""
        )
        assert order == ["1", "one", "2", "two", "of nobody's question", "3"], "a question may come after its answer: two sockets"


BUFFER = """async () => {
  const { JitterBuffer } = await import("/page/jitter-buffer.js");
  const told = [], buffer = new JitterBuffer(1000, ({ type, id, played }) => told.push([type, id, played]));
  const pull = (count) => { const out = new Float32Array(count); buffer.pull(out); return [...out]; };
  const ones = (count, value = 1) => new Float32Array(count).fill(value);
  const seen = {};
  buffer.push("a", ones(99));
  seen.early = pull(50);
  buffer.push("a", ones(1));
  seen.begins = pull(50);
  buffer.duck(0.2, true);
  seen.ducked = pull(50);
  seen.held = pull(50);
  seen.heldUnderruns = buffer.underruns;
  buffer.duck(1, false);
  buffer.push("a", ones(60));
  seen.waits = pull(20);
  buffer.end("a");
  buffer.push("b", ones(30, 0.5));
  buffer.end("b");
  seen.joined = pull(100);
  buffer.push("c", ones(100));
  pull(10);
  buffer.flush();
  seen.flushed = pull(20);
  buffer.duck(0.2, true);
  buffer.push("d", ones(100));
  seen.starved = pull(150);
  seen.underruns = [buffer.underruns, buffer.missed];
  buffer.push("d", ones(199));
  seen.more = pull(10);
  buffer.push("d", ones(1));
  seen.back = pull(10);
  return { ...seen, told };
}"""


@needs_chromium
@module_loop
async def test_the_jitter_buffer(chromium: Any, voices: Path) -> None:
    async with running(voices, FakeEngine()) as server, page(chromium, server.http, tap=False) as opened:
        seen = await opened.evaluate(BUFFER)
    assert seen["early"] == [0] * 50 and seen["begins"] == [1] * 50, "an utterance begins when a tenth of a second is there"
    ducked = np.array(seen["ducked"])
    assert np.all(np.diff(ducked) <= 1e-6) and ducked[-1] == pytest.approx(0.2, abs=1e-3) and ducked[29] > 0.15
    assert seen["held"] == [0] * 50 and seen["heldUnderruns"] == 0, "a sender that pauses while ducked is not late"
    assert seen["waits"] == [0] * 20
    joined = np.array(seen["joined"])
    assert np.all(joined[:60] > 0) and joined[59] == pytest.approx(1) and np.all(joined[60:90] == 0.5) and not np.any(joined[90:])
    flushed = np.array(seen["flushed"])
    assert np.all(np.diff(flushed[:5]) < 0) and not np.any(flushed[5:])
    assert seen["starved"] == [1] * 100 + [0] * 50 and seen["underruns"] == [1, 50]
    assert seen["more"] == [0] * 10 and seen["back"][0] == 0 and seen["back"][-1] == 1, "after an underrun twice as much must be there"
    kinds = [(kind, name) for kind, name, _ in seen["told"]]
    assert kinds == [("begun", "a"), ("ended", "a"), ("begun", "b"), ("ended", "b"), ("begun", "c"), ("flushed", "c"), ("begun", "d")]
    assert seen["told"][1][2] == 160


@needs_chromium
@module_loop
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_everybody_can_use_it(chromium: Any, voices: Path, scheme: Any) -> None:
    """axe-core finds nothing serious on any view or dialog; the keyboard gets everywhere."""
    axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed: it comes with the extra dev")
    script = (Path(axe.__file__).parent / "axe.min.js").read_text("utf-8")
    fake = FakeTalk()
    async with running(voices, FakeEngine(), change=fake.install) as server:
        for width in (1200, 390):
            options = {"color_scheme": scheme, "viewport": {"width": width, "height": 800}}
            async with page(chromium, server.http, tap=False, **options) as opened:
                await opened.evaluate(script)
                await wait_for(opened, "document.querySelectorAll('#voice-list [data-voice]').length === 2")
                states = [
                    *((f"#{view}", f"() => {{ location.hash = '#{view}'; }}") for view in VIEWS),
                    ("add a voice", "() => document.getElementById('voices-add').click()"),
                    (
                        "access",
                        "() => { document.getElementById('voice-dialog').close(); document.getElementById('server-state').click(); }",
                    ),
                ]
                for name, reach in states:
                    await opened.evaluate(reach)
                    await wait_for(opened, "document.fonts.status === 'loaded'")
                    found = (await opened.evaluate("axe.run()"))["violations"]
                    bad = [
                        (one["id"], [node["html"] for node in one["nodes"]]) for one in found if one["impact"] in ("serious", "critical")
                    ]
                    assert not bad, (name, width, bad)
                overflow = await opened.evaluate("document.documentElement.scrollWidth - innerWidth")
                assert overflow <= 0, f"at {width} pixels nothing is cut off at the side"


@needs_chromium
@module_loop
async def test_the_keyboard_gets_everywhere(chromium: Any, voices: Path) -> None:
    fake = FakeTalk()
    async with running(voices, FakeEngine(), change=fake.install) as server, page(chromium, server.http, tap=False) as opened:
        await wait_for(opened, "document.querySelectorAll('#voice-list [data-voice]').length === 2")
        names = []
        for _ in range(8):
            await opened.keyboard.press("Tab")
            names.append(await opened.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        assert names == ["Skip to the content", "Speech", "Talk", "Speak", "Voices", "server-state", "talk-button", "Options"]
        await opened.focus("nav [data-view=speak]")
        await opened.keyboard.press("Enter")
        await wait_for(opened, "document.activeElement.id === 'main'")
        assert await opened.is_visible("#speak-text") and await opened.title() == "Speak · Speech"
        await opened.focus("#speak-text")
        await opened.keyboard.press("Control+Enter")
        assert fake is not None
