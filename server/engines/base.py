"""What the server asks of an engine, whatever stands behind it: ``submit`` a SpeechRequest, read pcm from its SpeechHandle.

All methods are for the event loop's thread. An engine never sees sockets, and the server never sees a model's arrays.
"""

import asyncio
from collections.abc import AsyncIterator, Hashable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import msgspec
import numpy as np

from qwen3_jax.shapes import F32
from server.voices.store import StoredVoice

HELD_SECONDS = 40.0  # the longest that nobody takes audio, by design: an answer is held, then its client's socket is lost
State = Literal["idle", "loading", "ready", "failed"]


class Refused(ValueError):
    """The model refused the input; the message says what is allowed."""


class OutOfMemory(RuntimeError):
    """The device has no memory left for this utterance."""


class Crowded(RuntimeError):
    """The line is full, and nobody has more in it than the owner of this utterance."""


class EngineClosed(RuntimeError):
    """The engine has been closed, and with it all that was under way."""


class DeviceStatus(NamedTuple):
    """One of the devices that speak. ``state``: ``running``, ``restarting``, ``closing``, ``closed``, or ``failed`` for good."""

    state: str
    slots: int
    active: int  # utterances that it speaks
    restarts: int


class SpeechRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to say, and how.

    ``draw`` are fields of Sampling that differ from the model's own, a temperature of 0 is greedy decoding; ``incremental``: ``text`` is
    a beginning, ``append`` brings more and ``finish`` ends it; ``whole``: make all of it before any is handed out (a streaming failure
    is tried again so); ``owner``: on whose behalf, for turns are shared out between owners.
    """

    text: str
    voice: StoredVoice | str  # a recording to clone, or a preset of the model
    language: str
    seed: int | None = None
    draw: dict[str, Any] = {}
    high: bool = False
    incremental: bool = False
    whole: bool = False
    owner: Any = None  # hashable


class SpeechHandle(Protocol):
    """One utterance on its way. Iterate it for pcm (float32 [F], finite, mono, at the engine's rate); it ends with the utterance.

    ``part`` is the number of the part of the text that the last piece belongs to, ``texts`` the parts as they are read, as far as they are
    known; an engine that knows nothing of either says 0, and none. ``finish_reason`` is ``eos``, ``length`` or ``cancelled`` after a good
    end; else ``failure`` says what went wrong.
    """

    @property
    def part(self) -> int: ...
    @property
    def texts(self) -> Sequence[str]: ...
    @property
    def finish_reason(self) -> str | None: ...
    @property
    def failure(self) -> BaseException | None: ...
    async def begin(self) -> None:
        """Return when it is the utterance's turn, when it has ended, or when it waits for nothing but its text."""

    async def taken(self) -> None:
        """Return when the engine has taken all parts of a whole text, or the utterance has ended; ``failure``: it did not take one."""

    def append(self, text: str) -> None:
        """More text of an incremental request."""

    def finish(self) -> None:
        """No more text comes."""

    def cancel(self) -> None:
        """Give up, from any thread, at any time."""

    def __aiter__(self) -> AsyncIterator[F32[np.ndarray, " F"]]: ...
    async def __anext__(self) -> F32[np.ndarray, " F"]: ...


class TtsEngine(Protocol):
    """An engine. ``loaded`` is None until ``load`` has been called once."""

    sample_rate: int
    loaded: "asyncio.Future[None] | None"

    @property
    def state(self) -> State: ...
    @property
    def is_ready(self) -> bool: ...
    @property
    def languages(self) -> tuple[str, ...]:
        """As ``server.languages.LANGUAGES`` spells them."""

    @property
    def streaming(self) -> bool:
        """Whether audio comes while it is being made."""

    @property
    def presets(self) -> tuple[str, ...] | None:
        """Voices of the model's own, if it speaks in those; None if it clones. Empty if it takes no voice."""

    @property
    def slots(self) -> int:
        """Utterances that can be spoken at a time, once it is loaded."""

    @property
    def queued(self) -> int:
        """Utterances that wait for their turn."""

    @property
    def active(self) -> int:
        """Utterances that are spoken."""

    @property
    def runaways(self) -> int:
        """Times that speech without end was taken back and made again, before anybody heard it."""

    @property
    def not_finite(self) -> int:
        """Utterances that failed because the model computed NaN or infinity."""

    @property
    def restarts(self) -> int:
        """Times that the engine has died and was built again."""

    @property
    def devices(self) -> dict[str, DeviceStatus]:
        """The devices that speak, by name; empty if it is not loaded, or tells nothing of them."""

    def load(self) -> "asyncio.Future[None]":
        """Begin to load, unless that has begun already."""

    def check_line(self, owner: Hashable) -> None:
        """Raises Crowded if an utterance of the owner would be refused now."""

    def submit(self, request: SpeechRequest) -> SpeechHandle:
        """Queue an utterance. One that is refused, or leaves the line for that of another owner, fails with Crowded."""

    async def prepare(self, voice: StoredVoice) -> None:
        """Make a voice ready, so that its first utterance does not wait. Raises Refused if it cannot be cloned."""

    def forget(self, voice_id: str) -> None:
        """A voice is gone."""

    def close(self) -> None:
        """Give up everything that runs or waits."""
