"""What is kept of a request's body, by route, and how a form is taken apart: bounded, and with the event loop going round in between."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import IO, Any

from hypercorn.typing import ASGIReceiveCallable
from quart import Quart, Response, request
from quart.asgi import ASGIHTTPConnection
from quart.formparser import FormDataParser, MultiPartParser
from quart.wrappers.request import Body, Request
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import RequestEntityTooLarge

from qwen3_jax.messages import shorten
from server.http.web import HttpError
from server.ops import upstream
from server.settings import Settings

UPLOAD = ("POST", "/api/v1/voices")
PIECE, MAX_BOUNDARY = 4096, 70  # bytes of a form that are looked at together; of its boundary, as RFC 2046 has it
HELD = 128 * 1024  # bytes of a form that wait to be taken apart; then the client has to wait
REST_SECONDS = 2.0  # for what a client still sends when its request has been refused
MAX_PARTS, MAX_PART_HEAD, MAX_FIELD = 32, 8192, 16_384  # of a form; bytes
upstream.check()  # before its classes are taken for what they were


class BoundedBody(Body):
    """A body of at most ``most`` bytes.

    Of a longer one nothing is kept. Up to ``read`` bytes it is read to its end all the same, because a client that is cut off while it
    sends does not see the answer. More than ``held`` bytes are not kept at a time: ``room`` waits until some of them have been taken.
    """

    def __init__(self, expected: int | None, most: int, read: int, held: int | None = None) -> None:
        super().__init__(None, None)
        self._held, self._taken = held, asyncio.Event()
        self._most, self._read, self._seen = most, max(most, read), 0
        self._too_big = f"a body of more than {most} bytes: this route takes no more; send less"
        if expected is not None and expected > self._read:
            self._refuse()

    def append(self, data: bytes) -> None:
        self._seen += len(data)
        if self._seen <= self._most:
            super().append(data)
        else:
            self._data.clear()
        if self._seen > self._read:
            self._refuse()
            self.set_complete()

    def set_complete(self) -> None:
        if self._seen > self._most:
            self._refuse()
        super().set_complete()

    async def room(self) -> None:
        """Wait until more may come."""
        while self._held is not None and len(self._data) > self._held:
            self._taken.clear()
            await self._taken.wait()

    async def discard(self, limit: float) -> None:
        """Wait for what has not come yet, ``limit`` seconds at most, and keep none of it."""
        self._most = -1
        self._data.clear()
        self._taken.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await self._complete.wait()

    async def __anext__(self) -> bytes:
        try:
            return await super().__anext__()
        except StopAsyncIteration:
            if self._must_raise is not None:
                raise self._must_raise from None
            raise
        finally:
            self._taken.set()

    def _refuse(self) -> None:
        self._must_raise = HttpError(413, "BODY_TOO_BIG", self._too_big)


class Forms(FormDataParser):
    """``multipart/form-data``, and no other kind of form."""

    async def parse(
        self, body: Body, mimetype: str, content_length: int | None, options: dict[str, str] | None = None
    ) -> tuple[MultiDict, MultiDict]:
        """(fields, files). Raises HttpError: it cannot be read, or is too big."""
        if mimetype != "multipart/form-data":
            return MultiDict(), MultiDict()
        boundary = (options or {}).get("boundary", "")
        if not (boundary.isascii() and 1 <= len(boundary) <= MAX_BOUNDARY):
            raise HttpError(400, "FORM_UNREADABLE", f"the form's boundary must have 1 to {MAX_BOUNDARY} ASCII characters (RFC 2046)")
        opened = contextlib.ExitStack()  # what is left of a form that does not end

        def stream(*about: Any) -> IO[bytes]:
            made: IO[bytes] = self.stream_factory(*about)
            opened.callback(made.close)
            return made

        parser = MultiPartParser(
            max_content_length=MAX_PART_HEAD,  # what the decoder may hold before it knows what it is
            max_form_memory_size=MAX_FIELD,
            max_form_parts=MAX_PARTS,
            stream_factory=stream,
        )
        try:
            with opened:
                pieces = _FormPieces(body, f"--{boundary}--".encode())
                form = await parser.parse(pieces, boundary.encode(), content_length or 0)  # type: ignore[arg-type]  # it iterates
                if not pieces.ended:  # Quart would leave out the field that is cut
                    raise HttpError(400, "FORM_CUT_SHORT", f"the form does not end with --{boundary}--: send all of it")
                opened.pop_all()
            return form
        except RequestEntityTooLarge as error:
            raise HttpError(
                413,
                "FORM_TOO_BIG",
                f"a form has at most {MAX_PARTS} parts, a part's head {MAX_PART_HEAD} bytes and a field {MAX_FIELD} bytes, unless it has a "
                "filename, as a recording must; send less, and name the form's own boundary in Content-Type",
            ) from error
        except ValueError as error:
            raise HttpError(400, "FORM_UNREADABLE", f"the form cannot be read: {shorten(str(error))}") from error


class _FormPieces:
    """A form's bytes, in pieces of at most `PIECE`; ``ended`` once its last boundary has been among them."""

    def __init__(self, body: Body, end: bytes) -> None:
        self._body, self._end = body, end
        self.ended = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        last = b""
        async for data in self._body:
            for start in range(0, len(data), PIECE):
                piece = data[start : start + PIECE]
                last = last[1 - len(self._end) :] + piece
                self.ended = self.ended or self._end in last
                yield piece
                await asyncio.sleep(0)


def install(app: Quart, settings: Settings) -> None:
    """Requests whose bodies are bounded by what their routes take, and answers that are read."""

    class BoundedRequest(Request):
        form_data_parser_class = Forms

        def __init__(self, method: str, scheme: str, path: str, *more: Any, **named: Any) -> None:
            super().__init__(method, scheme, path, *more, **named)
            whole = 2 * settings.max_upload_bytes
            if (method, path.rstrip("/")) == UPLOAD:
                self.body = BoundedBody(self.content_length, whole, whole, HELD)
            else:
                self.body = BoundedBody(self.content_length, settings.max_json_bytes, whole)

    class BoundedConnection(ASGIHTTPConnection):
        """As Quart's, but reads no more than the body has room for."""

        async def handle_messages(self, request: Request, receive: ASGIReceiveCallable) -> None:
            while (message := await receive())["type"] == "http.request":
                request.body.append(message.get("body", b""))
                if not message.get("more_body", False):
                    request.body.set_complete()
                if isinstance(request.body, BoundedBody):
                    await request.body.room()

    app.request_class = BoundedRequest
    app.asgi_http_class = BoundedConnection

    @app.after_request
    async def hear_out(response: Response) -> Response:
        if response.status_code >= 400 and isinstance(request.body, BoundedBody):
            await request.body.discard(REST_SECONDS)
        return response
