"""Ours and vox-tts, in turns, on the same checkpoint and the same request: two dicts of figures.

Each program speaks from its own form of the checkpoint, made once in a folder of work. Each measurement is a process of its own. Both hand
out the first frame as soon as they have it, and otherwise speak at their default chunks.
"""

import dataclasses
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.compare import child
from benchmarks.compare.request import Asked
from qwen3_jax.runtime.allocation import TUNABLES

VOX = Path(__file__).parent / "vox_child.py"
CONVERTED = {"float32": [], "bfloat16": ["--dtype", "bfloat16"], "int8": ["--dtype", "int8"]}  # float32 computes with the file's weights
TUNED = {"GLIBC_TUNABLES": TUNABLES}  # as `say` and `serve` start themselves
TAKEN = ("open_s", "load_s", "first_audio_s", "rtf")  # of which the median of all turns counts

Tell = Callable[[str], None]
Figures = dict[str, Any]


def check(folder: Path, dtype: str) -> None:
    """Refuse what cannot be compared.

    Raises:
        ValueError: another dtype, or a checkpoint that cannot read text.
    """
    if dtype not in CONVERTED:
        raise ValueError(f"--dtype {dtype}: use {', '.join(CONVERTED)}")
    if not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        raise ValueError(
            f"{folder} has no vocab.json and merges.txt, which vox-tts reads: make it anew with `python -m benchmarks.full_size`, or copy "
            "them from the published checkpoint"
        )


def ours_of(folder: Path, dtype: str, work: Path, frames: int) -> Asked:
    """Our form of the checkpoint in ``work``: what is there already stays."""
    converted = work / f"ours-{dtype}"
    if not converted.exists():
        child.run([sys.executable, "-m", "convert", str(folder), str(converted), *CONVERTED[dtype]])
    return Asked(model=str(converted), voice=str(work / f"ours-{dtype}.safetensors"), frames=frames, dtype=dtype)


def vox_of(python: str, folder: Path, quant: str, work: Path, frames: int) -> Asked:
    """vox-tts's form of the checkpoint in ``work``: what is there already stays."""
    built = work / f"vox-{quant}.tmod"
    if not built.exists():
        partial = built.with_suffix(".part")
        child.run([python, "-m", "vox", "build", "--model", str(folder), "--quant", quant, "-o", str(partial)])
        partial.rename(built)
    return Asked(model=str(built), voice=str(work / f"vox-{quant}.tvoice"), frames=frames)


def say_command(given: Asked, output: Path) -> list[str]:
    """`say` from a recording, as a user types it."""
    options = {
        "--model": given.model, "--dtype": given.dtype, "--reference": given.recording, "--transcript": given.transcript,
        "--language": given.language, "--max-frames": given.frames, "--seed": 1, "--output": output,
    }  # fmt: skip
    flat = [str(part) for option in options.items() for part in option]
    return [sys.executable, "-m", "qwen3_jax", "say", given.text, *flat]


def ours_child(task: str, given: Asked) -> list[str]:
    return [sys.executable, "-m", "benchmarks.compare.ours_child", task, given.json()]


def vox_child(python: str, task: str, given: Asked) -> list[str]:
    return [python, str(VOX), task, given.json()]


def median_of(runs: list[Figures]) -> Figures:
    """Of the figures of several runs: medians of those that are timed, the last run's of the others."""
    return runs[-1] | {key: statistics.median(run[key] for run in runs) for key in TAKEN} | {"runs": runs}


def compare(
    folder: Path, python: str, *, dtype: str, quant: str, work: Path, frames: int, rounds: int, tell: Tell
) -> tuple[dict[str, Figures], dict[str, dict[str, dict[str, float]]]]:
    """Measure both.

    Args:
        folder: a checkpoint in the published layout, tokenizer included.
        python: an interpreter that has vox-tts.
        dtype: ours.
        quant: vox-tts's: q8 or q4.
        work: a folder for both programs' forms of the checkpoint, 5 GB.
        frames: of an utterance.
        rounds: turns of each program.
        tell: is told what is being done.

    Returns:
        Figures of "ours" and "vox"; and our parts by dtype, as ``parts.table`` takes them.

    Raises:
        RuntimeError: a process failed, or spoke other frames than it was asked for.
    """
    tell(f"converting into {work}")
    ours, vox = ours_of(folder, dtype, work, frames), vox_of(python, folder, quant, work, frames)
    tell("preparing voices")
    child.run(ours_child("prepare", ours), TUNED)
    child.run(vox_child(python, "prepare", vox))
    runs: dict[str, list[Figures]] = {"ours": [], "vox": []}
    for turn in range(rounds):
        tell(f"speaking, turn {turn + 1} of {rounds}")
        runs["ours"].append(child.figures(ours_child("speak", ours), TUNED))
        runs["vox"].append(child.figures(vox_child(python, "speak", vox)))
    for name, found in runs.items():
        if (spoken := found[-1]["frames"]) != frames:
            raise RuntimeError(f"{name} spoke {spoken:g} frames of {frames}: the checkpoint ends speech, so the runs do not compare")
    figures = {name: median_of(found) for name, found in runs.items()}
    tell("cloning and speaking: memory")
    output = work / "said.wav"
    child.run(say_command(ours, output))  # the programs that cloning needs are compiled once
    figures["ours"]["rss_gb"] = child.run(say_command(ours, output))[1] / 1e9
    figures["vox"]["rss_gb"] = child.run(vox_child(python, "say", vox))[1] / 1e9
    tell("parts alone")
    asked = {dtype: ours}
    if dtype == "int8":  # beside it the weights as they were published
        asked = {"bfloat16": dataclasses.replace(ours, model=str(folder), dtype="float32")} | asked
    alone = {name: child.figures(ours_child("parts", given), TUNED) for name, given in asked.items()}
    figures["ours"] |= {f"{name}_ms": part["ms"] for name, part in alone[dtype]["parts"].items()}
    figures["ours"] |= {key: alone[dtype][key] for key in ("bandwidth", "float32_peak")}
    tell("eight slots")
    figures["ours"] |= child.figures(ours_child("slots", ours), TUNED)
    parts = {name: found["parts"] for name, found in alone.items()}
    figures["ours"]["parts"] = parts
    return figures, parts
