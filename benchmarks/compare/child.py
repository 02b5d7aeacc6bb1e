"""Commands in processes of their own: what the last line of their output says as JSON, and the most memory that they took."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LIMIT = 3600.0  # seconds; a hung program ends the run
SHOWN = 2000  # characters of a failed program's errors
# A program that a large process starts has that process's peak as its own (Linux, vfork), so a small one starts it.
LAUNCHER = """
import pathlib, resource, subprocess, sys
status = subprocess.call(sys.argv[3:], timeout=float(sys.argv[2]))
pathlib.Path(sys.argv[1]).write_text(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(status if status >= 0 else 128 - status)
"""
UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss


def run(command: Sequence[str], env: Mapping[str, str] | None = None) -> tuple[str, int]:
    """A command's output, and its peak resident memory in bytes.

    Args:
        command: program and arguments.
        env: variables that are set beside our own.

    Raises:
        RuntimeError: the command failed, or took longer than LIMIT; the message has the end of its errors.
    """
    with tempfile.TemporaryDirectory() as scratch:
        peak = Path(scratch) / "peak"
        launch = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(peak), str(LIMIT), *command]
        done = subprocess.run(launch, stdin=subprocess.DEVNULL, capture_output=True, text=True, env={**os.environ, **(env or {})})
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: status {done.returncode}\n{done.stderr[-SHOWN:]}")
        return done.stdout, int(peak.read_text()) * UNIT


def figures(command: Sequence[str], env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a command prints as JSON in its last line. Raises RuntimeError as ``run`` does, and for output that ends otherwise."""
    output, _ = run(command, env)
    last = (output.splitlines() or [""])[-1]
    try:
        return dict(json.loads(last))
    except ValueError as error:
        raise RuntimeError(f"{' '.join(command)}: its last line must be a JSON object, and is {last!r}") from error
