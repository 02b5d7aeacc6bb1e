"""Serve with the settings of the environment."""

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from quart import Quart

from qwen3_jax.checkpoint.hub import described
from qwen3_jax.messages import shorten
from server.app import create_app
from server.environment import odd_variables
from server.ops import logs, signals
from server.ops.address import listen, url_of
from server.reference import allowed_words
from server.settings import Settings
from server.transport import serve

LEAVE_SECONDS = 0.5  # for threads, once every client has been told
TELL_SECONDS = 2.0  # for whoever called to tell of an error, where a thread would hold the end up
log = logging.getLogger("server")


def settings_of(**chosen: object) -> Settings:
    """The environment's settings, with what is ``chosen`` before them.

    Raises:
        ValueError: a setting that cannot be used; names it as the environment spells it.
    """
    try:
        return Settings(**{name: value for name, value in chosen.items() if value is not None})  # type: ignore[arg-type]  # checked by pydantic
    except ValidationError as error:
        raise ValueError("; ".join(_said(one) for one in error.errors(include_url=False))) from error


def begin(**chosen: object) -> Settings:
    """The settings, with the log as they say; the log tells of them, and of variables that are none. Errors as in ``settings_of``."""
    settings = settings_of(**chosen)
    logs.configure(settings.log_format)
    for line in odd_variables(os.environ):
        log.warning("%s", line)
    log.info("settings: %s", settings.changed() or "all as by default")
    return settings


def _said(error: ErrorDetails) -> str:
    place, value, message = error["loc"], error["input"], error["msg"].removeprefix("Value error, ")
    if not place:
        return str(message)
    name = "_".join(map(str, place)).upper()
    name = name if name.startswith(("TTS_", "SUPABASE_")) else f"TTS_{name}"
    if error["type"] != "value_error":  # pydantic's words, not ours
        message = allowed_words(name) or message
    return f"{name} = {shorten(repr(value))}: {message}"


def main(prepare: Callable[[Quart, str], None] | None = None, **chosen: object) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP.

    Args:
        prepare: called with the application and its address before it serves.
        chosen: settings that come before those of the environment.

    Raises:
        ValueError, FileNotFoundError: a setting, a voice or a checkpoint that cannot be used.
        OSError: the address cannot be listened on.
    """
    signals.while_starting()
    settings, before = begin(**chosen), threading.enumerate()
    with listen(settings.host, settings.port) as listener:
        app = create_app(settings)
        if prepare is not None:
            prepare(app, url_of(listener.getsockname()))
        log.info("loading model %s", described(settings.model_id) if settings.engine == "qwen3" else settings.engine)
        try:
            with asyncio.Runner(loop_factory=_loop) as runner:
                runner.run(serve(app, settings, listener=listener))
        except BaseException:
            if _at_work(before):
                _end_soon()
            raise
    if _at_work(before):
        log.info("a thread is still at work, compiling perhaps: leaving without it")
        _end(0)


class _Threads(ThreadPoolExecutor):
    """The event loop's threads. Its end does not wait for them: one may hang in a bucket or a file system for ever."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=True)


def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_default_executor(_Threads(thread_name_prefix="asyncio"))
    return loop


def _at_work(before: list[threading.Thread]) -> bool:
    """Whether a thread that Python would wait for is at work still, after a moment in which it could end.

    A native compile cannot be interrupted, and may take a minute; a read of a hung file system never ends.
    """
    end = monotonic() + LEAVE_SECONDS
    working = [thread for thread in threading.enumerate() if thread not in before and not thread.daemon]
    for thread in working:
        thread.join(max(0.0, end - monotonic()))
    return any(thread.is_alive() for thread in working)


def _end_soon() -> None:
    """End the process with status 1, once its error has been told."""
    timer = threading.Timer(TELL_SECONDS, _end, (1,))
    timer.daemon = True
    timer.start()


def _end(status: int) -> None:
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)
