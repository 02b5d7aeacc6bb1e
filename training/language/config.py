"""``config.json`` of the checkpoint that ships, in the published schema, and what its language model starts from.

With 512 entries a book and 1500 pieces of text the language model has 10.3 M parameters, namely

    talker      4.42 M in its layers, 0.79 M in codec table and head, 0.37 M of text (table and projection)
    predictor   1.22 M in its layers, 0.05 M between the widths, 1.97 M in tables, 1.47 M in heads

A frame costs 9.7 M operations of the talker and 43.5 M of the predictor (16 positions), so a second of speech 0.67 G; reading a prompt
costs 8.8 M a row. The speaker encoder has 0.24 M parameters.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from training.initialisation import random_start

LANGUAGES = {
    "chinese": 7, "english": 2, "german": 5, "italian": 22, "portuguese": 23,
    "spanish": 6, "japanese": 10, "korean": 16, "french": 13, "russian": 21,
}  # fmt: skip
CONTROL = 1024  # ids after the entries of book 0, as published; generation never draws them, but for end of speech


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
