"""How long requests are waited for: a request, in line or in a slot -> why it ends now, if it does; and when the next one may.

A request ends when it is cancelled, when its deadline passes before any audio, and when its text or its consumer stalls.
"""

from qwen3_jax.engine.errors import DeadlineExceeded, EngineError, Stalled
from qwen3_jax.engine.options import Options
from qwen3_jax.engine.requests import Handle
from qwen3_jax.engine.slots import Slot

SETTLES = 0.5  # seconds in which text or a consumer may be late without losing the slot
End = tuple[str, EngineError | None]  # finish reason, error


def end_in_line(handle: Handle, options: Options, now: float) -> End | None:
    """Why a request that waits ends; None if it stays."""
    if handle.cancelled:
        return "cancelled", None
    if handle.late(now):
        return "error", DeadlineExceeded(f"no slot was free for {handle.request.deadline} s")
    standing = handle.standing
    if standing == "over":
        return "length" if handle.rest.cut else "eos", None
    if standing != "ready" and now - handle.rest.since >= options.stall_seconds:
        return "error", _stalled(options, text=standing == "text")
    return None


def end_in_slot(slot: Slot, handle: Handle, options: Options, now: float) -> End | None:
    """Why the request that holds the slot ends; None if it stays."""
    if handle.cancelled:
        return "cancelled", None
    if handle.late(now):
        return "error", DeadlineExceeded(f"no audio in {handle.request.deadline} s")
    if slot.idle_since is not None and now - slot.idle_since >= options.stall_seconds:
        return "error", _stalled(options, text=slot.between or slot.text_open)
    return None


def soonest(waiting: list[Handle], slots: list[Slot], options: Options, now: float) -> float | None:
    """Seconds to the next thing that time alone brings: a deadline, the end of patience, the end of a lead; None if there is none."""
    moments = []
    for handle in [*waiting, *(slot.handle for slot in slots if slot.handle is not None)]:
        if handle.request.deadline is not None and handle.first_audio is None:
            moments.append(handle.submitted + handle.request.deadline)
    standing = [(handle, handle.standing) for handle in waiting]
    moments += [handle.rest.since + options.stall_seconds for handle, state in standing if state != "ready"]
    patience = [options.stall_seconds, *([SETTLES] if any(state == "ready" for _, state in standing) else [])]
    moments += [slot.idle_since + min(patience) for slot in slots if slot.handle and slot.idle_since is not None]
    return max(0.001, min(moments) - now) if moments else None


def _stalled(options: Options, *, text: bool) -> Stalled:
    return Stalled(f"{'no text came' if text else 'no audio was taken'} for {options.stall_seconds} s")
