"""A JSON object as some version of transformers writes it -> a frozen config, or a refusal that names the key. What all our configs share.

A key that nothing here reads is ignored, at every level. A value that would change what is computed, in a way this code does not implement,
is refused: those of ``FIXED``, and what ``prepare`` and ``__post_init__`` of a config look at with the functions below.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec

Values = dict[str, Any]
T = TypeVar("T")


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all configs: immutable."""

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {}  # keys that change the arithmetic -> the values that this code implements

    @classmethod
    def prepare(cls, values: Values) -> Values:
        """The JSON object as the fields state it. Raises ValueError for a value that is not supported."""
        return values


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{name} = {value!r} is not supported (allowed: {allowed})")


def get(values: Values, name: str, kind: type[T], default: T) -> T:
    """A value that another one is judged by; its type is wrong in a file that somebody wrote by hand."""
    value = values.get(name, default)
    require(isinstance(value, kind), name, value, f"of type {kind.__name__}")
    return value


def words(allowed: tuple[Any, ...]) -> str:
    return " or ".join(json.dumps(value) for value in allowed)


# Attention, as each of the four transformers states it


def plain_rope(values: Values, kinds: tuple[str, ...] = ("default",), layers: str = "full_attention") -> Values:
    """``rope_theta`` from wherever this version of transformers writes it: beside ``rope_scaling``, or in 5's ``rope_parameters``.

    The latter may have a block for each kind of layer: that of ``layers`` counts.
    """
    values = dict(values)
    _whole_rotation(values, "")
    for key in ("rope_scaling", "rope_parameters"):
        block = get(values, key, dict, {})
        block = get(block, layers, dict, block)
        for name in ("rope_type", "type"):
            require(block.get(name) in (None, *kinds), f"{key}.{name}", block.get(name), words(kinds))
        _whole_rotation(block, f"{key}.")
        if block.get("mrope_section") is not None:  # the three channels carry one position in TTS: sizes matter only in that they cover it
            sections, half = get(block, "mrope_section", list, []), get(values, "head_dim", int, 0) // 2
            require(not half or sum(sections) == half, f"{key}.mrope_section", sections, f"the sum {half}")
        if block.get("rope_theta") is not None:
            theta = block["rope_theta"]
            stated = values.setdefault("rope_theta", theta)
            require(stated == theta, f"{key}.rope_theta", theta, f"rope_theta's {stated!r}; leave one of the two out")
    return values


def _whole_rotation(values: Values, where: str) -> None:
    share = values.get("partial_rotary_factor")
    require(share in (None, 1), f"{where}partial_rotary_factor", share, "1.0")


def whole_attention(values: Values, positions: int, *, every_layer: bool) -> None:
    """Refuse a sliding window that hides a position which attention could see.

    Args:
        values: the config.
        positions: most that attention sees.
        every_layer: a window in use is every layer's; else that of the layers that ``layer_types`` or ``max_window_layers`` names.
    """
    window = get(values, "sliding_window", int, 4096) if values.get("use_sliding_window") else None
    harmless = window is not None and window >= positions
    kinds = get(values, "layer_types", list, [])
    for kind in kinds:
        require(kind == "full_attention" or (kind == "sliding_attention" and harmless), "layer_types", kind, '"full_attention"')
    slides = every_layer or (not kinds and get(values, "num_hidden_layers", int, 5) > get(values, "max_window_layers", int, 28))
    require(window is None or harmless or not slides, "sliding_window", window, f"{positions} or more; or use_sliding_window false")


def check_heads(config: Any) -> None:
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    require(heads % groups == 0, "num_key_value_heads", groups, f"a divisor of num_attention_heads {heads}")


def with_head_dim(values: Values, hidden_size: int, heads: int) -> Values:
    """Where the files leave ``head_dim`` out, it is a head's share of ``hidden_size``; defaults are given."""
    share = get(values, "hidden_size", int, hidden_size) // max(1, get(values, "num_attention_heads", int, heads))
    return {"head_dim": share} | values


C = TypeVar("C", bound=Config)


def read(kind: type[C], path: Path) -> C:
    """Read one config file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a JSON object, a missing key, a wrong type or an unsupported value; names file and key.
    """
    try:
        return parse(kind, json.loads(path.read_text("utf-8-sig")))
    except ValueError as error:  # msgspec.ValidationError, json.JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{path}: {error}") from error


def parse(kind: type[C], values: Any) -> C:
    """The same from decoded JSON."""
    return _parse(kind, values, "")


def _parse(kind: type[C], values: Any, where: str) -> C:
    """``where``: the path of ``values`` in the file, with a dot at its end."""
    if not isinstance(values, dict):
        raise ValueError(f"{where[:-1] or 'the file'}: a JSON object is needed, found {type(values).__name__}")
    present = {key: _whole(value) for key, value in values.items() if value is not None}  # null is absent, as transformers writes it
    if values.get("sliding_window", 0) is None:  # but of a window null says that there is none
        present["use_sliding_window"] = False
    try:
        for key, allowed in kind.FIXED.items():
            require(key not in present or present[key] in allowed, key, present.get(key), words(allowed))
        prepared = kind.prepare(present)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error
    for field in msgspec.structs.fields(kind):
        if isinstance(field.type, type) and issubclass(field.type, Config) and field.encode_name in prepared:
            prepared[field.encode_name] = _parse(field.type, prepared[field.encode_name], f"{where}{field.encode_name}.")
    try:
        return msgspec.convert(prepared, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{where[:-1] + ': ' if where else ''}{error}") from error


def _whole(value: Any) -> Any:
    """Numbers without a fraction as whole ones: some writers say 1024.0."""
    if isinstance(value, list):
        return [_whole(each) for each in value]
    if isinstance(value, dict):
        return {key: _whole(each) for key, each in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value
