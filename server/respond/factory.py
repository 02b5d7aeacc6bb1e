"""Settings -> who writes the answers."""

from server.respond.base import Responder
from server.respond.echo import Echo
from server.respond.openai import OpenAI
from server.settings import Settings


def create(settings: Settings) -> Responder:
    """The chat endpoint, if one is set; else the echo.

    Raises:
        MissingExtra: the package that the endpoint needs is not installed.
    """
    if settings.responder_url is None or settings.responder_model is None:
        return Echo()
    key = settings.responder_key
    return OpenAI(
        settings.responder_url,
        settings.responder_model,
        None if key is None else key.get_secret_value(),
        settings.responder_instructions,
        settings.responder_timeout,
        min(settings.responder_max_chars, settings.max_text_chars),
    )
