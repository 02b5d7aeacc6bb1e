"""``python -m tests.serve_fake PORT VOICES [SECONDS [FRAMES]]``: the real server in a process of its own, with the fake engine.

With SECONDS, an utterance has one frame at once and the rest so much later; FRAMES is how many it has, of 80 ms.
"""

import asyncio
import sys
from pathlib import Path

from server.app import create_app
from server.engines.base import SpeechRequest
from server.ops import logs
from server.settings import Settings
from server.transport import serve
from tests.fake_engine import FakeEngine, FakeHandle


class Slow(FakeEngine):
    """The rest of an utterance comes late."""

    late = 0.0

    def submit(self, request: SpeechRequest) -> FakeHandle:
        del self.requests[:-100], self.handles[:-100]  # a server for hours remembers no more
        if self.late:
            gate = self.gate = asyncio.Semaphore(1)
            asyncio.get_running_loop().call_later(self.late, self._open, gate)
        return super().submit(request)

    def _open(self, gate: asyncio.Semaphore) -> None:
        for _ in range(self.frames):
            gate.release()


if __name__ == "__main__":
    engine = Slow()
    engine.late = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    engine.frames = int(sys.argv[4]) if len(sys.argv) > 4 else 3
    logs.configure("json")
    settings = Settings(port=int(sys.argv[1]), voices_dir=Path(sys.argv[2]), shipped_voices=False, grace=5)
    asyncio.run(serve(create_app(settings, engine), settings))
