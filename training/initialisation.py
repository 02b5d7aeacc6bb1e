"""Random weights that a network starts from."""

import re
import zlib
from typing import Any

import numpy as np


def random_start(shapes: dict[str, Any], seed: int, layer_scale: float = 0.1) -> dict[str, np.ndarray]:
    """Dotted path -> float32 array: what a network of these shapes starts from.

    Weights are normal with a variance of 1 / inputs, norms are 1, biases and Snake's logarithms 0, scales of branches ``layer_scale``.
    """
    made = {}
    for path, leaf in shapes.items():
        shape = tuple(leaf.shape)
        name = path.rsplit(".", 1)[-1]
        noise = np.random.default_rng([seed, zlib.crc32(path.encode())])
        if name == "weight" and len(shape) > 1:
            inputs = 2 * shape[0] if path.endswith("block.1.conv.weight") and "decoder" in path else int(np.prod(shape[1:]))
            if path.startswith("upsample.") and path.endswith(".0.conv.weight"):
                inputs = shape[0]
            value = noise.standard_normal(shape) * (_gain(path) / np.sqrt(inputs))
        elif name in ("scale", "gamma"):
            value = np.full(shape, layer_scale)
        elif name == "weight":
            value = np.ones(shape)
        elif name in ("bias", "alpha", "beta"):
            value = np.zeros(shape)
        elif name == "cluster_usage":
            value = np.ones(shape)
        else:
            value = noise.standard_normal(shape)
        made[path] = value.astype(np.float32)
    return made


def _gain(path: str) -> float:
    """Branches that are added to their input start small, and so does the wave."""
    if re.fullmatch(r"decoder\.[1-9]\.conv\.weight", path):  # the last convolution; the first is decoder.0
        return 0.03
    return 0.3 if path.endswith((".conv2.conv.weight", ".block.3.conv.weight")) else 1.0
