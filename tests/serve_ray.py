"""``python -m tests.serve_ray PORT VOICES REPLICAS [STEP]``: deploy/ray/app.py on a local Ray cluster of its own, with timed engines.

REPLICAS 0: the server alone in this process, with the same engine. STEP: milliseconds of a frame of ten rows (default 20). The settings are
the environment's. ``scale N`` on stdin changes the number of replicas; the end of stdin ends it all.
"""

import asyncio
import os
import secrets
import sys
import tempfile
from functools import partial
from pathlib import Path

from server.app import create_app
from server.run import begin
from server.transport import serve as serve_alone
from tests.timed_device import Times
from tests.timed_engine import make


def times_of(step: float) -> Times:
    """Seconds, as a small model on a CPU takes them: a row more is a tenth of ``step`` more, and one row is a fifth of it."""
    return Times({rows: step * (0.2 + 0.08 * rows) for rows in (1, 2, 4, 8, 10)}, step / 2)


def alone(port: int, voices: Path, times: Times) -> None:
    """Without Ray, until SIGTERM."""
    settings = begin(port=port, voices_dir=voices, shipped_voices=False)
    asyncio.run(serve_alone(create_app(settings, partial(make, times)), settings))


def on_ray(port: int, voices: Path, replicas: int, times: Times) -> None:
    """On a cluster of one node, until stdin ends."""
    os.environ |= {"TTS_VOICES_DIR": str(voices), "TTS_SHIPPED_VOICES": "false", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ |= {f"RAY_SERVE_PROXY_{what}_CHECK_TIMEOUT_S": "60" for what in ("READY", "HEALTH")}  # on a machine that others use, too
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # else Ray writes one into the user's home

    import ray
    from ray import serve

    from deploy.ray.app import Arguments, application

    def run(count: int) -> None:
        serve.run(application(Arguments(min_replicas=count, max_replicas=count, cpus=0), partial(make, times)))

    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:  # short: a socket's path has 107 characters
        ray.init(num_cpus=8, include_dashboard=False, object_store_memory=100_000_000, _temp_dir=folder, _node_ip_address="127.0.0.1")
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            run(replicas)
            for line in sys.stdin:
                run(int(line.split()[1]))
        finally:
            serve.shutdown()
            ray.shutdown()


if __name__ == "__main__":
    number, folder, count = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    chosen = times_of(float(sys.argv[4]) / 1000 if len(sys.argv) > 4 else 0.02)
    if count:
        on_ray(number, folder, count, chosen)
    else:
        alone(number, folder, chosen)
