"""A voice's recording -> an answer: whole or a range of it, read from the disk piece by piece while the client takes it.

Its ETag is that of the voice: a request may name it in a condition (RFC 9110, 13).
"""

import asyncio
import hashlib
import io
import os
import re
from collections.abc import AsyncIterator
from typing import BinaryIO

from quart import Request, Response
from werkzeug.http import parse_etags

from server.http.web import HttpError, answer

PIECE = 64 * 1024  # bytes in memory for each client
KIND = "audio/wav"
CONDITIONS = ("If-Match", "If-None-Match")
_RANGE = re.compile(r"([0-9]{1,100})-([0-9]{1,100})?|-([0-9]{1,100})")  # first and last byte; or the last so many


def respond(request: Request, file: BinaryIO) -> Response:
    """The answer to a GET or HEAD; it closes the file. Several ranges at once are answered by the whole, as RFC 9110 allows.

    Raises:
        HttpError: the client's condition does not hold.
    """
    size, etag = file.seek(0, io.SEEK_END), version(file)
    start, stop, status = 0, size, 200
    try:
        held = holds(request, etag)
    except HttpError:
        file.close()
        raise
    if not held:
        file.close()
        return _described(Response("", status=304, content_type=KIND), etag)
    asked = parts_of(request.headers.get("Range", ""), size) if request.method == "GET" and _applies(request, etag) else None
    if asked == []:
        file.close()
        refused = answer(416, "RANGE_NOT_SATISFIABLE", f"the recording has {size} bytes: ask for a range of these")
        refused.headers["Content-Range"] = f"bytes */{size}"
        return _described(refused, etag)
    if asked is not None and len(asked) == 1:
        [(start, stop)], status = asked, 206
    if request.method == "HEAD":
        file.close()
    response = Response("" if request.method == "HEAD" else _Pieces(file, start, stop), status=status, content_type=KIND)
    response.content_length = stop - start
    if status == 206:
        response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return _described(response, etag)


def holds(request: Request, etag: str) -> bool:
    """Whether the conditions of a request hold for a recording of that ETag; False: the client of a GET or HEAD has it already.

    Raises:
        HttpError: the request must not be done (412).
    """
    given = {name: parse_etags(", ".join(request.headers.getlist(name))) for name in CONDITIONS if name in request.headers}
    if "If-Match" in given and not given["If-Match"].contains(etag):
        name = "If-Match"
    elif "If-None-Match" in given and given["If-None-Match"].contains_weak(etag):
        if request.method in ("GET", "HEAD"):
            return False
        name = "If-None-Match"
    else:
        return True
    raise HttpError(412, "PRECONDITION_FAILED", f'{name} does not hold: the recording has the ETag "{etag}"; nothing was done')


def version(file: BinaryIO) -> str:
    """The ETag of a recording, without its quotation marks."""
    try:
        info = os.fstat(file.fileno())
    except io.UnsupportedOperation:  # a copy in memory
        file.seek(0)
        return hashlib.sha256(file.read()).hexdigest()[:32]
    return f"{info.st_ino:x}-{info.st_size:x}-{info.st_mtime_ns:x}-{info.st_ctime_ns:x}"


def parts_of(header: str, size: int) -> list[tuple[int, int]] | None:
    """``Range`` (RFC 9110, 14.1) -> (first byte, the one after the last) of each range that is there, none if no range is.

    None: there is no such header, or it is one to ignore: another unit, or a range that is not well-formed.
    """
    unit, equals, ranges = header.partition("=")
    if unit.strip().lower() != "bytes" or not equals:
        return None
    found = []
    for one in filter(None, (one.strip(" \t") for one in ranges.split(","))):
        if (spelled := _RANGE.fullmatch(one)) is None:
            return None
        first, last, suffix = (None if number is None else int(number) for number in spelled.groups())
        if first is None:
            first, stop = max(0, size - (suffix or 0)), size
        elif last is not None and last < first:
            return None
        else:
            stop = size if last is None else min(last + 1, size)
        if first < stop:
            found.append((first, stop))
    return found if ranges.strip(" \t,") else None


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


def _applies(request: Request, etag: str) -> bool:
    """Whether the client's earlier part is of this very recording; without ``If-Range`` it takes the risk. A weak tag does not do."""
    return request.headers.get("If-Range", f'"{etag}"').strip() == f'"{etag}"'


def _described(response: Response, etag: str) -> Response:
    response.set_etag(etag)
    response.headers["Accept-Ranges"] = "bytes"
    response.headers["Cache-Control"] = "no-cache"  # kept, and asked for again: voices can be replaced
    return response
