"""Programs restart in large pages: once, in the same process, with their arguments."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwen3_jax.runtime import allocation

SCRIPT = """
import os, sys
print("start", os.getpid(), flush=True)
from qwen3_jax.runtime.allocation import restart_with_large_pages
assert "jax" not in sys.modules
restart_with_large_pages()
print("went on", os.getpid(), os.environ["GLIBC_TUNABLES"], os.environ.get("OPENBLAS_NUM_THREADS"), sys.argv[1:], sys.flags.optimize)
"""


HOLDING = """
import resource
import numpy as np
from qwen3_jax.runtime.allocation import settle

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

pieces = [np.ones(1 << 20, np.uint8) for _ in range(200)]
last = np.ones(1 << 20, np.uint8)
del pieces  # below what is still held: free, and not given back by itself
before_trim = resident()
settle(0)
print(before_trim - resident())
del last
before = resident()
settle(64 << 20)
held = resident()
for size in (14 << 20, 20 << 20):
    blocks = [np.ones(size, np.uint8) for _ in range(3)]
    print(held - before, resident() - held)
    del blocks
with open("/proc/self/status") as file:
    print([line.split()[1] for line in file if line.startswith("THP_enabled")])
"""


def run(tmp_path: Path, script_text: str = SCRIPT, **env: str) -> list[str]:
    script = tmp_path / "program.py"
    script.write_text(script_text)
    given = (
        {name: value for name, value in os.environ.items() if name not in ("GLIBC_TUNABLES", "OPENBLAS_NUM_THREADS")}
        | {"PYTHONPATH": os.getcwd()}
        | env
    )
    command = [sys.executable, "-O", str(script), "say", "a b", "--stream"]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=given, timeout=300).stdout.splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's setting")
def test_restarts_once_with_its_arguments(tmp_path: Path) -> None:
    first, second, last = run(tmp_path)
    pid = first.split()[1]
    assert second == first == f"start {pid}"
    assert last == f"went on {pid} {allocation.TUNABLES} 1 ['say', 'a b', '--stream'] 1"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's setting")
def test_a_setting_of_the_user_counts(tmp_path: Path) -> None:
    lines = run(tmp_path, GLIBC_TUNABLES="glibc.malloc.check=0")
    assert len(lines) == 2
    assert "glibc.malloc.check=0 None [" in lines[1]


def test_nothing_happens_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("restarted"))
    allocation.restart_with_large_pages()
    assert "GLIBC_TUNABLES" not in os.environ


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's setting")
def test_memory_in_hand_is_there_and_is_used(tmp_path: Path) -> None:
    given_back, *lines, may_grow_large = run(tmp_path, HOLDING, GLIBC_TUNABLES=allocation.TUNABLES)
    assert may_grow_large in ("['0']", "[]")  # a kernel before 5.0 does not say
    assert int(given_back) > 150 << 20
    for line in lines:
        kept, grown = map(int, line.split())
        assert 60 << 20 < kept < 70 << 20
        assert grown < 2 << 20  # three blocks of 20 MB lie in 64 MB
