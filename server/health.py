"""``python -m server health``: ask the server of this machine whether it lives. For the health check of a container, without JAX.

The environment (``TTS_HOST``, ``TTS_PORT``) -> where the server listens -> the status of ``/healthz``.
"""

import http.client
from collections.abc import Mapping

from server.ops.address import HOST, WILDCARDS, check_host, port_of, url_of

LIMIT = 5.0  # seconds


def place(environment: Mapping[str, str]) -> tuple[str, int]:
    """Address and port at which the server can be asked, by the same rules as `server.settings`.

    Raises:
        ValueError: the port is no number, or 0, which stands for one that only the server's log names.
    """
    chosen = {name.upper(): value for name, value in environment.items() if value}
    host, port = check_host(chosen.get("TTS_HOST", HOST)), int(port_of(chosen.get("TTS_PORT", "")))
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
