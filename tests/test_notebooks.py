"""The notebooks run from top to bottom with nothing but the package and Jupyter, on the voice that ships, and are kept without outputs."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXECUTE = "import sys, nbformat, nbclient; nbclient.execute(nbformat.read(sys.argv[1], as_version=4), timeout=900)"


def test_there_is_one() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_needs_nothing_else(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    tree = ast.parse("\n".join("".join(cell["source"]) for cell in cells))
    needed = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]  # what stands below an `if` may be missing
    names = {name.name for node in needed if isinstance(node, ast.Import) for name in node.names}
    names |= {str(node.module) for node in needed if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names | {"qwen3_jax", "numpy", "IPython"}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path) -> None:
    """In a process of its own: the kernel's client leaves sockets to the garbage collector, which our tests would fail for."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("TTS_")} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", EXECUTE, str(path)]
    result = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, result.stderr
    assert soundfile.info(tmp_path / "hello.mp3").duration > 1
