"""What a frame costs at least: bytes that are read and float32 operations, of talker, predictor and codec.

Bytes are those of the weights as they are kept (scales included) and of the KV cache in use; an operation is a multiplication or an
addition in a product with weights. Attention's own products, norms and activations are left out: together under 3 % at full size.
"""

from typing import Any, NamedTuple

import jax
from flax import nnx

from qwen3_jax.codec import Decoder
from qwen3_jax.model.config import CodecDecoderConfig
from qwen3_jax.model.model import Model

Tree = Any
BOOKS = ("rvq_first", "rvq_rest")


class Work(NamedTuple):
    """Of a frame."""

    bytes: float
    operations: float


def weights(tree: Tree) -> int:
    """Elements of matrices and kernels."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree) if leaf.ndim > 1)


def size(tree: Tree) -> int:
    """Bytes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def talker_work(talker: Tree, cache: Tree, used: float) -> Work:
    """One step of the talker: layers and head once, and the part of ``cache`` that is in use."""
    read = [talker["model"]["layers"], talker["codec_head"]]
    return Work(size(read) + used * size(cache), 2 * weights(read))


def predictor_work(predictor: Tree) -> Work:
    """All books but the first: layers once a book, in the first pass with two rows; each head once."""
    books = len(predictor["lm_head"])
    layers, heads = [predictor["model"]["layers"], predictor.get("small_to_mtp_projection")], predictor["lm_head"]
    return Work(books * size(layers) + size(heads), 2 * ((books + 1) * weights(layers) + weights(heads)))


def codec_work(decoder: Tree, config: CodecDecoderConfig, frames: int) -> Work:
    """One of ``frames`` that are decoded together: each kernel once for each position of its input, or of its output if that is shorter.

    Operations are those of the published formula, also where the kernels are prepared for fewer (codec/toom_cook.py).
    """
    kept, decoder = decoder, nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: Decoder(config)))[1])
    first, *blocks, _, last = (decoder["decoder"][index] for index in sorted(decoder["decoder"]))
    books = [decoder["quantizer"][name]["output_proj"] for name in BOOKS]
    at_frames = [books, decoder["pre_conv"], decoder["pre_transformer"]]
    positions, operations = 1, 2 * weights(at_frames)
    for index, ratio in enumerate(config.upsampling_ratios):
        stretch, mix = decoder["upsample"][index][0], decoder["upsample"][index][1]
        operations += 2 * positions * weights(stretch)
        positions *= ratio
        operations += 2 * positions * weights(mix)
    operations += 2 * positions * weights(first)
    for block, rate in zip(blocks, config.upsample_rates, strict=True):
        _, stretch, *units = (block["block"][index] for index in sorted(block["block"]))
        operations += 2 * positions * weights(stretch)
        positions *= rate
        operations += 2 * positions * weights(units)
    operations += 2 * positions * weights(last)
    read = size(kept) - size([kept["quantizer"][name]["vq"] for name in BOOKS])  # of those, a row for each code
    return Work(read / frames, operations)


def works(model: Model, cache: Tree, used: float, frames: int) -> dict[str, Work]:
    """Of each part: the talker with ``used`` (0 to 1) of a KV cache, the codec with so many frames at a time."""
    return {
        "talker": talker_work(model.params["talker"], cache, used),
        "predictor": predictor_work(model.params["talker"]["code_predictor"]),
        "codec": codec_work(model.params["codec"]["decoder"], model.codec_config.decoder_config, frames),
    }


def reached(work: Work, seconds: float, bandwidth: float, peak: float) -> dict[str, float]:
    """Fractions of what the machine allows: of its memory, of its float32 arithmetic.

    Args:
        work: of a frame.
        seconds: that a frame takes.
        bandwidth: bytes a second.
        peak: float32 operations a second.
    """
    return {"of_memory": work.bytes / bandwidth / seconds, "of_arithmetic": work.operations / peak / seconds}
