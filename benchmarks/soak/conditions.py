"""Figures of a soak -> what had to hold, and whether it did. Pure."""

import os
from dataclasses import asdict, dataclass, replace
from statistics import median_low
from typing import Any

import numpy as np

from benchmarks.soak.process import Log, Look
from benchmarks.soak.quiet import END_SECONDS, Waits
from benchmarks.soak.tally import Tally

RATIO = 1.5  # first audio of the quiet principal beside the loud one, p95, over that of the quiet one alone
MORE_THREADS = min(32, (os.cpu_count() or 1) + 4)  # workers of asyncio.to_thread, which begin when they are needed
MORE_DESCRIPTORS = 4
MORE_MEMORY = 128.0  # MB from before the load to after it: work spaces and caches of all slots at once, which stay the heap's
FULL_SECONDS = 60.0  # of load, after which the heap has its size
FLAT_MEMORY, FLAT_MEMORY_A_MINUTE = 48.0, 4.0  # MB from then on: a work space of a step, encoders read for a clone, and what fragments
MORE_LINES_A_MINUTE = 200  # of the log, besides one for each utterance: the bound of refusals, and as many sessions that were cut


@dataclass(frozen=True)
class SoakFigures:
    """All that one run has shown."""

    minutes: float  # of load, those of warming up included
    tally: Tally
    metrics: dict[str, float]
    before: Look
    after: Look
    memory: list[tuple[float, float]]  # (seconds of load, resident MB), every few seconds
    alone: Waits
    beside: Waits
    log: Log
    end_seconds: float
    status: int | None
    untold: list[str]


@dataclass(frozen=True)
class Condition:
    """One that had to hold. ``strict``: it counts only if that was asked for."""

    name: str
    holds: bool
    seen: str
    allowed: str
    strict: bool = False


def p95(values: list[float]) -> float:
    """In milliseconds; NaN of none."""
    return round(1000 * float(np.percentile(values, 95)), 1) if values else float("nan")


def judge(figures: SoakFigures) -> list[Condition]:
    """Every condition, in the order of the table."""
    return [*_tally(figures), *_left_behind(figures), _fair(figures), *_log(figures), *_end(figures)]


def ends_of(metrics: dict[str, float]) -> dict[str, int]:
    """Utterances by how they ended, as the server has them."""
    total = "tts_utterances_ended_total"
    return {end: int(metrics.get(f'{total}{{end="{end}"}}', 0)) for end in ("completed", "cancelled", "failed", "left")}


def _tally(figures: SoakFigures) -> list[Condition]:
    server, clients, tally = ends_of(figures.metrics), figures.tally.ends, figures.tally
    begun, gone, lost = int(figures.metrics["tts_utterances_begun_total"]), clients["gone"], clients["lost"]
    parts = " + ".join(f"{number} {end}" for end, number in server.items())
    conditions = [
        Condition("the server's tally", begun == sum(server.values()), f"{begun} begun", parts),
        Condition("the clients' tally", tally.asked == clients.total(), f"{tally.asked} asked for", f"{clients.total()} ended"),
    ]
    conditions.append(Condition("utterances without an end", lost == 0, str(lost), "0"))
    for end, least, more in (
        ("completed", clients["completed"], gone + lost),
        ("cancelled", clients["cancelled"], lost),
        ("failed", clients["failed"], gone + lost + clients["unclear"]),
        ("left", 0, gone + lost),
    ):
        conditions.append(_between(f"{end}: server and clients", server[end], least, least + more))
    faults = tally.wrong[0] if tally.wrong else "none"
    conditions.append(Condition("faults that clients saw", tally.faults == 0, f"{tally.faults}: {faults}", "none"))
    ours = sum(int(value) for name, value in figures.metrics.items() if name.startswith("tts_errors_total") and _is_ours(name))
    conditions.append(Condition("errors that are the server's fault", ours == 0, str(ours), "0"))
    for name in ("tts_engine_restarts", "tts_not_finite", "tts_voice_failures"):
        conditions.append(Condition(name, figures.metrics[name] == 0, f"{figures.metrics[name]:.0f}", "0"))
    return conditions


def _is_ours(name: str) -> bool:
    return any(code in name for code in ("SYNTHESIS_ERROR", "GPU_OUT_OF_MEMORY"))


def _between(name: str, seen: int, least: int, most: int) -> Condition:
    return Condition(name, least <= seen <= most, str(seen), str(least) if least == most else f"{least} to {most}")


def _left_behind(figures: SoakFigures) -> list[Condition]:
    before, after = figures.before, figures.after
    allowed = {"threads": MORE_THREADS, "descriptors": MORE_DESCRIPTORS}
    conditions = []
    for name in ("slots", "queue", "sessions", "connections", "threads", "descriptors"):
        was, now, more = getattr(before, name), getattr(after, name), allowed.get(name, 0)
        conditions.append(Condition(name, now <= was + more, f"{was} -> {now}", f"+{more} at most"))
    seen = f"{before.memory:.0f} -> {after.memory:.0f} MB"
    conditions.append(Condition("memory", after.memory <= before.memory + MORE_MEMORY, seen, f"+{MORE_MEMORY:.0f} MB at most"))
    conditions += _flat([sample for sample in figures.memory if sample[0] >= FULL_SECONDS])
    for name in ("voices", "temporary"):
        was, now = set(getattr(before, name)), set(getattr(after, name))
        conditions.append(Condition(f"files: {name}", was == now, _difference(was, now), "as before"))
    return conditions


def _flat(samples: list[tuple[float, float]]) -> list[Condition]:
    """Of a load that is long enough."""
    if len(samples) < 2:
        return []
    (begun, first), (ended, _) = samples[0], samples[-1]
    minutes = (ended - begun) / 60
    later = median_low(memory for _, memory in samples[len(samples) // 2 :])  # a clone takes 100 MB for a moment, which is no growth
    most = FLAT_MEMORY + FLAT_MEMORY_A_MINUTE * minutes
    seen = f"{first:.0f} -> {later:.0f} MB in the later half of {minutes:.1f} minutes"
    return [Condition("memory, from the second minute of load on", later <= first + most, seen, f"+{most:.0f} MB at most")]


def _difference(was: set[str], now: set[str]) -> str:
    changes = [f"+{name}" for name in sorted(now - was)] + [f"-{name}" for name in sorted(was - now)]
    return ", ".join(changes[:3]) + (f" and {len(changes) - 3} more" if len(changes) > 3 else "") or "as before"


def _fair(figures: SoakFigures) -> Condition:
    alone, beside = p95(figures.alone.heard), p95(figures.beside.heard)
    ratio = beside / alone if alone else float("nan")
    seen = f"{alone:.0f} ms alone ({len(figures.alone.heard)}), {beside:.0f} ms beside ({len(figures.beside.heard)}): {ratio:.2f}"
    return Condition("first audio of the quiet one, p95", ratio <= RATIO, seen, f"{RATIO} times", strict=True)


def _log(figures: SoakFigures) -> list[Condition]:
    log, spoken = figures.log, sum(ends_of(figures.metrics).values())
    most = spoken + round((figures.minutes + 1) * MORE_LINES_A_MINUTE)
    seen = f"{log.lines} lines, {log.lines / figures.minutes:.0f} and {log.kilobytes / figures.minutes:.0f} kB a minute"
    bad = f"{len(log.bad)}: {log.bad[0]}" if log.bad else "none"
    return [
        Condition("errors in the log", not log.bad, bad, "none"),
        Condition("size of the log", log.lines <= most, seen, f"{most} lines"),
    ]


def _end(figures: SoakFigures) -> list[Condition]:
    in_time = figures.status == 0 and figures.end_seconds <= END_SECONDS
    seen = f"status {figures.status} after {figures.end_seconds:.1f} s"
    told = "; ".join(figures.untold) or "all"
    return [
        Condition("the end by SIGTERM", in_time, seen, f"status 0 within {END_SECONDS:.0f} s"),
        Condition("clients that were told of it", not figures.untold, told, "all"),
    ]


def as_json(figures: SoakFigures, conditions: list[Condition]) -> dict[str, Any]:
    """For figures.json."""
    tally = {**vars(figures.tally), **{name: dict(getattr(figures.tally, name)) for name in ("ends", "codes", "deeds")}}
    return {"conditions": [asdict(one) for one in conditions], **asdict(replace(figures, tally=Tally())), "tally": tally}
