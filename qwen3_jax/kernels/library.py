"""The library of compiled kernels for CPUs: looked at, loaded and registered with XLA once a process.

A library that is missing, damaged, or made for something else is not loaded: `in_use` says why, and XLA computes the same.
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

from qwen3_jax.checkpoint.folders import say_once
from qwen3_jax.kernels.build import FOLDER, LIBRARY, RECORD, SOURCES, digest

VARIABLE = "QWEN3_JAX_KERNELS"
KERNELS = "int8_matmul", "attention"
INSTRUCTIONS = "AVX-512 VNNI", "AVX2", "NEON", "plain C++"
_PREFIX = "qwen3"
_AGAIN = "install qwen3-jax again"
_lock = threading.Lock()


class Kernels(NamedTuple):
    """What this process computes with on a CPU."""

    instructions: str | None  # the instruction set of the kernels; None: XLA computes all
    why_not: str = ""


_found: Kernels | None = None  # what this process has found


def in_use() -> Kernels:
    """The kernels of this process. The first call loads them.

    Raises:
        ValueError: QWEN3_JAX_KERNELS names an instruction set that the library or this processor lacks.
    """
    global _found
    with _lock:
        if _found is None:
            _found = load(FOLDER, os.environ.get(VARIABLE, ""))
            if _found.instructions is None and (FOLDER / LIBRARY).exists() and not _off(os.environ.get(VARIABLE, "")):
                say_once(f"the compiled kernels are not used: {_found.why_not}; XLA computes the same, slower")
        return _found


def load(folder: Path, chosen: str = "") -> Kernels:
    """Load the library of ``folder`` and register it.

    Args:
        folder: where the library, its record and its sources lie.
        chosen: ``off``, an instruction set by name, or "": the best one of this processor.

    Raises:
        ValueError: ``chosen`` is none of those.
    """
    if _off(chosen):
        return Kernels(None, f"{VARIABLE} is off")
    library = folder / LIBRARY
    if not library.exists():
        return Kernels(None, f"there is no {library}: built without a compiler")
    if (why := _trouble_with(folder)) is not None:
        return Kernels(None, f"{library} {why}: {_AGAIN}")
    jax.devices()  # a backend that exists refuses a library by itself; one that does not exist yet would not begin, later
    try:
        code = ctypes.CDLL(str(library))
        choose, handlers = code.qwen3_choose, {name: code[f"qwen3_{name}"] for name in KERNELS}
        choose.restype, choose.argtypes = ctypes.c_char_p, [ctypes.c_char_p]
        for name, handler in handlers.items():
            jax.ffi.register_ffi_target(target(name), jax.ffi.pycapsule(handler), platform="cpu")
    except (OSError, AttributeError, RuntimeError, ValueError) as error:  # another system's; or of another version of XLA's interface
        return Kernels(None, f"{library} cannot be used ({' '.join(str(error).split())}): {_AGAIN}")
    by_name = {name.lower(): name for name in INSTRUCTIONS}
    instructions = choose(by_name.get(chosen.strip().lower(), chosen).encode() or None)
    if instructions is None:
        there = ", ".join(known for known in INSTRUCTIONS if choose(known.encode()))
        raise ValueError(f"{VARIABLE}={chosen!r}: use off, or an instruction set of this processor that the kernels have: {there}")
    return Kernels(instructions.decode())


def target(name: str) -> str:
    """What XLA knows one of KERNELS by."""
    return f"{_PREFIX}_{name}"


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
