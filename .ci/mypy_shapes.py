"""mypy plugin: ``Float["B T H"]`` (qwen3_jax/shapes.py) -> ``jax.Array``, so that annotations with axes are checked, not ignored."""

from collections.abc import Callable

from mypy.plugin import AnalyzeTypeContext, Plugin
from mypy.types import Type

SHAPES = "qwen3_jax.shapes."
ARRAYS = {"Float": "jax.Array", "F32": "jax.Array", "Int": "jax.Array", "Bool": "jax.Array", "Key": "jax.Array"}
HOST_ARRAYS = {"NpF32", "NpInt", "NpFloat", "NpBool"}


class ShapesPlugin(Plugin):
    """Replaces the alias by the array type it stands for; the axes stay documentation."""

    def get_type_analyze_hook(self, fullname: str) -> Callable[[AnalyzeTypeContext], Type] | None:
        name = fullname.removeprefix(SHAPES)
        if name == fullname:
            return None
        if name in ARRAYS:
            return lambda context: context.api.named_type(ARRAYS[name], [])
        if name in HOST_ARRAYS:
            return lambda context: context.api.named_type("numpy.ndarray", [])
        return None


def plugin(version: str) -> type[Plugin]:
    """mypy's entry point."""
    return ShapesPlugin
