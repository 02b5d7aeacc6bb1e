"""``GET /`` -> the page in a browser (files of ``server/page``), or for other clients a few lines of text with a command to try.

The files are read once, at start: a page and its scripts are of one version. Browsers keep them and ask with their ETag.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

from quart import Quart, Response, ResponseReturnValue, request

from qwen3_jax.messages import shorten
from server.context import Context
from server.http.web import HttpError
from server.ws.listen_protocol import LISTEN
from server.ws.protocol import SPEAK

FOLDER = Path(__file__).parents[1] / "page"
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept, and asked for again: an update of the server is an update of its page
}
LINKS = (
    ("/readyz", "whether the model is ready"),
    ("/v1/audio/voices", "voices"),
    ("/openapi.json", "the HTTP interface (OpenAPI)"),
    ("/asyncapi.json", "the WebSocket interface (AsyncAPI)"),
    ("/types.ts", "the WebSocket messages (TypeScript)"),
)
TEXT = """Speech server

This server turns text into speech, and speech into text. Its interfaces:
- OpenAI's speech endpoint: POST /v1/audio/speech
- WebSockets: {speak} and {listen}

curl -sf {url}/v1/audio/speech {key}-H 'Content-Type: application/json' -d '{{"input": "Hello there."}}' -o speech.mp3

In a browser, this address is a page that speaks.
{links}
"""


class PageFile(NamedTuple):
    """One file of the page, as it is served."""

    data: bytes
    content_type: str
    etag: str


def files(folder: Path = FOLDER) -> dict[str, PageFile]:
    """Name -> file, for every file of the page. Raises FileNotFoundError where the installation lacks the page."""
    made = {
        path.name: PageFile(data := path.read_bytes(), CONTENT_TYPES[path.suffix], hashlib.sha256(data).hexdigest()[:32])
        for path in sorted(folder.iterdir())
        if path.suffix in CONTENT_TYPES
    }
    if "index.html" not in made:
        raise FileNotFoundError(f"{folder}: no index.html: install the package again")
    return made


def install(app: Quart, context: Context) -> None:
    """Serve the page, and tell whoever opens a WebSocket's address as a page."""
    page = files()
    links = "\n".join(f"{path}: {what}" for path, what in LINKS)
    key = "-H 'Authorization: Bearer KEY' " if context.auth.required else ""

    @app.get("/")
    async def front() -> ResponseReturnValue:
        if request.accept_mimetypes.best_match(("text/plain", "text/html"), "text/plain") == "text/html":
            response = _respond(page["index.html"])
        else:
            url = f"{request.scheme}://{request.host}"
            response = Response(
                TEXT.format(speak=SPEAK, listen=LISTEN, url=url, key=key, links=links), content_type="text/plain; charset=utf-8"
            )
        response.headers["Vary"] = "Accept, Origin"
        return response

    @app.get("/page/<name>")
    async def page_file(name: str) -> ResponseReturnValue:
        if name not in page:
            raise HttpError(404, "NOT_FOUND", f"the page has no file {shorten(repr(name))}")
        return _respond(page[name])

    @app.get(LISTEN)
    @app.get(SPEAK)
    async def no_page() -> ResponseReturnValue:
        raise HttpError(
            426, "UPGRADE_REQUIRED", "this is a WebSocket: connect with a WebSocket client; /asyncapi.json describes the messages"
        )


def _respond(file: PageFile) -> Response:
    known = request.if_none_match.contains_weak(file.etag)
    response = Response("" if known else file.data, status=304 if known else 200, content_type=file.content_type)
    response.set_etag(file.etag)
    response.headers.update(HEADERS)
    return response
