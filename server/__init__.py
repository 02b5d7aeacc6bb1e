"""The speech server. ``hypercorn "server:create_app()"`` serves too, with the environment's settings; ``python -m server`` also drains."""

from typing import Any


def create_app() -> Any:
    """The application, for a Hypercorn that is started by others. Errors as in ``server.app.create_app``."""
    from server import app, logs, run, transport

    settings = run.settings_of()
    logs.configure(settings.log_format)
    transport.harden()
    return app.create_app(settings)
