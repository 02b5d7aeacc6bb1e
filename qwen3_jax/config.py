"""A checkpoint's JSON files -> frozen configs, with what the published package assumes where a key is absent or null.

Names and defaults are those of `qwen-tts` 0.1.1 (core/models/configuration_qwen3_tts.py and
core/tokenizer_12hz/configuration_qwen3_tts_tokenizer_v2.py) and of transformers' MimiConfig. Files may be written by any version of
transformers, whole or as differences from the defaults: a key that nothing here reads is ignored, at every level, since such files are
full of them. A value that would change what is computed, in a way this code does not implement, is refused when the config is read.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
from msgspec import Meta

CONTROLS = 1024  # the last ids of book 0's vocabulary name no sound
Values = dict[str, Any]
T = TypeVar("T")
Size = Annotated[int, Meta(ge=1)]
Sizes = tuple[Size, ...]
Above0 = Annotated[float, Meta(gt=0, le=1e30)]  # no infinity


class _Config(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all configs: immutable."""

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {}  # keys that change the arithmetic -> the values that this code implements

    @classmethod
    def prepare(cls, values: Values) -> Values:
        """The JSON object as the fields state it. Raises ValueError for a value that is not supported."""
        return values


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{name} = {value!r} is not supported (allowed: {allowed})")


def _get(values: Values, name: str, kind: type[T], default: T) -> T:
    """A value that another one is judged by; its type is wrong in a file that somebody wrote by hand."""
    value = values.get(name, default)
    _require(isinstance(value, kind), name, value, f"of type {kind.__name__}")
    return value


def _words(allowed: tuple[Any, ...]) -> str:
    return " or ".join(json.dumps(value) for value in allowed)


# Attention, as each of the four transformers states it


def _plain_rope(values: Values, kinds: tuple[str, ...] = ("default",), layers: str = "full_attention") -> Values:
    """``rope_theta`` from wherever this version of transformers writes it: beside ``rope_scaling``, or in 5's ``rope_parameters``.

    The latter may have a block for each kind of layer: that of ``layers`` counts.
    """
    values = dict(values)
    _whole_rotation(values, "")
    for key in ("rope_scaling", "rope_parameters"):
        block = _get(values, key, dict, {})
        block = _get(block, layers, dict, block)
        for name in ("rope_type", "type"):
            _require(block.get(name) in (None, *kinds), f"{key}.{name}", block.get(name), _words(kinds))
        _whole_rotation(block, f"{key}.")
        if block.get("mrope_section") is not None:  # the three channels carry one position in TTS: sizes matter only in that they cover it
            sections, half = _get(block, "mrope_section", list, []), _get(values, "head_dim", int, 0) // 2
            _require(not half or sum(sections) == half, f"{key}.mrope_section", sections, f"the sum {half}")
        if block.get("rope_theta") is not None:
            theta = block["rope_theta"]
            stated = values.setdefault("rope_theta", theta)
            _require(stated == theta, f"{key}.rope_theta", theta, f"rope_theta's {stated!r}; leave one of the two out")
    return values


def _whole_rotation(values: Values, where: str) -> None:
    share = values.get("partial_rotary_factor")
    _require(share in (None, 1), f"{where}partial_rotary_factor", share, "1.0")


def _whole_attention(values: Values, positions: int, *, every_layer: bool) -> None:
    """Refuse a sliding window that hides a position which attention could see.

    Args:
        values: the config.
        positions: most that attention sees.
        every_layer: a window in use is every layer's; else that of the layers that ``layer_types`` or ``max_window_layers`` names.
    """
    window = _get(values, "sliding_window", int, 4096) if values.get("use_sliding_window") else None
    harmless = window is not None and window >= positions
    kinds = _get(values, "layer_types", list, [])
    for kind in kinds:
        _require(kind == "full_attention" or (kind == "sliding_attention" and harmless), "layer_types", kind, '"full_attention"')
    slides = every_layer or (not kinds and _get(values, "num_hidden_layers", int, 5) > _get(values, "max_window_layers", int, 28))
    _require(window is None or harmless or not slides, "sliding_window", window, f"{positions} or more; or use_sliding_window false")


def _check_heads(config: Any) -> None:
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    _require(heads % groups == 0, "num_key_value_heads", groups, f"a divisor of num_attention_heads {heads}")


def _with_head_dim(values: Values, hidden_size: int, heads: int) -> Values:
    """Where the files leave ``head_dim`` out, it is a head's share of ``hidden_size``; defaults are given."""
    share = _get(values, "hidden_size", int, hidden_size) // max(1, _get(values, "num_attention_heads", int, heads))
    return {"head_dim": share} | values


class PredictorConfig(_Config, frozen=True, kw_only=True):
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
        _whole_attention(values, _get(values, "num_code_groups", int, 32) + 1, every_layer=False)
        return _plain_rope(values)

    def __post_init__(self) -> None:
        _check_heads(self)
        _require(
            self.max_position_embeddings > self.num_code_groups,
            "max_position_embeddings",
            self.max_position_embeddings,
            "> num_code_groups",
        )


class TalkerConfig(_Config, frozen=True, kw_only=True):
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
        dialects = _get(values, "spk_is_dialect", dict, {})
        given = {name: dialects.get(name) or False for name in _get(values, "spk_id", dict, {})}
        _whole_attention(values, _get(values, "max_position_embeddings", int, 32768), every_layer=True)
        whole = _with_head_dim(values, 1024, 16) | {"spk_is_dialect": given}
        return {"code_predictor_config": {}} | _plain_rope(whole, ("default", "mrope"))

    def __post_init__(self) -> None:
        _check_heads(self)
        _require(
            self.num_code_groups == self.code_predictor_config.num_code_groups,
            "num_code_groups",
            self.num_code_groups,
            f"the code predictor's {self.code_predictor_config.num_code_groups}",
        )
        numbers = {name: getattr(self, name) for name in self.__struct_fields__ if name.startswith("codec_") and name.endswith("_id")}
        for name, ids in (("", numbers), ("codec_language_id.", self.codec_language_id), ("spk_id.", self.spk_id)):
            for key, number in ids.items():
                if isinstance(number, int):
                    _require(0 <= number < self.vocab_size, name + key, number, f"0 to {self.vocab_size - 1}, the vocab_size of the codec")
        for speaker, dialect in self.spk_is_dialect.items():
            _require(
                dialect is False or dialect in self.codec_language_id,
                f"spk_is_dialect.{speaker}", dialect, f"false, or one of {', '.join(self.codec_language_id)}",
            )  # fmt: skip

    @property
    def languages(self) -> tuple[str, ...]:
        """Language names, without the dialects, sorted."""
        return tuple(sorted(name for name in self.codec_language_id if "dialect" not in name))


class SpeakerEncoderConfig(_Config, frozen=True, kw_only=True):
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
        _require(self.sample_rate == 24000, "sample_rate", self.sample_rate, "24000")
        _require(
            len(self.enc_channels) == len(self.enc_kernel_sizes) == len(self.enc_dilations),
            "enc_channels", self.enc_channels, "as many as enc_kernel_sizes and enc_dilations",
        )  # fmt: skip


class ModelConfig(_Config, frozen=True, kw_only=True):
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
            _require(
                0 <= number < talker.text_vocab_size, f"{name}_token_id", number, f"0 to {talker.text_vocab_size - 1}, text_vocab_size"
            )
        _require(
            self.tts_model_type != "base" or encoder.enc_dim == talker.hidden_size,
            "speaker_encoder_config.enc_dim", encoder.enc_dim, f"the talker's hidden_size {talker.hidden_size}",
        )  # fmt: skip


class CodecEncoderConfig(_Config, frozen=True, kw_only=True):
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
        rate = 24000 / (2 * _product(_get(values, "upsampling_ratios", list, [8, 6, 5, 4])))
        for name in ("frame_rate", "_frame_rate"):  # another one would take the last convolution, of stride 2, away
            _require(values.get(name) in (None, rate), name, values.get(name), f"{rate:g}")
        return _plain_rope(_with_head_dim(values, 512, 8))

    def __post_init__(self) -> None:
        _check_heads(self)
        _require(
            self.codebook_dim == self.vector_quantization_hidden_dimension,
            "codebook_dim",
            self.codebook_dim,
            f"vector_quantization_hidden_dimension's {self.vector_quantization_hidden_dimension}",
        )


class CodecDecoderConfig(_Config, frozen=True, kw_only=True):
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
        for kind in _get(values, "layer_types", list, []):
            _require(kind == "sliding_attention", "layer_types", kind, '"sliding_attention"')
        return _plain_rope(_with_head_dim(values, 1024, 16), layers="sliding_attention")

    def __post_init__(self) -> None:
        _check_heads(self)


class CodecConfig(_Config, frozen=True, kw_only=True):
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
        _require(up == self.decode_upsample_rate, "decode_upsample_rate", self.decode_upsample_rate, f"the decoder's {up}")
        _require(down == self.encode_downsample_rate, "encode_downsample_rate", self.encode_downsample_rate, f"the encoder's {down}")


class GenerationConfig(_Config, frozen=True, kw_only=True):
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

    @classmethod
    def prepare(cls, values: Values) -> Values:
        greedy = {"temperature": "do_sample", "subtalker_temperature": "subtalker_dosample"}  # where nothing is drawn, 0 says so once more
        return {name: value for name, value in values.items() if value != 0 or values.get(greedy.get(name, ""), True)}

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "subtalker_temperature", "subtalker_top_p", "repetition_penalty"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "above 0")


def check_together(config: "ModelConfig", codec: "CodecConfig") -> None:
    """Refuse a talker whose codes the codec does not have.

    Raises:
        ValueError: they differ in the number of codebooks, or in their sizes.
    """
    talker, encoder, decoder = config.talker_config, codec.encoder_config, codec.decoder_config
    books, entries = talker.num_code_groups, min(talker.vocab_size - CONTROLS, talker.code_predictor_config.vocab_size)
    most = max(talker.vocab_size - CONTROLS, talker.code_predictor_config.vocab_size)
    _require(
        decoder.num_quantizers == books, "decoder_config.num_quantizers", decoder.num_quantizers, f"the talker's num_code_groups {books}"
    )
    number = codec.encoder_valid_num_quantizers
    _require(number == books <= encoder.num_quantizers, "encoder_valid_num_quantizers", number, f"the talker's num_code_groups {books}")
    _require(decoder.codebook_size >= most, "decoder_config.codebook_size", decoder.codebook_size, f"{most} or more, the talker's entries")
    _require(
        encoder.codebook_size <= entries, "encoder_config.codebook_size", encoder.codebook_size, f"{entries} at most, the talker's entries"
    )


C = TypeVar("C", bound=_Config)


def read(kind: type[C], path: Path) -> C:
    """Read one config file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a JSON object, a missing key, a wrong type or an unsupported value; names file and key.
    """
    try:
        return parse(kind, json.loads(path.read_text("utf-8-sig")))
    except ValueError as error:  # msgspec.ValidationError, json.JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{path}: {error}") from error


def parse(kind: type[C], values: Any) -> C:
    """The same from decoded JSON."""
    return _parse(kind, values, "")


def _parse(kind: type[C], values: Any, where: str) -> C:
    """``where``: the path of ``values`` in the file, with a dot at its end."""
    if not isinstance(values, dict):
        raise ValueError(f"{where[:-1] or 'the file'}: a JSON object is needed, found {type(values).__name__}")
    present = {key: _whole(value) for key, value in values.items() if value is not None}  # null is absent, as transformers writes it
    if values.get("sliding_window", 0) is None:  # but of a window null says that there is none
        present["use_sliding_window"] = False
    try:
        for key, allowed in kind.FIXED.items():
            _require(key not in present or present[key] in allowed, key, present.get(key), _words(allowed))
        prepared = kind.prepare(present)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error
    for field in msgspec.structs.fields(kind):
        if isinstance(field.type, type) and issubclass(field.type, _Config) and field.encode_name in prepared:
            prepared[field.encode_name] = _parse(field.type, prepared[field.encode_name], f"{where}{field.encode_name}.")
    try:
        return msgspec.convert(prepared, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{where[:-1] + ': ' if where else ''}{error}") from error


def _whole(value: Any) -> Any:
    """Numbers without a fraction as whole ones: some writers say 1024.0."""
    if isinstance(value, list):
        return [_whole(each) for each in value]
    if isinstance(value, dict):
        return {key: _whole(each) for key, each in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _product(numbers: Sequence[int]) -> int:
    _require(all(isinstance(number, int) and number > 0 for number in numbers), "rates", numbers, "whole numbers above 0")
    return math.prod(numbers)
