"""The compiled product of rows and int8 weights, for CPUs: looked at, loaded and registered with XLA once a process.

A library that is missing, damaged, or made for something else is not loaded: `in_use` says why, and XLA computes the products.
It is registered before a program with its call can be traced, so a program from the persistent cache finds it too.
"""

import ctypes
import json
import os
import platform
import threading
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qwen3_jax.checkpoint.folders import say_once
from qwen3_jax.kernels.build import FOLDER, LIBRARY, RECORD, SOURCES, digest
from qwen3_jax.shapes import F32, I8, Array

VARIABLE = "QWEN3_JAX_INT8_KERNEL"
_TARGET = "qwen3_int8_matmul"
_AGAIN = "install qwen3-jax again"
_lock = threading.Lock()


class Int8Kernel(NamedTuple):
    """What computes products with int8 weights on a CPU."""

    instructions: str | None  # the instruction set of the kernel; None: XLA computes them
    why_not: str = ""


_kernel: Int8Kernel | None = None  # what this process has found


def in_use() -> Int8Kernel:
    """The kernel of this process. The first call loads it.

    Raises:
        ValueError: QWEN3_JAX_INT8_KERNEL names an instruction set that the kernel or this processor lacks.
    """
    global _kernel
    with _lock:
        if _kernel is None:
            _kernel = load(FOLDER, os.environ.get(VARIABLE, ""))
            if _kernel.instructions is None and (FOLDER / LIBRARY).exists() and not _off(os.environ.get(VARIABLE, "")):
                say_once(f"the int8 kernel is not used: {_kernel.why_not}; XLA computes its products, row by row")
        return _kernel


def load(folder: Path, chosen: str = "") -> Int8Kernel:
    """Load the library of ``folder`` and register it.

    Args:
        folder: where the library, its record and its sources lie.
        chosen: ``off``, an instruction set by name, or "": the best one of this processor.

    Raises:
        ValueError: ``chosen`` is none of those.
    """
    if _off(chosen):
        return Int8Kernel(None, f"{VARIABLE} is off")
    library = folder / LIBRARY
    if not library.exists():
        return Int8Kernel(None, "built without a compiler")
    if (why := _trouble_with(folder)) is not None:
        return Int8Kernel(None, f"{library} {why}: {_AGAIN}")
    try:
        code = ctypes.CDLL(str(library))
        choose, handler = code.qwen3_int8_choose, code.qwen3_int8_matmul
        choose.restype, choose.argtypes = ctypes.c_char_p, [ctypes.c_char_p]
        jax.ffi.register_ffi_target(_TARGET, jax.ffi.pycapsule(handler), platform="cpu")
    except (OSError, AttributeError, RuntimeError, ValueError) as error:  # another system's; or of another version of XLA's interface
        return Int8Kernel(None, f"{library} cannot be used ({' '.join(str(error).split())}): {_AGAIN}")
    name = choose(chosen.encode() or None)
    if name is None:
        there = ", ".join(known for known in ("AVX-512 VNNI", "AVX2", "NEON", "plain C++") if choose(known.encode()))
        raise ValueError(f"{VARIABLE}={chosen!r}: use off, or an instruction set of this processor that the kernel has: {there}")
    return Int8Kernel(name.decode())


def multiply(x: F32[Array, "R I"], weight: I8[Array, "O I"], scale: F32[Array, " O"]) -> F32[Array, "R O"]:
    """x (scale weight)^T on a CPU. `in_use` must have found a kernel.

    A row of the result does not depend on the other rows, nor on how many there are. A row with an infinity or NaN gives NaN.
    """
    (rows, inputs), outputs = x.shape, weight.shape[0]
    space = 256 + 192 * -(-inputs // 64)  # of a row: int8_vnni.inc
    results = jax.ShapeDtypeStruct((rows, outputs), jnp.float32), jax.ShapeDtypeStruct((rows, space), jnp.uint8)
    call = jax.ffi.ffi_call(_TARGET, results, vmap_method="sequential")
    return call(x, weight, scale)[0]


def _off(chosen: str) -> bool:
    return chosen.strip().lower() in ("off", "0", "false", "no")


def _trouble_with(folder: Path) -> str | None:
    """Why the library should not be loaded: one that is cut off could end the process. None: it is what was built."""
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
        if record["library"] != digest(folder / LIBRARY):
            return "is damaged, or not the one that was built"
        if record["machine"] != platform.machine():
            return f"is made for {record['machine']}, not {platform.machine()}"
        return None if record["sources"] == digest(*(folder / name for name in SOURCES)) else "is made of other sources"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"has no record that can be read ({type(error).__name__}: {error})"
