"""Configs as transformers writes them, of any version, whole or as differences; what would change the arithmetic is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from qwen3_jax.model.config import CodecConfig, GenerationConfig, ModelConfig, check_together
from qwen3_jax.model.config_values import parse, read
from qwen3_jax.testing import tiny_codec_config, tiny_config, written
from tests.test_mapping import CHECKPOINTS, REFERENCE

FORMS = {
    path.relative_to(REFERENCE): path.name for folder in ("whole", "transformers-5") for path in sorted((REFERENCE / folder).glob("*.json"))
}


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_form_of_a_published_config_is_read_alike(form: Path) -> None:
    kind = CodecConfig if "Tokenizer" in form.name else ModelConfig
    assert read(kind, REFERENCE / form) == read(kind, REFERENCE / form.name)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_published_configs(name: str) -> None:
    config = read(ModelConfig, REFERENCE / f"{name}.config.json")
    large = name.startswith("1.7B")
    assert config.tts_model_size == ("1b7" if large else "0b6")
    talker = config.talker_config
    assert (talker.hidden_size, talker.num_hidden_layers, talker.head_dim) == (2048 if large else 1024, 28, 128)
    assert (talker.rope_theta, talker.code_predictor_config.rope_theta) == (1e6, 1e6)
    assert set(talker.spk_is_dialect) == set(talker.spk_id)
    assert bool(talker.spk_id) == ("Custom" in name)


@pytest.mark.parametrize("kind", ["base", "custom_voice", "voice_design"])
@pytest.mark.parametrize("transformers", ["4.57", "5"])
def test_test_checkpoints_have_the_keys_of_published_ones(kind: str, transformers: Any) -> None:
    def keys(values: dict[str, Any], path: str = "") -> set[str]:
        tables = ("codec_language_id", "spk_id", "spk_is_dialect", "id2label", "label2id")
        inner = [keys(value, f"{path}{name}.") for name, value in values.items() if isinstance(value, dict) and name not in tables]
        return set().union({path + name for name in values}, *inner)

    config, folder = written(tiny_config(kind), transformers), REFERENCE / ("transformers-5" if transformers == "5" else "")
    name = {"base": "0.6B-Base", "custom_voice": "1.7B-CustomVoice", "voice_design": "1.7B-VoiceDesign"}[kind]
    if (folder / f"{name}.config.json").is_file():
        published = keys(json.loads((folder / f"{name}.config.json").read_text("utf-8")))
        missing = {key for key in published - keys(config) if not key.startswith("speaker_encoder_config")}
        assert missing <= {"talker_config.rope_theta", "talker_config.code_predictor_config.rope_theta"}  # 5 states it twice
    assert parse(ModelConfig, config) == parse(ModelConfig, without_speaker_encoder(tiny_config(kind)))
    codec = written(tiny_codec_config(), transformers)
    assert parse(CodecConfig, codec) == parse(CodecConfig, tiny_codec_config())


def without_speaker_encoder(config: dict[str, Any]) -> dict[str, Any]:
    return config if config["tts_model_type"] == "base" else config | {"speaker_encoder_config": None}


def changed(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with one value put at a dotted path."""
    copy: dict[str, Any] = json.loads(json.dumps(config))
    *outer, last = path.split(".")
    place = copy
    for name in outer:
        place = place.setdefault(name, {})
    place[last] = value
    return copy


PREDICTOR = "talker_config.code_predictor_config"
# What a key that we do not read, or a value that changes nothing, may look like.
HARMLESS: list[tuple[str, Any]] = [
    ("a_key_of_2030", {"with": ["anything"]}),
    (f"{PREDICTOR}.a_key_of_2030", 1),
    ("tie_word_embeddings", True),  # the outer one: there is nothing to tie
    ("talker_config.attention_bias", None),
    ("talker_config.attention_dropout", 0.1),
    ("talker_config.hidden_act", "swish"),
    ("talker_config.hidden_size", 48.0),
    ("talker_config.rope_scaling", None),
    ("talker_config.rope_scaling", {"type": "mrope", "mrope_section": [4, 2, 2]}),
    ("talker_config.rope_parameters", {"rope_theta": 1e6, "rope_type": "default", "partial_rotary_factor": 1.0}),
    ("talker_config.layer_types", ["full_attention"] * 3),
    ("talker_config.use_sliding_window", True),  # the file says sliding_window null: no window
    ("talker_config.sliding_window", 4096),  # not in use
    (f"{PREDICTOR}.use_sliding_window", True),  # of the layers from max_window_layers on: there is none
    (f"{PREDICTOR}.layer_types", ["full_attention"] * 2),
    (f"{PREDICTOR}.tie_word_embeddings", False),
    ("talker_config.spk_is_dialect", None),
    ("tts_model_size", None),
    ("dtype", "bfloat16"),
    ("torch_dtype", "float16"),
    ("quantization_config", None),
    ("quantization_config", {}),
    ("talker_config.codec_language_id.english", 2050.0),
]
REFUSED: list[tuple[str, Any, str]] = [
    ("talker_config.attention_bias", True, r"talker_config\.attention_bias = True is not supported \(allowed: false\)"),
    (f"{PREDICTOR}.attention_bias", True, r"code_predictor_config\.attention_bias = True"),
    ("talker_config.hidden_act", "gelu", r"talker_config\.hidden_act = 'gelu'.*\"silu\""),
    (f"{PREDICTOR}.hidden_act", "relu", r"code_predictor_config\.hidden_act = 'relu'"),
    ("talker_config.tie_word_embeddings", True, r"talker_config\.tie_word_embeddings = True"),
    ("talker_config.layer_types", ["full_attention", "sliding_attention", "full_attention"], "layer_types = 'sliding_attention'"),
    (f"{PREDICTOR}.layer_types", ["chunked_attention"], "layer_types = 'chunked_attention'"),
    ("talker_config.rope_scaling", {"type": "linear", "factor": 2.0}, r"rope_scaling\.type = 'linear'"),
    (f"{PREDICTOR}.rope_scaling", {"rope_type": "yarn", "factor": 4.0}, r"code_predictor_config\.rope_scaling\.rope_type = 'yarn'"),
    ("talker_config.rope_scaling.mrope_section", [4, 2, 1], r"mrope_section = \[4, 2, 1\]"),
    (
        "talker_config.rope_parameters",
        {"rope_theta": 5e5, "rope_type": "default"},
        r"rope_parameters\.rope_theta = 500000 .*rope_theta's 1000000",
    ),
    (
        "talker_config.rope_parameters",
        {"full_attention": {"rope_type": "llama3", "rope_theta": 1e6}},
        r"rope_parameters\.rope_type = 'llama3'",
    ),
    ("talker_config.partial_rotary_factor", 0.5, "partial_rotary_factor = 0.5"),
    ("quantization_config", {"quant_method": "gptq"}, "quantization_config = .*gptq"),
    ("tokenizer_type", "qwen3_tts_tokenizer_25hz", "qwen3_tts_tokenizer_12hz|tokenizer_type"),
    ("tts_model_type", "singing", "tts_model_type|singing"),
    ("talker_config.hidden_size", "large", "talker_config.*hidden_size"),
    ("talker_config.hidden_size", 0, "hidden_size"),
    ("talker_config.spk_id", ["ryan"], r"spk_id = \['ryan'\].*of type dict"),
    ("talker_config.spk_id", {"ryan": 99999}, r"spk_id\.ryan = 99999.*0 to 3071"),
    ("talker_config.codec_eos_token_id", 4198, "codec_eos_token_id = 4198.*vocab_size"),
    ("talker_config.text_vocab_size", None, "text_vocab_size"),
    ("tts_pad_token_id", -1, r"tts_pad_token_id = -1.*0 to 319"),
    ("im_end_token_id", 320, r"im_end_token_id = 320.*0 to 319"),
    ("talker_config.rope_theta", float("inf"), "rope_theta"),
    ("talker_config.num_key_value_heads", 3, r"talker_config.*num_key_value_heads = 3.*a divisor of num_attention_heads 4"),
    ("talker_config", [], "talker_config: a JSON object is needed, found list"),
    (f"{PREDICTOR}.num_code_groups", 8, "num_code_groups = 16.*code predictor's 8"),
    ("speaker_encoder_config.sample_rate", 16000, r"speaker_encoder_config.*sample_rate = 16000"),
]
CODEC_HARMLESS: list[tuple[str, Any]] = [
    ("encoder_config.frame_rate", 12.5),
    ("encoder_config._frame_rate", None),
    ("encoder_config.use_streaming", True),
    ("encoder_config.use_cache", True),
    ("decoder_config.layer_types", ["sliding_attention", "sliding_attention"]),
    ("decoder_config.rope_parameters", {"sliding_attention": {"rope_theta": 10000, "rope_type": "default"}}),
    ("encoder_config.rope_parameters", {"rope_theta": 10000.0, "rope_type": "default"}),
]
CODEC_REFUSED: list[tuple[str, Any, str]] = [
    ("encoder_config.frame_rate", 25, "encoder_config.frame_rate = 25.*12.5"),
    ("encoder_config._frame_rate", 25.0, "encoder_config._frame_rate = 25.*12.5"),
    ("encoder_config.use_causal_conv", False, r"encoder_config\.use_causal_conv = False"),
    ("encoder_config.use_conv_shortcut", True, r"use_conv_shortcut = True"),
    ("encoder_config.pad_mode", "reflect", r"pad_mode = 'reflect'"),
    ("encoder_config.hidden_act", "silu", r"encoder_config\.hidden_act"),
    ("encoder_config.attention_bias", True, r"encoder_config\.attention_bias"),
    ("encoder_config.audio_channels", 2, "audio_channels = 2"),
    ("encoder_config.upsampling_ratios", ["a"], "whole numbers"),
    ("decoder_config.hidden_act", "gelu", r"decoder_config\.hidden_act"),
    ("decoder_config.attention_bias", True, r"decoder_config\.attention_bias"),
    ("decoder_config.layer_types", ["full_attention"], r"decoder_config\.layer_types = 'full_attention'"),
    ("decoder_config.rope_scaling", {"type": "dynamic"}, r"decoder_config\.rope_scaling\.type = 'dynamic'"),
    ("decode_upsample_rate", 960, "decode_upsample_rate = 960.*1920"),
    ("output_sample_rate", 48000, "output_sample_rate = 48000.*24000"),
    ("decoder_config", None, "decoder_config"),
    (
        "decoder_config.rope_parameters",
        {"full_attention": {"rope_theta": 10000}, "sliding_attention": {"rope_theta": 10000, "rope_type": "linear"}},
        r"rope_type = 'linear'",
    ),
    ("encoder_config.num_key_value_heads", 3, "num_key_value_heads = 3"),
]


@pytest.mark.parametrize(("path", "value"), HARMLESS, ids=lambda value: str(value)[:40])
def test_what_changes_nothing_is_taken(path: str, value: Any) -> None:
    for transformers in ("4.57", "5"):
        config = written(tiny_config("custom_voice"), transformers)
        if path.endswith(("rope_scaling", "rope_parameters")):
            config["talker_config"].pop("rope_scaling", None)
        parsed, plain = parse(ModelConfig, changed(config, path, value)), parse(ModelConfig, config)
        if path not in ("talker_config.spk_is_dialect", "tts_model_size"):
            assert parsed == plain


@pytest.mark.parametrize(("path", "value", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_changes_the_arithmetic_is_refused_by_name(path: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(ModelConfig, changed(written(tiny_config()), path, value))


@pytest.mark.parametrize(("path", "value"), CODEC_HARMLESS, ids=lambda value: str(value)[:40])
def test_the_codecs_harmless_values(path: str, value: Any) -> None:
    config = written(tiny_codec_config())
    assert parse(CodecConfig, changed(config, path, value)) == parse(CodecConfig, config)


@pytest.mark.parametrize(("path", "value", "message"), CODEC_REFUSED, ids=lambda value: str(value)[:40])
def test_the_codecs_refused_values(path: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(CodecConfig, changed(written(tiny_codec_config()), path, value))


def test_a_window_in_use_is_refused() -> None:
    config = changed(written(tiny_config()), "talker_config.sliding_window", 4096)
    with pytest.raises(ValueError, match=r"talker_config\.sliding_window = 4096"):
        parse(ModelConfig, changed(config, "talker_config.use_sliding_window", True))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("decoder_config.num_quantizers", 8, r"decoder_config\.num_quantizers = 8.*num_code_groups 16"),
        ("decoder_config.codebook_size", 1024, r"decoder_config\.codebook_size = 1024.*2048 or more"),
        ("encoder_config.codebook_size", 4096, r"encoder_config\.codebook_size = 4096.*2048 at most"),
        ("encoder_valid_num_quantizers", 8, "encoder_valid_num_quantizers = 8"),
        ("encoder_valid_num_quantizers", 40, "encoder_valid_num_quantizers = 40"),
    ],
)
def test_a_codec_that_lacks_the_talkers_codes(path: str, value: int, message: str) -> None:
    model = parse(ModelConfig, tiny_config())
    check_together(model, parse(CodecConfig, tiny_codec_config()))
    with pytest.raises(ValueError, match=message):
        check_together(model, parse(CodecConfig, changed(tiny_codec_config(), path, value)))


def test_differences_from_the_defaults_are_completed() -> None:
    """transformers leaves out what equals its class's default: those are the package's, not the tiny checkpoints'."""
    codec = {"encoder_config": None, "decoder_config": {"codebook_dim": 512, "hidden_size": 512, "head_dim": 64, "intermediate_size": 1024}}
    assert parse(CodecConfig, codec) == read(CodecConfig, REFERENCE / "Tokenizer-12Hz.config.json")
    published = json.loads((REFERENCE / "0.6B-Base.config.json").read_text("utf-8"))
    defaults = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 5, "rms_norm_eps": 1e-6, "head_dim": 128}
    kept = {name: value for name, value in published["talker_config"]["code_predictor_config"].items() if name not in defaults}
    short = changed(published, PREDICTOR, kept) | {"speaker_encoder_config": {"model_type": ""}}
    del (
        short["talker_config"]["head_dim"],
        short["talker_config"]["rope_scaling"],
        short["talker_config"]["code_predictor_config"]["layer_types"],
    )
    parsed, whole = parse(ModelConfig, short), parse(ModelConfig, published)
    assert parsed.talker_config.code_predictor_config == whole.talker_config.code_predictor_config
    assert parsed.speaker_encoder_config == whole.speaker_encoder_config
    assert parsed.talker_config.head_dim == 1024 // 16  # as the package has it where the file says nothing


def test_generation_config() -> None:
    values = {"_from_model_config": True, "eos_token_id": 2150, "pad_token_id": 2148, "top_k": None, "temperature": 1, "num_beams": 1}
    assert parse(GenerationConfig, values) == GenerationConfig(temperature=1.0)
    with pytest.raises(ValueError, match=r"top_p"):
        parse(GenerationConfig, {"top_p": "all"})
    greedy = parse(GenerationConfig, {"do_sample": False, "temperature": 0.0, "subtalker_dosample": False, "subtalker_temperature": 0})
    assert greedy == GenerationConfig(do_sample=False, subtalker_dosample=False)
    with pytest.raises(ValueError, match=r"temperature = 0"):
        parse(GenerationConfig, {"temperature": 0})
    with pytest.raises(ValueError, match="max_new_tokens"):
        parse(GenerationConfig, {"max_new_tokens": 1})


@pytest.mark.parametrize(("content", "message"), [(b"[]", "the file: a JSON object is needed"), (b"{", "line 1"), (b"\xff\xfe{", "utf-8")])
def test_a_file_that_is_no_config_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"config.json.*{message}"):
        read(ModelConfig, file)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()), "utf-8-sig")
    assert read(ModelConfig, tmp_path / "config.json") == parse(ModelConfig, tiny_config())
