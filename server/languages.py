"""A language that somebody names -> the name that the engine takes, or a refusal that names what the engine, and another model, speaks."""

from typing import Protocol

from qwen3_jax.messages import shorten
from qwen3_jax.text.languages import language_name, spoken_elsewhere

LANGUAGES = ("English", "Japanese", "Chinese", "Korean", "German", "French", "Russian", "Portuguese", "Spanish", "Italian")
AUTO = "Auto"


class Chosen(Protocol):
    """The part of the settings that is used here; ``voices``, a command of the library, works without the packages that they need."""

    @property
    def default_language(self) -> str: ...
    @property
    def model_fields_set(self) -> set[str]: ...


def language(name: str) -> str | None:
    """The name as ``capabilities`` spells it, whatever its case; ``Auto`` too. None if there is no such language."""
    wanted = language_name(name).casefold()
    return next((known for known in (*LANGUAGES, AUTO) if known.casefold() == wanted), None)


def spoken(name: str, languages: tuple[str, ...]) -> str:
    """The language as ``capabilities`` spells it.

    Args:
        languages: of the engine; empty while it is not loaded, then all that may be asked for.

    Raises:
        ValueError: the engine does not speak it.
    """
    known = languages or LANGUAGES
    found = language(name)
    if found is None or found not in (*known, AUTO):
        raise ValueError(f"language {shorten(repr(name))}: this model speaks {', '.join(known)}, or {AUTO}{spoken_elsewhere(name)}")
    return found


def default_language(settings: Chosen, languages: tuple[str, ...]) -> str:
    """The language of a client that names none. An operator's choice is checked when the model is loaded."""
    found = language(settings.default_language)
    return found if found in (languages or LANGUAGES) else AUTO


def check_default(settings: Chosen, languages: tuple[str, ...]) -> None:
    """Raises ValueError if the operator has chosen a default language that the model does not speak."""
    if "default_language" in settings.model_fields_set:
        try:
            spoken(settings.default_language, languages)
        except ValueError as error:
            raise ValueError(f"TTS_DEFAULT_LANGUAGE: {error}") from error
