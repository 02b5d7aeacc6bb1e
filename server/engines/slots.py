"""How many speak at once, where nobody has said: what the device is good for, what its memory holds, and, on a CPU, what is smooth."""

import itertools
import logging
import statistics
import time

import jax
import numpy as np

from qwen3_jax import Sampling
from qwen3_jax.engine import JaxDevice
from qwen3_jax.engine.device import sizes_up_to
from qwen3_jax.engine.options import FRAME_SECONDS
from qwen3_jax.engine.plan import plan
from qwen3_jax.engine.slots import NEVER, Opening, Text
from qwen3_jax.model.model import Model
from qwen3_jax.text.prompt import Prompt
from server.engines.kept import Kept, OtherWork, TimedSlots

SLOTS, CPU_SLOTS, CPU_SLOTS_LARGE, LARGE = 16, 10, 4, 200_000_000  # parameters of a model that two cores cannot speak ten times
BUSY = 0.7  # of a frame's 80 ms, for a step of all slots; the rest is for prompts, and for whatever else the machine does
LAUNCHES, TIMINGS = 12, 3  # launches of a timing; timings, of which the best counts, for other work only makes them longer
LOOK = 0.5  # seconds for which a machine is looked at before it is timed again
log = logging.getLogger(__name__)


def slots_for(model: Model, columns: int, fingerprint: str) -> int:
    """Utterances that the model's device can speak at a time.

    Ten at most on a CPU, and fewer where a step of ten takes so long that all of them would stutter: those who wait hear nothing for a
    moment, but nobody hears gaps. A large model speaks no faster than it can.

    Args:
        fingerprint: of the checkpoint; what is timed is kept for its next start.
    """
    talker = jax.tree.leaves(model.params["talker"])
    on_cpu = all(device.platform == "cpu" for device in talker[0].devices())
    large = sum(leaf.size for leaf in talker) >= LARGE
    slots = (CPU_SLOTS_LARGE if large else CPU_SLOTS) if on_cpu else SLOTS
    while slots > 1 and not plan(model, slots, columns).fits:
        slots //= 2
    if not on_cpu or large:
        return slots
    dtypes = ",".join(sorted({leaf.dtype.name for leaf in jax.tree.leaves(model.params)}))
    return remembered(model, slots, columns, Kept(fingerprint, dtypes, slots, columns))


def remembered(model: Model, slots: int, columns: int, kept: Kept) -> int:
    """As ``smooth``, of which what was timed before is kept.

    It is timed again where it was timed beside other work, of which there is no more, or half as much; it never becomes less.
    """
    before = kept.load()
    if before is not None and (before.quiet or before.slots >= slots or not _calmer(before)):
        log.info("%d slots, as timed before (%s)", before.slots, kept.path)
        return before.slots
    log.info("timing how many slots this machine can speak without gaps; TTS_SLOTS says it at once")
    with OtherWork() as machine:
        timed = smooth(model, slots, columns, 1 if before is None else before.slots)
    kept.save(TimedSlots(timed, machine.quiet, round(machine.others, 2), list(machine.load)))
    if not machine.quiet and timed < slots:
        log.warning(
            "%d slots, timed while other programs took %.1f of %d cores (load average %.1f); TTS_SLOTS says how many it should be",
            timed,
            machine.others,
            machine.cores,
            machine.load[0],
        )
    return timed


def _calmer(before: TimedSlots) -> bool:
    """Whether the machine has less to do now than when it was timed."""
    with OtherWork() as now:
        time.sleep(LOOK)  # what others use in that time is what is measured; the thread that loads has nothing else to do
    return now.quiet or now.others <= before.others / 2


def smooth(model: Model, slots: int, columns: int, least: int = 1) -> int:
    """The most of ``slots``, in the sizes of a device's batch, whose steps leave three tenths of the time, ``least`` without timing.

    What is compiled for a size that is tried is what the engine needs as well (the cache keeps it).
    """
    enough = BUSY * FRAME_SECONDS
    while slots > least and (taken := step_seconds(model, slots, columns, enough)) > enough:
        smaller = [size for size in sizes_up_to(slots) if size < slots and size <= slots * enough / taken]
        fewer = max(least, max(smaller, default=1))
        log.info(
            "a frame of %d slots takes %.0f ms here, and %.0f would leave time for prompts: %d slots; more sessions wait for their turn",
            slots,
            1000 * taken,
            1000 * enough,
            fewer,
        )
        slots = fewer
    return slots


def step_seconds(model: Model, slots: int, columns: int, enough: float) -> float:
    """Of a frame of every slot, one a launch, and the next launched before it is collected, as the engine does.

    The best of TIMINGS medians, or the first that is ``enough``.
    """
    device = JaxDevice(model, slots=slots, columns=columns, rows=(slots,))
    books = model.config.talker_config.num_code_groups
    prompt = Prompt(np.full(1, -1, np.int32), np.full((1, books), -1, np.int32), np.zeros(1, bool), None, np.zeros(0, np.int32))
    warm = Sampling(temperature=10.0, top_k=0)  # so that hardly anybody draws the end of speech
    opening = Opening(prompt, Text([], 2 * LAUNCHES * TIMINGS, NEVER, NEVER), warm, 0, 0, None, None, False)
    for slot in range(slots):
        device.open(slot, opening)
        device.read(slot)
    best = float("inf")
    flying = device.launch([1] * slots, 1)  # compiles
    for _ in range(TIMINGS):
        ends = []
        for _ in range(LAUNCHES):
            following = device.launch([1] * slots, 1)
            device.collect(flying)
            ends.append(time.perf_counter())
            flying = following
        best = min(best, statistics.median(later - earlier for earlier, later in itertools.pairwise(ends)))
        if best <= enough:
            break
    device.collect(flying)
    return best
