"""The speech server. ``hypercorn "server:create_app()"`` serves too, with the environment's settings; ``python -m server`` also drains."""

from time import monotonic
from typing import Any

BEGUN = monotonic()  # this package is the first of the server that is imported


def create_app() -> Any:
    """The application, for a Hypercorn that is started by others. Errors as in ``server.app.create_app``."""
    from server import app, run, transport

    settings = run.begin()
    transport.harden()
    return app.create_app(settings)
