"""Many voices at once: requests in token ids -> packets of pcm, made by one device thread in the fixed slots of one batch.

    engine = Engine(lambda slots, on_cpu: JaxDevice(model, slots=slots), slots=10)
    handle = engine.submit(Request((Segment(prompt, max_frames=200),), sampling, seed=1))
    for packet in handle: packet.pcm, packet.codes         # blocking; or handle.take() after a `notify`, see loop.py
    handle.cancel()                                        # nothing is handed out after it returns; handle.fail(error): with an error
    handle.finish_reason, handle.error                     # eos, length, cancelled; or what went wrong

    scheduler.py   what to do next (admit, read prompts, step, deliver); pure Python, knows a device by its protocol only
    lending.py     whose turn it is, on one device or on several: the line, and the slots that each owner holds
    line.py        the slots, and the places in line, are shared out between the requests' owners
    reserve.py     whether the last free slot may be taken
    patience.py    whether a request has waited long enough, and ends
    pace.py        how much each slot makes in a step
    news.py        which consumers are told after a round
    device.py      that protocol on JAX; programs.py holds the compiled functions
    engine.py      the thread, its faults, restarts, draining; pool.py: one for each device of several
    loop.py        the hand-off to an event loop: one callback per step for all slots
    segment.py     what is said: one part of a text, in ids; requests.py has the request of several, and its handle
    plan.py        what the memory must hold

Text is known here as ids only. A request is a chain of segments, spoken without a seam; the last one may be open, and grow
(`Handle.append`, `Handle.add`, `Handle.finish`). `qwen3_jax.service` turns texts into requests.
"""

from qwen3_jax.engine.device import JaxDevice
from qwen3_jax.engine.engine import Engine, Stats
from qwen3_jax.engine.errors import (
    Closed,
    ConsumerFailed,
    DeadlineExceeded,
    DeviceFailed,
    DeviceOutOfMemory,
    EngineError,
    Full,
    NotFinite,
    Stalled,
)
from qwen3_jax.engine.options import Options
from qwen3_jax.engine.pool import Pool
from qwen3_jax.engine.requests import Handle, Packet, Request
from qwen3_jax.engine.segment import Segment, Watch

__all__ = [
    "Closed",
    "ConsumerFailed",
    "DeadlineExceeded",
    "DeviceFailed",
    "DeviceOutOfMemory",
    "Engine",
    "EngineError",
    "Full",
    "Handle",
    "JaxDevice",
    "NotFinite",
    "Options",
    "Packet",
    "Pool",
    "Request",
    "Segment",
    "Stalled",
    "Stats",
    "Watch",
]
