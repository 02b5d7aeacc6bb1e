"""How many speak at once, where nobody has said: what the device is good for, what its memory holds, and, on a CPU, what is smooth."""

import itertools
import logging
import statistics
import time

import jax
import numpy as np

from qwen3_jax import Sampling
from qwen3_jax.engine import JaxDevice
from qwen3_jax.engine.options import FRAME_SECONDS
from qwen3_jax.engine.plan import plan
from qwen3_jax.engine.slots import NEVER, Opening, Text
from qwen3_jax.model import Model
from qwen3_jax.prompt import Prompt

SLOTS, CPU_SLOTS, CPU_SLOTS_LARGE, LARGE = 16, 10, 4, 200_000_000  # parameters of a model that two cores cannot speak ten times
BUSY = 0.7  # of a frame's 80 ms, for a step of all slots; the rest is for prompts, and for whatever else the machine does
LAUNCHES = 12
log = logging.getLogger(__name__)


def slots_for(model: Model, columns: int) -> int:
    """Utterances that the model's device can speak at a time.

    Ten at most on a CPU, and fewer where a step of ten takes so long that all of them would stutter: those who wait hear nothing for a
    moment, but nobody hears gaps. A large model speaks no faster than it can.
    """
    talker = jax.tree.leaves(model.params["talker"])
    on_cpu = all(device.platform == "cpu" for device in talker[0].devices())
    large = sum(leaf.size for leaf in talker) >= LARGE
    slots = (CPU_SLOTS_LARGE if large else CPU_SLOTS) if on_cpu else SLOTS
    while slots > 1 and not plan(model, slots, columns).fits:
        slots //= 2
    return smooth(model, slots, columns) if on_cpu and not large else slots


def smooth(model: Model, slots: int, columns: int) -> int:
    """The most of ``slots`` whose steps leave three tenths of the time. A number that is tried is compiled, once (the cache keeps it)."""
    while slots > 1 and (taken := step_seconds(model, slots, columns)) > BUSY * FRAME_SECONDS:
        fewer = max(1, min(slots - 1, int(slots * BUSY * FRAME_SECONDS / taken)))
        log.info(
            "a frame of %d slots takes %.0f of its 80 ms here: %d slots, more sessions wait for their turn", slots, 1000 * taken, fewer
        )
        slots = fewer
    return slots


def step_seconds(model: Model, slots: int, columns: int) -> float:
    """Of a frame of every slot, one a launch, and the next launched before it is collected, as the engine does."""
    device = JaxDevice(model, slots=slots, columns=columns)
    books = model.config.talker_config.num_code_groups
    prompt = Prompt(np.full(1, -1, np.int32), np.full((1, books), -1, np.int32), np.zeros(1, bool), None, np.zeros(0, np.int32))
    warm = Sampling(temperature=10.0, top_k=0)  # so that hardly anybody draws the end of speech
    opening = Opening(prompt, Text([], 2 * LAUNCHES, NEVER, NEVER), warm, 0, 0, None, None, False)
    for slot in range(slots):
        device.open(slot, opening)
        device.read(slot)
    ends = []
    flying = device.launch([1] * slots, 1)  # compiles
    for _ in range(LAUNCHES):
        following = device.launch([1] * slots, 1)
        device.collect(flying)
        ends.append(time.perf_counter())
        flying = following
    device.collect(flying)
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(ends))
