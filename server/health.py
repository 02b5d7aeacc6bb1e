"""``python -m server health``: ask the server of this machine whether it lives. For the health check of a container, without JAX.

The environment (``TTS_HOST``, ``TTS_PORT``) -> where the server listens -> the status of ``/healthz``.
"""

import http.client
from collections.abc import Mapping

from qwen3_jax.messages import shorten
from server.ops.address import HOST, WILDCARDS, check_host, port_of, url_of

LIMIT, MOST_PORT = 5.0, 65535  # seconds; TCP's highest


def place(environment: Mapping[str, str]) -> tuple[str, int]:
    """Address and port at which the server can be asked, by the same rules as `server.settings`.

    Raises:
        ValueError: a setting that the server would refuse, or the port 0, which stands for one that only the server's log names.
    """
    chosen = {name.upper(): value for name, value in environment.items() if value}
    given, told = chosen.get("TTS_HOST", HOST), port_of(chosen.get("TTS_PORT", "")).strip()
    try:
        host = check_host(given)
    except ValueError as error:
        raise ValueError(f"TTS_HOST = {shorten(repr(given))}: {error}") from error
    if not (told.isdecimal() and (port := int(told)) <= MOST_PORT):
        raise ValueError(f"TTS_PORT = {shorten(repr(told))}: must be a whole number from 0 to {MOST_PORT}")
    if port == 0:
        raise ValueError("TTS_PORT = 0: the health check needs a port that is known; set it")
    return WILDCARDS.get(host, host), port


def main(environment: Mapping[str, str]) -> None:
    """Return if it lives.

    Raises:
        OSError: it does not answer in `LIMIT` seconds, or not with 200.
        ValueError: see `place`.
    """
    where = place(environment)
    connection = http.client.HTTPConnection(*where, timeout=LIMIT)  # not by a proxy, whatever the environment says of one
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise OSError(f"{url_of(where)}/healthz does not answer: {error}") from error
    finally:
        connection.close()
    if status != 200:
        raise OSError(f"{url_of(where)}/healthz answers with status {status}, not 200")
