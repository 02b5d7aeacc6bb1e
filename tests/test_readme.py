"""The README: short, and run by CI: its two commands by .ci/run, its blocks by .ci/wheel.py in a venv without the extra dev."""

import re

from tests.documents import ROOT, blocks

README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = blocks(ROOT / "README.md")
INSTALL = [line for block in BLOCKS if block.language == "sh" for line in block.text.splitlines() if line.startswith("python3 -m venv")]


def test_ci_runs_the_two_commands() -> None:
    """`.ci/run` takes them out of the README with these very patterns."""
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    say, test = INSTALL
    for command, pattern in ((say, r"^python3 -m venv .* say "), (test, r"^python3 -m venv .* pytest -n 2$")):
        assert f"grep -m1 -E '{pattern}' README.md" in script
        assert re.search(pattern, command)
    assert "&& .venv/bin/python -m pytest" in test
    assert 'slow=".venv/bin/python -m pytest -n 2 -m slow"' in script, "what is left out by default"
    assert script.index('bash -c "$say"') < script.index("python3 .ci/wheel.py .venv") < script.index('bash -c "$test"'), (
        "before dev is there"
    )
    assert (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8").count("run: .ci/run") == 1


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 120
