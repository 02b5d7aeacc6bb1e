"""The speech server on Ray Serve: ``serve run deploy.ray.app:app`` in a checkout. What is shared and what is not: docs/scaling.md.

A replica is one whole server (server/app.py) with one engine, behind Serve's proxies in the place of server/transport.py. Serve counts a
WebSocket as one ongoing request from its handshake to its end, and gives each new one to the less busy of two replicas that it draws.
"""

import asyncio
import logging
from time import monotonic
from typing import Any

from pydantic import BaseModel, Field
from quart import Quart
from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.exceptions import RayServeException

from deploy.ray.autoscaling import slots_in_use
from server.app import MakeEngine, create_app
from server.asgi import Bounded
from server.context import Context
from server.drain import drain
from server.engines import factory
from server.run import begin, settings_of

OPEN = {"host": "0.0.0.0"}  # Serve's proxies may listen anywhere, so a key is asked for, or TTS_AUTH=off
HEALTH_SECONDS = 1.0  # between two health checks
SILENT_SECONDS = 4.0  # without a health check, after which a replica asks whether it is being stopped
SESSIONS_SHARE = 0.8  # of a replica's sessions, above which there should be another one, however few speak
LEAVE_SECONDS = 15.0  # for finding that out, and for what follows TTS_GRACE
log = logging.getLogger("server.ray")


class Arguments(BaseModel):
    """What ``serve run deploy.ray.app:app name=value`` takes. A Serve config file's ``deployments`` can set these and all others."""

    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=4, ge=1)
    cpus: float = Field(default=1.0, ge=0)
    """Of a replica."""
    gpus: float = Field(default=0.0, ge=0)
    """Of a replica."""


@serve.ingress()
class Speech:
    """One replica."""

    def __init__(self, make_engine: MakeEngine) -> None:
        settings = begin(**OPEN)
        self._app: Quart = create_app(settings, make_engine)
        self._app.before_serving(self._loaded)
        self._bounded = Bounded(self._app, settings)
        self._context: Context = self._bounded.context
        self._checked = monotonic()

    def __serve_build_asgi_app__(self) -> Bounded:
        return self._bounded

    async def _loaded(self) -> None:
        """Serve sends no client to a replica until this has returned. Raises what loading raised."""
        if self._context.engine.loaded is not None:
            await self._context.engine.loaded
        self._checked = monotonic()
        self._watching = asyncio.create_task(self._stopped())
        self._watching.add_done_callback(_watched)

    async def check_health(self) -> None:
        """Raise where ``/readyz`` says ``failed``: Serve then puts another replica in this one's place."""
        self._checked = monotonic()
        if self._context.engine.state == "failed":
            raise RuntimeError("the engine died and could not be restarted; the replica's log says why")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For ``slots_in_use``: slots, and utterances that are spoken or wait for one."""
        engine = self._context.engine
        return {"slots": engine.slots, "taken": engine.active + engine.queued}

    async def _stopped(self) -> None:
        """Drain as soon as Serve stops this replica.

        Serve waits for ongoing requests then, and tells nobody; a WebSocket would be one until Serve's patience ends. But Serve checks the
        health of those that run only, so where no check comes, it is asked.
        """
        while True:
            await asyncio.sleep(HEALTH_SECONDS)
            asked = monotonic()
            if asked - self._checked > SILENT_SECONDS and await asyncio.to_thread(_stopping) and self._checked < asked:
                break
        log.info("Serve stops this replica: %d sessions; what is spoken may end within %g s", len(self._context.sessions), self._grace)
        await drain(self._context)

    @property
    def _grace(self) -> float:
        return self._context.settings.grace


def _watched(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("Serve can stop this replica without goodbye to its sessions", exc_info=error)


def _stopping() -> bool:
    """Whether Serve says that a replica of this deployment is being stopped, or that the deployment is gone. It may be another one."""
    here = serve.get_replica_context()
    try:
        status = serve.status().applications.get(here.app_name)
    except (RayError, RayServeException) as error:  # the controller is started anew: it goes on checking afterwards
        log.info("Serve's controller does not answer (%s)", type(error).__name__)
        return False
    deployment = None if status is None else status.deployments.get(here.deployment)
    return deployment is None or deployment.replica_states.get("STOPPING", 0) > 0


def application(arguments: Arguments, make_engine: MakeEngine = factory.create) -> Application:
    """The deployment, for the settings of the environment.

    Args:
        make_engine: makes a replica's engine, in the replica.

    Raises:
        ValueError: a setting that cannot be used.
    """
    settings = settings_of(**OPEN)
    if arguments.max_replicas > 1 and settings.redis_url is None:
        log.warning(
            "TTS_REDIS_URL is not set: who listens and who speaks to a user may be in different replicas, which tell each other nothing"
        )
    if arguments.max_replicas > 1 and settings.voices_dir is None:
        log.warning("TTS_VOICES_DIR is not set: a voice that is uploaded to one replica may not be in the others")
    deployment: Any = serve.deployment(Speech)
    return deployment.options(
        max_ongoing_requests=settings.max_sessions,
        max_queued_requests=settings.max_sessions,
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.grace + LEAVE_SECONDS,
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
        autoscaling_config=AutoscalingConfig(
            min_replicas=arguments.min_replicas,
            max_replicas=arguments.max_replicas,
            target_ongoing_requests=max(1, round(SESSIONS_SHARE * settings.max_sessions)),
            policy=AutoscalingPolicy(policy_function=slots_in_use),
            upscale_delay_s=5,
            downscale_delay_s=300,
        ),
    ).bind(make_engine)


def app(arguments: Arguments) -> Application:
    """What ``serve run`` and ``serve build`` take."""
    return application(arguments)
