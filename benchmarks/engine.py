"""Many streams at once through the engine: first audio, gaps, underruns, throughput. One run; prints a table and a plot.

usage: python -m benchmarks.engine [--model CHECKPOINT] [--streams 1,10] [--seconds 8] [--slots N] [--dtype float32|bfloat16|int8]
                                   [--columns 512] [--frames N] [--json OUT]

CHECKPOINT: any Base checkpoint that loads (default: the one that ships); no tokenizer is needed, since the engine takes ids. The text is
random ids, and an utterance lasts ``--seconds`` (runaway speech is not watched, and end of speech ends it sooner, as it does for a trained
model). One engine serves all numbers of streams, as a server's does: it has as many slots as the most of them (or ``--slots``). All
requests of a number come at the same moment, and each is listened to as a player does:

    ttfa        from submission to the first packet in the consumer's hands, ms
    gap         between two packets, less the audio that the earlier one brought: what a player without a buffer waits, ms; never below 0
    underrun    silence that a player hears which starts with the first packet, ms in all, the worst stream
    aggregate   seconds of audio that all streams got in a second
    CPU         processor time of a step, all threads together: on a machine that others use too, the one figure that does not suffer
    rows        of the batch, with so many streams
    one slot    how often as long a step with so many streams takes as one of an engine with a single slot, measured right before and after

The step's bound is what memory bandwidth allows: the bytes that a step has to read (talker once, predictor layers sixteen times as far
as no cache holds them, codec once, the KV cache) over the bandwidth that a sum over a large array reaches here.
"""

import argparse
import json
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.measure import seconds_of, this_machine
from qwen3_jax.checkpoint.hub import EMBEDDED_FOLDER
from qwen3_jax.engine import Engine, Handle, JaxDevice, Options, Request, Segment
from qwen3_jax.engine.slots import NEVER, Opening, Text
from qwen3_jax.model.model import Model, load
from qwen3_jax.model.sampling import Sampling
from qwen3_jax.runtime import compilation
from qwen3_jax.runtime.allocation import TUNABLES, restart_with_large_pages
from qwen3_jax.text.prompt import build

SECONDS_A_FRAME, LIMIT = 0.08, 300.0
StepFigures = dict[str, float]


def request(model: Model, number: int, frames: int) -> Request:
    """A text of as many tokens as are spoken in so many frames at a usual pace, with an x-vector."""
    talker, noise = model.config.talker_config, np.random.RandomState(number)
    config = model.config
    tokens = noise.randint(0, min(talker.text_vocab_size, config.assistant_token_id), max(1, frames // 4))
    turn = [config.im_start_token_id, config.assistant_token_id, 0, *tokens, config.im_end_token_id, 0, config.im_start_token_id, 0, 0]
    x_vector = (0.05 * noise.standard_normal(talker.hidden_size)).astype(np.float32)
    prompt = build(config, np.array(turn), language="english", x_vector=x_vector)
    return Request((Segment(prompt, frames),), Sampling(), number)


class Listener(threading.Thread):
    """One stream's consumer: takes every packet at once, and notes when."""

    def __init__(self, handle: Handle, begun: float) -> None:
        super().__init__()
        self.handle, self.begun = handle, begun
        self.times: list[float] = []
        self.frames: list[int] = []
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while (packet := self.handle.next(LIMIT)) is not None:
                self.times.append(time.perf_counter() - self.begun)
                self.frames.append(len(packet.codes))
        except (RuntimeError, TimeoutError) as error:
            self.failure = error

    @property
    def gaps(self) -> list[float]:
        waits = np.diff(self.times) - SECONDS_A_FRAME * np.array(self.frames[:-1])
        return np.maximum(waits, 0).tolist()

    @property
    def underrun(self) -> float:
        """Silence in all, for a player that starts with the first packet."""
        silence, until = 0.0, self.times[0]
        for at, frames in zip(self.times, self.frames, strict=True):
            silence += max(0.0, at - until)
            until = max(at, until) + SECONDS_A_FRAME * frames
        return silence


def measure(engine: Engine, model: Model, streams: int, frames: int) -> tuple[StepFigures, list[Listener]]:
    begun = time.perf_counter()
    listeners = [Listener(engine.submit(request(model, number, frames)), begun) for number in range(streams)]
    before = engine.stats().counters["steps"]
    for listener in listeners:
        listener.start()
    for listener in listeners:
        listener.join(LIMIT)
        if listener.failure is not None:
            raise listener.failure
    taken = time.perf_counter() - begun
    first = [1000 * listener.times[0] for listener in listeners]
    gaps = [1000 * gap for listener in listeners for gap in listener.gaps] or [0.0]
    made = sum(sum(listener.frames) for listener in listeners)
    return {
        "ttfa_p50_ms": statistics.median(first),
        "ttfa_p95_ms": float(np.percentile(first, 95)),
        "gap_p99_ms": float(np.percentile(gaps, 99)),
        "underrun_ms": 1000 * max(listener.underrun for listener in listeners),
        "aggregate_x_realtime": made * SECONDS_A_FRAME / taken,
        "audio_seconds": made * SECONDS_A_FRAME,
        "seconds": taken,
        "steps": engine.stats().counters["steps"] - before,
    }, listeners


def step_milliseconds(model: Model, slots: int, streams: int, columns: int, frames: int) -> StepFigures:
    """One frame of so many streams in so many slots, without a host that listens: the least of ten launches of as many frames as a launch
    has."""
    device = JaxDevice(model, slots=slots, columns=columns, frames=frames)
    for slot in range(streams):
        one = request(model, slot, columns // 2)
        occupy(device, slot, one)
    quotas = [1] * streams + [0] * (slots - streams)
    device.collect(device.launch(quotas, 1))
    taken, used = [], []
    for _ in range(10):
        begun, before = time.perf_counter(), time.process_time()
        device.collect(device.launch([frames * quota for quota in quotas], frames))
        taken.append(1000 * (time.perf_counter() - begun) / frames)
        used.append(1000 * (time.process_time() - before) / frames)
    return {"step_ms": min(taken), "step_median_ms": statistics.median(taken), "step_cpu_ms": statistics.median(used), "rows": device.batch}


def occupy(device: JaxDevice, slot: int, one: Request) -> None:
    """Give a slot to a request, without a scheduler."""
    prompt = one.segments[0].prompt
    text = Text(prompt.trailing.tolist(), one.segments[0].max_frames, NEVER, NEVER)
    for _ in device.open(slot, Opening(prompt, text, one.sampling, one.seed, 0, None, None, False)):
        device.read(slot)


def step_bytes(model: Model, slots: int, columns: int) -> int:
    """What a step reads: every layer once, the predictor's sixteen times, the cache; tables by their rows only."""
    talker = model.params["talker"]
    predictor = talker["code_predictor"]
    size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))  # noqa: E731
    books = model.config.talker_config.num_code_groups
    read = size(talker["model"]["layers"]) + size(talker["codec_head"]) + size(talker["text_projection"])
    read += books * size(predictor["model"]["layers"]) + size(predictor["lm_head"])
    read += size(model.params["codec"]["decoder"])
    config = model.config.talker_config
    width = talker["model"]["norm"]["weight"].dtype.itemsize  # of the arithmetic, and so of the cache
    return read + 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * columns * slots * width


@jax.jit
def _total(x: jax.Array) -> jax.Array:
    return jnp.sum(x)


def bandwidth() -> float:
    """Bytes a second at which the device sums a gigabyte."""
    x = jnp.ones(1 << 28, jnp.float32)
    return x.nbytes / min(seconds_of(lambda: _total(x), 5))


def plot(console: Console, listeners: list[Listener], streams: int) -> None:
    """Each stream's audio in hand over time: how far it is ahead of a player that began with its first packet."""
    end = max(listener.times[-1] for listener in listeners)
    width, rows = 72, " .:-=+*#%@"
    console.print(f"{streams} streams, {end:.1f} s from left to right: seconds of audio in hand, from 0 (.) to 9 and more (@)")
    console.print("an underrun is a !, and before the first packet there is nothing")
    for number, listener in enumerate(listeners[:20]):
        line = ""
        for column in range(width):
            now = end * (column + 1) / width
            got = sum(frames for at, frames in zip(listener.times, listener.frames, strict=True) if at <= now) * SECONDS_A_FRAME
            lead = got - (now - listener.times[0])
            finished = got >= sum(listener.frames) * SECONDS_A_FRAME - 1e-9
            line += " " if got == 0 else ("!" if lead < 0 and not finished else rows[min(9, max(0, int(lead)))] if lead >= 1 else ".")
        console.print(f"{number:3d} |{line}|", markup=False, highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=EMBEDDED_FOLDER)
    parser.add_argument("--streams", default="1,10", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--seconds", type=float, default=8.0, help="of speech a request")
    parser.add_argument("--slots", type=int, help="default: as many as the most streams")
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--frames", type=int, default=4, help="of a launch, at most")
    parser.add_argument("--dtype", default="float32" if jax.default_backend() == "cpu" else "bfloat16")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    restart_with_large_pages(TUNABLES)
    compilation.use_persistent_cache()
    console = Console(width=160)
    model = load(given.model, dtype=jnp.dtype(given.dtype), stored=jnp.dtype(given.dtype))
    frames = round(given.seconds / SECONDS_A_FRAME)
    rate = bandwidth()
    machine = this_machine()
    console.print(f"{machine}, jax {jax.__version__}, {given.dtype}, {rate / 1e9:.0f} GB/s")
    title = f"{given.model}, {given.seconds:.0f} s a request"
    names = (
        "streams",
        "slots",
        "TTFA p50",
        "TTFA p95",
        "gap p99",
        "underrun",
        "aggregate",
        "rows",
        "ms a step",
        "CPU",
        "bound",
        "one slot",
    )
    table = Table(*names, title=title)
    results: dict[str, Any] = {}
    plots = []
    slots = given.slots or max(given.streams)

    def build(slots: int, on_cpu: bool) -> JaxDevice:
        made = JaxDevice(model, slots=slots, columns=given.columns, frames=given.frames)
        console.print(f"memory: {made.plan}", highlight=False)
        begun = time.perf_counter()
        made.warm_up()
        console.print(f"warm in {time.perf_counter() - begun:.1f} s", highlight=False)
        return made

    singles = [step_milliseconds(model, 1, 1, given.columns, given.frames)["step_median_ms"]]
    steps: dict[int, StepFigures] = {}
    for streams in given.streams:
        steps[streams] = found = step_milliseconds(model, slots, min(streams, slots), given.columns, given.frames)
        singles.append(step_milliseconds(model, 1, 1, given.columns, given.frames)["step_median_ms"])
        found["times_one_slot"] = found["step_median_ms"] / statistics.mean(singles[-2:])
        found["bound_ms"] = 1000 * step_bytes(model, int(found["rows"]), given.columns) / rate
    with Engine(build, slots=slots, options=Options(buffer_ms=int(given.seconds * 1000) + 1000)) as engine:
        measure(engine, model, max(given.streams), 10)
        for streams in given.streams:
            figures, listeners = measure(engine, model, streams, frames)
            figures |= steps[streams]
            results[str(streams)] = {name: round(value, 2) for name, value in figures.items()}
            milliseconds = (figures[name] for name in ("ttfa_p50_ms", "ttfa_p95_ms", "gap_p99_ms", "underrun_ms"))
            table.add_row(
                str(streams), str(slots), *(f"{value:.0f} ms" for value in milliseconds), f"{figures['aggregate_x_realtime']:.1f}x",
                f"{figures['rows']:.0f}", f"{figures['step_ms']:.1f}", f"{figures['step_cpu_ms']:.1f}", f"{figures['bound_ms']:.1f}",
                f"{figures['times_one_slot']:.2f}x",
            )  # fmt: skip
            plots.append((listeners, streams))
    for listeners, streams in plots:
        plot(console, listeners, streams)
    console.print(table)
    if given.json:
        given.json.write_text(json.dumps({"streams": results}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
