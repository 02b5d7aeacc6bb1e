"""What int8 costs: the same sentences spoken with and without it, and judged pair by pair. Prints a table.

usage: python -m benchmarks.rounding [--model embedded] [--voice makima] [--sentences 100] [--seeds 4] [--json OUT]

Each sentence is spoken in float32 and in int8, with each of some seeds. "change": int8 less float32, the mean over the sentences with its
standard error; a sentence counts once, with the mean of its seeds. One seed is not enough: rounding changes what is drawn, as another seed
does. Greedy codes: the first 50 frames of each sentence without sampling; a sentence agrees up to its first frame that differs.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from qwen3_jax import Qwen3TTS
from qwen3_jax.audio.samples import load_audio
from qwen3_jax.evaluate import judges
from qwen3_jax.evaluate.texts import held_out
from qwen3_jax.terminal import tell
from qwen3_jax.voices.choice import find_voice
from qwen3_jax.voices.layers import VoiceLayers, decode

GREEDY_FRAMES = 50
NEXT_SEED = 1000  # from one seed of a sentence to its next


def spoken(tts: Qwen3TTS, texts: list[str], voice: Any, seeds: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Each text's samples by sampling, all of them with a seed, then with the next; and its greedy codes [N 16]."""
    drawn = [(text, NEXT_SEED * take + index) for take in range(seeds) for index, text in enumerate(texts)]
    waves = [tts.generate(text, voice=voice, language="English", seed=seed).pcm for text, seed in drawn]
    greedy: Any = {"do_sample": False, "subtalker_dosample": False, "max_frames": GREEDY_FRAMES}
    return waves, [tts.generate(text, voice=voice, language="English", seed=0, **greedy).frames for text in texts]


def agreement(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Of two utterances' codes: the share of frames before the first that differs, and whether that is all."""
    shared = min(len(ours), len(theirs))
    differ = np.flatnonzero((ours[:shared] != theirs[:shared]).any(axis=1))
    equal = int(differ[0]) if len(differ) else shared
    return equal / max(len(ours), len(theirs)), float(equal == len(ours) == len(theirs))


def judged(waves: list[np.ndarray], texts: list[str], reference: np.ndarray) -> dict[str, np.ndarray]:
    """Each judge's value of each sentence, the mean of its seeds."""
    found, seeds = judges.embeddings(waves), len(waves) // len(texts)
    figures = [judges.word_errors(waves, texts * seeds)[0], judges.naturalness(waves)]
    figures.append(judges.likeness(found, judges.embeddings([reference])))
    values = {figure.name: figure.each for figure in figures} | {"seconds": [len(wave) / 24000 for wave in waves]}
    return {name: np.reshape(each, (seeds, -1)).mean(axis=0) for name, each in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--voice", default="makima")
    parser.add_argument("--sentences", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=4, help="with which each sentence is spoken")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    judges.check_installed(("wer", "mos", "similarity"))
    texts, layers = held_out()[: given.sentences], VoiceLayers.of(None)
    own = layers.look().find(given.voice)
    if own is None:
        parser.error(f"--voice {given.voice}: there is no such voice")
    reference = load_audio(decode(layers.reference(own), own.id))
    values, codes = {}, {}
    for dtype in ("float32", "int8"):
        tts = Qwen3TTS.from_pretrained(given.model, dtype=dtype)
        waves, codes[dtype] = spoken(tts, texts, find_voice(tts, given.voice, layers, None, tell), given.seeds)
        tell(f"{dtype}: spoken")
        values[dtype] = judged(waves, texts, reference)
    table = Table("", "float32", "int8", "change", title=f"{given.model}, {given.voice}, {len(texts)} sentences, {given.seeds} seeds")
    result: dict[str, Any] = {}
    for name, before in values["float32"].items():
        after = values["int8"][name]
        change, error = float(np.mean(after - before)), float(np.std(after - before, ddof=1) / np.sqrt(len(before)))
        result[name] = {"float32": float(before.mean()), "int8": float(after.mean()), "change": change, "standard error": error}
        table.add_row(name, f"{before.mean():.3f}", f"{after.mean():.3f}", f"{change:+.3f} ± {error:.3f}")
    agreed = np.array([agreement(*pair) for pair in zip(codes["int8"], codes["float32"], strict=True)])
    result["greedy"] = {"frames": float(agreed[:, 0].mean()), "whole sentences": float(agreed[:, 1].mean())}
    table.add_row("greedy frames before the first difference", "", f"{agreed[:, 0].mean():.1%}", f"all of {agreed[:, 1].mean():.0%}")
    Console(width=120).print(table)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
