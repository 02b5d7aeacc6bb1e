"""What all handlers of one server share."""

import asyncio
from dataclasses import dataclass, field
from functools import cached_property
from time import monotonic
from typing import Any

from qwen3_jax.voices.layers import DEFAULT_VOICE
from qwen3_jax.voices.voice import spelling
from server.contracts.contract import InterruptionRules
from server.contracts.redis_bus import RedisBus
from server.contracts.registry import Contracts
from server.engines.base import SpeechHandle, TtsEngine
from server.listen.ears import Ears
from server.ops.access import AccessLog
from server.ops.auth import Authenticator
from server.ops.limits import Quotas
from server.ops.metrics import Metrics
from server.respond.base import Responder
from server.respond.echo import Echo
from server.settings import Settings
from server.voices.names import stands_for
from server.voices.store import StoredVoice, VoiceStore


@dataclass(frozen=True)
class Context:
    """One server's parts; ``sessions`` are the open WebSockets, ``draining`` is set when it goes down."""

    settings: Settings
    engine: TtsEngine
    store: VoiceStore
    auth: Authenticator
    limits: Quotas
    metrics: Metrics
    responder: Responder = field(default_factory=Echo)
    sessions: set[Any] = field(default_factory=set)
    streams: "dict[SpeechHandle, asyncio.Future[None]]" = field(default_factory=dict)  # on their way to HTTP clients -> their ends
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    loading: asyncio.Event = field(default_factory=asyncio.Event)  # set as soon as the engine begins to load

    @cached_property
    def access(self) -> AccessLog:
        """Who was served, and who was refused."""
        return AccessLog(self.metrics)

    @cached_property
    def ears(self) -> Ears:
        """What hears. Raises FileNotFoundError."""
        return Ears(self.settings)

    @cached_property
    def contracts(self) -> Contracts:
        """The conversations that sessions have joined."""
        chosen = self.settings
        return Contracts(
            InterruptionRules(chosen.interrupt_ms, chosen.interrupt_words, chosen.resume_after),
            later=lambda seconds, call: asyncio.get_running_loop().call_later(seconds, call),
            count=lambda outcome: self.metrics.interruptions.labels(outcome).inc(),
            bus=None if chosen.redis_url is None else RedisBus(chosen.redis_url.get_secret_value(), self.metrics),
        )

    def load(self) -> None:
        """Begin to load the engine, unless that has begun already."""
        self.engine.load()
        self.loading.set()
        _ = self._load_begun

    @cached_property
    def _load_begun(self) -> float:
        return monotonic()

    def loading_seconds(self) -> float:
        """How long ago loading began."""
        return monotonic() - self._load_begun

    def voices(self, principal_id: str | None) -> tuple[str, ...]:
        """Ids that the principal may name: recordings that it can see, or the model's presets."""
        if self.engine.presets is not None:
            return self.engine.presets
        return tuple(name for name, voice in self.store.voices.items() if voice.visible_to(principal_id))

    def default_voice(self, principal_id: str | None) -> str:
        """The configured one if it is there, else makima, else the first; empty if there is none (voice_design)."""
        voices = self.voices(principal_id)
        for wanted in (self.settings.default_voice, DEFAULT_VOICE):
            if self.engine.presets is not None:
                found = spelling(wanted, voices)
            else:
                voice = self.store.find(wanted)
                found = None if voice is None else voice.id
            if found in voices:
                return str(found)
        return next(iter(voices), "")

    async def find_voice(self, name: str, principal_id: str | None) -> StoredVoice | str | None:
        """What an engine takes for the voice of that id; None if there is none that the principal can see."""
        if self.engine.presets is not None:
            return "" if name == "" else spelling(name, self.engine.presets)
        if self.store.find(name) is None:
            await asyncio.to_thread(self.store.refresh)  # another process may have added it
        voice = self.store.find(name)
        return voice if voice is not None and voice.visible_to(principal_id) else None

    async def named_voice(self, name: str, principal_id: str | None) -> StoredVoice | str | None:
        """Whatever a client calls a voice: its id, else the operator's alias, else a name of OpenAI's (server/voices/names.py)."""
        if name and (found := await self.find_voice(name, principal_id)) is not None:
            return found
        own = self.settings.voice_aliases
        if (alias := spelling(name, own)) is not None and (found := await self.find_voice(own[alias], principal_id)) is not None:
            return found
        other = stands_for(name, self.voices(principal_id), self.default_voice(principal_id))
        return None if other is None else await self.find_voice(other, principal_id)

    async def fallback(self, principal_id: str | None) -> StoredVoice | str | None:
        """The default voice of those that are there now; None if there is none."""
        if self.engine.presets is None:
            await asyncio.to_thread(self.store.refresh, now=True)
        return await self.find_voice(self.default_voice(principal_id), principal_id)
