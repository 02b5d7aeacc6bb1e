"""A language that somebody names -> the name that the engine takes, or a refusal that names what the engine, and another model, speaks."""

from qwen3_jax.messages import shorten
from qwen3_jax.text.languages import spoken_elsewhere
from server.settings import Settings
from server.ws import protocol

AUTO = "Auto"


def spoken(name: str, languages: tuple[str, ...]) -> str:
    """The language as ``capabilities`` spells it.

    Args:
        languages: of the engine; empty while it is not loaded, then all that may be asked for.

    Raises:
        ValueError: the engine does not speak it.
    """
    known = languages or protocol.LANGUAGES
    found = protocol.language(name)
    if found is None or found not in (*known, AUTO):
        raise ValueError(f"language {shorten(repr(name))}: this model speaks {', '.join(known)}, or {AUTO}{spoken_elsewhere(name)}")
    return found


def default_language(settings: Settings, languages: tuple[str, ...]) -> str:
    """The language of a client that names none. An operator's choice is checked when the model is loaded."""
    found = protocol.language(settings.default_language)
    return found if found in (languages or protocol.LANGUAGES) else AUTO


def check_default(settings: Settings, languages: tuple[str, ...]) -> None:
    """Raises ValueError if the operator has chosen a default language that the model does not speak."""
    if "default_language" in settings.model_fields_set:
        try:
            spoken(settings.default_language, languages)
        except ValueError as error:
            raise ValueError(f"TTS_DEFAULT_LANGUAGE: {error}") from error
