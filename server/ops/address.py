"""Where the server listens: names and addresses of this machine -> a socket, and what people click on."""

import errno
import ipaddress
import os
import re
import socket

HOST, PORT = "127.0.0.1", 8000  # where the server listens unless it is told otherwise
SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://", re.I)  # TTS_PORT as Kubernetes sets it for a Service called tts
BACKLOG = 100
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # every address -> one that a browser on this machine can open


def check_host(host: str) -> str:
    """The host without the brackets of an IPv6 address.

    Raises:
        ValueError: an address with a port, or one that is none.
    """
    plain = host.strip().removeprefix("[").removesuffix("]")
    if ":" in plain and _address(plain) is None:
        raise ValueError("must be a name, an IPv4 address or an IPv6 address; the port is TTS_PORT's")
    return plain


def port_of(value: str) -> str:
    """TTS_PORT as the environment has it -> the port, as a number is written; unset, or set by Kubernetes for a Service: ours."""
    return str(PORT) if not value or SERVICE_LINK.match(value) else value


def is_loopback(host: str | None) -> bool:
    """Whether a name or address is this machine's own: localhost and names below it, 127.0.0.0/8, ::1."""
    if host is None:
        return False
    address, name = _address(host), host.casefold()
    if address is None:
        return name == "localhost" or name.endswith(".localhost")
    return address.is_loopback


def url_of(name: tuple[str, int]) -> str:
    """A socket's name (address, port, ...) -> http://address:port; of a socket on every address, this machine's own."""
    host, port = name[:2]
    host = WILDCARDS.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, so that a port that is taken is known before a model is loaded.

    Raises:
        OSError: the address cannot be had; the message names the setting that changes it.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise OSError(f"TTS_HOST = {host!r}: no such host: give a name or an address of this machine") from error
    family, kind, protocol, _, name = min(found, key=lambda one: one[0] != socket.AF_INET)  # IPv4 first, where a name has both
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited by what it accepts
        listener.bind(name)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(_why(error, host, port)) from error
    return listener


def _why(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use: stop the program that has it, or set TTS_PORT to another port (0: any that is free)"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"TTS_HOST = {host!r}: this machine has no such address: use 127.0.0.1, or 0.0.0.0 for all of them"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} of {host} needs rights that this user does not have: set TTS_PORT to 1024 or more"
    return f"cannot listen on port {port} of {host}: {os.strerror(error.errno or 0)}: set TTS_HOST and TTS_PORT"


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
