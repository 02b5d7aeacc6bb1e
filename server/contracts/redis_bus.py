"""The bus over Redis (extra ``redis``): a channel for each contract, to which every process that knows it is subscribed.

When Redis goes away each process goes on by itself: what happens meanwhile is not told to others, not even later. When it is back, within
RETRY_SECONDS, all channels are subscribed to again.
"""

import asyncio
import contextlib
import hashlib
import logging
import uuid
from typing import Any

import msgspec

from qwen3_jax.runtime.extras import needed
from server.contracts.bus import BusDown, Receive
from server.contracts.contract import SpeechEvent
from server.ops.metrics import Metrics
from server.ops.shared_limits import NO_ADDRESS

PREFIX = "qwen3-jax:contract:"
RETRY_SECONDS = 1.0  # between two tries to connect
ASK_SECONDS = 2.0  # for Redis to answer, or to take a connection
CHECK_SECONDS = 5.0  # of silence after which the connection is tried
MOST_WAITING = 1000  # events that are not told yet; the oldest is lost
log = logging.getLogger(__name__)


class Envelope(msgspec.Struct, frozen=True):
    """What goes through a channel."""

    origin: str  # the process that sent it
    event: SpeechEvent


_envelope = msgspec.json.Decoder(Envelope)


class RedisBus:
    """See ``server.contracts.bus.Bus``.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.

    Raises:
        MissingExtra: the package redis is not installed.
        ValueError: the address is none of Redis.
    """

    def __init__(self, url: str, metrics: Metrics) -> None:
        self._redis = needed("redis.asyncio", "redis", "TTS_REDIS_URL")
        try:
            self._client = self._redis.Redis.from_url(url, socket_timeout=ASK_SECONDS, socket_connect_timeout=ASK_SECONDS, retry=None)
        except ValueError as error:  # it may hold a password
            raise ValueError(NO_ADDRESS) from error
        self._failures = (self._redis.RedisError, OSError)  # TimeoutError is one
        self._origin = uuid.uuid4().hex
        self._channels: dict[str, tuple[str, str]] = {}  # name -> contract
        self._waiting: asyncio.Queue[tuple[str, SpeechEvent | bool]] = asyncio.Queue(MOST_WAITING)  # True: subscribe; False: not any more
        self._receive: Receive | None = None
        self._task: asyncio.Task[None] | None = None
        self._up = False
        metrics.watch("tts_bus_up", "1 if Redis can be reached", lambda: self._up)
        self._lost = metrics.bus_lost

    def subscribe(self, receive: Receive) -> None:
        self._receive = receive

    def watch(self, principal_id: str, contract_id: str) -> None:
        channel = _channel(principal_id, contract_id)
        self._channels[channel] = principal_id, contract_id
        self._put(channel, True)

    def unwatch(self, principal_id: str, contract_id: str) -> None:
        channel = _channel(principal_id, contract_id)
        self._channels.pop(channel, None)
        self._put(channel, False)

    def publish(self, principal_id: str, contract_id: str, event: SpeechEvent) -> None:
        self._put(_channel(principal_id, contract_id), event)

    async def ask(self, principal_id: str, contract_id: str, event: SpeechEvent) -> int:
        try:
            return int(await self._send(_channel(principal_id, contract_id), event))
        except self._failures as error:
            raise BusDown(f"Redis cannot be reached ({type(error).__name__})") from error

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        with contextlib.suppress(*self._failures):
            await self._client.aclose()

    def _put(self, channel: str, what: SpeechEvent | bool) -> None:
        if not self._up:
            self._lost.inc(not isinstance(what, bool))  # subscriptions are made anew when it is back
            return
        if self._waiting.full():
            self._waiting.get_nowait()
            self._lost.inc()
        self._waiting.put_nowait((channel, what))

    async def _run(self) -> None:
        """For ever: connect, go on until that fails, and wait."""
        told = False
        while True:
            try:
                await self._connected()
            except* self._failures as errors:
                if self._up or not told:
                    log.warning("Redis is away: other processes are not told of interruptions (%s)", type(errors.exceptions[0]).__name__)
                    told = True
            self._up = False
            await asyncio.sleep(RETRY_SECONDS)

    async def _connected(self) -> None:
        await self._client.connection_pool.disconnect()  # what is left of a Redis that went away
        async with self._client.pubsub() as channels:
            async with asyncio.timeout(ASK_SECONDS):
                await channels.subscribe(PREFIX + self._origin, *self._channels)
            while not self._waiting.empty():
                self._waiting.get_nowait()
            self._up = True
            log.info("Redis is there: %d contracts are heard", len(self._channels))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(channels))
                tasks.create_task(self._write(channels))

    async def _read(self, channels: Any) -> None:
        while True:
            message = await channels.get_message(ignore_subscribe_messages=True, timeout=CHECK_SECONDS)
            if message is not None:
                self._take(message["channel"].decode(), message["data"])

    def _take(self, channel: str, data: bytes) -> None:
        try:
            envelope = _envelope.decode(data)
        except msgspec.DecodeError:
            log.warning("a message on Redis that is none of ours is left out")
            return
        if envelope.origin != self._origin and self._receive is not None and (contract := self._channels.get(channel)) is not None:
            self._receive(*contract, envelope.event)

    async def _write(self, channels: Any) -> None:
        while True:
            try:
                async with asyncio.timeout(CHECK_SECONDS):
                    channel, what = await self._waiting.get()
            except TimeoutError:
                await self._client.ping()  # a connection that is dead without a word
                continue
            if isinstance(what, SpeechEvent):
                await self._send(channel, what)
            elif what and channel in self._channels:
                await channels.subscribe(channel)
            elif not what and channel not in self._channels:
                await channels.unsubscribe(channel)

    async def _send(self, channel: str, event: SpeechEvent) -> int:
        told: int = await self._client.publish(channel, msgspec.json.encode(Envelope(self._origin, event)))
        return told


def _channel(principal_id: str, contract_id: str) -> str:
    """Says nothing of either, and two pairs never share one."""
    return PREFIX + hashlib.sha256(msgspec.json.encode([principal_id, contract_id])).hexdigest()
