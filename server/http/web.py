"""What all HTTP routes share: who asks, which browser origins may, and errors as JSON."""

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

import msgspec
from quart import Quart, Response, ResponseReturnValue, g, has_request_context, has_websocket_context, jsonify, request, websocket
from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.exceptions import HTTPException, NotFound

from qwen3_jax.messages import shorten
from server.admission.speech import Denied
from server.context import Context
from server.http.origins import EXPOSED, NotAllowed, malformed, page_of, preflight, refusal
from server.ops.access import EXPLAINED
from server.ops.auth import Principal, Unauthorized
from server.ops.connections import here
from server.ops.limits import Limited
from server.settings import Settings
from server.ws.protocol import MOST_SAID, SPEAK


class HttpError(Exception):
    """An answer that is an error: ``{error: {code, message, type, param}}``; ``param`` is the field that is wrong."""

    def __init__(self, status: int, code: str, message: str, retry_after_ms: int | None = None, *, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after_ms, self.param = status, code, retry_after_ms, param


_DENIED: dict[str, tuple[int, str, str | None, str]] = {  # reason -> status, code, the field that is wrong, what is added to the message
    "draining": (503, "GOING_AWAY", None, ": ask again"),
    "loading": (503, "MODEL_LOADING", None, ""),
    "failed": (500, "SYNTHESIS_ERROR", None, "; the log says why"),
    "crowded": (503, "RATE_LIMITED", None, ""),
    "language": (400, "INVALID_LANGUAGE", "language", ""),
    "text": (400, "INVALID_TEXT", "input", ""),
    "voice": (404, "VOICE_NOT_FOUND", "voice", ""),
    "late": (503, "TIMEOUT", None, ""),
    "memory": (503, "GPU_OUT_OF_MEMORY", None, ""),
    "fault": (500, "SYNTHESIS_ERROR", None, ""),
}


def denied(error: Denied) -> HttpError:
    """The answer to an utterance that is not spoken."""
    status, code, field, more = _DENIED[error.reason]
    return HttpError(status, code, f"{error}{more}", error.retry_after_ms, param=field)


def token_of(headers: Any, query: Any) -> str | None:
    """The token of a request: the Authorization header's, or for browsers' WebSockets the query's."""
    kind, _, token = headers.get("Authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else query.get("token")


def route_of(asked: BaseRequestWebsocket) -> str:
    """The route as it was declared, without what a client put into it; ``other`` where there is none."""
    return asked.url_rule.rule if asked.url_rule is not None else "other"


def address_of(client: Any) -> str:
    """The peer's address."""
    return client[0] if client else "unknown"


async def principal_of(context: Context) -> Principal:
    """Who asks. Raises HttpError 401."""
    principal = context.auth.anonymous(address_of(request.scope.get("client")))
    if context.auth.required:
        if not (token := token_of(request.headers, {})):
            raise HttpError(401, "UNAUTHORIZED", "no token: send the header Authorization: Bearer TOKEN")
        try:
            principal = await context.auth.authenticate(token)
        except Unauthorized as error:
            raise HttpError(401, "UNAUTHORIZED", str(error)) from error
    here().welcome()
    return principal


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


def _refusal(settings: Settings, asked: Any) -> NotAllowed | None:
    """Why a request or handshake is not taken."""
    target = asked.scope["raw_path"].decode("latin1")
    elsewhere = [asked.scope.get("state", {}).get("host", "")]
    if not target.startswith("/") and "://" in target:
        elsewhere.append(target.partition("://")[2].partition("/")[0])
    return refusal(settings, asked.headers, *elsewhere)


class _Heads:
    """Around Quart's part of the application: what it could not even begin with is answered here, with 400."""

    def __init__(self, app: Quart, context: Context) -> None:
        self._inner, self._access = app.asgi_app, context.access

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        why = malformed(scope) if scope["type"] in ("http", "websocket") else None
        if why is None:
            await self._inner(scope, receive, send)
            return
        self._access.refused(route="other", status=400, reason="BAD_REQUEST", address=address_of(scope.get("client")), head=why)
        body = msgspec.json.encode({"error": error_of(400, "BAD_REQUEST", why)})
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
        kind = "http" if scope["type"] == "http" else "websocket.http"
        await send({"type": f"{kind}.response.start", "status": 400, "headers": headers})
        await send({"type": f"{kind}.response.body", "body": body})


def install(app: Quart, context: Context) -> None:
    """Hosts, origins and errors, for every route."""
    settings = context.settings
    app.asgi_app = _Heads(app, context)  # type: ignore[method-assign]  # as Quart wants it to be wrapped

    @app.before_request
    async def check_request() -> ResponseReturnValue | None:
        if (why := _refusal(settings, request)) is not None:
            raise HttpError(403, *why)
        if request.method == "OPTIONS" and "Origin" in request.headers and "Access-Control-Request-Method" in request.headers:
            return Response(status=204, headers=preflight(request.headers))
        coding = request.headers.get("Content-Encoding", "").strip()
        if request.method not in ("GET", "HEAD", "OPTIONS") and coding.casefold() not in ("", "identity"):
            raise HttpError(415, "UNSUPPORTED_MEDIA_TYPE", f"Content-Encoding {shorten(coding)}: send the body as it is, not compressed")
        return None

    @app.before_websocket
    async def check_handshake() -> ResponseReturnValue | None:
        why = _refusal(settings, websocket)
        if why is None:
            return None
        address, origin = address_of(websocket.scope.get("client")), websocket.headers.get("Origin")
        context.access.refused(route=SPEAK, status=403, reason=why.code, address=address, why=why.message, origin=origin)
        return answer(403, *why)

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

    def noted(status: int, reason: str, why: str) -> None:
        """For the log: a refusal, and not a fault of ours."""
        asked: Any = request if has_request_context() else websocket
        if status < 500 or status in EXPLAINED:
            context.access.refused(
                route=route_of(asked),
                status=status,
                reason=reason,
                address=address_of(asked.scope.get("client")),
                principal=g.get("principal_id"),
                method="WebSocket" if asked is websocket else request.method,
                path=asked.path,
                origin=asked.headers.get("Origin") if status == 403 else None,
                why=why if status in EXPLAINED else "",
            )

    @app.errorhandler(HttpError)
    async def failed_with(error: HttpError) -> ResponseReturnValue:
        noted(error.status, error.code, str(error))
        return answer(error.status, error.code, str(error), error.retry_after_ms, param=error.param)

    @app.errorhandler(Denied)
    async def not_spoken(error: Denied) -> ResponseReturnValue:
        return await failed_with(denied(error))

    @app.errorhandler(Limited)
    async def limited(error: Limited) -> ResponseReturnValue:
        noted(429, "RATE_LIMITED", str(error))
        return answer(429, "RATE_LIMITED", str(error), error.retry_after_ms)

    @app.errorhandler(HTTPException)
    async def http(error: HTTPException) -> ResponseReturnValue:
        if has_websocket_context():
            error = NotFound("there is no WebSocket of that path")  # whether HTTP has one, or not
        status, reason, why = error.code or 500, error.name.upper().replace(" ", "_"), error.description or error.name
        allowed = ", ".join(sorted(getattr(error, "valid_methods", None) or ())) if status == 405 else ""
        if allowed:
            why = f"{shorten(request.method)} is not for this path: use {allowed}"
        noted(status, reason, why)
        response = answer(status, reason, why)
        if allowed:
            response.headers["Allow"] = allowed
        return response

    @app.errorhandler(Exception)
    async def failed(error: Exception) -> ResponseReturnValue:
        app.logger.error("request failed", exc_info=error)
        return answer(500, "INTERNAL", "internal error; the server's log says more")


def error_of(status: int, code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """An error's fields; ``type`` and ``param`` are what OpenAI's clients look for."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"code": code, "message": shorten(message, MOST_SAID), "type": kind, "param": param}


def answer(status: int, code: str, message: str, retry_after_ms: int | None = None, *, param: str | None = None) -> Response:
    """An error as JSON."""
    body = error_of(status, code, message, param)
    if retry_after_ms is not None:
        body["retryAfterMs"] = retry_after_ms
    response = jsonify({"error": body})
    response.status_code = status
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if status == 415:
        response.headers["Accept-Encoding"] = "identity"  # RFC 9110, 15.5.16
    if status == 426:
        response.headers["Upgrade"], response.headers["Connection"] = "websocket", "Upgrade"
    if retry_after_ms is not None:
        response.headers["Retry-After"] = str(-(-retry_after_ms // 1000))
    return response
