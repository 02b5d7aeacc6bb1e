"""The legend of axis letters, and the array types that use it. Every annotation and comment in the project follows it.

    B  rows of a batch (slots)            N  frames of a chunk (1 frame = 80 ms = 1920 samples)
    T  positions of a sequence            S  columns of a KV cache
    Q  trailing text rows                 K  codebooks of a frame (16), "book" for short
    D  size of an attention head          H  hidden size (talker, predictor or codec, by context)
    V  entries of a vocabulary            F  samples or frames of audio features
    C  channels of a convolution          G  query heads per key/value head
    A  attention (query) heads            J  key/value heads
    O  output features of a weight        I  input features of a weight

``Float[Array, "B T H"]`` names dtype class, array type and axes, in jaxtyping's language: ``""`` is a scalar, ``_`` any size, ``...`` any
axes, ``*rest`` axes that are the same wherever the name is, ``N*1920`` a size that follows from axes named before it, ``{self.rate}`` one
that an argument holds. A single letter has a space before it, else linters take it for the name of a variable. A type checker sees
``Array``. Nothing is checked when the product runs; the tests check every call (tests/conftest.py).
"""

from jaxtyping import Array, Bool, Float, Key
from jaxtyping import Float32 as F32
from jaxtyping import Float64 as F64
from jaxtyping import Int32 as I32

__all__ = ["F32", "F64", "I32", "Array", "Bool", "Float", "Key"]  # Float: float32 or bfloat16, the model's dtype
