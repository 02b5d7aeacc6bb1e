"""A voice's recording -> an answer: whole or a range of it, read from the disk piece by piece while the client takes it."""

import asyncio
import hashlib
import io
import os
from collections.abc import AsyncIterator
from typing import BinaryIO

from quart import Request, Response

from server.http.web import answer

PIECE = 64 * 1024  # bytes in memory for each client
KIND = "audio/wav"


def respond(request: Request, file: BinaryIO) -> Response:
    """The answer to a GET or HEAD; it closes the file. Several ranges at once are answered by the whole, as RFC 9110 allows."""
    size, etag = file.seek(0, io.SEEK_END), _version(file)
    start, stop, status = 0, size, 200
    if request.if_none_match.contains(etag):
        file.close()
        return _described(Response("", status=304, content_type=KIND), etag)
    asked = request.range
    if asked is not None and asked.units == "bytes" and len(asked.ranges) == 1 and _applies(request, etag):
        found = _part(asked.ranges[0], size)
        if found is None:
            file.close()
            refused = answer(416, "RANGE_NOT_SATISFIABLE", f"the recording has {size} bytes: ask for a range of these")
            refused.headers["Content-Range"] = f"bytes */{size}"
            return _described(refused, etag)
        (start, stop), status = found, 206
    if request.method == "HEAD":
        file.close()
    response = Response("" if request.method == "HEAD" else _Pieces(file, start, stop), status=status, content_type=KIND)
    response.content_length = stop - start
    if status == 206:
        response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return _described(response, etag)


class _Pieces(AsyncIterator[bytes]):
    """Bytes ``start`` to ``stop`` of a file, which is closed at the end, and by whoever stops before it."""

    def __init__(self, file: BinaryIO, start: int, stop: int) -> None:
        self._file, self._left = file, stop - start
        file.seek(start)

    async def __anext__(self) -> bytes:
        data = await asyncio.to_thread(self._file.read, min(PIECE, self._left))
        self._left -= len(data)
        if not data:
            await self.aclose()
            raise StopAsyncIteration
        return data

    async def aclose(self) -> None:
        self._file.close()


def _part(asked: tuple[int, int | None], size: int) -> tuple[int, int] | None:
    """(first byte, the one after the last) of what a range asks for, a negative start from the end on; None if none of it is there."""
    start, stop = asked
    if start < 0:
        start = max(0, size + start)
    return (start, size if stop is None else min(stop, size)) if start < size else None


def _applies(request: Request, etag: str) -> bool:
    """Whether the client's earlier part is of this very recording; without ``If-Range`` it takes the risk."""
    return "If-Range" not in request.headers or request.if_range.etag == etag


def _described(response: Response, etag: str) -> Response:
    response.set_etag(etag)
    response.headers["Accept-Ranges"] = "bytes"
    response.headers["Cache-Control"] = "no-cache"  # kept, and asked for again: voices can be replaced
    return response


def _version(file: BinaryIO) -> str:
    try:
        info = os.fstat(file.fileno())
    except io.UnsupportedOperation:  # a copy in memory
        file.seek(0)
        return hashlib.sha256(file.read()).hexdigest()[:32]
    return f"{info.st_ino:x}-{info.st_size:x}-{info.st_mtime_ns:x}-{info.st_ctime_ns:x}"
