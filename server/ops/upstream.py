"""Whether Hypercorn, Quart, h11 and wsproto are as the parts expect that take the place of theirs; looked at before anything is served.

A class that upstream renames, or does not look up any more where we put ours, would take the bounds away without a word.
"""

import inspect
from importlib import import_module
from importlib.metadata import version
from operator import attrgetter
from typing import Any

WORKS = {"hypercorn": "0.18", "quart": "0.22", "h11": "0.16", "wsproto": "1.3"}

# What is called, overridden or replaced -> its parameters
SIGNATURES = {
    "hypercorn.protocol.ws_stream:Handshake": "headers http_version",
    "hypercorn.protocol.ws_stream:Handshake.is_valid": "self",
    "hypercorn.protocol.ws_stream:WebsocketBuffer": "max_length",
    "hypercorn.protocol.ws_stream:WebsocketBuffer.extend": "self event",
    "hypercorn.protocol.ws_stream:WebsocketBuffer.clear": "self",
    "hypercorn.protocol.ws_stream:WebsocketBuffer.to_message": "self",
    "hypercorn.protocol.ws_stream:WSStream": "app config context task_group ssl client server send stream_id",
    "hypercorn.protocol.ws_stream:WSStream.handle": "self event",
    "hypercorn.protocol.ws_stream:WSStream.app_send": "self message",
    "hypercorn.protocol.ws_stream:WSStream._handle_events": "self",
    "hypercorn.protocol.ws_stream:WSStream._send_error_response": "self status_code",
    "hypercorn.protocol.ws_stream:WSStream._send_wsproto_event": "self event",
    "hypercorn.protocol.h11:H11Protocol": "app config context task_group connection_state ssl client server send",
    "hypercorn.protocol.h11:H11Protocol.handle": "self event",
    "hypercorn.protocol.h11:H11Protocol._check_protocol": "self event",
    "hypercorn.protocol.h11:H11Protocol._maybe_recycle": "self",
    "hypercorn.asyncio.tcp_server:TCPServer": "app loop config context state reader writer",
    "hypercorn.asyncio.tcp_server:TCPServer.run": "self",
    "hypercorn.asyncio.tcp_server:TCPServer._read_data": "self",
    "hypercorn.asyncio.tcp_server:TCPServer.protocol_send": "self event",
    "hypercorn.config:Config.create_sockets": "self",
    "h11:Connection.next_event": "self",
    "h11:Connection._process_error": "self role",
    "wsproto.connection:Connection.events": "self",
    "quart.wrappers.request:Body": "expected_content_length max_content_length",
    "quart.wrappers.request:Body.append": "self data",
    "quart.wrappers.request:Body.set_complete": "self",
    "quart.asgi:ASGIHTTPConnection.handle_messages": "self request receive",
    "quart.asgi:ASGIWebsocketConnection": "app scope",
    "quart.formparser:FormDataParser.parse": "self body mimetype content_length options",
    "quart.formparser:MultiPartParser.parse": "self body boundary content_length",
}

# Where upstream looks up the names that ours are put in, or uses what ours sets
LOOKED_UP = {
    "hypercorn.protocol.ws_stream:WSStream.handle": "Handshake _handle_events app_put app_send",
    "hypercorn.protocol.ws_stream:WSStream.__init__": "WebsocketBuffer",
    "hypercorn.protocol.ws_stream:Handshake.accept": "extensions",
    "hypercorn.protocol.h11:H11Protocol._create_stream": "WSStream",
    "hypercorn.protocol.h11:H11Protocol._handle_events": "_check_protocol next_event error_status_hint can_read",
    "hypercorn.protocol.h11:H11Protocol.stream_send": "_maybe_recycle",
    "hypercorn.protocol:ProtocolWrapper.__init__": "H11Protocol",
    "hypercorn.asyncio.run:worker_serve": "TCPServer",
    "hypercorn.asyncio.tcp_server:TCPServer.__await__": "run",
    "hypercorn.asyncio.tcp_server:TCPServer.run": "protocol_send _read_data idle_task",
    "hypercorn.asyncio.tcp_server:TCPServer.protocol_send": "idle idle_task",
    "hypercorn.asyncio.task_group:TaskGroup.spawn_app": "max_app_queue_size",
    "quart.asgi:ASGIWebsocketConnection.__init__": "queue",
    "quart.asgi:ASGIHTTPConnection.__call__": "handle_messages",
    "quart.asgi:ASGIHTTPConnection._create_request_from_scope": "request_class",
    "quart:Quart.asgi_app": "asgi_http_class asgi_websocket_class",
    "quart.wrappers.request:Request.make_form_data_parser": "form_data_parser_class",
    "quart.wrappers.request:Body.__anext__": "_data _complete _has_data _must_raise",
}


def check() -> None:
    """Raises RuntimeError if a part is not as expected; names the part, and the versions that work."""
    wrong = []
    for place, expected in SIGNATURES.items():
        if (part := _found(place)) is None:
            wrong.append(f"{place} is missing")
        elif (given := " ".join(inspect.signature(part).parameters)) != expected:
            wrong.append(f"{place} takes {given!r} instead of {expected!r}")
    for place, names in LOOKED_UP.items():
        part = _found(place)
        used = set() if part is None else _names(part.__code__)
        wrong += [f"{place} does not use {name}" for name in names.split() if name not in used]
    if wrong:
        there = ", ".join(f"{package} {version(package)}" for package in WORKS)
        works = " ".join(f"'{package}=={number}.*'" for package, number in WORKS.items())
        raise RuntimeError(f"the server's bounds do not fit {there}: {'; '.join(wrong)}. These versions work: pip install {works}")


def _found(place: str) -> Any:
    module, _, name = place.partition(":")
    try:
        return attrgetter(name)(import_module(module))
    except (ImportError, AttributeError):
        return None


def _names(code: Any) -> set[str]:
    """Names that a function uses, and the functions inside of it."""
    inner = (_names(one) for one in code.co_consts if inspect.iscode(one))
    return {*code.co_names, *code.co_freevars}.union(*inner)
