"""What the README says works: its commands and programs run as they stand, on a tiny checkpoint."""

import re
from pathlib import Path

from tests.documents import ROOT, MakeCheckpoint, blocks, furnish, run_blocks

README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = blocks(ROOT / "README.md")
INSTALL = [line for block in BLOCKS if block.language == "sh" for line in block.text.splitlines() if line.startswith("python3 -m venv")]


def test_ci_runs_the_two_commands() -> None:
    """`.ci/run` takes them out of the README with these very patterns."""
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    say, test = INSTALL
    for command, pattern in ((say, r"^python3 -m venv .* say "), (test, r"^python3 -m venv .* pytest$")):
        assert f"grep -m1 -E '{pattern}' README.md" in script
        assert re.search(pattern, command)
    assert "&& .venv/bin/python -m pytest" in test
    assert 'slow=".venv/bin/python -m pytest -m slow"' in script, "what is left out by default"
    assert (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8").count("run: .ci/run") == 1


def test_blocks_run(tmp_path: Path, checkpoint: MakeCheckpoint) -> None:
    """All but the two commands, which CI runs."""
    run = [block._replace(text="\n".join(line for line in block.text.splitlines() if line not in INSTALL)) for block in BLOCKS]
    printed = run_blocks(run, furnish(tmp_path, checkpoint("base")))
    if any("/api/v1/speak" in block.text for block in run if block.language == "python"):
        assert re.findall(r'"type":"(\w+)"', printed) == ["ready", "started", "complete"]
