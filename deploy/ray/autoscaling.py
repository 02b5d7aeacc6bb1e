"""How many replicas there should be: by the slots that speak, not by the sessions that are open, for most of these are silent.

Serve's controller calls this, on the head node. It imports nothing of the server.
"""

import math
from typing import Any

from ray.serve.config import AutoscalingContext

BUSY = 0.7  # of all slots; above that a replica is added, so that nobody waits for a slot while it starts


def slots_in_use(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Serve's policy: its view of the deployment -> replicas wanted, and nothing to remember."""
    reported = context.aggregated_metrics or {}
    slots, taken = (sum(reported.get(name, {}).values()) for name in ("slots", "taken"))
    running = len(reported.get("slots", {}))
    sessions = 0
    if context.config is not None and context.config.target_ongoing_requests:
        sessions = math.ceil(context.total_num_requests / context.config.target_ongoing_requests)
    if not running or not slots:
        return max(context.target_num_replicas, sessions), {}
    return max(math.ceil(taken / (BUSY * slots / running)), sessions), {}
