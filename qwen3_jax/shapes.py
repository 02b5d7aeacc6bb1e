"""The legend of axis letters, and the array types that use it. Every annotation and comment in the project follows it.

    B  rows of a batch (slots)            N  frames of a chunk (1 frame = 80 ms = 1920 samples)
    T  positions of a sequence            S  columns of a KV cache
    Q  trailing text rows                 K  codebooks of a frame (16), "book" for short
    D  size of an attention head          H  hidden size (talker, predictor or codec, by context)
    V  entries of a vocabulary            F  samples or frames of audio features
    C  channels of a convolution          G  query heads per key/value head
    A  attention (query) heads            J  key/value heads
    O  output features of a weight        I  input features of a weight

``Float[Array, "B T H"]`` names dtypes, array type and axes, in jaxtyping's language:

    ""           a scalar                                    "B _"               any size
    "*rest H"    axes that are the same under one name       "#B"                B, or 1
    "B N*1920"   a size that follows from letters before it  "B {self.rate}"     a size that an argument holds

A single word has a space before it (``I32[Array, " B"]``), else linters take it for a variable. A type checker sees ``Array``. Nothing is
checked when the product runs; the tests check every call (tests/shape_checks.py).
"""

from jaxtyping import Array, Bool, Float, Integer, Key, Real
from jaxtyping import Float32 as F32
from jaxtyping import Float64 as F64
from jaxtyping import Int8 as I8
from jaxtyping import Int16 as I16
from jaxtyping import Int32 as I32
from jaxtyping import UInt32 as U32

# Float: float32 or bfloat16, the model's dtype
__all__ = ["F32", "F64", "I8", "I16", "I32", "U32", "Array", "Bool", "Float", "Integer", "Key", "Real"]
