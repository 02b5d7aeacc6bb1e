"""The small codec that ships: its config in the published schema, and random weights to start from.

3.2 M parameters of decoder, 1.2 M of encoder, and the books twice (each half has its own copy in the published layout).
"""

import zlib
from typing import Any

import numpy as np

from qwen3_jax.config import CodecConfig, parse


def codec_config(latent: int, entries: int) -> dict[str, Any]:
    """``speech_tokenizer/config.json``: books of ``entries`` vectors of ``latent`` numbers (see latents.py)."""
    return {
        "model_type": "qwen3_tts_tokenizer_12hz", "architectures": ["Qwen3TTSTokenizerV2Model"], "encoder_valid_num_quantizers": 16,
        "input_sample_rate": 24000, "output_sample_rate": 24000, "decode_upsample_rate": 1920, "encode_downsample_rate": 1920,
        "encoder_config": {
            "audio_channels": 1, "num_filters": 16, "kernel_size": 7, "residual_kernel_size": 3, "last_kernel_size": 3,
            "num_residual_layers": 1, "compress": 2, "dilation_growth_rate": 2, "upsampling_ratios": [8, 6, 5, 4], "hidden_size": 128,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32, "intermediate_size": 256,
            "hidden_act": "gelu", "norm_eps": 1e-5, "layer_scale_initial_scale": 0.1, "rope_theta": 10000.0,
            "max_position_embeddings": 8000, "sliding_window": 250, "num_quantizers": 16, "num_semantic_quantizers": 1,
            "codebook_size": entries, "codebook_dim": latent, "vector_quantization_hidden_dimension": latent, "pad_mode": "constant",
            "use_causal_conv": True, "use_conv_shortcut": False, "normalize": False, "sampling_rate": 24000, "frame_rate": 12.5,
            "_frame_rate": 12.5, "upsample_groups": 128, "trim_right_ratio": 1.0,
        },
        "decoder_config": {
            "latent_dim": 192, "codebook_dim": 2 * latent, "codebook_size": entries, "decoder_dim": 256, "hidden_size": 160,
            "intermediate_size": 320, "layer_scale_initial_scale": 0.1, "head_dim": 32, "num_attention_heads": 5, "num_hidden_layers": 3,
            "num_key_value_heads": 5, "num_quantizers": 16, "num_semantic_quantizers": 1, "rms_norm_eps": 1e-5, "rope_theta": 10000,
            "semantic_codebook_size": entries, "sliding_window": 32, "upsample_rates": [8, 5, 4, 3], "upsampling_ratios": [2, 2],
            "max_position_embeddings": 8000,
        },
    }  # fmt: skip


def parsed(latent: int, entries: int) -> CodecConfig:
    """The same, checked."""
    return parse(CodecConfig, codec_config(latent, entries))


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
    if path == "decoder.6.conv.weight":
        return 0.03
    return 0.3 if path.endswith((".conv2.conv.weight", ".block.3.conv.weight")) else 1.0
