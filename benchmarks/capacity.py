"""How many sessions a replica, and a cluster of N, carries: the real scheduler on a clock that stands still until a device has worked.

usage: python -m benchmarks.capacity [--measure] [--replicas 1,2,4,8] [--target 0.3] [--seconds 60] [--think 8] [--json OUT]

What is simulated: ``qwen3_jax.engine.scheduler`` as it is, on a device that takes a step's time (tests/timed_device.py). What is assumed:

    a session    hears an utterance to its end, is silent for an exponential time (mean ``--think``), and asks for the next one
    utterances   last a log-normal time: median 3.2 s, sigma 0.6 of the logarithm, 0.4 to 20 s; they are whole texts with an x-vector
    arrivals     follow from that; sessions are there all the time, and begin at times drawn evenly from the first mean round
    placement    each session goes to the emptier of two replicas drawn at random, as Serve places connections; ten times as many as there
                 are have left before, at random
    carried      the most sessions of which 95 of 100 first audios come within ``--target``, and fewer than 1 utterance in 100 has a gap

Step times are those of CPU_STEPS, or with ``--measure`` of the voice that ships on this machine; or the bandwidth bound: the bytes that a
step reads (as in benchmarks/engine.py) over the memory's bandwidth. No accelerator has been measured: real steps take longer than the
bound, and ``--share`` says how much of it is reached. The host's own time is not in it: ``host`` says how many sessions one event loop
carries, at ``--stream-cores`` of a core for an utterance that is being spoken.
"""

import argparse
import heapq
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.full_size import REFERENCE
from qwen3_jax.engine import Handle, Options, Request
from qwen3_jax.engine.options import FRAME_SECONDS
from qwen3_jax.engine.scheduler import Scheduler
from qwen3_jax.model.sampling import Sampling
from qwen3_jax.testing import read_tensor_list
from tests.timed_device import HeldClock, TimedDevice, Times, segment

CPU_STEPS = Times({1: 0.0089, 2: 0.0131, 4: 0.0171, 8: 0.0272, 10: 0.0352}, 0.0038)  # two cores of Zen 4, 2026-11-30, --measure
BANDWIDTH = {"v5e": 819e9, "H100": 3.35e12, "H200": 4.8e12}  # bytes a second, as their makers state them
BFLOAT16 = 2
MEDIAN, SIGMA, SHORTEST, LONGEST = 3.2, 0.6, 0.4, 20.0  # of an utterance, seconds
GAPS = 0.01  # of utterances
STREAM_CORES = 0.005  # two cores of Zen 4, 2026-11-30, benchmarks/ray_serve.py, hypercorn
WARM = 0.25  # of the simulated time, which does not count
MOST = 512  # sessions of a replica that are tried


@dataclass(frozen=True)
class Talk:
    """What sessions do; seconds."""

    think: float
    target: float
    seconds: float

    @property
    def spoken(self) -> float:
        """Of an utterance, on average."""
        return MEDIAN * math.exp(SIGMA**2 / 2)

    @property
    def duty(self) -> float:
        """The share of a session's time in which it is spoken to, without waits."""
        return self.spoken / (self.spoken + self.think)


@dataclass
class Utterance:
    """Who hears one utterance."""

    session: int
    asked: float
    first: float | None = None
    until: float = 0.0  # it hears something
    gap: float = 0.0

    def take(self, handle: Handle, now: float) -> bool:
        """Take all that is there. Returns whether the utterance has ended."""
        while (packet := handle.take()) is not None:
            if self.first is None:
                self.first = self.until = now
            self.gap += max(0.0, now - self.until)
            self.until = max(self.until, now) + FRAME_SECONDS * len(packet.codes)
        return handle.done


@dataclass
class FirstAudio:
    """What all sessions of one replica, or of several, have heard."""

    first: list[float] = field(default_factory=list)  # seconds from asking
    gaps: int = 0

    def add(self, other: "FirstAudio") -> None:
        self.first += other.first
        self.gaps += other.gaps

    def late(self, share: float = 0.95) -> float:
        """The first audio that so many are not later than."""
        return float(np.quantile(self.first, share)) if self.first else math.inf

    def good(self, target: float) -> bool:
        return self.late() <= target and self.gaps <= GAPS * len(self.first)


class Simulation:
    """One replica."""

    def __init__(self, times: Times, sessions: int, talk: Talk, seed: int) -> None:
        self.heard = FirstAudio()
        self._talk, self._draw, self._clock = talk, np.random.default_rng(seed), HeldClock()
        device = TimedDevice(times, self._clock, self._clock.until, samples=1)
        self._scheduler = Scheduler(device, Options(buffer_ms=30_000, max_waiting=MOST), self._clock)
        begins = self._draw.uniform(0, talk.think + talk.spoken, sessions)
        self._next = [(float(at), number) for number, at in enumerate(begins)]  # when a session asks
        self._utterances: dict[Handle, Utterance] = {}
        heapq.heapify(self._next)

    def run(self) -> FirstAudio:
        """To the end of the time."""
        clock = self._clock
        while clock.now < self._talk.seconds:
            while self._next and self._next[0][0] <= clock.now:
                self._ask(*heapq.heappop(self._next))
            wait = self._scheduler.run_round()
            if wait != 0.0:
                moments = [self._next[0][0]] if self._next else [self._talk.seconds]
                clock.until(min(moments + ([] if wait is None else [clock.now + wait])))
        for utterance in self._utterances.values():  # who still waits has waited so long at least
            if utterance.first is None and clock.now - utterance.asked > self._talk.target:
                utterance.first = clock.now
            self._count(utterance)
        return self.heard

    def _ask(self, at: float, session: int) -> None:
        seconds = min(LONGEST, max(SHORTEST, self._draw.lognormal(math.log(MEDIAN), SIGMA)))
        request = Request((segment(round(seconds / FRAME_SECONDS)),), Sampling(), 0, notify=self._news, owner=session)
        handle = Handle(request, lambda: None, at)
        self._utterances[handle] = Utterance(session, at)
        self._scheduler.submit(handle)

    def _news(self, handles: list[Handle]) -> None:
        for handle in handles:
            utterance = self._utterances[handle]
            if utterance.take(handle, self._clock.now):
                del self._utterances[handle]
                self._count(utterance)
                heapq.heappush(self._next, (utterance.until + self._draw.exponential(self._talk.think), utterance.session))

    def _count(self, utterance: Utterance) -> None:
        if utterance.first is not None and utterance.asked >= WARM * self._talk.seconds:
            self.heard.first.append(utterance.first - utterance.asked)
            self.heard.gaps += utterance.gap > 0.001


class Replica:
    """What one carries, number of sessions by number."""

    def __init__(self, times: Times, talk: Talk) -> None:
        self._times, self._talk = times, talk
        self.heard = lru_cache(None)(self._simulate)

    def _simulate(self, sessions: int) -> FirstAudio:
        return Simulation(self._times, sessions, self._talk, seed=sessions).run() if sessions else FirstAudio()


def placed(sessions: int, replicas: int, seed: int = 0) -> list[int]:
    """Sessions of each replica. Each goes to the emptier of two; ten times as many have left before."""
    draw, of = np.random.default_rng(seed), [0] * replicas
    where: list[int] = []
    for _ in range(11 * sessions):
        if len(where) == sessions:
            leaving = int(draw.integers(sessions))
            where[leaving], where[-1] = where[-1], where[leaving]
            of[where.pop()] -= 1
        two = draw.choice(replicas, min(2, replicas), replace=False)
        chosen = int(min(two, key=lambda one: of[one]))
        of[chosen] += 1
        where.append(chosen)
    return of


def cluster(replica: Replica, loads: Sequence[int]) -> FirstAudio:
    """What all sessions of replicas with these loads hear."""
    heard = FirstAudio()
    for load in loads:
        heard.add(replica.heard(load))
    return heard


def carried(replica: Replica, replicas: int, talk: Talk, most: int) -> int:
    """The most sessions that are heard well, to one in thirty; ``most`` if there may be more."""
    good, bad = 0, most
    if cluster(replica, placed(most, replicas)).good(talk.target):
        return most
    while bad - good > max(1, good // 30):
        middle = (good + bad) // 2
        if cluster(replica, placed(middle, replicas)).good(talk.target):
            good = middle
        else:
            bad = middle
    return good


# Step times


class CacheShape(msgspec.Struct):
    """Of a published talker, what its cache needs."""

    num_hidden_layers: int
    num_key_value_heads: int
    head_dim: int
    num_code_groups: int


def bound(size: str, bandwidth: float, slots: int, share: float, columns: int = 512) -> Times:
    """What a published step and prompt take where only the memory's bandwidth holds them up; ``columns`` of a slot are read."""
    tensors = {**read_tensor_list(REFERENCE / f"{size}.tensors.tsv"), **read_tensor_list(REFERENCE / "Tokenizer-12Hz.tensors.tsv")}
    whole = msgspec.json.decode((REFERENCE / f"{size}.config.json").read_bytes(), type=dict[str, msgspec.Raw] | None)
    assert whole is not None
    config = msgspec.json.decode(whole["talker_config"], type=CacheShape)

    def bytes_of(*beginnings: str) -> int:
        return sum(BFLOAT16 * math.prod(it.shape) for name, it in tensors.items() if name.startswith(beginnings))

    talker = bytes_of("talker.model.layers", "talker.codec_head", "talker.text_projection")
    predictor = config.num_code_groups * bytes_of("talker.code_predictor.model.layers") + bytes_of("talker.code_predictor.lm_head")
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * columns * slots * BFLOAT16
    step = (talker + predictor + bytes_of("decoder.") + cache) / bandwidth / share
    return Times({slots: step}, talker / bandwidth / share)


def measured(slots: int = 10) -> Times:
    """The voice that ships, on this machine."""
    from benchmarks.engine import occupy, request, step_milliseconds  # JAX's programs are compiled
    from qwen3_jax.checkpoint.hub import EMBEDDED_FOLDER
    from qwen3_jax.engine import JaxDevice
    from qwen3_jax.engine.device import sizes_up_to
    from qwen3_jax.model.model import load
    from qwen3_jax.runtime import compilation

    compilation.use_persistent_cache()
    model = load(EMBEDDED_FOLDER)
    steps = {rows: step_milliseconds(model, slots, rows, 512, 4)["step_median_ms"] / 1000 for rows in sizes_up_to(slots)}
    device, taken = JaxDevice(model, slots=1, columns=512, frames=4), []
    from time import perf_counter

    for number in range(10):
        begun = perf_counter()
        occupy(device, 0, request(model, number, 100))
        device.collect(device.launch([1], 1))
        taken.append(perf_counter() - begun)
        device.close(0)
    return Times(steps, max(0.0, float(np.median(taken)) - steps[1]))


def kinds(given: argparse.Namespace) -> Iterator[tuple[str, Times]]:
    """Name -> step times of what a replica may have."""
    yield "CPU, embedded", measured() if given.measure else CPU_STEPS
    for size in ("0.6B-Base", "1.7B-Base"):
        for name, rate in BANDWIDTH.items():
            yield f"{name}, {size}", bound(size, rate, given.slots, given.share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="step times of this machine in the place of CPU_STEPS")
    parser.add_argument("--only", default="", help="kinds whose names have this in them")
    parser.add_argument("--replicas", default="1,2,4,8", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--target", type=float, default=0.3, help="seconds, first audio, p95")
    parser.add_argument("--seconds", type=float, default=60.0, help="that are simulated")
    parser.add_argument("--think", type=float, default=8.0, help="mean seconds between two utterances of a session")
    parser.add_argument("--slots", type=int, default=16, help="of an accelerator")
    parser.add_argument("--share", type=float, default=1.0, help="of the bandwidth bound that an accelerator reaches")
    parser.add_argument("--stream-cores", type=float, default=STREAM_CORES, help="of a core, for an utterance that is spoken")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    talk = Talk(given.think, given.target, given.seconds)
    clusters = [f"{count} replica{'s'[: count > 1]}" for count in given.replicas]
    table = Table("replica", "slots", "ms a step", *clusters, "one lost, p95", "host")
    table.title = f"sessions with p95 of first audio within {talk.target:g} s; {talk.duty:.0%} of the time they are spoken to"
    results: dict[str, object] = {"talk": asdict(talk)}
    host = int(1 / given.stream_cores / talk.duty)
    for name, times in kinds(given):
        if given.only not in name:
            continue
        replica, slots = Replica(times, talk), max(times.step)
        counts = {count: carried(replica, count, talk, MOST * count) for count in given.replicas}
        last = max(given.replicas)
        lost = cluster(replica, placed(counts[last], last - 1)).late() if last > 1 and counts[last] < MOST * last else float("nan")
        shown = [f"{'>' * (number == MOST * count)}{number}" for count, number in counts.items()]
        table.add_row(name, str(slots), f"{1000 * times.step[slots]:.2f}", *shown, f"{lost:.2f} s", str(host))
        steps = {str(rows): seconds for rows, seconds in times.step.items()}
        results[name] = {"step": steps, "piece": times.piece, "sessions": dict(Counter(counts)), "one_lost_p95": lost, "host": host}
    Console(width=140).print(table)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
