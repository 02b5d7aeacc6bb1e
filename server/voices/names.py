"""Names of OpenAI's voices -> voices of the same sex that ship, or presets of published checkpoints.

What is there under a name of its own, and what the operator's ``TTS_VOICE_ALIASES`` says, go before this table.
"""

from collections.abc import Container, Mapping

_MEN, _WOMEN = ("george", "ryan"), ("heart", "serena")  # the first that is there; of none, the default voice
OPENAI: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("ash", "ballad", "cedar", "echo", "fable", "onyx", "verse"), _MEN),
    **dict.fromkeys(("coral", "marin", "nova", "sage", "shimmer"), _WOMEN),
    "alloy": (),  # of no sex: the default voice
}
DEFAULT = ("", "default")


def stands_for(name: str, there: Container[str], default: str) -> str | None:
    """The id that one of OpenAI's names, or of DEFAULT, stands for; None if it is no such name."""
    name = name.casefold()
    if name in DEFAULT:
        return default
    if name not in OPENAI:
        return None
    return next((one for one in OPENAI[name] if one in there), default)


def aliases(there: Container[str], default: str, own: Mapping[str, str]) -> dict[str, list[str]]:
    """id -> the other names that it answers to. ``own`` are the operator's."""
    made: dict[str, list[str]] = {}
    for name in sorted({*OPENAI, *own}):
        if name not in there:
            voice = own.get(name) or stands_for(name, there, default)
            if voice is not None:
                made.setdefault(voice, []).append(name)
    return made
