"""The notebooks run from top to bottom on a tiny random checkpoint, and are kept without outputs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXECUTE = "import sys, nbformat, nbclient; nbclient.execute(nbformat.read(sys.argv[1], as_version=4), timeout=900)"


def test_there_is_one() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path) -> None:
    """In a process of its own: the kernel's client leaves sockets to the garbage collector, which our tests would fail for."""
    unset = ("TTS_MODEL_ID", "TTS_REFERENCE", "TTS_TRANSCRIPT")
    variables = {name: value for name, value in os.environ.items() if name not in unset} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", EXECUTE, str(path)]
    result = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, result.stderr
