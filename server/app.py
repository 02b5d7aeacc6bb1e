"""Settings -> the Quart application: routes, and the engine's life."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from quart import Quart, Response, ResponseReturnValue, websocket

from qwen3_jax.runtime.extras import MissingExtra
from qwen3_jax.voices.layers import VoiceLayers
from server.admission import loading
from server.context import Context
from server.engines import factory
from server.engines.base import TtsEngine
from server.http import bodies, contracts, openai, page, schema, voices, web
from server.http.web import address_of, token_of
from server.listen.ears import Ears
from server.ops import metrics
from server.ops.auth import Authenticator
from server.ops.limits import Quotas
from server.ops.metrics import Metrics
from server.respond import factory as respond
from server.settings import Settings
from server.transport import BoundedSocket
from server.voices.store import VoiceStore
from server.voices.watch import watch
from server.ws import listen, sockets
from server.ws.listen_protocol import LISTEN
from server.ws.outgoing import Socket
from server.ws.protocol import SPEAK

log = logging.getLogger(__name__)
Handle = Callable[[Socket, Context, str, str | None], Awaitable[None]]
MakeEngine = Callable[[Settings, VoiceStore], TtsEngine]


def create_app(settings: Settings | None = None, make_engine: MakeEngine = factory.create) -> Quart:
    """The application.

    Args:
        settings: default: from the environment.
        make_engine: makes the engine, without loading it.

    Raises:
        ValueError, FileNotFoundError: a setting, key or voice that cannot be used, or whose extra is not installed.
    """
    chosen = settings or Settings()
    store = VoiceStore(VoiceLayers.of(chosen.voices_dir, shipped=chosen.shipped_voices))
    log.info("voices: %s; new ones go to %s", store.layers, store.layers.destination or "no folder: set TTS_VOICES_DIR")
    if not store.writable:
        fix = "let the server's user write there, or set TTS_VOICES_DIR to another folder"
        log.warning("new voices cannot be kept in %s, so uploads will fail: %s", store.layers.destination, fix)
    engine = make_engine(chosen, store)
    context = Context(chosen, engine, store, Authenticator(chosen), Quotas(chosen), Metrics(), respond.create(chosen))
    app = Quart("server", static_folder=None)
    app.url_map.strict_slashes = app.url_map.merge_slashes = False  # a redirect would go wherever Host says
    app.asgi_websocket_class = BoundedSocket
    bodies.install(app, chosen)
    app.config |= {"RESPONSE_TIMEOUT": 120, "BODY_TIMEOUT": 60}
    app.extensions["context"] = context
    bus, ears = context.contracts.bus, context.ears
    web.install(app, context)
    voices.install(app, context)
    openai.install(app, context)
    contracts.install(app, context)
    schema.install(app, context)
    page.install(app, context)
    _watch(context)
    background: list[asyncio.Task[None]] = []

    @app.before_serving
    async def start() -> None:
        context.auth.start()
        bus.start()
        if chosen.load == "start":
            context.load()
        background.append(asyncio.create_task(loading.tell(context)))
        background.append(asyncio.create_task(watch(context)))
        background[-1].add_done_callback(_unwatched)

    @app.after_serving
    async def close() -> None:
        for task in background:
            task.cancel()
        await bus.close()
        await context.limits.close()
        await ears.close()
        context.auth.close()
        context.access.summarise()
        engine.close()
        await context.responder.close()

    @app.get("/healthz")
    async def healthz() -> ResponseReturnValue:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> ResponseReturnValue:
        state = "draining" if context.draining.is_set() else engine.state
        told: dict[str, Any] = {"status": state, "listen": _deaf(ears)}
        if state == "loading":
            told["loadingSeconds"] = round(context.loading_seconds(), 1)
        if len(engine.devices) > 1:
            told["devices"] = {name: one.state for name, one in engine.devices.items()}
        return told, 200 if state == "ready" or (state == "idle" and chosen.load == "lazy") else 503

    @app.get("/metrics")
    async def prometheus() -> ResponseReturnValue:
        if not chosen.metrics_open:
            await web.principal_of(context)
        return Response(context.metrics.render(), content_type=metrics.CONTENT_TYPE)

    @app.websocket(SPEAK)
    async def speak() -> ResponseReturnValue | None:
        return await _converse(context, SPEAK, sockets.handle)

    @app.websocket(LISTEN)
    async def hear() -> ResponseReturnValue | None:
        return await _converse(context, LISTEN, listen.handle)

    return app


async def _converse(context: Context, route: str, handle: Handle) -> ResponseReturnValue | None:
    """A WebSocket of a route, to its end."""
    here = websocket._get_current_object()  # type: ignore[attr-defined]  # a proxy, typed as what it stands for; it knows its socket in this task only
    address = address_of(here.scope.get("client"))
    if context.draining.is_set():
        context.access.refused(route=route, status=503, reason="GOING_AWAY", address=address, why="the server goes down")
        return web.answer(503, "GOING_AWAY", "the server goes down: connect again", 5000)
    await here.accept()
    await handle(here, context, address, token_of(here.headers, here.args))
    return None


def _deaf(ears: Ears) -> str | None:
    """What is missing for listening; None where nothing is."""
    try:
        ears.check()
    except MissingExtra as error:
        return str(error)
    return None


def _unwatched(task: "asyncio.Task[None]") -> None:
    if not task.cancelled():
        log.critical("voices that others change are not noticed any more", exc_info=task.exception())


def _watch(context: Context) -> None:
    gauges = context.metrics
    gauges.watch("tts_active_slots", "Utterances that are spoken", lambda: context.engine.active)
    gauges.watch("tts_slots", "Utterances that can be spoken at a time; 0 until the model is loaded", lambda: context.engine.slots)
    gauges.watch("tts_queue_depth", "Utterances that wait for their turn", lambda: context.engine.queued)
    gauges.watch("tts_runaway_retries", "Times that speech without end was made again", lambda: context.engine.runaways)
    gauges.watch("tts_not_finite", "Utterances that failed because the model computed NaN or infinity", lambda: context.engine.not_finite)
    gauges.watch("tts_engine_restarts", "Times that the engine died and was built again", lambda: context.engine.restarts)
    gauges.watch_devices(
        lambda: {name: (one.state == "running", one.slots, one.active, one.restarts) for name, one in context.engine.devices.items()}
    )
    gauges.watch("tts_voice_failures", "Times that voices could not be listed, read or written", lambda: context.store.failures)
    gauges.watch("tts_sessions", "Open WebSocket sessions", lambda: len(context.sessions))
    gauges.watch("tts_contracts", "Conversations that sessions have joined", lambda: len(context.contracts))
    gauges.watch("tts_recogniser_restarts", "Times that the recogniser's process died and was started again", lambda: context.ears.restarts)
    gauges.watch("tts_listen_queue_seconds", "Speech that waits to be recognised", lambda: context.ears.queued_seconds)
    gauges.watch(
        "tts_ready",
        "1 if the model is warm and the server not going down",
        lambda: context.engine.is_ready and not context.draining.is_set(),
    )
