"""``python -m server warm``: it loads as a start does, and its status says whether it did."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server import warm
from server.ops import logs, signals
from tests.fake_engine import LIMIT, FakeEngine

ROOT = Path(__file__).parent.parent
HELD = """
from server import warm
from tests.fake_engine import FakeEngine

class Held(FakeEngine):
    def load(self):
        print("loading", flush=True)
        return super().load()

warm.main(Held(hold_loading=True))
"""


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("TTS_VOICES_DIR", str(tmp_path))
    monkeypatch.setattr(logs, "configure", lambda kind: None)  # pytest's stands
    before = {number: signal.getsignal(number) for number in signals.ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Closing(FakeEngine):
    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_the_model_is_loaded_and_nothing_served() -> None:
    engine = Closing()
    warm.main(engine)
    assert (engine.loads, engine.closed) == (1, 1)


def test_what_makes_loading_fail_is_raised() -> None:
    engine = Closing(loading_error=ValueError("no such model"))
    with pytest.raises(ValueError, match="no such model"):
        warm.main(engine)
    assert engine.closed == 1


def test_a_signal_ends_it_at_once_and_not_as_if_it_were_done() -> None:
    command = [sys.executable, "-c", HELD]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 128 + signal.SIGTERM
