"""What all HTTP routes share: who asks, which browser origins may, and errors as JSON."""

import logging
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from quart import Quart, Response, ResponseReturnValue, jsonify, request, websocket
from werkzeug.exceptions import HTTPException

from qwen3_jax.messages import shorten
from server.auth import Principal, Unauthorized
from server.connections import here
from server.context import Context
from server.limits import Limited
from server.origins import EXPOSED, Refusal, page_of, preflight, refusal
from server.protocol import MOST_SAID
from server.settings import Settings

MOST_LOGGED = 100  # hosts and origins that were refused
log = logging.getLogger(__name__)


class HttpError(Exception):
    """An answer that is an error: ``{error: {code, message}}``."""

    def __init__(self, status: int, code: str, message: str, retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after_ms = status, code, retry_after_ms


def token_of(headers: Any, query: Any) -> str | None:
    """The token of a request: the Authorization header's, or for browsers' WebSockets the query's."""
    kind, _, token = headers.get("Authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else query.get("token")


def address_of(client: Any) -> str:
    """The peer's address."""
    return client[0] if client else "unknown"


async def principal_of(context: Context) -> Principal:
    """Who asks. Raises HttpError 401."""
    principal = context.auth.anonymous(address_of(request.scope.get("client")))
    if context.auth.required:
        try:
            principal = await context.auth.authenticate(token_of(request.headers, {}))
        except Unauthorized as error:
            raise HttpError(401, "UNAUTHORIZED", str(error)) from error
    here().welcome()
    return principal


def authenticated(context: Context) -> Callable[[Callable[..., Awaitable[Any]]], Callable[..., Awaitable[Any]]]:
    """A route that gets the principal as its first argument."""

    def wrap(route: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @wraps(route)
        async def asked(**values: Any) -> Any:
            return await route(await principal_of(context), **values)

        return asked

    return wrap


def _refusal(settings: Settings, asked: Any) -> Refusal | None:
    """Why a request or handshake is not taken."""
    target = asked.scope["raw_path"].decode("latin1")
    elsewhere = [asked.scope.get("state", {}).get("host", "")]
    if not target.startswith("/") and "://" in target:
        elsewhere.append(target.partition("://")[2].partition("/")[0])
    return refusal(settings, asked.headers, *elsewhere)


def install(app: Quart, context: Context) -> None:
    """Hosts, origins and errors, for every route."""
    settings, logged = context.settings, set[str]()

    def told(why: Refusal) -> Refusal:
        """Once in the log, for a page cannot show its user what it is told."""
        if why.message not in logged and len(logged) < MOST_LOGGED:
            logged.add(why.message)
            log.warning("refused: %s", why.message)
        return why

    @app.before_request
    async def check_request() -> ResponseReturnValue | None:
        if (why := _refusal(settings, request)) is not None:
            told(why)
            raise HttpError(403, *why)
        if request.method == "OPTIONS" and "Origin" in request.headers and "Access-Control-Request-Method" in request.headers:
            return Response(status=204, headers=preflight(request.headers))
        return None

    @app.before_websocket
    async def check_handshake() -> ResponseReturnValue | None:
        why = _refusal(settings, websocket)
        return None if why is None else answer(403, *told(why))

    @app.after_request
    async def tell_browsers(response: Response) -> Response:
        origin, headers = page_of(request.headers), response.headers
        allowed = origin is not None and _refusal(settings, request) is None
        if allowed and "Origin" in request.headers:
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Expose-Headers"] = EXPOSED
        headers.setdefault("Vary", "Origin")
        headers["Cross-Origin-Resource-Policy"] = "cross-origin" if allowed else "same-origin"
        headers["X-Content-Type-Options"] = "nosniff"
        return response

    @app.errorhandler(HttpError)
    async def failed_with(error: HttpError) -> ResponseReturnValue:
        return answer(error.status, error.code, str(error), error.retry_after_ms)

    @app.errorhandler(Limited)
    async def limited(error: Limited) -> ResponseReturnValue:
        return answer(429, "RATE_LIMITED", str(error), error.retry_after_ms)

    @app.errorhandler(HTTPException)
    async def http(error: HTTPException) -> ResponseReturnValue:
        status = error.code or 500
        response = answer(status, error.name.upper().replace(" ", "_"), error.description or error.name)
        if status == 405 and (allowed := getattr(error, "valid_methods", None)):
            response.headers["Allow"] = ", ".join(sorted(allowed))
        return response

    @app.errorhandler(Exception)
    async def failed(error: Exception) -> ResponseReturnValue:
        app.logger.error("request failed", exc_info=error)
        return answer(500, "INTERNAL", "internal error; the server's log says more")


def answer(status: int, code: str, message: str, retry_after_ms: int | None = None) -> Response:
    """An error as JSON; ``type`` and ``param`` are what OpenAI's clients look for."""
    body: dict[str, Any] = {
        "code": code,
        "message": shorten(message, MOST_SAID),
        "type": "invalid_request_error" if status < 500 else "server_error",
        "param": None,
    }
    if retry_after_ms is not None:
        body["retryAfterMs"] = retry_after_ms
    response = jsonify({"error": body})
    response.status_code = status
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if retry_after_ms is not None:
        response.headers["Retry-After"] = str(-(-retry_after_ms // 1000))
    return response
