"""The legend of axis letters, and the array aliases that use it. Every annotation and comment in the project follows it.

    B  rows of a batch (slots)            N  frames of a chunk (1 frame = 80 ms = 1920 samples)
    T  positions of a sequence            S  columns of a KV cache
    Q  trailing text rows                 K  codebooks of a frame (16), "book" for short
    D  size of an attention head          H  hidden size (talker, predictor or codec, by context)
    V  entries of a vocabulary            F  samples or frames of audio features
    C  channels of a convolution          G  query heads per key/value head
    A  attention (query) heads            J  key/value heads
    O  output features of a weight        I  input features of a weight

An annotation such as ``Float["B T H"]`` names dtype class and axes; it is documentation that a reader and a type checker
see as ``jax.Array``.
"""

from typing import Annotated, Any

import jax
import numpy as np


class _Alias:
    """``Float["B T H"]`` -> ``Annotated[jax.Array, "float B T H"]``."""

    def __init__(self, kind: str, base: type) -> None:
        self._kind, self._base = kind, base

    def __getitem__(self, axes: str) -> Any:
        return Annotated[self._base, f"{self._kind} {axes}"]


Float = _Alias("float", jax.Array)  # float32 or bfloat16, the model's dtype
F32 = _Alias("float32", jax.Array)  # always float32
Int = _Alias("int32", jax.Array)
Bool = _Alias("bool", jax.Array)
Key = _Alias("prng key", jax.Array)
NpF32 = _Alias("float32", np.ndarray)
NpFloat = _Alias("float64", np.ndarray)
NpInt = _Alias("int32", np.ndarray)
NpBool = _Alias("bool", np.ndarray)
