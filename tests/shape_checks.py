"""Checks every call of a function whose annotations name axes, while tests run: dtype, rank, and one size for each letter.

``install`` hooks the import of the modules that use qwen3_jax/shapes.py: jaxtyping wraps their functions, beartype compares each argument
and result with its annotation. Annotations without axes are left to mypy, so that tests may pass stand-ins. In a NamedTuple whose fields
name axes, the fields are compared too.
"""

import functools
import operator
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import jax
import numpy as np
from beartype import BeartypeConf, beartype
from beartype.door import is_bearable
from beartype.vale import Is
from jaxtyping import AbstractArray, install_import_hook, jaxtyped

ROOT = Path(__file__).parents[1]
PACKAGES = ("qwen3_jax", "server", "convert", "training")
# Functions that refuse wrong arrays by name, or carry them to those that do: tests give them such.
JUDGES = {
    "qwen3_jax.audio.samples.check_finite",
    "qwen3_jax.codec.decoder.check_state",
    "qwen3_jax.model.encode._check",
    "qwen3_jax.model.encode.encode_codes",
    "qwen3_jax.model.encode.encode_x_vector",
    "qwen3_jax.engine.requests.Request.__init__",
    "qwen3_jax.engine.segment.Segment.__init__",
    "qwen3_jax.text.prompt.as_arrays",
    "qwen3_jax.text.prompt.build",
    "qwen3_jax.text.prompt.check_prompt",
    "qwen3_jax.voices.voice.Voice.__init__",
}
_CONF = BeartypeConf(is_pep484_tower=True)  # an int where a float is asked for


def install() -> None:
    """Hook the modules' imports; none of them may be imported yet."""
    install_import_hook(modules(), "tests.shape_checks.check")


def modules() -> list[str]:
    """Names of the modules that use the array types."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    names = (_name(path) for path in paths if "from qwen3_jax.shapes import" in path.read_text("utf-8"))
    return sorted(names)


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, which jaxtyping makes with the signature of the product's, comparing what it is given with the axes named."""
    hints = {name: _with_fields(hint) for name, hint in function.__annotations__.items() if _names_axes(hint)}
    if f"{function.__module__}.{function.__qualname__}" in JUDGES:
        hints = {}
    function.__annotations__ = hints
    return beartype(conf=_CONF)(function) if hints else function


def _names_axes(hint: Any) -> bool:
    if _is_named_tuple(hint):
        return bool(_fields(hint))
    return _is_array(hint) or any(_names_axes(part) for part in get_args(hint))


def _is_array(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, AbstractArray)


def _is_named_tuple(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields")


def _with_fields(hint: Any) -> Any:
    """The annotation, with a look at the fields where it is a NamedTuple, or a tuple, list or union of such."""
    if _is_named_tuple(hint):
        return Annotated[hint, Is[_fields_hold]] if _fields(hint) else hint
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return functools.reduce(operator.or_, map(_with_fields, parts))
    if origin is tuple:
        return types.GenericAlias(tuple, tuple(map(_with_fields, parts)))
    return types.GenericAlias(list, (_with_fields(parts[0]),)) if origin is list else hint


def _fields_hold(value: Any) -> bool:
    """Its letters are its own: a prompt of one row is read into a state of many."""
    with jaxtyped("context"):
        for name, hint in _fields(type(value)).items():
            if not is_bearable(getattr(value, name), hint, conf=_CONF):
                raise TypeError(f"{type(value).__name__}.{name} = {getattr(value, name)!r} is no {hint}")
    return True


@functools.cache
def _fields(kind: type) -> dict[str, Any]:
    """Fields of a NamedTuple that name axes."""
    return {name: _as_leaf(_with_fields(hint)) for name, hint in get_type_hints(kind, include_extras=True).items() if _names_axes(hint)}


def _as_leaf(hint: Any) -> Any:
    """jit makes device arrays of a tree's host arrays, and `jax.eval_shape` knows their shapes only."""
    if _is_array(hint):
        return hint.dtype[hint.array_type | np.ndarray | jax.ShapeDtypeStruct, hint.dim_str] if hint.array_type is jax.Array else hint
    return types.GenericAlias(list, (_as_leaf(get_args(hint)[0]),)) if get_origin(hint) is list else hint
