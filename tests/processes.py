"""Python programs in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 300.0  # seconds; for hangs


def process(program: str, *arguments: str, **environment: str) -> str:
    """stdout of a Python program that ends well, in an environment with these variables."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=LIMIT
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
