"""This project beside vox-tts or the official package: same weights, same request, one run. Prints tables; figures are this machine's.

usage: python -m benchmarks.compare CHECKPOINT --vox-python PYTHON [--dtype float32|bfloat16|int8] [--vox-quant q8|q4] [--frames N]
                                               [--rounds N] [--work FOLDER] [--strict] [--json OUT]
       python -m benchmarks.compare CHECKPOINT [--official-python PYTHON] [--dtype float32|bfloat16|int8] [--json OUT]

CHECKPOINT: a published folder, or one that benchmarks.full_size made. PYTHON: an interpreter that has vox-tts 0.19.5, or `qwen-tts` 0.1.1.

Beside vox-tts (benchmarks/compare/beside_vox.py): both programs in turns. OUT has {"ours": {...}, "vox": {...}}.

    RTF            seconds for a second of speech: a prepared voice (timbre only), 20 text tokens, so many frames, streamed
    first audio    from the request to the first frame in hand, of a program that has spoken before
    load           from a converted checkpoint to the first frame in hand; files and compiled programs are in their caches. Without imports
    peak RSS       of one whole `say` that clones a recording with its transcript, and of what does the same with vox-tts
    talker, predictor, codec   each alone; beside them what a frame needs at least, and the fraction of what memory and float32
                   arithmetic allow, both measured in the same process. A part that a cache holds can exceed memory's bound
    8 slots        a step with eight requests in eight slots over one with one request in one slot

--work keeps both programs' forms of the checkpoint for the next run (delete it when the checkpoint changes). --strict: status 1 if a figure
misses what it must reach.

Beside the official package (benchmarks/compare/beside_official.py): without PYTHON the table has our rows only. "RTF + voice" adds the
decoding of the reference, which this project does once per voice and the official package in every call (its RTF has it). Ours is measured
twice, before and after the official package, since machines drift; each is the median of three runs (the official one takes as long).
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import jax
from rich.console import Console

from benchmarks.compare import beside_official, beside_vox, parts, verdict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--vox-python")
    parser.add_argument("--official-python")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--vox-quant", default="q8", choices=["q8", "q4"])
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    console = Console(width=140)
    if given.vox_python is None:
        beside_official.show(given.checkpoint, given.official_python, given.dtype, given.json, console)
        return
    try:
        beside_vox.check(given.checkpoint, given.dtype)
    except ValueError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as scratch:
        work = given.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        figures, alone = beside_vox.compare(
            given.checkpoint, given.vox_python, dtype=given.dtype, quant=given.vox_quant, work=work, frames=given.frames,
            rounds=given.rounds, tell=lambda what: print(what, file=sys.stderr, flush=True),
        )  # fmt: skip
    ours, vox = figures["ours"], figures["vox"]
    console.print(f"{jax.devices()[0].device_kind}, {ours['bandwidth'] / 1e9:.1f} GB/s, {ours['float32_peak'] / 1e9:.0f} float32 GFLOP/s")
    console.print(parts.table(alone))
    console.print(f"vox-tts {given.vox_quant}: " + ", ".join(f"{part} {vox[f'{part}_ms']:.1f} ms" for part in parts.PARTS))
    console.print(verdict.table(ours, vox))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    missed = [aim.what for aim in verdict.AIMS if verdict.judge(aim, ours, vox) == "MISSED"]
    if given.strict and missed:
        sys.exit(f"missed: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
