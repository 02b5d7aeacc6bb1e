"""The text embedding where it lies in its file: 0.6 GB at full size, of which an utterance reads a few rows.

    file bytes  | header | other tensors ... | table [V H] ... |
    array                           [ s | V*H ]                  flat; the first s entries belong to what lies before the table

The CPU backend of JAX takes a buffer over without a copy if its first byte is aligned, so the array begins up to 63 bytes early. It is a
memory map of a file that must not be changed while the model lives; pages that nobody reads take no memory.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

TABLE = "talker.model.text_embedding.weight"
ALIGNMENT = 64  # what the CPU backend asks of a buffer that it takes over
_CODES = {"int8": "I8", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def mapped(file: Path, start: int, size: int, dtype: np.dtype[Any]) -> np.ndarray | None:
    """The ``size`` entries from byte ``start`` of a file, and s before them, flat. None: they are not aligned to entries, or too many."""
    early = start % ALIGNMENT
    entries = early // dtype.itemsize + size
    if early % dtype.itemsize or entries >= 2**31:  # they are numbered in int32
        return None
    return np.asarray(np.memmap(file, np.uint8, "r", start - early, (entries * dtype.itemsize,))).view(dtype)


def write(file: Path, table: np.ndarray) -> None:
    """A safetensors file of the table alone, its bytes aligned."""
    size = table.nbytes
    header = json.dumps({TABLE: {"dtype": _CODES[table.dtype.name], "shape": list(table.shape), "data_offsets": [0, size]}}).encode()
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.write(np.ascontiguousarray(table).reshape(-1).view(np.uint8).data)
