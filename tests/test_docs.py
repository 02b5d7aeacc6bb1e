"""The Markdown pages say what works: their blocks run, their commands have the options that they name, their links lead somewhere."""

import json
import re
import shlex
import shutil
import subprocess
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import soundfile
import typer
from typer.main import get_command

from qwen3_jax import cli
from server.voices import command as voices_command
from tests.documents import LIMIT, ROOT, RUN, Block, MakeCheckpoint, anchors, blocks, furnish, links, pages, run_blocks
from tests.fake_engine import FakeEngine
from tests.serving import connect, running

DOCS = sorted((ROOT / "docs").glob("*.md"))
PROGRAMS = {"convert": "convert.__main__", "evaluate": "qwen3_jax.evaluate.command"}  # they take all that follows their name
SAMPLES = sorted((ROOT / "docs" / "samples").glob("*.mp3"))
EVERY = [(page, block) for page in pages() for block in blocks(page)]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", pages(), ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name(page)} links to {target}"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{name(page)} links to {target}; there is {', '.join(sorted(anchors(there)))}"


def test_no_page_has_the_marks_of_a_merge() -> None:
    assert [name(page) for page in pages() if re.search(r"^(<{7} |={7}$|>{7} )", page.read_text("utf-8"), re.M)] == []


def test_every_page_is_in_the_index() -> None:
    index = links(ROOT / "docs" / "README.md")
    assert {page.name for page in DOCS} - {"README.md"} <= set(index)


@pytest.mark.parametrize(("page", "block"), EVERY, ids=lambda value: name(value) if isinstance(value, Path) else value.language)
def test_a_block_can_be_read(page: Path, block: Block) -> None:
    assert block.language, "a block says what it is"
    assert block.why is None or block.why.strip(), "why is it not run?"
    if block.language == "python":
        compile(block.text, name(page), "exec")
    elif block.language == "sh":
        subprocess.run(["bash", "-n", "-c", block.text], check=True, timeout=LIMIT)


def commands() -> list[tuple[Path, str]]:
    """Each call of one of our programs, in blocks that are run and in others."""
    found = [
        (page, match.group().strip())
        for page, block in EVERY
        if block.language == "sh"
        for match in re.finditer(
            r"(?:\./)?(?:\.venv/bin/)?\bpython -m (?:qwen3_jax|convert|training)\b[^\n]*", block.text.replace("\\\n", " ")
        )
    ]
    return list(dict.fromkeys(found))


def program(module: str) -> typer.Typer:
    """The command line of ``python -m MODULE``."""
    if module == "qwen3_jax":
        return cli.app
    inside = find_spec(f"{module}.__main__") if hasattr(import_module(module), "__path__") else None
    found = import_module(module if inside is None else inside.name)
    made: typer.Typer = found.app
    return made


@pytest.mark.parametrize(("page", "line"), commands(), ids=lambda value: name(value) if isinstance(value, Path) else value)
def test_a_command_has_the_options_that_it_is_given(page: Path, line: str) -> None:
    words = shlex.split(line, comments=True)
    words = words[: next((index for index, word in enumerate(words) if word in ("&&", "|", ">", ">>", "&", ";")), len(words))]
    module, arguments = words[2], words[3:]
    if module == "qwen3_jax" and arguments[0] in PROGRAMS:
        module, arguments = PROGRAMS[arguments[0]].removesuffix(".__main__"), arguments[1:]
    app = program(module)
    if module == "qwen3_jax" and arguments[0] == "voices":
        app, arguments = voices_command.app, arguments[1:] or ["list"]
    command = get_command(app)
    context = command.make_context("python", list(arguments))
    if isinstance(getattr(command, "commands", None), dict):
        named, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None, named
        found.make_context(named, rest, parent=context)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in DOCS if any(block.language in RUN and block.why is None for block in blocks(page))], ids=name
)
def test_blocks_run(page: Path, tmp_path: Path, checkpoint: MakeCheckpoint) -> None:
    printed = run_blocks(blocks(page), furnish(tmp_path, checkpoint("base")))
    if page.name == "serving.md":
        assert re.findall(r'"type":"(\w+)"', printed) == ["ready", "started", "complete"]
        assert soundfile.info(tmp_path / "served.wav").duration > 0.5


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_samples_are_short_mp3s_and_their_command_stands_in_the_docs(sample: Path) -> None:
    sound = soundfile.info(sample)
    assert (sound.format, sound.samplerate, sound.channels) == ("MP3", 24000, 1)
    assert 3 < sound.duration < 15
    assert sample.stat().st_size < 100_000
    page = (ROOT / "docs" / "embedded.md").read_text("utf-8")
    assert re.search(rf"^python -m qwen3_jax say .* -o docs/samples/{sample.name} --voice {sample.stem} --seed \d+$", page, re.M)
    assert f"(samples/{sample.name})" in page


def test_there_are_samples() -> None:
    assert len(SAMPLES) == 2


BROWSER = r"""
const fs = require("fs");
const page = fs.readFileSync(process.argv[2], "utf-8");
const script = page.match(/<script>(.*)<\/script>/s)[1];
const fields = { server: { value: "ws://x/api/v1/speak" }, token: { value: "" }, text: { value: "Hello there." } };
Object.assign(fields, { log: { textContent: "" }, speak: {}, cancel: {}, voice: { value: "" } });
globalThis.document = { getElementById: (id) => fields[id] };
globalThis.location = new URL("http://127.0.0.1:8080/browser.html");
let down = true;
const sent = [], started = [], stopped = [];
globalThis.WebSocket = class {
  static OPEN = 1;
  readyState = down ? 3 : 1;
  constructor(url) {
    this.url = url;
    globalThis.socket_ = this;
    queueMicrotask(() => (down ? this.onclose({ code: 1006 }) : this.onopen()));
  }
  send(text) { sent.push(JSON.parse(text)); }
};
globalThis.AudioContext = class {
  currentTime = 0;
  constructor({ sampleRate }) { this.rate = sampleRate; }
  createBuffer(channels, length, rate) { return { duration: length / rate, copyToChannel() {} }; }
  createBufferSource() { return { connect() {}, start(at) { started.push(at); }, stop() { stopped.push(1); } }; }
};
eval(script);
(async () => {
  fields.cancel.onclick();
  await fields.speak.onclick();
  const said = { down: fields.log.textContent };
  globalThis.location = new URL("file:///browser.html");
  await fields.speak.onclick();
  said.file = fields.log.textContent.slice(said.down.length);
  globalThis.location = new URL("http://127.0.0.1:8080/browser.html");
  const early = sent.length;
  down = false;
  await fields.speak.onclick();
  for (const frames of [1, 2]) globalThis.socket_.onmessage({ data: new Float32Array(1920 * frames).buffer });
  fields.cancel.onclick();
  globalThis.socket_.onmessage({ data: JSON.stringify({ type: "error", code: "CANCELLED", message: "", recoverable: true }) });
  console.log(JSON.stringify({ sent, started, stopped: stopped.length, said, early }));
  fields.voice.value = "heart";
  document.onkeydown({ key: "Enter", shiftKey: true });
  document.onkeydown({ key: "Enter", preventDefault() {} });
  await new Promise(setImmediate);
  console.log(JSON.stringify(sent.slice(3)));
})();
"""


@pytest.fixture
def page_in_node(tmp_path: Path) -> Any:
    """What the script of the browser's page sends and plays, with stand-ins for the browser."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    (tmp_path / "run.cjs").write_text(BROWSER, "utf-8")
    page = ROOT / "docs" / "examples" / "browser.html"
    result = subprocess.run(["node", tmp_path / "run.cjs", page], capture_output=True, text=True, timeout=LIMIT)
    assert result.returncode == 0, result.stderr
    first, later = result.stdout.splitlines()
    return {**json.loads(first), "later": json.loads(later)}


async def test_the_browsers_page(page_in_node: Any, voices: Path) -> None:
    """What it sends is understood by a server; frames follow each other without a gap, and a cancel silences them."""
    assert "Start it: python -m qwen3_jax serve\n" in page_in_node["said"]["down"]
    assert "TTS_ALLOWED_ORIGINS=http://127.0.0.1:8080\n" in page_in_node["said"]["down"]
    assert "Serve it: python -m http.server 8080 --bind 127.0.0.1 --directory docs/examples\n" in page_in_node["said"]["file"]
    assert page_in_node["early"] == 0, "without a connection, Speak and Cancel send nothing"
    assert page_in_node["later"] == [{"type": "speak", "text": "Hello there.", "voice": "heart"}], "Enter speaks, Shift and Enter do not"
    assert page_in_node["started"] == pytest.approx([0.05, 0.13])
    assert page_in_node["stopped"] == 2
    assert [message["type"] for message in page_in_node["sent"]] == ["start", "speak", "cancel"]
    start, speak, _ = page_in_node["sent"]
    async with running(voices, FakeEngine(frames=3)) as server, connect(server.url) as socket:
        heard, sound = [], 0
        for message in (start, speak):
            await socket.send(json.dumps(message))
        async for frame in socket:
            if isinstance(frame, bytes):
                sound += len(frame)
                continue
            heard.append(json.loads(frame)["type"])
            if heard[-1] in ("complete", "error"):
                break
    assert heard == ["ready", "started", "complete"]
    assert sound == 3 * 1920 * 4, "float32"
