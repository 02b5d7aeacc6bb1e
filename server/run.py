"""Serve with the settings of the environment."""

import asyncio
import logging

from pydantic import ValidationError

from qwen3_jax.hub import described
from server.app import create_app
from server.settings import Settings
from server.transport import serve

log = logging.getLogger("server")


def main(**chosen: object) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        chosen: settings that come before those of the environment.

    Raises:
        ValueError, FileNotFoundError: a setting, a voice or a checkpoint that cannot be used.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = Settings(**{name: value for name, value in chosen.items() if value is not None})  # type: ignore[arg-type]  # checked by pydantic
    except ValidationError as error:
        raise ValueError(
            "; ".join(f"TTS_{'_'.join(map(str, e['loc'])).upper()} = {e['input']!r}: {e['msg']}" for e in error.errors())
        ) from error
    log.setLevel(logging.INFO)  # the server's own words, not every library's
    log.info("http://%s:%d  voices %s", settings.host, settings.port, settings.voices_dir)
    log.info("model %s", described(settings.model_id))
    asyncio.run(serve(create_app(settings), settings))
