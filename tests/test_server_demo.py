"""``demo``: the server with the voice that ships, on loopback, and a browser that opens once the model is loaded."""

import importlib.util
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qwen3_jax import cli
from server import __main__ as program
from server import demo, run
from server.listen.ears import Ears
from tests.fake_engine import FakeEngine
from tests.serving import running, until


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":0")


@pytest.fixture(autouse=True)
def warmed(monkeypatch: pytest.MonkeyPatch) -> list[Ears]:
    """Ears that were to be loaded; none is."""
    found: list[Ears] = []

    async def warm(ears: Ears) -> None:
        found.append(ears)

    monkeypatch.setattr(Ears, "warm", warm)
    return found


@pytest.mark.usefixtures("screen")
async def test_the_browser_opens_once_the_model_is_loaded(voices: Path, capsys: pytest.CaptureFixture[str], warmed: list[Ears]) -> None:
    engine, opened = FakeEngine(hold_loading=True), list[str]()

    def open_page(url: str) -> bool:
        opened.append(url)
        return True

    def change(app: Any) -> None:
        demo.show(app, "http://127.0.0.1:1", browser=True, open_page=open_page)

    async with running(voices, engine, wait=False, change=change):
        await until(lambda: engine.loaded is not None)
        assert not opened and "http://127.0.0.1:1 (the model is being loaded" in capsys.readouterr().out
        await until(lambda: len(warmed) == 1)  # beside the model
        engine.load().set_result(None)
        await until(lambda: bool(opened))
    assert opened == ["http://127.0.0.1:1"]


@pytest.mark.usefixtures("screen")
@pytest.mark.parametrize("why", ["asked not to", "no browser", "no screen"])
async def test_without_a_browser_the_address_is_printed(
    why: str, voices: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "no screen":
        monkeypatch.setattr(demo.sys, "platform", "linux")
        for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
            monkeypatch.delenv(name, raising=False)
    said: list[str] = []

    def open_page(url: str) -> bool:
        assert why == "no browser"
        return False

    def change(app: Any) -> None:
        demo.show(app, "http://127.0.0.1:1", browser=why != "asked not to", open_page=open_page)

    def told() -> bool:
        said.append(capsys.readouterr().out)
        return "ready: open http://127.0.0.1:1 in a browser" in "".join(said)

    async with running(voices, FakeEngine(), change=change):
        await until(told)


async def test_a_model_that_cannot_be_loaded_opens_nothing(voices: Path) -> None:
    def change(app: Any) -> None:
        demo.show(app, "http://127.0.0.1:1", browser=True, open_page=pytest.fail)

    with pytest.raises(ValueError, match="no such model"):
        async with running(voices, FakeEngine(loading_error=ValueError("no such model")), change=change):
            pass


def test_it_serves_the_voice_that_ships_on_a_port_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(run, "main", lambda **chosen: given.append(chosen))
    monkeypatch.setenv("TTS_HOST", "0.0.0.0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("TTS_PORT", str(port))
        demo.main(browser=False)
    demo.main(browser=False)
    demo.main(browser=False, port=7)
    assert [one["port"] for one in given] == [0, port, 7]
    assert all(one["host"] == "127.0.0.1" and one["model_id"] == "embedded" for one in given)


def test_what_is_missing_is_said_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "main", lambda **_: None)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "faster_whisper" else found(name))
    demo.main(browser=False, port=0)
    told = capsys.readouterr().err
    assert "without the extra listen (faster_whisper is not installed): pip install 'qwen3-jax[listen]'" in told
    monkeypatch.setattr(importlib.util, "find_spec", found)
    monkeypatch.setitem(sys.modules, "quart", None)
    monkeypatch.delitem(sys.modules, "server.demo")
    with pytest.raises(SystemExit, match=r"error: python -m server demo needs the extra server \(quart is not installed\): pip install"):
        program.demo(browser=False)


def test_the_shell_has_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "restart_with_large_pages", lambda: None)
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(demo, "main", lambda **chosen: given.append(chosen))
    for arguments in (["demo"], ["demo", "--no-browser", "--port", "7"]):
        assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    program.command(["demo", "--no-browser"])
    assert given == [{"browser": True, "port": None}, {"browser": False, "port": 7}, {"browser": False}]
