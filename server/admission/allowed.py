"""msgspec's types -> what a client may send, in words: ``a number from 0.25 to 4``."""

from functools import cache
from typing import Any

from msgspec import inspect


@cache
def _types(kind: Any) -> tuple[inspect.StructType, ...]:
    found = inspect.type_info(kind)
    return tuple(one for one in (found.types if isinstance(found, inspect.UnionType) else (found,)) if isinstance(one, inspect.StructType))


def fields_of(kind: Any, tag: object = None) -> dict[str, Any]:
    """Name -> msgspec's type of each field of a struct, or of that one of a union which has the tag; ``type`` is the tag's own."""
    structs = _types(kind)
    chosen = [one for one in structs if one.tag is None or one.tag == tag]
    fields = {field.encode_name: field.type for one in chosen for field in one.fields}
    tags = tuple(one.tag for one in structs if one.tag is not None)
    return fields | ({"type": inspect.LiteralType(tags)} if tags else {})


def words(kind: Any) -> str:
    """What a value of the type may be."""
    if isinstance(kind, inspect.Metadata):
        return words(kind.type)
    if isinstance(kind, inspect.UnionType):
        return " or ".join(words(one) for one in kind.types if not isinstance(one, inspect.NoneType))
    if isinstance(kind, inspect.LiteralType):
        return f"one of {', '.join(map(str, kind.values))}"
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        return _number(kind)
    if isinstance(kind, inspect.StrType):
        return "a text" if kind.max_length is None else f"a text of at most {kind.max_length} characters"
    if isinstance(kind, inspect.BoolType):
        return "true or false"
    if isinstance(kind, inspect.StructType):
        return f"an object with {' or '.join(field.encode_name for field in kind.fields)}"
    raise TypeError(f"{kind}: no words for a field of this type; add them here")


def _number(kind: inspect.IntType | inspect.FloatType) -> str:
    name = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
    highest = kind.le if kind.lt is None else kind.lt - 1  # only whole numbers have lt
    if kind.ge is None or highest is None:
        return name
    return f"{name} from {kind.ge} to {highest}"
