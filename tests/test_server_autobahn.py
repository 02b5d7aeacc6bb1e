"""The Autobahn test suite (RFC 6455) against an echo behind our transport. It needs a Python 2.7 with ``autobahntestsuite``.

The compression cases (12, 13) are left out, for the extension is switched off.
"""

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from quart import Quart, websocket

from server.ops.connections import here
from server.transport import BoundedSocket
from tests.fake_engine import FakeEngine
from tests.serving import running

LIMIT = 1800.0


def python27() -> tuple[str, dict[str, str]] | None:
    """The interpreter and its environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    if shutil.which("pyenv"):
        versions = subprocess.run(["pyenv", "versions", "--bare"], capture_output=True, text=True).stdout.split()
        environment["PYENV_VERSION"] = next((version for version in versions if version.startswith("2.7")), "system")
    program = environment.get("AUTOBAHN_PYTHON") or shutil.which("python2.7")
    if program is None:
        return None
    found = subprocess.run([program, "-c", "import autobahntestsuite"], capture_output=True, env=environment, timeout=LIMIT)
    return (program, environment) if found.returncode == 0 else None


@pytest.mark.slow
async def test_autobahn(voices: Path, tmp_path: Path) -> None:
    suite = python27()
    if suite is None:
        pytest.skip("no Python 2.7 with autobahntestsuite (pip install autobahntestsuite; AUTOBAHN_PYTHON names it)")

    def echo(app: Quart) -> None:
        app.asgi_websocket_class = BoundedSocket

        @app.websocket("/echo")
        async def handler() -> None:
            here().welcome()
            while True:
                data = await websocket.receive()
                await websocket.send(b"" if data is None else data)

    async with running(voices, FakeEngine(), change=echo, max_message_bytes=17 * 1024 * 1024) as server:
        specification = {
            "servers": [{"agent": "ours", "url": f"ws://127.0.0.1:{server.port}/echo"}],
            "outdir": str(tmp_path / "report"),
            "cases": ["*"],
            "exclude-cases": ["12.*", "13.*"],
            "exclude-agent-cases": {},
        }
        (tmp_path / "suite.json").write_text(json.dumps(specification))
        program, environment = suite
        arguments = ["-c", "from autobahntestsuite.wstest import run; run()", "-m", "fuzzingclient", "-s", str(tmp_path / "suite.json")]
        process = await asyncio.create_subprocess_exec(
            program, *arguments, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        _, said = await asyncio.wait_for(process.communicate(), LIMIT)
        assert process.returncode == 0, said[-2000:]
    report = json.loads((tmp_path / "report" / "index.json").read_text())["ours"]
    failed = {case: result for case, result in report.items() if "FAILED" in (result["behavior"], result["behaviorClose"])}
    print(
        {kind: sum(result["behavior"] == kind for result in report.values()) for kind in {result["behavior"] for result in report.values()}}
    )
    assert len(report) > 240
    assert not failed
