"""``speech_tokenizer/config.json`` of the codec that ships, in the published schema.

4.1 M parameters of decoder and 1.6 M of encoder, and the books of both halves, 1.7 M and 0.9 M, of different vectors (the decoder's say
more of the phase).
"""

from typing import Any

from qwen3_jax.model.config import CodecConfig
from qwen3_jax.model.config_values import parse
from training.latents.pitch_synchronous import RAMPS


def codec_config(latent: int, entries: int) -> dict[str, Any]:
    """``speech_tokenizer/config.json``: books of ``entries`` vectors of ``latent`` numbers (see latents/quantiser.py)."""
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


def parsed_config(latent: int, entries: int) -> CodecConfig:
    """The same, checked."""
    return parse(CodecConfig, codec_config(latent, entries))
