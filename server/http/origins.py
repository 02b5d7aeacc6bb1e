"""Which Host, which pages of browsers: decided from a request's head alone, for HTTP and WebSocket alike, before any route.

A browser sends what a page cannot forge: Host (the name by which the page came here), Origin, Referer and Sec-Fetch-Site. What is no
browser sends none of the last three, and may ask. docs/security.md says why each rule is as it is.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from qwen3_jax.messages import shorten
from server.ops.address import is_loopback
from server.settings import Settings

LOCAL_ENDS = (".local", ".internal", ".lan", ".home.arpa")  # nobody can own such a name on the Internet
HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
ORIGIN = re.compile(r"null|[A-Za-z][A-Za-z0-9+.-]*://[^\s/?#@\\]*")  # what a browser sends: no user, path or fragment
ONCE = (b"host", b"origin", b"referer", b"sec-fetch-site")  # what is decided from these must be what everybody else reads
MAX_ASKED_HEADERS = 64  # that a preflight asks for; the rest is not echoed
PREFLIGHT_SECONDS = 600
EXPOSED = "Accept-Ranges, Content-Range, ETag, Retry-After, WWW-Authenticate, X-Request-Id"  # what a page's scripts may read besides


class Headers(Protocol):
    """A request's, by names in any case."""

    def get(self, name: str, default: str, /) -> str: ...


class NotAllowed(NamedTuple):
    """Why a request is not taken; ``message`` names the setting."""

    code: str
    message: str


def asked_host(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The Host of an ASGI scope's headers; empty if there is none."""
    return next((value.decode("latin1") for name, value in headers if name.lower() == b"host"), "")


def malformed(scope: Mapping[str, Any]) -> str | None:
    """Why the head of an ASGI scope cannot be decided upon, or would make Quart fail before any route; None if it can be."""
    names = [name.lower() for name, _ in scope["headers"]]
    for name in ONCE:
        if names.count(name) > 1:
            return f"more than one line of {name.decode().title()}"
    host = asked_host(scope["headers"])
    if host and hostname(host) is None:
        return f"Host {shorten(repr(host))} is no name of a host"
    try:
        parts = None if scope["path"].startswith("/") else urlsplit(scope["path"])
        named = parts is not None and parts.netloc
    except ValueError:
        named = "["
    if named and hostname(named) is None:
        return f"the first line's address {shorten(repr(scope['path']))} is none"
    return None


def refusal(settings: Settings, headers: Headers, *others: str) -> NotAllowed | None:
    """Why a request with these headers is not taken; None if it is.

    Args:
        others: hosts that were named elsewhere: in the request's first line, or before a proxy.
    """
    host = headers.get("Host", "")
    for named in (host, *others):
        if not host_allowed(settings, named):
            return NotAllowed(
                "HOST_NOT_ALLOWED",
                f"{shorten(named)!r} is no name of this server: use localhost or its address, or let the operator set "
                "TTS_ALLOWED_HOSTS to the name",
            )
    origin = page_of(headers)
    if not origin_allowed(settings, origin, host):
        return NotAllowed("ORIGIN_NOT_ALLOWED", _why(origin or "none"))
    if origin is None and headers.get("Sec-Fetch-Site", "").lower() == "cross-site" and "*" not in settings.allowed_origins:
        return NotAllowed("ORIGIN_NOT_ALLOWED", _why("another site, which hides its name"))
    return None


def page_of(headers: Headers) -> str | None:
    """The origin of the page that asks; None if no browser says. Elements such as ``<audio>`` send a Referer and no Origin."""
    origin, referer = headers.get("Origin", "") or None, headers.get("Referer", "")
    if origin is not None or headers.get("Sec-Fetch-Site", "").lower() in ("", "same-origin", "none") or not referer:
        return origin
    try:
        parts = urlsplit(referer)
    except ValueError:
        return "null"
    return f"{parts.scheme}://{parts.netloc}"


def host_allowed(settings: Settings, host: str) -> bool:
    """Whether the server answers to that name. A page that DNS rebinding brings here has a name of its own in Host."""
    if not host:  # HTTP/1.0; browsers always send it
        return True
    name = hostname(host)
    if name is None:
        return False
    named = any(_matches(pattern, name) for pattern in settings.allowed_hosts)
    if named or is_loopback(name) or name == hostname(settings.host):
        return True
    if _is_address(name) and not is_loopback(settings.host):
        return True  # as probes and scrapers ask; DNS rebinding needs a name
    if settings.allowed_hosts or is_loopback(settings.host):
        return settings.auth_required and not settings.allowed_hosts
    return settings.auth_required or "." not in name or name.endswith(LOCAL_ENDS)


def origin_allowed(settings: Settings, origin: str | None, host: str) -> bool:
    """Whether a browser's page of that origin may ask a server that it calls ``host``."""
    if origin is not None and ORIGIN.fullmatch(origin) is None:
        return False
    if origin is None or "*" in settings.allowed_origins:
        return True
    if any(_matches(pattern, origin.lower()) for pattern in settings.allowed_origins):
        return True
    try:
        parts = urlsplit(origin)
        name = parts.hostname
        _ = parts.port
    except ValueError:  # no browser sends such a one
        return False
    if parts.scheme not in ("http", "https") or not name or not host_allowed(settings, host):
        return False
    if parts.netloc.lower() == host.lower():
        return True
    return settings.proxies == 0 and is_loopback(name) and is_loopback(hostname(host))


def preflight(headers: Headers) -> dict[str, str]:
    """The answer's headers for a preflight of an allowed origin: what the page asks for, as far as these are names of headers."""
    asked = [name.strip() for name in headers.get("Access-Control-Request-Headers", "").split(",", MAX_ASKED_HEADERS)[:MAX_ASKED_HEADERS]]
    names = [name for name in asked if HEADER_NAME.fullmatch(name)]
    answer = {
        "Access-Control-Allow-Headers": ", ".join(names or ("Authorization", "Content-Type")),
        "Access-Control-Allow-Methods": "GET, POST, DELETE",
        "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
        "Vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
    }
    if headers.get("Access-Control-Request-Private-Network", "") == "true":
        answer["Access-Control-Allow-Private-Network"] = "true"
    return answer


def hostname(host: str) -> str | None:
    """A Host without its port, in small letters; None for what is none."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    if re.fullmatch(r"[^\s/?#@\\]+", host) is None or not parts.hostname:
        return None
    try:
        parts.hostname.encode("idna")  # no label is empty or too long; Werkzeug would raise
    except UnicodeError:
        return None
    return parts.hostname.removesuffix(".") or None


def _matches(pattern: str, value: str) -> bool:
    """Whether the value is as the pattern says; ``*`` is any part of a name, or any port."""
    if pattern == "*":
        return True
    return re.fullmatch("[a-z0-9.-]*".join(map(re.escape, pattern.lower().split("*"))), value) is not None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _why(origin: str) -> str:
    if origin == "null":
        return (
            "pages opened from a file, and sandboxed ones, may not ask here: serve the page (python -m http.server), or let the operator "
            "set TTS_ALLOWED_ORIGINS=null, which lets every page in that hides its origin"
        )
    return f"pages of {shorten(origin)} may not ask here: the operator can add it to TTS_ALLOWED_ORIGINS"
