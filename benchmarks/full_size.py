"""A random checkpoint of a published size: configs from tests/reference, bf16 weights from a seed. 2.5 GB for 0.6B.

usage: python -m benchmarks.full_size FOLDER [--size 0.6B-Base] [--seed 0]

The end-of-speech row of the head is zero, so that an utterance lasts as long as it is allowed to.
"""

import argparse
import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
from rich.progress import track
from safetensors.numpy import save_file

from qwen3_jax.config import CodecConfig, ModelConfig, parse
from qwen3_jax.mapping import flatten, source_of, targets
from qwen3_jax.model import abstract

REFERENCE = Path(__file__).parents[1] / "tests" / "reference"


def tensor(name: str, shape: tuple[int, ...], noise: np.random.Generator) -> np.ndarray:
    """float32 values that keep activations near 1 through 28 layers."""
    if name.endswith("cluster_usage"):
        return noise.uniform(0.5, 3.5, shape).astype(np.float32)
    values = noise.standard_normal(shape, np.float32)
    if len(shape) == 1:
        return 1 + 0.1 * values if "norm" in name and name.endswith("weight") else 0.05 * values
    if "embed" not in name:
        values /= np.sqrt(np.prod(shape[1:], dtype=np.float32))
    if name == "talker.codec_head.weight":
        values[2150] = 0
    return values * np.float32(0.005) if name == "decoder.decoder.6.conv.weight" else values


def write(folder: Path, size: str, seed: int) -> None:
    """Make ``folder`` in the published layout, without a tokenizer."""
    config = json.loads((REFERENCE / f"{size}.config.json").read_text("utf-8"))
    codec = json.loads((REFERENCE / "Tokenizer-12Hz.config.json").read_text("utf-8"))
    _, tree = abstract(parse(ModelConfig, config), parse(CodecConfig, codec))
    noise = np.random.default_rng(seed)
    files: dict[str, dict[str, np.ndarray]] = {"model.safetensors": {}, "speech_tokenizer/model.safetensors": {}}
    for path, leaf in track(flatten(tree).items(), "random weights"):
        in_codec = path.startswith("codec.")
        for target in targets(path, tuple(leaf.shape)):
            name = source_of(target)
            values = tensor(name, tuple(leaf.shape if target.slot is None else leaf.shape[1:]), noise)
            file = "speech_tokenizer/model.safetensors" if in_codec else "model.safetensors"
            files[file][name] = values if in_codec else values.astype(ml_dtypes.bfloat16)
    (folder / "speech_tokenizer").mkdir(parents=True)
    for file, tensors in files.items():
        save_file(tensors, folder / file, {"format": "pt"})
    shutil.copy(REFERENCE / f"{size}.config.json", folder / "config.json")
    shutil.copy(REFERENCE / "Tokenizer-12Hz.config.json", folder / "speech_tokenizer" / "config.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="0.6B-Base")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write(given.folder, given.size, given.seed)


if __name__ == "__main__":
    main()
