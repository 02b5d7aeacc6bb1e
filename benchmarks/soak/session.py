"""A WebSocket session whose client checks every frame: one end for each utterance, all of its audio before that, none after it."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from benchmarks.soak.site import WAIT, Site
from benchmarks.soak.tally import Broken, End, Tally

Message = dict[str, Any]
OFF = 2  # milliseconds by which the length that the server tells may differ from that of the audio
WIDTHS = {"pcm16": 2, "pcm32f": 4}
ENDS: dict[str, End] = {"CANCELLED": "cancelled", "RATE_LIMITED": "unclear", "TIMEOUT": "failed", "VOICE_NOT_FOUND": "failed"}
OURS = ("SYNTHESIS_ERROR", "GPU_OUT_OF_MEMORY")  # faults of the server
NOTHING = "there was nothing to cancel"


@dataclass
class Heard:
    """What has come of one utterance."""

    refusal: End  # what it is if the server takes its text for none
    bytes: int = 0
    sequence: int = 0
    final: bool = False


class Session:
    """One client's side.

    Args:
        bytes_a_second: of audio, in the encoding that was asked for.
        transport: ``binary`` or ``json``.
    """

    def __init__(self, connection: ClientConnection, tally: Tally, transport: str, bytes_a_second: int) -> None:
        self.live: dict[str, Heard] = {}  # by requestId
        self.first: float | None = None  # when the first audio since the last ``speak`` came, by the loop's clock
        self._connection, self._tally, self._transport, self._bytes_a_second = connection, tally, transport, bytes_a_second
        self._cancels = 0  # that may still be answered by NOTHING
        self._refused: str | None = None  # the requestId of a message that is to be refused
        self._binary: int | None = 0  # bytes of the utterance that is spoken; None: nobody can tell whose they are
        self._number = 0

    async def say(self, **message: Any) -> None:
        """Send a message."""
        await self.send(json.dumps(message))

    async def send(self, frame: str | bytes) -> None:
        """Send a frame, whatever it is."""
        await self._connection.send(frame)

    async def speak(self, text: str, refusal: End = "refused", **more: Any) -> str:
        """Ask for an utterance. Returns its requestId."""
        request_id = self._new("u")
        self.live[request_id] = Heard(refusal)
        self.first = None
        await self.say(type="speak", text=text, requestId=request_id, **more)
        return request_id

    async def cancel(self, request_id: str | None = None) -> None:
        """Cancel one utterance, or all."""
        self._cancels += 1
        await self.say(type="cancel", **({} if request_id is None else {"requestId": request_id}))

    async def fence(self) -> None:
        """Return when the server has answered all that was sent so far, for it answers in turn.

        Raises:
            Broken: as ``hear``.
        """
        request_id = self._new("fence")
        await self.say(type="flush", requestId=request_id)  # of no text
        await self.refused("INVALID_MESSAGE", request_id)
        self._cancels = 0

    async def refused(self, code: str, request_id: str | None = None) -> None:
        """Hear everything up to the answer that refuses a message. Raises Broken as ``hear``, and where the answer is another."""
        self._refused = request_id
        while isinstance(frame := await self.hear(), bytes) or frame["type"] != "error" or frame.get("requestId") != request_id:
            continue
        self._refused = None
        if frame["code"] != code:
            raise Broken(f"{code} was to come, not {frame}")

    async def settled(self) -> None:
        """Return when every utterance has its end."""
        while self.live:
            await self.hear()

    async def hear(self) -> Message | bytes:
        """The next frame, checked.

        Raises:
            Broken: it must not come, or does not come within WAIT seconds, or the server has closed.
        """
        try:
            frame = await asyncio.wait_for(self._connection.recv(), WAIT)
        except TimeoutError as error:
            raise Broken(f"nothing came for {WAIT:.0f} s; live: {list(self.live)}") from error
        except ConnectionClosed as error:
            raise Broken(f"the server closed: {error}") from error
        if isinstance(frame, bytes):
            self._audio(frame)
            return frame
        message: Message = json.loads(frame)
        kind, request_id = message["type"], message.get("requestId")
        if kind == "audioChunk":
            self._chunk(message, request_id)
        elif kind == "complete":
            self._complete(message, request_id)
        elif kind == "error":
            self._error(message, request_id)
        return message

    def abandon(self) -> None:
        """The client leaves: what is live now has no end that it knows."""
        self._tally.ended("lost", len(self.live))
        self.live.clear()

    def _sounds(self) -> None:
        self.first = self.first or asyncio.get_running_loop().time()

    def _audio(self, frame: bytes) -> None:
        if self._transport != "binary":
            raise Broken("a binary frame came where the transport is json")
        if not self.live:
            raise Broken("audio came and no utterance is live")
        self._sounds()
        if self._binary is not None:
            self._binary += len(frame)

    def _chunk(self, message: Message, request_id: str | None) -> None:
        heard = self.live.get(request_id or "")
        if heard is None:
            raise Broken(f"audio of utterance {request_id}, which has ended")
        if heard.final or message["sequenceNumber"] != heard.sequence + 1:
            raise Broken(f"utterance {request_id}: chunk {message['sequenceNumber']} came after {heard.sequence}, final: {heard.final}")
        self._sounds()
        heard.sequence, heard.final = heard.sequence + 1, message["isFinal"]
        heard.bytes += len(base64.b64decode(message["data"]))

    def _complete(self, message: Message, request_id: str | None) -> None:
        heard = self.live.pop(request_id or "", None)
        if heard is None:
            raise Broken(f"utterance {request_id} has two ends")
        self._tally.ended("completed")
        number, self._binary = (self._binary, 0) if self._transport == "binary" else (heard.bytes, self._binary)
        if self._transport == "json" and not heard.final:
            raise Broken(f"utterance {request_id} is complete, and no chunk was the last one")
        if number is not None and abs(1000 * number / self._bytes_a_second - message["audioLengthMs"]) > OFF:
            length = 1000 * number / self._bytes_a_second
            raise Broken(f"utterance {request_id}: {length:.0f} ms of audio came, {message['audioLengthMs']} ms were made")

    def _error(self, message: Message, request_id: str | None) -> None:
        code = message["code"]
        self._tally.codes[code] += 1
        if code == "CANCELLED" and message["message"] == NOTHING:
            self._cancels -= 1
            if self._cancels < 0:
                raise Broken(f"an answer to a cancel that was not sent, or was answered: {message}")
            return
        if not message["final"] or request_id in (None, self._refused):
            return
        heard = self.live.pop(request_id or "", None)
        if heard is None:
            raise Broken(f"utterance {request_id} has two ends: {message}")
        self._binary = None if self.live else 0
        self._tally.ended(ENDS.get(code, heard.refusal))
        if code in OURS:
            raise Broken(f"utterance {request_id} failed: {message}")

    def _new(self, kind: str) -> str:
        self._number += 1
        return f"{kind}{self._number}"


@asynccontextmanager
async def session(
    site: Site,
    tally: Tally,
    *,
    key: str | None = None,
    transport: str = "binary",
    encoding: str = "pcm16",
    rate: int = 24_000,
    in_start: bool = False,
) -> AsyncIterator[Session]:
    """A session that has started. At its end the client says ``stop`` and hears ``stopped``.

    Args:
        key: whose session it is; default: the loud principal's.
        in_start: the key goes into ``start``, not into the handshake.

    Raises:
        Broken: the server does not keep to its contract.
    """
    token = key or site.key
    headers = {} if in_start else {"Authorization": f"Bearer {token}"}
    async with connect(site.speak, compression=None, additional_headers=headers, open_timeout=WAIT, ping_timeout=WAIT) as connection:
        made = Session(connection, tally, transport, rate * WIDTHS[encoding])
        try:
            await _expect(made, "ready")
            start: dict[str, Any] = {"sampleRate": rate, "encoding": encoding, "transport": transport, "language": "English"}
            await made.say(type="start", **start, **({"authToken": token} if in_start else {}))
            await _expect(made, "started")
            yield made
            await made.settled()
            await made.say(type="stop")
            await _expect(made, "stopped")
            await asyncio.wait_for(connection.wait_closed(), WAIT)
            if connection.close_code != 1000:
                raise Broken(f"after stop the close code is {connection.close_code}, not 1000")
        finally:
            made.abandon()


async def _expect(made: Session, kind: str) -> None:
    frame = await made.hear()
    if isinstance(frame, bytes) or frame["type"] != kind:
        raise Broken(f"{kind} was to come, not {frame!r:.200}")
