"""The real service, engine and scheduler on a device of arithmetic: texts -> frames that a test can foretell, and hold.

A text is spoken in three frames of 4 samples, frame i's value is i; a "long" one in 300; with "loop" it runs away once. A text that is
still being written has a frame for each character, and one for its end. "refuse" is refused; with "nan" the second frame is not finite,
with "damaged" the first.
"""

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen3_jax.engine import Engine, Options, Pool, Watch
from qwen3_jax.model.sampling import Sampling
from qwen3_jax.service import SpeechService
from qwen3_jax.speech.part import SpokenPart
from qwen3_jax.text.prompt import Prompt
from tests.fake_device import FakeDevice
from tests.fake_engine import LIMIT
from tests.fake_tts import WARM_UP, FakeTTS

FRAMES, LONG, ENDLESS = 3, 300, 1000


@dataclass
class HeldDevice(FakeDevice):
    """With ``gate`` set, waits for one release per launch. ``poison``: what the next launch dies of."""

    gate: threading.Semaphore | None = None
    poison: BaseException | None = None

    def launch(self, quotas: list[int], limit: int) -> Any:
        if self.gate is not None and not self.gate.acquire(timeout=LIMIT):
            raise TimeoutError("the test never opened the gate")
        if self.poison is not None:
            raise self.poison
        return super().launch(quotas, limit)


class FakeService(SpeechService):
    """See the module's docstring. ``said`` has all texts with how they are to be spoken; ``count``: of devices."""

    engine: Any

    def __init__(self, tts: FakeTTS, slots: int = 2, options: Options | None = None, count: int = 1) -> None:
        self.tts, self._watch, self.books = tts, Watch(), 5  # type: ignore[assignment]  # the part of Qwen3TTS that is used
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.devices: list[HeldDevice] = []

        def build(slots: int, on_cpu: bool) -> HeldDevice:
            self.devices.append(HeldDevice(slots))
            return self.devices[-1]

        if count == 1:
            self.engine = Engine(build, slots=slots, options=options, name="fake:0")
        else:
            self.engine = Pool({f"fake:{number}": build for number in range(count)}, slots=slots, options=options)

    @property
    def device(self) -> HeldDevice:
        return self.devices[-1]

    def check(self, text: str) -> None: ...

    def ids(self, text: str) -> list[int]:
        if "refuse" in text:
            raise ValueError("text 'refuse': is refused; say something else")
        return [*map(ord, text)]

    def part(self, text: str, **how: Any) -> SpokenPart:
        if text != WARM_UP and not how.get("streaming_text"):
            self.said.append((text, how))
        ids = np.array([*self.ids(text), 0], np.int32)
        frames = ENDLESS if how.get("streaming_text") else LONG if "long" in text else FRAMES
        breaks = 1 if "damaged" in text else 2 if "nan" in text else 0
        first = np.array([frames, int("loop" in text), breaks], np.int32)
        prompt = Prompt(first, np.zeros((3, 5), np.int32), np.zeros(3, bool), None, ids)
        seed = 7 if how.get("seed") is None else how["seed"]
        return SpokenPart(prompt, how.get("sampling") or Sampling(), seed, len(ids) if frames == ENDLESS else LONG + 1, None, len(text))
