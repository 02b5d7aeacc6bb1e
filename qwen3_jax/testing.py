"""Random checkpoints in the published layout, tiny by default: (kind, seed) -> a folder that loads, clones and "speaks" noise.

For tests, notebooks' CI and benchmarks; never the product's model. The numbers come by tensor name from NumPy's RandomState,
whose streams are frozen for good, so the goldens need no weights beside them: a seed makes the same folder anywhere.
Configs are written with all the keys that transformers writes, and the tensors that no computation reads are there too.
"""

import itertools
import json
import re
import zlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from qwen3_jax.checkpoint.mapping import flatten, source_of, targets
from qwen3_jax.model.config import CodecConfig, GenerationConfig, ModelConfig
from qwen3_jax.model.config_values import parse
from qwen3_jax.model.model import abstract

_LANGUAGES = {
    "chinese": 2055, "english": 2050, "german": 2053, "italian": 2070, "portuguese": 2071,
    "spanish": 2054, "japanese": 2058, "korean": 2064, "french": 2061, "russian": 2069,
}  # fmt: skip
_DIALECTS = {"sichuan_dialect": 2062, "beijing_dialect": 2074}
_SPEAKERS: dict[str, tuple[int, str | bool]] = {"ryan": (3061, False), "eric": (2875, "sichuan_dialect")}
_SPECIAL = ("<|im_start|>", "<|im_end|>", "<tts_pad>", "<tts_bos>", "<tts_eos>")
_TEXT_VOCABULARY = 320  # 256 bytes, "assistant", the special tokens, and room

Transformers = Literal["4.57", "5"]  # whose save_pretrained wrote the configs
# What PretrainedConfig adds to every config inside another one: in both versions, and in 4.57 alone.
_ALWAYS: dict[str, Any] = {
    "_name_or_path": "", "architectures": None, "chunk_size_feed_forward": 0, "dtype": None, "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_encoder_decoder": False, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "output_attentions": False, "output_hidden_states": False,
    "problem_type": None, "return_dict": True,
}  # fmt: skip
_ONLY_4: dict[str, Any] = {
    "add_cross_attention": False, "bad_words_ids": None, "begin_suppress_tokens": None, "bos_token_id": None,
    "cross_attention_hidden_size": None, "decoder_start_token_id": None, "diversity_penalty": 0.0, "do_sample": False,
    "early_stopping": False, "encoder_no_repeat_ngram_size": 0, "eos_token_id": None, "exponential_decay_length_penalty": None,
    "finetuning_task": None, "forced_bos_token_id": None, "forced_eos_token_id": None, "is_decoder": False, "length_penalty": 1.0,
    "max_length": 20, "min_length": 0, "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1,
    "output_scores": False, "pad_token_id": None, "prefix": None, "pruned_heads": {}, "remove_invalid_values": False,
    "repetition_penalty": 1.0, "return_dict_in_generate": False, "sep_token_id": None, "suppress_tokens": None,
    "task_specific_params": None, "temperature": 1.0, "tf_legacy_loss": False, "tie_encoder_decoder": False, "tokenizer_class": None,
    "top_k": 50, "top_p": 1.0, "torchscript": False, "typical_p": 1.0, "use_bfloat16": False,
}  # fmt: skip
_ATTENTION: dict[str, Any] = {"attention_bias": False, "attention_dropout": 0, "hidden_act": "silu"}
_DECODING: dict[str, Any] = _ATTENTION | {
    "initializer_range": 0.02, "sliding_window": None, "tie_word_embeddings": False, "use_cache": True, "use_sliding_window": False,
}  # fmt: skip

GOLDEN_SEEDS = {"base": 101, "custom_voice": 102, "voice_design": 103}  # of the checkpoints behind tests/golden


def tiny_config(kind: str = "base", size: str = "tiny", kv_heads: int = 2) -> dict[str, Any]:
    """``config.json`` of a talker of 3 layers and hidden size 48; in the ``size`` 0b6 the code predictor is as wide, as published."""
    custom = kind == "custom_voice"
    return {
        "architectures": ["Qwen3TTSForConditionalGeneration"], "model_type": "qwen3_tts", "tokenizer_type": "qwen3_tts_tokenizer_12hz",
        "tts_model_size": size, "tts_model_type": kind,
        "assistant_token_id": 256, "im_start_token_id": 257, "im_end_token_id": 258,
        "tts_pad_token_id": 259, "tts_bos_token_id": 260, "tts_eos_token_id": 261,
        "speaker_encoder_config": {
            "enc_dim": 48, "sample_rate": 24000, "enc_channels": [16, 16, 16, 16, 48], "enc_attention_channels": 8,
            "enc_se_channels": 8, "enc_res2net_scale": 4,
        },
        "talker_config": {
            "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": kv_heads,
            "head_dim": 16, "rope_theta": 1000000,
            "rope_scaling": {"interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default", "type": "default"},
            "max_position_embeddings": 32768, "vocab_size": 3072, "text_vocab_size": _TEXT_VOCABULARY, "text_hidden_size": 32,
            "num_code_groups": 16, "rms_norm_eps": 1e-6, "position_id_per_seconds": 13,
            "codec_bos_id": 2149, "codec_eos_token_id": 2150, "codec_pad_id": 2148, "codec_think_id": 2154,
            "codec_nothink_id": 2155, "codec_think_bos_id": 2156, "codec_think_eos_id": 2157,
            "codec_language_id": _LANGUAGES | (_DIALECTS if custom else {}),
            "spk_id": {name: number for name, (number, _) in _SPEAKERS.items()} if custom else {},
            "spk_is_dialect": {name: dialect for name, (_, dialect) in _SPEAKERS.items()} if custom else {},
            "code_predictor_config": {
                "hidden_size": 48 if size == "0b6" else 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": kv_heads, "head_dim": 16, "rope_theta": 1000000, "rope_scaling": None,
                "max_position_embeddings": 65536, "vocab_size": 2048, "num_code_groups": 16, "rms_norm_eps": 1e-6,
            },
        },
    }  # fmt: skip


def tiny_codec_config() -> dict[str, Any]:
    """``speech_tokenizer/config.json`` of a codec with 24 decoder channels."""
    return {
        "model_type": "qwen3_tts_tokenizer_12hz", "architectures": ["Qwen3TTSTokenizerV2Model"], "encoder_valid_num_quantizers": 16,
        "input_sample_rate": 24000, "output_sample_rate": 24000, "decode_upsample_rate": 1920, "encode_downsample_rate": 1920,
        "encoder_config": {
            "audio_channels": 1, "num_filters": 2, "kernel_size": 7, "residual_kernel_size": 3, "last_kernel_size": 3,
            "num_residual_layers": 1, "compress": 2, "dilation_growth_rate": 2, "upsampling_ratios": [8, 6, 5, 4], "hidden_size": 16,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 32,
            "hidden_act": "gelu", "norm_eps": 1e-5, "layer_scale_initial_scale": 0.01, "rope_theta": 10000.0,
            "max_position_embeddings": 8000, "sliding_window": 16, "num_quantizers": 32, "num_semantic_quantizers": 1,
            "codebook_size": 2048, "codebook_dim": 8, "vector_quantization_hidden_dimension": 8, "pad_mode": "constant",
            "use_causal_conv": True, "use_conv_shortcut": False, "normalize": False, "sampling_rate": 24000, "_frame_rate": 12.5,
            "upsample_groups": 16, "trim_right_ratio": 1.0,
        },
        "decoder_config": {
            "latent_dim": 32, "codebook_dim": 16, "codebook_size": 2048, "decoder_dim": 48, "hidden_size": 16, "intermediate_size": 32,
            "layer_scale_initial_scale": 0.01, "head_dim": 8, "num_attention_heads": 2, "num_hidden_layers": 2,
            "num_key_value_heads": 2, "num_quantizers": 16, "num_semantic_quantizers": 1, "rms_norm_eps": 1e-5, "rope_theta": 10000,
            "semantic_codebook_size": 4096, "sliding_window": 12, "upsample_rates": [8, 5, 4, 3], "upsampling_ratios": [2, 2],
            "max_position_embeddings": 8000,
        },
    }  # fmt: skip


def written(config: dict[str, Any], transformers: Transformers = "4.57") -> dict[str, Any]:
    """``tiny_config`` or ``tiny_codec_config`` as that version of transformers writes it: every key, and where it keeps them."""
    inner = _ALWAYS | (_ONLY_4 if transformers == "4.57" else {})
    version = {"transformers_version": {"4.57": "4.57.3", "5": "5.24.0"}[transformers]}
    if "talker_config" not in config:
        encoder = _roped(inner | _ATTENTION | {"initializer_range": 0.02, "use_cache": False} | config["encoder_config"], transformers)
        encoder |= {"model_type": "mimi", "use_streaming": False, "tie_word_embeddings": True}
        decoder = inner | _ATTENTION | config["decoder_config"] | {"model_type": ""}
        return config | version | {"encoder_config": encoder, "decoder_config": decoder}
    talker = dict(config["talker_config"])
    predictor = inner | _DECODING | talker["code_predictor_config"] | {"model_type": "qwen3_tts_talker_code_predictor"}
    predictor |= {"layer_types": ["full_attention"] * predictor["num_hidden_layers"], "max_window_layers": 28}
    talker = (_ALWAYS if transformers == "5" else {}) | _DECODING | talker | {"model_type": "qwen3_tts_talker"}
    talker = _roped(talker | {"code_predictor_config": _roped(predictor, transformers)}, transformers)
    encoder = dict(config["speaker_encoder_config"])
    if transformers == "5":  # which the official package cannot read again: its class takes no model_type
        encoder |= {"model_type": "", "mel_dim": 128, "enc_kernel_sizes": [5, 3, 3, 3, 1], "enc_dilations": [1, 2, 3, 4, 1]}
    whole = config | version | {"talker_config": talker, "speaker_encoder_config": encoder}
    if config["tts_model_type"] != "base":
        del whole["speaker_encoder_config"]  # as published
    return whole


def _roped(config: dict[str, Any], transformers: Transformers) -> dict[str, Any]:
    """transformers 5 keeps ``rope_theta`` and ``rope_scaling`` in one object."""
    if transformers == "4.57":
        return config
    kept = {key: value for key, value in config.items() if key not in ("rope_theta", "rope_scaling")}
    rope = {"rope_type": "default"} | (config.get("rope_scaling") or {}) | {"rope_theta": config["rope_theta"]}
    return kept | {"rope_parameters": rope}


class Listed(NamedTuple):
    """A tensor of a list: as the header of a safetensors file states it."""

    shape: tuple[int, ...]
    dtype: str


def read_tensor_list(file: Path) -> dict[str, Listed]:
    """``name<tab>shape<tab>dtype`` in each line; {a..b} in a name stands for each number from a to b."""
    found: dict[str, Listed] = {}
    for line in file.read_text("utf-8").splitlines():
        pattern, shape, dtype = line.split("\t")
        pieces = re.split(r"\{(\d+)\.\.(\d+)\}", pattern)
        numbers = [[str(n) for n in range(int(a), int(b) + 1)] for a, b in zip(pieces[1::3], pieces[2::3], strict=True)]
        for chosen in itertools.product(*numbers):
            full = "".join(itertools.chain.from_iterable(itertools.zip_longest(pieces[0::3], chosen, fillvalue="")))
            found[full] = Listed(tuple(int(size) for size in shape.split("x")), dtype)
    return found


def unread_tensors(codec: CodecConfig) -> dict[str, tuple[int, ...]]:
    """What the published speech tokenizer has and no computation reads: name -> shape."""
    encoder, decoder = codec.encoder_config, codec.decoder_config
    shapes: dict[str, tuple[int, ...]] = {}
    for kind, books in (("semantic", 1), ("acoustic", encoder.num_quantizers - 1)):
        rvq = f"encoder.quantizer.{kind}_residual_vector_quantizer"
        shapes[f"{rvq}.output_proj.weight"] = (encoder.hidden_size, encoder.codebook_dim, 1)
        for book in range(books):
            shapes[f"{rvq}.layers.{book}.codebook.initialized"] = (1,)
            if book >= codec.encoder_valid_num_quantizers - 1 and kind == "acoustic":
                shapes[f"{rvq}.layers.{book}.codebook.cluster_usage"] = (encoder.codebook_size,)
                shapes[f"{rvq}.layers.{book}.codebook.embed_sum"] = (encoder.codebook_size, encoder.codebook_dim)
    for part in ("first", "rest"):
        shapes[f"decoder.quantizer.rvq_{part}.input_proj.weight"] = (decoder.codebook_dim // 2, decoder.codebook_dim, 1)
    return shapes


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """float32 values of a size that keeps activations near 1 and the waveform inside [-1, 1]."""
    noise = np.random.RandomState([seed, zlib.crc32(name.encode())])
    if name.endswith("cluster_usage"):
        return noise.uniform(0.5, 3.5, shape).astype(np.float32)
    if name.endswith("initialized"):
        return np.ones(shape, np.float32)
    values = noise.standard_normal(shape).astype(np.float32)
    if len(shape) == 1:
        if "norm" in name and name.endswith("weight"):
            return 1 + 0.1 * values
        return values * (0.3 if name.endswith((".scale", "gamma")) else 0.05)
    if "embed" in name:
        return 0.7 * values
    values /= np.sqrt(np.prod(shape[1:], dtype=np.float32))
    if name == "talker.codec_head.weight":
        values[2150] *= 3.5  # so that end of speech is drawn now and then
    return values * 0.005 if name == "decoder.decoder.6.conv.weight" else values


def write_checkpoint(
    folder: Path, kind: str = "base", seed: int = 0, *, size: str = "tiny", with_tokenizer: bool = True,
    transformers: Transformers = "4.57", kv_heads: int = 2,
) -> Path:  # fmt: skip
    """Make a tiny random checkpoint (about 6 MB, float32) in the published layout. Returns ``folder``."""
    config, codec = written(tiny_config(kind, size, kv_heads), transformers), written(tiny_codec_config(), transformers)
    parsed = parse(CodecConfig, codec)
    _, tree = abstract(parse(ModelConfig, config), parsed)
    main, speech = "model.safetensors", "speech_tokenizer/model.safetensors"
    files: dict[str, dict[str, np.ndarray]] = {
        main: {}, speech: {name: random_tensor(name, shape, seed) for name, shape in unread_tensors(parsed).items()},
    }  # fmt: skip
    for path, leaf in flatten(tree).items():
        file = speech if path.startswith("codec.") else main
        for target in targets(path, tuple(leaf.shape)):
            name = source_of(target)
            files[file][name] = random_tensor(name, tuple(leaf.shape if target.number is None else leaf.shape[1:]), seed)
    (folder / "speech_tokenizer").mkdir(parents=True)
    for file, tensors in files.items():
        save_file(tensors, folder / file, {"format": "pt"})
    generation = msgspec.to_builtins(GenerationConfig(max_new_tokens=8192))
    generation |= {"_from_model_config": True, "eos_token_id": 2150, "pad_token_id": 2148, "transformers_version": "4.57.3"}
    for file, values in (("config.json", config), ("speech_tokenizer/config.json", codec), ("generation_config.json", generation)):
        (folder / file).write_text(json.dumps(values, indent=1), "utf-8")
    if with_tokenizer:
        byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def byte_tokenizer() -> Tokenizer:
    """One token a byte; "assistant" and the special tokens are whole, with the ids that ``tiny_config`` states."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(alphabet)}, []))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken("assistant", normalized=False)])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in _SPECIAL])
    return tokenizer
