"""A float matrix [O I] -> int8 with a scale a row: the rounding of weight-only int8, on the host.

``scale`` lies beside ``weight`` in the tree: ``....q_proj.weight`` int8 [O I], ``....q_proj.scale`` float32 [O].
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from qwen3_jax.checkpoint.mapping import ConversionError

LARGEST = 127  # -128 is not used, so that a row and its negative round alike
STEP = np.float32(1 / LARGEST)  # multiplied, not divided by: XLA would multiply, and model/int8.py must get the same scales
_PIECE = 1 << 20  # elements rounded at a time: the float32 copies stay in the cache of a core


class UnroundableTensor(ConversionError):
    """A weight with NaN or infinity, which has no scale."""


def scale_of(path: str) -> str:
    """The path of the scales that belong to a weight's path."""
    return path.removesuffix("weight") + "scale"


def without_scales(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters without the scales of int8 ones, which no published tensor fills."""
    scales = {scale_of(path) for path, leaf in flat.items() if leaf.dtype == np.int8}
    return {path: leaf for path, leaf in flat.items() if path not in scales}


def quantise(weight: np.ndarray, into: np.ndarray, scale: np.ndarray, name: str) -> None:
    """Round each row to the nearest of 255 steps, of which the largest weight is the last.

    Args:
        weight: [O I], any float.
        into: int8 [O I], filled.
        scale: float32 [O], filled; 0 for a row of zeros.
        name: of the tensor, for the error.

    Raises:
        UnroundableTensor: a weight is NaN or infinite.
    """
    rows = max(1, _PIECE // weight.shape[1])
    for begin in range(0, len(weight), rows):
        part = slice(begin, begin + rows)
        wide = weight[part].astype(np.float32)
        largest = np.maximum(wide.max(axis=1), -wide.min(axis=1))
        if not np.isfinite(largest).all():
            row = begin + int(np.flatnonzero(~np.isfinite(largest))[0])
            raise UnroundableTensor(f"tensor {name!r} has NaN or infinity in row {row}, which int8 has not: fetch the file again")
        scale[part] = largest * STEP
        # A scale that underflows to 0 would divide by 0: such a row is zeros in float32, too.
        step = np.where(scale[part] > 0, scale[part], np.float32(1))
        np.rint(wide / step[:, None], out=wide)
        into[part] = wide.clip(-LARGEST, LARGEST, out=wide)
