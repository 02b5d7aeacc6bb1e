"""What a caller of ``generate`` and ``stream`` gives -> what is used, or an error that names the argument and what it takes."""

import inspect
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from qwen3_jax.messages import nearest
from qwen3_jax.model.sampling import Draw, Sampling, greedy_at_zero

OTHER_NAMES = {  # arguments of the published package -> ours
    "speaker": "voice",
    "voice_clone_prompt": "voice",
    "ref_audio": "voice",
    "ref_text": "transcript",
    "non_streaming_mode": "streaming_text",
    "max_new_tokens": "max_frames",
}


def sampling_of(method: Callable[..., Any], given: Sampling | None, draw: Draw, default: Sampling) -> Sampling:
    """How to draw.

    Args:
        method: the one that was given ``draw``, as keywords that it does not name itself.
        given: its argument ``sampling``; None: ``default``.
        draw: a temperature of 0 is greedy decoding.

    Raises:
        TypeError: a keyword that is no field of Sampling; the message has the nearest name.
        ValueError: ``given`` is no Sampling, or a value out of range.
    """
    known = Sampling.__struct_fields__
    if unknown := [name for name in draw if name not in known]:
        called = method.__name__
        arguments = [name for name in inspect.signature(method).parameters if name != "draw"]
        said = ", ".join(f"{name}{nearest(name, [*arguments, *known], OTHER_NAMES)}" for name in unknown)
        raise TypeError(
            f"{called}() has no argument {said}{'' if said.endswith('?') else ';'} "
            f"It takes {', '.join(arguments)}, and the fields of Sampling ({', '.join(known)}); see help(Qwen3TTS.{called})"
        )
    if given is not None and not isinstance(given, Sampling):
        raise ValueError(f"sampling of type {type(given).__name__}: give a Sampling, or its fields by name, such as temperature=0.5")
    return msgspec.structs.replace(given or default, **greedy_at_zero(draw))


def check_switch(name: str, value: object, *, or_none: bool = False) -> None:
    """Refuse what is neither True nor False: "no" would be taken for True.

    Args:
        name: of the argument.
        value: as it was given.
        or_none: None is allowed, for the default.

    Raises:
        ValueError: it is neither.
    """
    if not (isinstance(value, bool | np.bool_) or (or_none and value is None)):
        raise ValueError(f"{name} = {value!r}: must be True or False{', or None for the default' if or_none else ''}")


def column(value: Any, rows: int, name: str) -> list[Any]:
    """One value for every row, or one each. A recording as (samples, rate) is one value.

    Raises:
        ValueError: another number of values than rows.
    """
    many = isinstance(value, list) or (isinstance(value, tuple) and not any(isinstance(item, np.ndarray) for item in value))
    if not many:
        return [value] * rows
    if len(value) != rows:
        raise ValueError(f"{name}: {len(value)} values for {rows} texts; give one for all, or one each")
    return list(value)
