"""Ours and the official package on the workload of benchmarks/workload.py, cloning in context: a table, and its rows as JSON."""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from benchmarks.compare import child, parts
from benchmarks.compare.machine import bandwidth, float32_peak
from benchmarks.workload import FRAMES, request
from qwen3_jax import Qwen3TTS
from qwen3_jax.engine import Handle, Request, Segment
from qwen3_jax.engine.inline import FRAMES as AT_ONCE
from qwen3_jax.engine.inline import Inline
from qwen3_jax.engine.slots import NEVER, Opening, Text
from qwen3_jax.model.decode import prime
from qwen3_jax.model.model import Model
from qwen3_jax.model.sampling import Sampling
from qwen3_jax.runtime.allocation import TUNABLES
from qwen3_jax.text.prompt import build

OFFICIAL = Path(__file__).parents[1] / "official.py"
SECONDS_PER_FRAME = 0.08


def speak(model: Model) -> dict[str, float]:
    """The workload, once streamed (for the first sound) and once at a stretch (for the rest); everything compiled before."""
    given = request(model.config.talker_config.hidden_size)
    prompt = build(
        model.config, given["input_ids"], language="english", x_vector=given["x_vector"],
        reference_ids=given["reference_ids"], reference_codes=given["reference_codes"],
    )  # fmt: skip
    prime(model, given["reference_codes"])  # compiles
    begin = time.perf_counter()
    state = jax.block_until_ready(prime(model, given["reference_codes"]))
    prepared = time.perf_counter() - begin
    asked = Request((Segment(prompt, FRAMES),), Sampling(), 1, codec_state=state)

    def prefill() -> float:
        device = Inline(model, slots=1, first=1, each=AT_ONCE).device
        begin, text = time.perf_counter(), Text(prompt.trailing.tolist(), FRAMES, NEVER, NEVER)
        for _ in device.open(0, Opening(prompt, text, asked.sampling, 1, 0, None, state, False)):
            device.read(0)
        device.wait()
        return time.perf_counter() - begin

    def begun(first: int, *, ahead: bool) -> tuple[Inline, Handle, int, float]:
        begin = time.perf_counter()
        inline = Inline(model, slots=1, first=first, each=AT_ONCE, ahead=ahead)
        handle = inline.submit(asked)
        packet = inline.next(handle)
        return inline, handle, 0 if packet is None else len(packet.codes), time.perf_counter() - begin

    def whole() -> dict[str, float]:
        inline, handle, made, taken = begun(AT_ONCE, ahead=True)
        begin = time.perf_counter()
        while made < FRAMES and (packet := inline.next(handle)) is not None:
            made += len(packet.codes)
        return {"total": taken + time.perf_counter() - begin, "frames": made}

    whole(), prefill()  # compiles
    total = sorted((whole() for _ in range(3)), key=lambda found: found["total"])[1]  # seven seconds each: a median
    first = statistics.median(begun(1, ahead=False)[3] for _ in range(3))
    return {"voice": prepared} | total | {"first": first, "prefill": statistics.median(prefill() for _ in range(3))}


def official(python: str, folder: Path, dtype: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "speed"
        subprocess.run(
            [python, str(OFFICIAL), "speed", str(folder), dtype, str(out)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        result: dict[str, float] = json.loads(out.with_suffix(".json").read_text())
        return result


def ours(folder: Path, dtype: str) -> dict[str, Any]:
    """One measured run, in a process of its own (peak memory is a process's)."""
    code = f"from benchmarks.compare import beside_official; beside_official.print_ours({str(folder)!r}, {dtype!r})"
    return child.figures([sys.executable, "-c", code], {"GLIBC_TUNABLES": TUNABLES})  # as `say` and `serve` start themselves


def print_ours(folder: str, dtype: str) -> None:
    """The child's part of ``ours``."""
    model = Qwen3TTS.from_pretrained(folder, dtype=dtype).model
    machine = {"bandwidth": bandwidth(), "float32_peak": float32_peak()}
    result = speak(model) | machine | {"parts": parts.parts(model, machine["bandwidth"], machine["float32_peak"])}
    result["peak_rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(result))


def show(folder: Path, python: str | None, dtype: str, out: Path | None, console: Console) -> None:
    """Measure, print the table and what bounds our parts, and write the rows to ``out``."""
    rows: dict[str, dict[str, Any]] = {f"ours {dtype}": ours(folder, dtype)}
    if python:
        for theirs in ("float32", "bfloat16"):
            rows[f"qwen-tts {theirs}"] = official(python, folder, theirs)
        rows[f"ours {dtype}, again"] = ours(folder, dtype)
    found = Table("", "talker ms", "predictor ms", "codec ms", "RTF", "RTF + voice", "first audio s", "of it prefill s", "peak RSS GB")
    for name, row in rows.items():
        milliseconds = [row["parts"][part]["ms"] if "parts" in row else 1e3 * row[part] / row["frames"] for part in parts.PARTS]
        row["rtf"] = row["total"] / row["frames"] / SECONDS_PER_FRAME
        whole = (row["total"] + row.get("voice", 0)) / row["frames"] / SECONDS_PER_FRAME
        found.add_row(
            name, *(f"{taken:.0f}" for taken in milliseconds), f"{row['rtf']:.2f}", f"{whole:.2f}",
            f"{row.get('first', row['total']):.2f}", f"{row['prefill']:.2f}" if "prefill" in row else "", f"{row['peak_rss'] / 1e9:.1f}",
        )  # fmt: skip
    console.print(found)
    console.print(parts.table({name: row["parts"] for name, row in rows.items() if "parts" in row}))
    last = list(rows.values())[-1]
    rates = f"{last['bandwidth'] / 1e9:.1f} GB/s, {last['float32_peak'] / 1e9:.0f} float32 GFLOP/s"
    console.print(f"This machine: {rates}. Device: {jax.devices()[0].device_kind}")
    if out:
        out.write_text(json.dumps(rows, indent=1))
