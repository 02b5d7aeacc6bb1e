"""The small checkpoint that ships: its configs in the published schema, and random weights to start from.

Codec: 4.1 M parameters of decoder and 1.6 M of encoder, and the books of both halves, 1.7 M and 0.9 M, of different vectors (the
decoder's say more of the phase).
Language model, with 512 entries a book and 1500 pieces of text: 10.3 M parameters, namely

    talker      4.42 M in its layers, 0.79 M in codec table and head, 0.37 M of text (table and projection)
    predictor   1.22 M in its layers, 0.05 M between the widths, 1.97 M in tables, 1.47 M in heads

A frame costs 9.7 M operations of the talker and 43.5 M of the predictor (16 positions), so a second of speech 0.67 G; reading a prompt
costs 8.8 M a row. The speaker encoder has 0.24 M parameters.
"""

import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from qwen3_jax.config import CodecConfig
from qwen3_jax.config_values import parse
from training.latents.locking import RAMPS

LANGUAGES = {
    "chinese": 7, "english": 2, "german": 5, "italian": 22, "portuguese": 23,
    "spanish": 6, "japanese": 10, "korean": 16, "french": 13, "russian": 21,
}  # fmt: skip
CONTROL = 1024  # ids after the entries of book 0, as published; generation never draws them, but for end of speech


def codec_config(latent: int, entries: int) -> dict[str, Any]:
    """``speech_tokenizer/config.json``: books of ``entries`` vectors of ``latent`` numbers (see latents.py)."""
    return {
        "model_type": "qwen3_tts_tokenizer_12hz", "architectures": ["Qwen3TTSTokenizerV2Model"], "encoder_valid_num_quantizers": 16,
        "input_sample_rate": 24000, "output_sample_rate": 24000, "decode_upsample_rate": 1920, "encode_downsample_rate": 1920,
        "encoder_config": {
            "audio_channels": 1, "num_filters": 16, "kernel_size": 7, "residual_kernel_size": 3, "last_kernel_size": 3,
            "num_residual_layers": 1, "compress": 2, "dilation_growth_rate": 2, "upsampling_ratios": [8, 6, 5, 4], "hidden_size": 160,
            "num_hidden_layers": 5, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 32, "intermediate_size": 512,
            "hidden_act": "gelu", "norm_eps": 1e-5, "layer_scale_initial_scale": 0.1, "rope_theta": 10000.0,
            "max_position_embeddings": 8000, "sliding_window": 250, "num_quantizers": 16, "num_semantic_quantizers": 1,
            "codebook_size": entries, "codebook_dim": latent, "vector_quantization_hidden_dimension": latent, "pad_mode": "constant",
            "use_causal_conv": True, "use_conv_shortcut": False, "normalize": False, "sampling_rate": 24000, "frame_rate": 12.5,
            "_frame_rate": 12.5, "upsample_groups": 160, "trim_right_ratio": 1.0,
        },
        "decoder_config": {
            "latent_dim": 256, "codebook_dim": 2 * (latent + 3 * RAMPS), "codebook_size": entries, "decoder_dim": 256, "hidden_size": 256,
            "intermediate_size": 96, "layer_scale_initial_scale": 0.1, "head_dim": 32, "num_attention_heads": 2, "num_hidden_layers": 1,
            "num_key_value_heads": 2, "num_quantizers": 16, "num_semantic_quantizers": 1, "rms_norm_eps": 1e-5, "rope_theta": 10000,
            "semantic_codebook_size": entries, "sliding_window": 32, "upsample_rates": [8, 5, 4, 3], "upsampling_ratios": [2, 2],
            "max_position_embeddings": 8000,
        },
    }  # fmt: skip


def parsed(latent: int, entries: int) -> CodecConfig:
    """The same, checked."""
    return parse(CodecConfig, codec_config(latent, entries))


def language_config(entries: int, text_vocabulary: int, token_ids: Mapping[str, int]) -> dict[str, Any]:
    """``config.json``: published control ids keep their distance from the entries of book 0.

    Args:
        entries: of a book.
        text_vocabulary: pieces of the tokenizer.
        token_ids: what `tokenizer.token_ids` says of it.
    """
    rotary = {"interleaved": True, "mrope_section": [12, 10, 10], "rope_type": "default", "type": "default"}
    return {
        "architectures": ["Qwen3TTSForConditionalGeneration"], "model_type": "qwen3_tts", "tokenizer_type": "qwen3_tts_tokenizer_12hz",
        "tts_model_size": "small", "tts_model_type": "base", **token_ids,
        "speaker_encoder_config": {
            "enc_dim": 256, "sample_rate": 24000, "enc_channels": [64, 64, 64, 64, 192], "enc_attention_channels": 32,
            "enc_se_channels": 32, "enc_res2net_scale": 8,
        },
        "talker_config": {
            "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 64, "rope_theta": 1000000, "rope_scaling": rotary, "max_position_embeddings": 32768,
            "vocab_size": entries + CONTROL, "text_vocab_size": text_vocabulary, "text_hidden_size": 192, "num_code_groups": 16,
            "rms_norm_eps": 1e-6, "hidden_act": "silu", "position_id_per_seconds": 13,
            "codec_pad_id": entries + 100, "codec_bos_id": entries + 101, "codec_eos_token_id": entries + 102,
            "codec_think_id": entries + 106, "codec_nothink_id": entries + 107, "codec_think_bos_id": entries + 108,
            "codec_think_eos_id": entries + 109, "codec_language_id": {name: entries + number for name, number in LANGUAGES.items()},
            "spk_id": {}, "spk_is_dialect": {},
            "code_predictor_config": {
                "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
                "head_dim": 48, "rope_theta": 1000000, "rope_scaling": None, "max_position_embeddings": 65536, "vocab_size": entries,
                "num_code_groups": 16, "rms_norm_eps": 1e-6,
            },
        },
    }  # fmt: skip


def language_start(shapes: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    """What talker, predictor and speaker encoder start from: `random_start`, but tables of embeddings, heads and added branches."""
    made = random_start(dict(shapes), seed)
    for path, value in made.items():
        rows = np.prod(value.shape[1:])
        if "embedding" in path:
            made[path] = value * np.float32(np.sqrt(rows) * (1.0 if "text_" in path else 0.25))  # sixteen are added up in a frame
        elif path.endswith(("o_proj.weight", "down_proj.weight")):
            made[path] = value * np.float32(0.3)
        elif "head" in path:
            made[path] = value * np.float32(0.2)
    return made


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
