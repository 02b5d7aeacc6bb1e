"""A checkpoint's JSON files -> frozen, total configs. A key we do not know, or a key that is missing, raises and is named.

Names and defaults are those of the published files (`qwen-tts` 0.1.1, core/models/configuration_qwen3_tts.py and
core/tokenizer_12hz/configuration_qwen3_tts_tokenizer_v2.py). Values that would change what is computed in a way this code
does not implement are refused when the config is read, not when it first matters.
"""

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

# What transformers' save_pretrained adds to a config and what changes nothing that is computed here.
IGNORED_KEYS = frozenset({"transformers_version", "torch_dtype", "dtype", "_name_or_path", "_attn_implementation_autoset"})


class _Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all configs: immutable, no unknown keys."""


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise ValueError(f"config: {name} = {value!r} is not supported (allowed: {allowed})")


class RopeScaling(_Frozen):
    """Three position channels, equal in TTS: plain RoPE, whatever the sections."""

    interleaved: bool
    mrope_section: list[int]
    rope_type: Literal["default"]
    type: Literal["default"]


class PredictorConfig(_Frozen):
    """``code_predictor_config``: the MTP module that makes books 1..15 of a frame."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float
    rope_scaling: None
    max_position_embeddings: int
    vocab_size: int
    num_code_groups: int
    rms_norm_eps: float

    def __post_init__(self) -> None:
        _require(
            self.max_position_embeddings > self.num_code_groups,
            "code_predictor.max_position_embeddings",
            self.max_position_embeddings,
            "> num_code_groups",
        )


class TalkerConfig(_Frozen):
    """``talker_config``: the LM that makes book 0 of each frame."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float
    rope_scaling: RopeScaling
    max_position_embeddings: int
    vocab_size: int
    text_vocab_size: int
    text_hidden_size: int
    num_code_groups: int
    rms_norm_eps: float
    hidden_act: Literal["silu"]
    position_id_per_seconds: int  # only the 25 Hz models' prompts use it
    codec_bos_id: int
    codec_eos_token_id: int
    codec_pad_id: int
    codec_think_id: int
    codec_nothink_id: int
    codec_think_bos_id: int
    codec_think_eos_id: int
    codec_language_id: dict[str, int]
    spk_id: dict[str, int]
    spk_is_dialect: dict[str, str | bool]
    code_predictor_config: PredictorConfig

    def __post_init__(self) -> None:
        sections = self.rope_scaling.mrope_section
        _require(sum(sections) == self.head_dim // 2, "talker.rope_scaling.mrope_section", sections, f"sum {self.head_dim // 2}")
        _require(
            self.num_code_groups == self.code_predictor_config.num_code_groups,
            "talker.num_code_groups",
            self.num_code_groups,
            "the predictor's",
        )
        _require(
            self.spk_id.keys() == self.spk_is_dialect.keys(), "talker.spk_is_dialect", sorted(self.spk_is_dialect), f"{sorted(self.spk_id)}"
        )

    @property
    def languages(self) -> tuple[str, ...]:
        """Language names, without the dialects, sorted."""
        return tuple(sorted(name for name in self.codec_language_id if "dialect" not in name))


class SpeakerEncoderConfig(_Frozen):
    """``speaker_encoder_config``: ECAPA-TDNN. The published file states two fields; the rest are the package's defaults."""

    enc_dim: int
    sample_rate: int
    mel_dim: int = 128
    enc_channels: tuple[int, ...] = (512, 512, 512, 512, 1536)
    enc_kernel_sizes: tuple[int, ...] = (5, 3, 3, 3, 1)
    enc_dilations: tuple[int, ...] = (1, 2, 3, 4, 1)
    enc_attention_channels: int = 128
    enc_res2net_scale: int = 8
    enc_se_channels: int = 128

    def __post_init__(self) -> None:
        _require(self.sample_rate == 24000, "speaker_encoder.sample_rate", self.sample_rate, "24000")
        _require(
            len(self.enc_channels) == len(self.enc_kernel_sizes) == len(self.enc_dilations),
            "speaker_encoder.enc_channels", self.enc_channels, "as many as enc_kernel_sizes and enc_dilations",
        )  # fmt: skip


class ModelConfig(_Frozen):
    """``config.json`` of a checkpoint."""

    architectures: list[str]
    model_type: Literal["qwen3_tts"]
    tokenizer_type: Literal["qwen3_tts_tokenizer_12hz"]
    tts_model_size: str
    tts_model_type: Literal["base", "custom_voice", "voice_design"]
    im_start_token_id: int
    im_end_token_id: int
    tts_pad_token_id: int
    tts_bos_token_id: int
    tts_eos_token_id: int
    assistant_token_id: int
    speaker_encoder_config: SpeakerEncoderConfig
    talker_config: TalkerConfig

    def __post_init__(self) -> None:
        _require(
            self.speaker_encoder_config.enc_dim == self.talker_config.hidden_size,
            "speaker_encoder.enc_dim", self.speaker_encoder_config.enc_dim, f"the talker's hidden_size {self.talker_config.hidden_size}",
        )  # fmt: skip


class CodecEncoderConfig(_Frozen):
    """``encoder_config`` of the speech tokenizer: the Mimi encoder."""

    audio_channels: Literal[1]
    num_filters: int
    kernel_size: int
    residual_kernel_size: int
    last_kernel_size: int
    num_residual_layers: Literal[1]
    compress: int
    dilation_growth_rate: int  # of the second residual layer on; there is one
    upsampling_ratios: tuple[int, ...]
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    hidden_act: Literal["gelu"]
    norm_eps: float
    layer_scale_initial_scale: float  # training only
    rope_theta: float
    max_position_embeddings: int
    sliding_window: int  # stated in the file; the published encoder attends to all that came before
    num_quantizers: int
    num_semantic_quantizers: Literal[1]
    codebook_size: int
    codebook_dim: int
    vector_quantization_hidden_dimension: int
    pad_mode: Literal["constant"]
    use_causal_conv: bool
    use_conv_shortcut: bool
    normalize: bool
    sampling_rate: int
    frame_rate: float
    saved_frame_rate: float = msgspec.field(name="_frame_rate")
    upsample_groups: int  # of Mimi's decoder, which is not part of the checkpoint
    trim_right_ratio: float  # of Mimi's decoder

    def __post_init__(self) -> None:
        _require(self.use_causal_conv, "encoder.use_causal_conv", self.use_causal_conv, "true")
        _require(not self.use_conv_shortcut, "encoder.use_conv_shortcut", self.use_conv_shortcut, "false")
        _require(not self.normalize, "encoder.normalize", self.normalize, "false")
        _require(
            self.codebook_dim == self.vector_quantization_hidden_dimension,
            "encoder.codebook_dim",
            self.codebook_dim,
            "vector_quantization_hidden_dimension",
        )


class CodecDecoderConfig(_Frozen):
    """``decoder_config`` of the speech tokenizer."""

    latent_dim: int
    codebook_dim: int
    codebook_size: int
    decoder_dim: int
    hidden_size: int
    intermediate_size: int
    layer_scale_initial_scale: float  # training only
    head_dim: int
    num_attention_heads: int
    num_hidden_layers: int
    num_key_value_heads: int
    num_quantizers: int
    num_semantic_quantizers: Literal[1]
    rms_norm_eps: float
    rope_theta: float
    semantic_codebook_size: int  # stated in the file, used by nothing: book 0 has codebook_size entries too
    sliding_window: int
    upsample_rates: tuple[int, ...]
    upsampling_ratios: tuple[int, ...]
    max_position_embeddings: int


class CodecConfig(_Frozen):
    """``speech_tokenizer/config.json``."""

    model_type: Literal["qwen3_tts_tokenizer_12hz"]
    architectures: list[str]
    encoder_valid_num_quantizers: int
    input_sample_rate: int
    output_sample_rate: int
    decode_upsample_rate: int
    encode_downsample_rate: int
    encoder_config: CodecEncoderConfig
    decoder_config: CodecDecoderConfig

    def __post_init__(self) -> None:
        _require(
            self.input_sample_rate == self.output_sample_rate == 24000,
            "codec sample rates",
            (self.input_sample_rate, self.output_sample_rate),
            "24000",
        )
        up = 1
        for rate in (*self.decoder_config.upsample_rates, *self.decoder_config.upsampling_ratios):
            up *= rate
        down = 2
        for rate in self.encoder_config.upsampling_ratios:
            down *= rate
        _require(up == self.decode_upsample_rate, "codec.decode_upsample_rate", self.decode_upsample_rate, f"the decoder's {up}")
        _require(down == self.encode_downsample_rate, "codec.encode_downsample_rate", self.encode_downsample_rate, f"the encoder's {down}")


class GenerationConfig(_Frozen):
    """``generation_config.json``: the defaults of a request. The published file states all of them."""

    do_sample: bool = True
    repetition_penalty: float = 1.05
    temperature: float = 0.9
    top_p: float = 1.0
    top_k: int = 50
    subtalker_dosample: bool = True
    subtalker_temperature: float = 0.9
    subtalker_top_p: float = 1.0
    subtalker_top_k: int = 50
    max_new_tokens: int = 2048
    # Ours, named after the package's arguments: how a voice is cloned, and whether the whole text is read before the first frame, unless
    # the caller says. None: as the package does for the kind of checkpoint.
    x_vector_only_mode: bool = False
    non_streaming_mode: bool | None = None


T = TypeVar("T", bound=_Frozen)


def read(kind: type[T], path: Path) -> T:
    """Read one config file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not JSON, an unknown or missing key, a wrong type or an unsupported value; names file and key.
    """
    try:
        return parse(kind, json.loads(path.read_text("utf-8")))
    except ValueError as error:  # msgspec.ValidationError and json.JSONDecodeError are ValueErrors
        raise ValueError(f"{path}: {error}") from error


def parse(kind: type[T], values: Any) -> T:
    """The same from decoded JSON."""
    if isinstance(values, dict):
        values = {key: value for key, value in values.items() if key not in IGNORED_KEYS}
    return msgspec.convert(values, kind)
