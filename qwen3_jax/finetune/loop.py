"""A training run on disk, whatever is trained: state (a tree of arrays with a "step") and a step function -> checkpoints, log, plot.

    RUN/ checkpoints/00001200/    Orbax arrays of the whole state; the last two are kept
         log.jsonl                a line every few steps: step, seconds, figures
         loss.png                 all of it drawn
         samples/00001200/        what the evaluation wrote

A run that is killed goes on from its last checkpoint, and since a step's data depend on the seed and the step alone, ends where it would
have ended: the log's lines after that checkpoint are cut off. SIGTERM and Ctrl-C finish the step, save and return.
"""

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from qwen3_jax.checkpoint import converted as checkpoint

State = dict[str, Any]
Figures = dict[str, Any]
console = Console(stderr=True)
_KEPT = 2


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """How long, and how often. ``pause`` is a file: while it exists, nothing is computed."""

    steps: int
    minutes: float = float("inf")
    save_minutes: float = 5.0
    log_every: int = 10
    evaluate_at: tuple[int, ...] = (300, 1000)
    evaluate_every: int = 3000
    pause: Path | None = None

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation comes after this many steps."""
        return step in self.evaluate_at or step % self.evaluate_every == 0


def named(state: State) -> dict[str, Any]:
    """Leaves by their place in the tree, as one flat dict."""
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def save(run: Path, state: State) -> Path:
    """Write a checkpoint of ``state``; all but the last two are removed."""
    folder = run / "checkpoints" / f"{int(state['step']):08}"
    if not folder.exists():
        checkpoint.write_arrays(folder, named(state), {"step": int(state["step"])})
    for old in saved(run)[:-_KEPT]:
        shutil.rmtree(old)
    return folder


def saved(run: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("[0-9]*") if (path / "about.json").is_file())


def resume(run: Path, state: State) -> State:
    """``state``, or what the last checkpoint has in its place.

    Raises:
        ConversionError: the checkpoint is of another state.
    """
    if not saved(run):
        return state
    found = checkpoint.read_arrays(saved(run)[-1], named(state))
    return jax.tree.unflatten(jax.tree.structure(state), [found[name] for name in named(state)])


class RunLog:
    """``log.jsonl`` of a run; lines of steps from ``step`` on are dropped at the start."""

    def __init__(self, run: Path, step: int) -> None:
        self.path = run / "log.jsonl"
        run.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text("utf-8").splitlines() if self.path.is_file() else []
        self.entries: list[dict[str, float]] = [entry for entry in map(json.loads, lines) if entry["step"] <= step]
        replace(self.path, "".join(json.dumps(entry) + "\n" for entry in self.entries).encode())

    def add(self, entry: dict[str, float]) -> None:
        """Append a line."""
        self.entries.append(entry)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def plot(self, path: Path) -> None:
        """Draw every figure over the steps."""
        from matplotlib.figure import Figure  # of the extra `finetune`; nothing else here needs it

        names = sorted({name for entry in self.entries for name in entry} - {"step", "seconds", "seconds_a_step"})
        if not names:
            return
        figure = Figure(figsize=(9, 2.2 * len(names)), layout="constrained")
        axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for axis, name in zip(axes, names, strict=True):
            points = [(entry["step"], entry[name]) for entry in self.entries if name in entry]
            axis.plot(*zip(*points, strict=True), linewidth=0.8)
            axis.set_ylabel(name)
            axis.set_yscale("log" if all(value > 0 for _, value in points) else "linear")
        axes[-1].set_xlabel("step")
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".png", delete=False) as file:
            figure.savefig(file, format="png", dpi=80)
        os.replace(file.name, path)


def replace(path: Path, data: bytes) -> None:
    """Write a whole file or none."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGTERM or SIGINT came."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(
    run: Path, state: State, step: Callable[[State, int], tuple[State, Figures]], plan: Schedule, evaluate: Callable[[State, Path], Figures]
) -> State:
    """Go on until the plan says stop.

    Args:
        run: the run's folder.
        state: as `resume` gave it; its arrays are given away.
        step: (state, step number) -> state, figures. It fetches its own data.
        plan: when to stop, save and evaluate.
        evaluate: (state, folder for samples) -> figures for the log.
    """
    log = RunLog(run, int(state["step"]))
    began = saved_at = time.monotonic()
    before = log.entries[-1]["seconds"] if log.entries else 0.0
    paused = 0.0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with _stopping() as stopping, Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        number = int(state["step"])
        task = progress.add_task(run.name, total=plan.steps, completed=number)
        last_time, last_step = began, number
        while number < plan.steps and not stopping():
            asleep = wait_while(plan.pause, stopping)
            paused, last_time = paused + asleep, last_time + asleep
            if time.monotonic() - began - paused > plan.minutes * 60:
                break
            state, figures = step(state, number)
            number += 1
            progress.update(task, completed=number)
            entry: dict[str, float] = {}
            if number % plan.log_every == 0:
                now = time.monotonic()
                entry = {name: round(float(value), 5) for name, value in figures.items()}
                if bad := [name for name, value in entry.items() if not np.isfinite(value)]:
                    raise FloatingPointError(f"step {number}: {', '.join(bad)} is not finite; resume with a lower rate")
                entry |= {"step": number, "seconds": round(before + now - began - paused, 1)}
                entry["seconds_a_step"] = round((now - last_time) / (number - last_step), 3)
                last_time, last_step = now, number
            if plan.evaluates(number):
                found = evaluate(state, run / "samples" / f"{number:08}")
                entry |= {name: round(float(value), 5) for name, value in found.items()}
                entry.setdefault("seconds", round(before + time.monotonic() - began - paused, 1))
                entry["step"] = number
            if entry:
                log.add(entry)
                progress.console.print(json.dumps(entry), highlight=False, soft_wrap=True)
            if time.monotonic() - saved_at > plan.save_minutes * 60:
                save(run, state)
                log.plot(run / "loss.png")
                saved_at = time.monotonic()
    save(run, state)
    log.plot(run / "loss.png")
    return state


def wait_while(path: Path | None, stopping: Callable[[], bool] = lambda: False) -> float:
    """Seconds waited for ``path`` to go away."""
    began = time.monotonic()
    while path is not None and path.exists() and not stopping():
        time.sleep(1.0)  # polls a file that a person makes and removes
    return time.monotonic() - began
