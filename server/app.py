"""Settings -> the Quart application: routes, and the engine's life."""

from collections.abc import Callable

from quart import Quart, ResponseReturnValue, websocket

from server.engine import Engine, Tts, load_model
from server.settings import Settings
from server.transport import bounded
from server.websocket import Sitting, handle


def create_app(settings: Settings | None = None, load: Callable[[], Tts] | None = None) -> Quart:
    """The application.

    Args:
        settings: default: from the environment.
        load: makes the model, in the engine's thread; default: the configured checkpoint.

    Raises:
        ValueError: a setting or a file in the voices folder that cannot be used.
    """
    chosen = settings or Settings()
    engine = Engine(chosen, load or (lambda: load_model(chosen)))
    sessions: set[Sitting] = set()
    app = Quart("server")
    app.asgi_websocket_class = bounded(chosen.max_inbound)
    app.extensions |= {"engine": engine, "sessions": sessions}

    @app.before_serving
    async def start() -> None:
        engine.start()

    @app.after_serving
    async def close() -> None:
        engine.close()

    @app.get("/healthz")
    async def healthz() -> ResponseReturnValue:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> ResponseReturnValue:
        return {"status": engine.state}, 200 if engine.state == "ready" else 503

    @app.websocket("/api/v1/speak")
    async def speak() -> None:
        here = websocket._get_current_object()  # type: ignore[attr-defined]  # a proxy, typed as what it stands for; it knows its socket in this task only
        await handle(here, engine, chosen, sessions)

    return app
