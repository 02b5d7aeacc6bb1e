"""``GET /`` -> a plain page for whoever opens the server's address in a browser: what this is, and where its interfaces are. No script."""

from html import escape

from quart import Quart, Response, ResponseReturnValue, request

from server.context import Context
from server.http.web import HttpError
from server.ws.listen_protocol import LISTEN
from server.ws.protocol import SPEAK

LINKS = (
    ("/readyz", "whether the model is ready"),
    ("/v1/audio/voices", "voices"),
    ("/openapi.json", "the HTTP interface (OpenAPI)"),
    ("/asyncapi.json", "the WebSocket interface (AsyncAPI)"),
    ("/types.ts", "the WebSocket messages (TypeScript)"),
)
PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>Speech server</title>
<h1>Speech server</h1>
<p>This server turns text into speech. It has two interfaces:</p>
<ul>
<li>OpenAI's speech endpoint: <code>POST /v1/audio/speech</code></li>
<li>a WebSocket: <code>{speak}</code></li>
</ul>
<pre>curl -sf {url}/v1/audio/speech {key}-H 'Content-Type: application/json' -d '{{"input": "Hello there."}}' -o speech.mp3</pre>
<ul>
{links}
</ul>
"""


def install(app: Quart, context: Context) -> None:
    """Serve the page, and tell whoever opens a WebSocket's address as a page."""
    links = "\n".join(f'<li><a href="{path}">{path}</a>: {what}</li>' for path, what in LINKS)
    key = "-H 'Authorization: Bearer KEY' " if context.auth.required else ""

    @app.get("/")
    async def page() -> ResponseReturnValue:
        url = escape(f"{request.scheme}://{request.host}")
        response = Response(PAGE.format(speak=SPEAK, url=url, key=key, links=links), content_type="text/html; charset=utf-8")
        response.headers["Content-Security-Policy"] = "default-src 'none'; frame-ancestors 'none'"
        return response

    @app.get(SPEAK)
    @app.get(LISTEN)
    async def no_page() -> ResponseReturnValue:
        raise HttpError(
            426, "UPGRADE_REQUIRED", "this is a WebSocket: connect with a WebSocket client; /asyncapi.json describes the messages"
        )
