"""How the kernels are compiled, once, when the package is built or installed: sources -> a library beside them, and its record.

Without anything of the package, because the build runs before there is one. The library needs a C++ compiler (``CXX``, else c++, g++ or
clang++) and the headers of jaxlib; nothing of JAX is run.
"""

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

FOLDER = Path(__file__).parent
LIBRARY, RECORD = "libkernels.so", "libkernels.json"  # a name that no module has: Python would import the library
# The first one includes the others.
SOURCES = ("kernels.cc", "together.inc", "vectors.inc", "attention.inc", "int8_float.inc", "int8_vnni.inc")
# The compiler's default processor: the library chooses by itself among the instruction sets of the machine that it finds itself on.
OPTIONS = (
    "-x",
    "c++",
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-ffp-contract=fast",
    "-fno-math-errno",  # else a square root calls libm
)
LIMIT = 300.0  # seconds for the compiler


class CannotBuild(Exception):
    """Why there is no library, in one line."""


def build(sources: Path = FOLDER, folder: Path = FOLDER) -> None:
    """Compile the ``sources``' library into ``folder``. What was there stays until there is a new one.

    Raises:
        CannotBuild: there is no compiler or no header, or the compiler fails.
    """
    if sys.platform == "win32":
        raise CannotBuild("Windows is not supported")
    compiler, include = find_compiler(), headers()
    with tempfile.TemporaryDirectory(dir=folder) as place:
        made = Path(place) / LIBRARY
        command = [*compiler, *OPTIONS, "-I", str(include), "-o", str(made), str(sources / SOURCES[0])]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CannotBuild(f"{compiler[0]}: {error}") from error
        if ended.returncode != 0 or not made.is_file():
            lines = [line for line in ended.stderr.splitlines() if "error" in line] or ended.stderr.splitlines()
            raise CannotBuild(f"{compiler[0]} fails: {lines[0].strip() if lines else f'status {ended.returncode}'}")
        record = {"library": digest(made), "sources": digest(*(sources / name for name in SOURCES)), "machine": platform.machine()}
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        os.replace(made, folder / LIBRARY)


def headers() -> Path:
    """The folder of XLA's headers, as ``jax.ffi.include_dir`` has it. Raises CannotBuild."""
    spec = find_spec("jaxlib")
    for place in spec.submodule_search_locations or () if spec else ():
        if (Path(place) / "include" / "xla" / "ffi" / "api" / "c_api.h").is_file():
            return Path(place) / "include"
    raise CannotBuild("jaxlib's headers are not here")


def find_compiler() -> list[str]:
    """The command of a C++ compiler. Raises CannotBuild."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    for command in [chosen] if chosen else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    raise CannotBuild(f"there is no C++ compiler ({' '.join(chosen) or 'c++, g++, clang++'})")


def digest(*paths: Path) -> str:
    """SHA-256 of the files, one after the other."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(path.read_bytes())
    return whole.hexdigest()


def main() -> None:
    """Compile them in place: ``python qwen3_jax/kernels/build.py``."""
    try:
        build()
    except CannotBuild as why:
        sys.exit(f"no compiled kernels: {why}")
    print(FOLDER / LIBRARY)


if __name__ == "__main__":
    main()
