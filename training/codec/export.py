"""Trained codec parameters -> ``speech_tokenizer/`` in the published layout, float16 or float32; and back.

The published file is float32. float16 loads just as well (checkpoint/published.py casts), at half the size; weights lie well inside
its range. Names and stacked books are those of checkpoint/mapping.py, so the folder is read by the same loader as the real checkpoint.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from qwen3_jax.checkpoint.atomic import new_folder
from qwen3_jax.checkpoint.mapping import flatten, make_plan, source_of, targets
from qwen3_jax.codec import Codec
from qwen3_jax.model.config import CodecConfig
from qwen3_jax.model.config_values import parse

FILE, CONFIG = "model.safetensors", "config.json"


def codec_shapes(cfg: CodecConfig) -> dict[str, Any]:
    """Every codec parameter's shape, by dotted path below ``codec.``."""
    return flatten(nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Codec(cfg)))))


def write_codec(folder: Path, config: dict[str, Any], params: Mapping[str, Any], dtype: Any = np.float16) -> None:
    """Write config.json and model.safetensors, atomically.

    Args:
        folder: ``speech_tokenizer/`` of a checkpoint; must not exist.
        config: the codec's config, as published.
        params: dotted path below ``codec.`` -> array, all of them.

    Raises:
        ValueError: parameters are missing or too many, or a value that ``dtype`` cannot hold.
    """
    shapes = codec_shapes(parse(CodecConfig, config))
    if wrong := sorted(set(shapes) ^ set(params)):
        raise ValueError(f"codec parameters {wrong[:5]} are on one side only; pass exactly those of the config")
    tensors = published_tensors({f"codec.{path}": params[path] for path in shapes}, dtype)
    with new_folder(folder) as temporary:
        save_file(tensors, temporary / FILE, {"format": "pt"})
        (temporary / CONFIG).write_text(json.dumps(config, indent=1), "utf-8")


def published_tensors(params: Mapping[str, Any], dtype: Any) -> dict[str, np.ndarray]:
    """Parameters by dotted path -> tensors by published name, in ``dtype``.

    Raises:
        ValueError: a value that ``dtype`` cannot hold.
    """
    tensors: dict[str, np.ndarray] = {}
    for path, param in params.items():
        value = np.asarray(param, np.float32)
        if not np.abs(value).max() <= np.finfo(dtype).max:  # NaN is no less either
            raise ValueError(f"{path} has values that {np.dtype(dtype)} cannot hold (largest {np.abs(value).max():g})")
        for target in targets(path, value.shape):
            tensors[source_of(target)] = np.ascontiguousarray(value if target.number is None else value[target.number], dtype)
    return tensors


def read_codec(folder: Path) -> tuple[CodecConfig, dict[str, np.ndarray]]:
    """What ``write_codec`` wrote: the config, and float32 arrays by dotted path below ``codec.``."""
    cfg = parse(CodecConfig, json.loads((folder / CONFIG).read_text("utf-8")))
    tensors = load_file(folder / FILE)
    shapes = codec_shapes(cfg)
    plan = make_plan({name: tensor.shape for name, tensor in tensors.items()}, {f"codec.{path}": leaf for path, leaf in shapes.items()})
    params = {}
    for path in shapes:
        rows = [tensors[name].astype(np.float32) for name in plan.sources[f"codec.{path}"]]
        params[path] = np.stack(rows) if f"codec.{path}" in plan.stacked else rows[0]
    return cfg, params
