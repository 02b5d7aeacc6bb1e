"""Serve with the settings of the environment."""

import asyncio
import logging

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from qwen3_jax.hub import described
from server import logs
from server.app import create_app
from server.settings import Settings
from server.transport import serve

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


def _said(error: ErrorDetails) -> str:
    place, value, message = error["loc"], error["input"], error["msg"]
    if not place:
        return str(message)
    name = "_".join(map(str, place)).upper()
    return f"{name if name.startswith(('TTS_', 'SUPABASE_')) else f'TTS_{name}'} = {value!r}: {message}"


def main(**chosen: object) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        chosen: settings that come before those of the environment.

    Raises:
        ValueError, FileNotFoundError: a setting, a voice or a checkpoint that cannot be used.
    """
    settings = settings_of(**chosen)
    logs.configure(settings.log_format)
    app = create_app(settings)
    log.info("http://%s:%d\n%s", settings.host, settings.port, settings.table())
    log.info("model %s", described(settings.model_id))
    asyncio.run(serve(app, settings))
