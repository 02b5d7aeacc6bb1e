"""A checkpoint's JSON files -> frozen configs, with what the published package assumes where a key is absent or null.

Names and defaults are those of `qwen-tts` 0.1.1 (core/models/configuration_qwen3_tts.py and
core/tokenizer_12hz/configuration_qwen3_tts_tokenizer_v2.py) and of transformers' MimiConfig. config_values.py has
how a file is read, whoever wrote it, and what is refused.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta

from qwen3_jax.model.config_values import Config, Values, check_heads, get, plain_rope, require, whole_attention, with_head_dim

CONTROLS = 1024  # the last ids of book 0's vocabulary name no sound
Size = Annotated[int, Meta(ge=1)]
Sizes = tuple[Size, ...]
Above0 = Annotated[float, Meta(gt=0, le=1e30)]  # no infinity


class PredictorConfig(Config, frozen=True, kw_only=True):
    """``code_predictor_config``: the MTP module that makes books 1..15 of a frame."""

    FIXED = {"hidden_act": ("silu", "swish"), "attention_bias": (False,), "tie_word_embeddings": (False,)}

    hidden_size: Size = 1024
    intermediate_size: Size = 3072
    num_hidden_layers: Size = 5
    num_attention_heads: Size = 16
    num_key_value_heads: Size = 8
    head_dim: Size = 128
    rope_theta: Above0 = 10000.0
    max_position_embeddings: Size = 32768
    vocab_size: Size = 2048
    num_code_groups: Size = 32
    rms_norm_eps: Above0 = 1e-6

    @classmethod
    def prepare(cls, values: Values) -> Values:
        whole_attention(values, get(values, "num_code_groups", int, 32) + 1, every_layer=False)
        return plain_rope(values)

    def __post_init__(self) -> None:
        check_heads(self)
        require(
            self.max_position_embeddings > self.num_code_groups,
            "max_position_embeddings",
            self.max_position_embeddings,
            "> num_code_groups",
        )


class TalkerConfig(Config, frozen=True, kw_only=True):
    """``talker_config``: the LM that makes book 0 of each frame."""

    FIXED = {"hidden_act": ("silu", "swish"), "attention_bias": (False,), "tie_word_embeddings": (False,)}

    hidden_size: Size = 1024
    intermediate_size: Size = 2048
    num_hidden_layers: Size = 20
    num_attention_heads: Size = 16
    num_key_value_heads: Size = 2
    head_dim: Size
    rope_theta: Above0 = 10000.0
    vocab_size: Size = 3072
    text_vocab_size: Size
    text_hidden_size: Size = 2048
    num_code_groups: Size = 32
    rms_norm_eps: Above0 = 1e-6
    codec_bos_id: int = 4197
    codec_eos_token_id: int = 4198
    codec_pad_id: int = 4196
    codec_think_id: int = 4202
    codec_nothink_id: int = 4203
    codec_think_bos_id: int = 4204
    codec_think_eos_id: int = 4205
    codec_language_id: dict[str, int] = {}
    spk_id: dict[str, int] = {}
    spk_is_dialect: dict[str, str | bool] = {}  # of every speaker; false where the file says nothing
    code_predictor_config: PredictorConfig

    @classmethod
    def prepare(cls, values: Values) -> Values:
        dialects = get(values, "spk_is_dialect", dict, {})
        given = {name: dialects.get(name) or False for name in get(values, "spk_id", dict, {})}
        whole_attention(values, get(values, "max_position_embeddings", int, 32768), every_layer=True)
        whole = with_head_dim(values, 1024, 16) | {"spk_is_dialect": given}
        return {"code_predictor_config": {}} | plain_rope(whole, ("default", "mrope"))

    def __post_init__(self) -> None:
        check_heads(self)
        require(
            self.num_code_groups == self.code_predictor_config.num_code_groups,
            "num_code_groups",
            self.num_code_groups,
            f"the code predictor's {self.code_predictor_config.num_code_groups}",
        )
        numbers = {name: getattr(self, name) for name in self.__struct_fields__ if name.startswith("codec_") and name.endswith("_id")}
        for name, ids in (("", numbers), ("codec_language_id.", self.codec_language_id), ("spk_id.", self.spk_id)):
            for key, number in ids.items():
                if isinstance(number, int):
                    require(0 <= number < self.vocab_size, name + key, number, f"0 to {self.vocab_size - 1}, the vocab_size of the codec")
        for speaker, dialect in self.spk_is_dialect.items():
            require(
                dialect is False or dialect in self.codec_language_id,
                f"spk_is_dialect.{speaker}", dialect, f"false, or one of {', '.join(self.codec_language_id)}",
            )  # fmt: skip

    @property
    def languages(self) -> tuple[str, ...]:
        """Language names, without the dialects, sorted."""
        return tuple(sorted(name for name in self.codec_language_id if "dialect" not in name))


class SpeakerEncoderConfig(Config, frozen=True, kw_only=True):
    """``speaker_encoder_config``: ECAPA-TDNN."""

    enc_dim: Size = 1024
    sample_rate: int = 24000
    mel_dim: Size = 128
    enc_channels: Sizes = (512, 512, 512, 512, 1536)
    enc_kernel_sizes: Sizes = (5, 3, 3, 3, 1)
    enc_dilations: Sizes = (1, 2, 3, 4, 1)
    enc_attention_channels: Size = 128
    enc_res2net_scale: Size = 8
    enc_se_channels: Size = 128

    def __post_init__(self) -> None:
        require(self.sample_rate == 24000, "sample_rate", self.sample_rate, "24000")
        require(
            len(self.enc_channels) == len(self.enc_kernel_sizes) == len(self.enc_dilations),
            "enc_channels", self.enc_channels, "as many as enc_kernel_sizes and enc_dilations",
        )  # fmt: skip


class ModelConfig(Config, frozen=True, kw_only=True):
    """``config.json`` of a checkpoint."""

    FIXED = {"quantization_config": ({},)}  # the tensors would be packed integers

    model_type: Literal["qwen3_tts"] = "qwen3_tts"
    tokenizer_type: Literal["qwen3_tts_tokenizer_12hz"]
    tts_model_size: str = ""
    tts_model_type: Literal["base", "custom_voice", "voice_design"]
    im_start_token_id: int = 151644
    im_end_token_id: int = 151645
    tts_pad_token_id: int = 151671
    tts_bos_token_id: int = 151672
    tts_eos_token_id: int = 151673
    assistant_token_id: int = 77091
    speaker_encoder_config: SpeakerEncoderConfig  # only Base checkpoints have such a part
    talker_config: TalkerConfig

    @classmethod
    def prepare(cls, values: Values) -> Values:
        if values.get("tts_model_type") != "base":  # such a checkpoint has no speaker encoder, whatever its file says of one
            return values | {"speaker_encoder_config": {}}
        return {"speaker_encoder_config": {}} | values

    def __post_init__(self) -> None:
        encoder, talker = self.speaker_encoder_config, self.talker_config
        for name in ("im_start", "im_end", "tts_pad", "tts_bos", "tts_eos"):
            number = getattr(self, f"{name}_token_id")
            require(0 <= number < talker.text_vocab_size, f"{name}_token_id", number, f"0 to {talker.text_vocab_size - 1}, text_vocab_size")
        require(
            self.tts_model_type != "base" or encoder.enc_dim == talker.hidden_size,
            "speaker_encoder_config.enc_dim", encoder.enc_dim, f"the talker's hidden_size {talker.hidden_size}",
        )  # fmt: skip


class CodecEncoderConfig(Config, frozen=True, kw_only=True):
    """``encoder_config`` of the speech tokenizer: the Mimi encoder."""

    # sliding_window is stated in the files too, but the published encoder attends to all that came before
    FIXED = {
        "hidden_act": ("gelu",),
        "attention_bias": (False,),
        "audio_channels": (1,),
        "num_residual_layers": (1,),
        "num_semantic_quantizers": (1,),
        "pad_mode": ("constant",),
        "use_causal_conv": (True,),
        "use_conv_shortcut": (False,),
        "normalize": (False,),
        "sampling_rate": (24000,),
    }

    num_filters: Size = 64
    kernel_size: Size = 7
    residual_kernel_size: Size = 3
    last_kernel_size: Size = 3
    compress: Size = 2
    upsampling_ratios: Sizes = (8, 6, 5, 4)
    hidden_size: Size = 512
    num_hidden_layers: Size = 8
    num_attention_heads: Size = 8
    num_key_value_heads: Size = 8
    head_dim: Size
    intermediate_size: Size = 2048
    norm_eps: Above0 = 1e-5
    rope_theta: Above0 = 10000.0
    num_quantizers: Size = 32
    codebook_size: Size = 2048
    codebook_dim: Size = 256
    vector_quantization_hidden_dimension: Size = 256

    @classmethod
    def prepare(cls, values: Values) -> Values:
        rate = 24000 / (2 * _product(get(values, "upsampling_ratios", list, [8, 6, 5, 4])))
        for name in ("frame_rate", "_frame_rate"):  # another one would take the last convolution, of stride 2, away
            require(values.get(name) in (None, rate), name, values.get(name), f"{rate:g}")
        return plain_rope(with_head_dim(values, 512, 8))

    def __post_init__(self) -> None:
        check_heads(self)
        require(
            self.codebook_dim == self.vector_quantization_hidden_dimension,
            "codebook_dim",
            self.codebook_dim,
            f"vector_quantization_hidden_dimension's {self.vector_quantization_hidden_dimension}",
        )


class CodecDecoderConfig(Config, frozen=True, kw_only=True):
    """``decoder_config`` of the speech tokenizer."""

    FIXED = {"hidden_act": ("silu", "swish"), "attention_bias": (False,), "num_semantic_quantizers": (1,)}

    latent_dim: Size = 1024
    codebook_dim: Size
    codebook_size: Size = 2048
    decoder_dim: Size = 1536
    hidden_size: Size = 1024
    intermediate_size: Size = 3072
    head_dim: Size
    num_attention_heads: Size = 16
    num_hidden_layers: Size = 8
    num_key_value_heads: Size = 16
    num_quantizers: Size = 16
    rms_norm_eps: Above0 = 1e-5
    rope_theta: Above0 = 10000.0
    sliding_window: Size = 72
    upsample_rates: Sizes = (8, 5, 4, 3)
    upsampling_ratios: Sizes = (2, 2)

    @classmethod
    def prepare(cls, values: Values) -> Values:
        for kind in get(values, "layer_types", list, []):
            require(kind == "sliding_attention", "layer_types", kind, '"sliding_attention"')
        return plain_rope(with_head_dim(values, 1024, 16), layers="sliding_attention")

    def __post_init__(self) -> None:
        check_heads(self)


class CodecConfig(Config, frozen=True, kw_only=True):
    """``speech_tokenizer/config.json``."""

    FIXED = {"input_sample_rate": (24000,), "output_sample_rate": (24000,), "quantization_config": ({},)}

    model_type: Literal["qwen3_tts_tokenizer_12hz"] = "qwen3_tts_tokenizer_12hz"
    encoder_valid_num_quantizers: Size = 16
    output_sample_rate: int = 24000
    decode_upsample_rate: int = 1920
    encode_downsample_rate: int = 1920
    encoder_config: CodecEncoderConfig
    decoder_config: CodecDecoderConfig

    @classmethod
    def prepare(cls, values: Values) -> Values:
        return {"encoder_config": {}} | values

    def __post_init__(self) -> None:
        up = _product((*self.decoder_config.upsample_rates, *self.decoder_config.upsampling_ratios))
        down = 2 * _product(self.encoder_config.upsampling_ratios)
        require(up == self.decode_upsample_rate, "decode_upsample_rate", self.decode_upsample_rate, f"the decoder's {up}")
        require(down == self.encode_downsample_rate, "encode_downsample_rate", self.encode_downsample_rate, f"the encoder's {down}")


class GenerationConfig(Config, frozen=True, kw_only=True):
    """``generation_config.json``: the defaults of a request. As in the package, no other key of that file has an effect."""

    do_sample: bool = True
    repetition_penalty: float = 1.05
    temperature: float = 0.9
    top_p: float = 1.0
    top_k: int = 50
    subtalker_dosample: bool = True
    subtalker_temperature: float = 0.9
    subtalker_top_p: float = 1.0
    subtalker_top_k: int = 50
    max_new_tokens: Annotated[int, Meta(ge=2)] = 2048  # the last one never becomes a frame
    # Ours, named after the package's arguments: how a voice is cloned, and whether the whole text is read before the first frame, unless
    # the caller says. None: as the package does for the kind of checkpoint.
    x_vector_only_mode: bool = False
    non_streaming_mode: bool | None = None
    normalize: bool = False  # numbers, abbreviations, Markdown and the like are read as words (spoken/), unless the caller says

    @property
    def streaming_text(self) -> bool | None:
        """The inverse of ``non_streaming_mode``: whether one text token is read a frame; None: by the kind of checkpoint."""
        return None if self.non_streaming_mode is None else not self.non_streaming_mode

    @classmethod
    def prepare(cls, values: Values) -> Values:
        greedy = {"temperature": "do_sample", "subtalker_temperature": "subtalker_dosample"}  # where nothing is drawn, 0 says so once more
        return {name: value for name, value in values.items() if value != 0 or values.get(greedy.get(name, ""), True)}

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "subtalker_temperature", "subtalker_top_p", "repetition_penalty"):
            require(getattr(self, name) > 0, name, getattr(self, name), "above 0")


def check_together(config: "ModelConfig", codec: "CodecConfig") -> None:
    """Refuse a talker whose codes the codec does not have.

    Raises:
        ValueError: they differ in the number of codebooks, or in their sizes.
    """
    talker, encoder, decoder = config.talker_config, codec.encoder_config, codec.decoder_config
    books, entries = talker.num_code_groups, min(talker.vocab_size - CONTROLS, talker.code_predictor_config.vocab_size)
    most = max(talker.vocab_size - CONTROLS, talker.code_predictor_config.vocab_size)
    require(
        decoder.num_quantizers == books, "decoder_config.num_quantizers", decoder.num_quantizers, f"the talker's num_code_groups {books}"
    )
    number = codec.encoder_valid_num_quantizers
    require(number == books <= encoder.num_quantizers, "encoder_valid_num_quantizers", number, f"the talker's num_code_groups {books}")
    require(decoder.codebook_size >= most, "decoder_config.codebook_size", decoder.codebook_size, f"{most} or more, the talker's entries")
    require(
        encoder.codebook_size <= entries, "encoder_config.codebook_size", encoder.codebook_size, f"{entries} at most, the talker's entries"
    )


def _product(numbers: Sequence[int]) -> int:
    require(all(isinstance(number, int) and number > 0 for number in numbers), "rates", numbers, "whole numbers above 0")
    return math.prod(numbers)
