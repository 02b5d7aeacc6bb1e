"""What all HTTP routes share: who asks, which browser origins may, and errors as JSON."""

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any
from urllib.parse import urlsplit

from quart import Quart, Request, Response, ResponseReturnValue, g, jsonify, request
from werkzeug.exceptions import HTTPException

from qwen3_jax.messages import shorten
from server.access import EXPLAINED
from server.address import is_loopback
from server.auth import Principal, Unauthorized
from server.context import Context
from server.limits import Limited
from server.protocol import MOST_SAID
from server.settings import Settings


class HttpError(Exception):
    """An answer that is an error: ``{error: {code, message}}``."""

    def __init__(self, status: int, code: str, message: str, retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after_ms = status, code, retry_after_ms


def origin_allowed(settings: Settings, origin: str | None, host: str) -> bool:
    """Whether a browser page of that origin may ask. What is no browser sends none.

    Where nobody has to say who he is, "the server's own origin" means its loopback names, so that no page can come by a name of its own.
    """
    if origin is None or origin in settings.allowed_origins or "*" in settings.allowed_origins:
        return True
    try:
        parts = urlsplit(origin)
    except ValueError:  # no browser sends such a one
        return False
    return parts.netloc == host and (settings.auth_required or is_loopback(parts.hostname))


def origin_refusal(origin: str | None) -> str:
    """What is told of an origin that is not allowed."""
    return f"pages of {shorten(origin or '')} may not ask here: the operator can add it to TTS_ALLOWED_ORIGINS"


def token_of(headers: Any, query: Any) -> str | None:
    """The token of a request: the Authorization header's, or for browsers' WebSockets the query's."""
    kind, _, token = headers.get("Authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else query.get("token")


def route_of(asked: Request) -> str:
    """The route as it was declared, without what a client put into it; ``other`` where there is none."""
    return asked.url_rule.rule if asked.url_rule is not None else "other"


def address_of(client: Any) -> str:
    """The peer's address."""
    return client[0] if client else "unknown"


async def principal_of(context: Context) -> Principal:
    """Who asks. Raises HttpError 401."""
    if not context.auth.required:
        return context.auth.anonymous(address_of(request.scope.get("client")))
    try:
        return await context.auth.authenticate(token_of(request.headers, {}))
    except Unauthorized as error:
        raise HttpError(401, "UNAUTHORIZED", str(error)) from error


def authenticated(context: Context) -> Callable[[Callable[..., Awaitable[Any]]], Callable[..., Awaitable[Any]]]:
    """A route that gets the principal as its first argument."""

    def wrap(route: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @wraps(route)
        async def asked(**values: Any) -> Any:
            principal = await principal_of(context)
            g.principal_id = principal.id  # for the log
            return await route(principal, **values)

        return asked

    return wrap


def install(app: Quart, context: Context) -> None:
    """Origins and errors, for every route."""
    settings = context.settings

    @app.before_request
    async def check_origin() -> ResponseReturnValue | None:
        origin = request.headers.get("Origin")
        if not origin_allowed(settings, origin, request.headers.get("Host", "")):
            raise HttpError(403, "ORIGIN_NOT_ALLOWED", origin_refusal(origin))
        if request.method == "OPTIONS" and origin is not None:
            return "", 204
        return None

    @app.after_request
    async def tell_browsers(response: Response) -> Response:
        origin = request.headers.get("Origin")
        if origin is not None and origin_allowed(settings, origin, request.headers.get("Host", "")):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Allow-Headers"] = "Authorization, Content-Type"
            response.headers["Access-Control-Allow-Methods"] = "GET, POST, DELETE"
            response.headers["Vary"] = "Origin"
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        return response

    def noted(status: int, reason: str, why: str) -> None:
        """For the log: a refusal, and not a fault of ours."""
        if status < 500 or status in EXPLAINED:
            context.access.refused(
                route=route_of(request),
                status=status,
                reason=reason,
                address=address_of(request.scope.get("client")),
                principal=g.get("principal_id"),
                method=request.method,
                path=request.path,
                origin=request.headers.get("Origin") if status == 403 else None,
                why=why if status in EXPLAINED else "",
            )

    @app.errorhandler(HttpError)
    async def told(error: HttpError) -> ResponseReturnValue:
        noted(error.status, error.code, str(error))
        return answer(error.status, error.code, str(error), error.retry_after_ms)

    @app.errorhandler(Limited)
    async def limited(error: Limited) -> ResponseReturnValue:
        noted(429, "RATE_LIMITED", str(error))
        return answer(429, "RATE_LIMITED", str(error), error.retry_after_ms)

    @app.errorhandler(HTTPException)
    async def http(error: HTTPException) -> ResponseReturnValue:
        status, reason = error.code or 500, error.name.upper().replace(" ", "_")
        noted(status, reason, error.description or "")
        response = answer(status, reason, error.description or error.name)
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
