"""Where the server of a soak is and who asks it; TCP connections on which a client writes what it likes."""

import asyncio
import base64
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

from benchmarks.soak.tally import Broken, Tally

SENTENCES = (
    "Good evening, and welcome to the harbour.",
    "Yes.",
    "The last ferry leaves at nine, so there is time for a walk along the water before we go.",
    "Nobody had seen the lighthouse keeper since the storm, and yet his lamp was lit every night at the same hour.",
    "The train was late again.",
    "She put the letter back, closed the drawer, and said that she had never read it.",
)
WAIT = 120.0  # seconds that a client waits for anything; then it is lost


@dataclass(frozen=True)
class Site:
    """A server on this machine, and the key of the loud principal."""

    port: int
    key: str

    @property
    def speak(self) -> str:
        return f"ws://127.0.0.1:{self.port}/api/v1/speak"

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


Round: TypeAlias = Callable[[Site, Random, Tally], Awaitable[None]]  # what one kind of client does, again and again


def text_of(draw: Random, most: int = 2) -> str:
    """Some sentences."""
    return " ".join(draw.choice(SENTENCES) for _ in range(draw.randint(1, most)))


@asynccontextmanager
async def opened(
    site: Site, data: bytes = b"", receive_buffer: int | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection on which that has been written; at the end it is cut, without goodbye."""
    made = socket.socket()
    if receive_buffer is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    made.setblocking(False)
    async with asyncio.timeout(WAIT):
        await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", site.port))
    reader, writer = await asyncio.open_connection(sock=made, limit=receive_buffer or 2**16)
    writer.write(data)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


@asynccontextmanager
async def upgraded(
    site: Site, draw: Random, *, known: bool, receive_buffer: int | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A WebSocket whose frames the client makes itself. What comes before the answer to the handshake is no WebSocket's, and gets 400."""
    async with opened(site, handshake(site, draw, known=known), receive_buffer) as (reader, writer):
        try:
            answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT)
        except asyncio.IncompleteReadError as error:
            raise Broken(f"a handshake was answered with {error.partial!r}") from error
        if b" 101 " not in answer:
            raise Broken(f"a handshake was answered with {answer!r}")
        yield reader, writer


def request(site: Site, method: str, path: str, body: bytes = b"", *, known: bool = True, **headers: str) -> bytes:
    """An HTTP request; ``_`` in a header's name stands for ``-``."""
    lines = {"Host": f"127.0.0.1:{site.port}", "Content_Length": str(len(body))} | headers
    if known:
        lines |= site.bearer
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items() if value)
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def handshake(site: Site, draw: Random, *, known: bool) -> bytes:
    """The beginning of a WebSocket."""
    key = base64.b64encode(draw.randbytes(16)).decode()
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Version": "13", "Sec_WebSocket_Key": key}
    return request(site, "GET", "/api/v1/speak", known=known, Content_Length="", **upgrade)


def frame(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    """A frame of a WebSocket, with a mask of zeros, which leaves the payload as it is."""
    length = len(payload)
    head = bytes([final << 7 | opcode])
    head += bytes([128 | length]) if length < 126 else struct.pack("!BH" if length < 65536 else "!BQ", 254 + (length >= 65536), length)
    return head + bytes(4) + payload
