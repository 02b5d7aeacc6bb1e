"""This project beside the official package, same weights and request, one run. Prints a table; figures are this machine's.

usage: python -m benchmarks.compare CHECKPOINT [--official-python PYTHON] [--dtype float32|bfloat16|int8] [--json OUT]

CHECKPOINT: a published folder, or one that benchmarks.full_size made. PYTHON: an interpreter that has `qwen-tts` 0.1.1;
without it the table has our rows only. "RTF + voice" adds the decoding of the reference, which this project does once per
voice and the official package in every call (its RTF has it). Ours is measured twice, before and after the official
package, since machines drift; each is the median of three runs (the official package's one run takes as long).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

from benchmarks.workload import FRAMES, request
from qwen3_jax.codec import init_state
from qwen3_jax.engine import Handle, Request, Segment
from qwen3_jax.engine.inline import FRAMES as AT_ONCE
from qwen3_jax.engine.inline import Inline
from qwen3_jax.engine.slots import NEVER, Opening, Text
from qwen3_jax.model.cache import empty
from qwen3_jax.model.decode import decode, prime
from qwen3_jax.model.model import DTYPES, Model, load
from qwen3_jax.model.sampling import Sampling
from qwen3_jax.model.talker import Talker
from qwen3_jax.runtime.allocation import TUNABLES
from qwen3_jax.text.prompt import build

OFFICIAL = Path(__file__).parent / "official.py"
COLUMNS, SECONDS_PER_FRAME = 256, 0.08


def median_seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    jax.block_until_ready(call())
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def bandwidth() -> float:
    """Bytes a second at which this machine reads memory: two threads summing an array far larger than the caches."""
    halves = np.array_split(np.ones(1 << 28, np.float32), 2)

    def read() -> None:
        with ThreadPoolExecutor(len(halves)) as pool:
            list(pool.map(lambda half: half.view(np.uint64).max(), halves))

    return sum(half.nbytes for half in halves) / median_seconds(read)


def stages(model: Model, frames: int) -> dict[str, float]:
    """Milliseconds per frame of each part alone."""
    width = model.config.talker_config.hidden_size
    dtype = model.params["talker"]["model"]["norm"]["weight"].dtype

    def talker_step(params: Any, x: jax.Array, cache: Any) -> jax.Array:
        talker: Talker = nnx.merge(model.graphs.talker, params)
        return talker.codec_head(talker.model(x, cache, jnp.full(1, 100))[0])

    def predictor(params: Any, hidden: jax.Array) -> jax.Array:
        talker: Talker = nnx.merge(model.graphs.talker, params)
        return talker.code_predictor.predict(hidden, hidden, lambda logits, _: jnp.argmax(logits, axis=-1).astype(jnp.int32))

    talker: Talker = nnx.merge(model.graphs.talker, model.params["talker"])
    layers, kv_heads, head_dim = talker.kv_shape
    cache = empty(layers, 1, kv_heads, COLUMNS, head_dim, dtype)
    step, predict = jax.jit(talker_step), jax.jit(predictor)
    x = jnp.ones((1, 1, width), dtype)
    codes = np.zeros((frames, 1, 16), np.int32)
    decoder = model.params["codec"]["decoder"]

    def codec() -> jax.Array:
        return decode(model.graphs.codec_decoder, decoder, codes, init_state(model.codec_config.decoder_config, 1))[0]

    return {
        "talker": 1e3 * median_seconds(lambda: step(model.params["talker"], x, cache)),
        "predictor": 1e3 * median_seconds(lambda: predict(model.params["talker"], x[:, 0])),
        "codec": 1e3 * median_seconds(codec) / frames,
    }


def bytes_per_frame(model: Model) -> dict[str, float]:
    """Weights that one frame reads: the talker's layers once, the predictor's fifteen times, and the heads; as kept, and in float32."""
    talker = model.params["talker"]
    predictor = talker["code_predictor"]

    def total(width: Callable[[jax.Array], int]) -> float:
        def size(tree: Any) -> int:
            return sum(width(leaf) for leaf in jax.tree.leaves(tree))

        once = size(talker["model"]["layers"]) + size(talker["codec_head"]) + size(predictor["lm_head"])
        return once + len(predictor["lm_head"]) * size(predictor["model"]["layers"])

    return {"bytes": total(lambda leaf: leaf.nbytes), "float32_bytes": total(lambda leaf: 4 * leaf.size)}


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


def ours(folder: Path, dtype: str) -> dict[str, float]:
    """One measured run, in a process of its own (peak memory is a process's)."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: float32, bfloat16 or int8")
    code = f"from benchmarks import compare; compare.print_ours({str(folder)!r}, {dtype!r})"
    env = os.environ | {"GLIBC_TUNABLES": TUNABLES}  # as `say` and `serve` start themselves
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True, env=env)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def load_as(folder: Path, dtype: str) -> Model:
    """The checkpoint as `Qwen3TTS.from_pretrained` loads it."""
    if dtype == "int8":
        return load(folder, stored=jnp.dtype(dtype), lean=True)
    return load(folder, dtype=jnp.dtype(dtype), lean=True)


def print_ours(folder: str, dtype: str) -> None:
    """The child's part of ``ours``."""
    model = load_as(Path(folder), dtype)
    result = speak(model) | stages(model, AT_ONCE) | {"bandwidth": bandwidth()} | bytes_per_frame(model)
    result["peak_rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--official-python")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows: dict[str, dict[str, float]] = {f"ours {given.dtype}": ours(given.checkpoint, given.dtype)}
    if given.official_python:
        for dtype in ("float32", "bfloat16"):
            rows[f"qwen-tts {dtype}"] = official(given.official_python, given.checkpoint, dtype)
        rows[f"ours {given.dtype}, again"] = ours(given.checkpoint, given.dtype)
    table = Table("", "talker ms", "predictor ms", "codec ms", "RTF", "RTF + voice", "first audio s", "of it prefill s", "peak RSS GB")
    for name, row in rows.items():
        per = (1, 1, 1) if "bytes" in row else (1e3 / row["frames"],) * 3
        parts = [f"{row[part] * scale:.0f}" for part, scale in zip(("talker", "predictor", "codec"), per, strict=True)]
        rtf = row["total"] / row["frames"] / SECONDS_PER_FRAME
        row["rtf"] = rtf
        whole = (row["total"] + row.get("voice", 0)) / row["frames"] / SECONDS_PER_FRAME
        first = f"{row.get('first', row['total']):.2f}"
        table.add_row(
            name,
            *parts,
            f"{rtf:.2f}",
            f"{whole:.2f}",
            first,
            f"{row['prefill']:.2f}" if "prefill" in row else "",
            f"{row['peak_rss'] / 1e9:.1f}",
        )
    console = Console(width=120)
    console.print(table)
    last = list(rows.values())[-1]
    bound = last["bytes"] / last["bandwidth"]
    made = (last["talker"] + last["predictor"]) / 1e3
    console.print(f"weights read per frame: {last['bytes'] / 1e9:.2f} GB; this memory streams {last['bandwidth'] / 1e9:.1f} GB/s")
    console.print(f"so a frame takes at least {bound * 1e3:.0f} ms; talker and predictor reach {bound / made:.2f} of that bound")
    console.print(f"(float32 weights: {last['float32_bytes'] / 1e9:.2f} GB a frame). Device: {jax.devices()[0].device_kind}")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
