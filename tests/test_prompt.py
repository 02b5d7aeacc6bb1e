"""The layout of a prompt, position by position, in every form."""

import msgspec
import numpy as np
import pytest

from qwen3_jax.model.config import ModelConfig
from qwen3_jax.model.config_values import parse
from qwen3_jax.testing import tiny_config
from qwen3_jax.text.prompt import Prompt, as_arrays, build, speaker_name

BASE, CUSTOM = (parse(ModelConfig, tiny_config(kind)) for kind in ("base", "custom_voice"))
TALKER = BASE.talker_config
PAD, BOS, EOS = BASE.tts_pad_token_id, BASE.tts_bos_token_id, BASE.tts_eos_token_id
TURN = np.array([257, 256, 10, 1, 2, 3, 258, 10, 257, 256, 10])  # body 1 2 3
REFERENCE = np.array([257, 256, 10, 7, 8, 258, 10])  # body 7 8
FRAMES = np.arange(32).reshape(2, 16)
X_VECTOR = np.ones(48, np.float32)
TAG = [TALKER.codec_think_id, TALKER.codec_think_bos_id, 2050, TALKER.codec_think_eos_id]
AUTO_TAG = [TALKER.codec_nothink_id, TALKER.codec_think_bos_id, TALKER.codec_think_eos_id]


def test_x_vector_streaming() -> None:
    prompt = build(BASE, TURN, language="English", x_vector=X_VECTOR)
    assert prompt.text.tolist() == [257, 256, 10, PAD, PAD, PAD, PAD, PAD, BOS, 1]
    assert prompt.codes[:, 0].tolist() == [-1, -1, -1, *TAG, -1, TALKER.codec_pad_id, TALKER.codec_bos_id]
    assert (prompt.codes[:, 1:] == -1).all()
    assert np.flatnonzero(prompt.speaker).tolist() == [7]
    assert prompt.trailing.tolist() == [2, 3, EOS]


def test_x_vector_whole_text() -> None:
    prompt = build(BASE, TURN, x_vector=X_VECTOR, streaming_text=False)
    assert prompt.text.tolist() == [257, 256, 10, PAD, PAD, PAD, PAD, BOS, 1, 2, 3, EOS, PAD]
    assert prompt.codes[:, 0].tolist() == [-1, -1, -1, *AUTO_TAG, -1] + [TALKER.codec_pad_id] * 5 + [TALKER.codec_bos_id]
    assert prompt.trailing.tolist() == []


def test_in_context_text_longer_than_the_reference() -> None:
    prompt = build(BASE, TURN, x_vector=X_VECTOR, reference_ids=REFERENCE, reference_codes=FRAMES)
    assert prompt.text[8:].tolist() == [7, 8, 1]
    assert prompt.codes[8:].tolist() == [[TALKER.codec_bos_id] + [-1] * 15, *FRAMES.tolist()]
    assert prompt.trailing.tolist() == [2, 3, EOS]


def test_in_context_reference_longer_than_the_text() -> None:
    frames = np.arange(16 * 9).reshape(9, 16)
    prompt = build(BASE, TURN, x_vector=X_VECTOR, reference_ids=REFERENCE, reference_codes=frames)
    assert prompt.text[8:].tolist() == [7, 8, 1, 2, 3, EOS, PAD, PAD, PAD, PAD]
    assert prompt.trailing.tolist() == []


def test_in_context_whole_text() -> None:
    prompt = build(BASE, TURN, x_vector=X_VECTOR, reference_ids=REFERENCE, reference_codes=FRAMES, streaming_text=False)
    assert prompt.text[8:].tolist() == [7, 8, 1, 2, 3, EOS, PAD, PAD, PAD]
    assert prompt.codes[8:, 0].tolist() == [TALKER.codec_pad_id] * 6 + [TALKER.codec_bos_id, 0, 16]


def test_preset_speaker_is_a_row_of_the_codec_table() -> None:
    prompt = build(CUSTOM, TURN, language="english", speaker="Ryan")
    assert prompt.codes[7, 0] == 3061 and not prompt.speaker.any()


@pytest.mark.parametrize(("language", "tag"), [("auto", 2062), ("Chinese", 2062), ("english", 2050)])
def test_a_dialect_speaker_speaks_it_in_chinese_and_auto(language: str, tag: int) -> None:
    assert build(CUSTOM, TURN, language=language, speaker="Eric").codes[5, 0] == tag


def test_an_instruction_comes_first() -> None:
    plain, instructed = (build(CUSTOM, TURN, speaker="ryan", instruct_ids=ids) for ids in (None, np.array([257, 5, 6])))
    assert instructed.text.tolist() == [257, 5, 6, *plain.text.tolist()]
    assert (instructed.codes[:3] == -1).all()


def test_no_voice_at_all_has_no_speaker_row() -> None:
    assert len(build(BASE, TURN).text) == len(build(BASE, TURN, x_vector=X_VECTOR).text) - 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"language": "Klingon"}, "language 'Klingon': this checkpoint speaks chinese, english.*or auto"),
        ({"speaker": "Bob"}, "unknown speaker 'Bob': this checkpoint has eric, ryan"),
        ({"reference_ids": REFERENCE}, "both the reference's transcript and its codes"),
        ({"x_vector": np.ones(7, np.float32)}, r"x-vector of shape \(7,\): this checkpoint takes \(48,\)"),
        ({"input_ids": TURN[[0, 1, 2, 6, 7, 8, 9, 10]]}, "the text has no tokens"),
    ],
)
def test_bad_input_is_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(CUSTOM, **({"input_ids": TURN} | changes))


def test_a_base_checkpoint_says_that_it_has_no_speakers() -> None:
    with pytest.raises(ValueError, match="no preset speakers; clone a voice"):
        build(BASE, TURN, speaker="ryan")


def test_a_prompt_that_was_laid_out_by_hand_becomes_arrays() -> None:
    laid = build(BASE, TURN, x_vector=X_VECTOR)
    lists = Prompt(
        laid.text.tolist(), laid.codes.astype(np.int16), laid.speaker.tolist(), X_VECTOR.astype(np.float64), laid.trailing.astype(np.uint16)
    )
    for ours, expected in zip(as_arrays(lists), laid, strict=True):
        np.testing.assert_array_equal(ours, expected)
        assert ours.dtype.kind == expected.dtype.kind


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": np.array([1.5])}, r"prompt.text of shape \(1,\), float64: must be one axis of integers"),
        ({"text": np.array([1], "m8[s]")}, "prompt.text .*timedelta64.*integers"),
        ({"codes": "abc"}, "prompt.codes .*integers"),
        ({"speaker": np.zeros(3, np.int32)}, "prompt.speaker .*: must be bool"),
        ({"trailing": np.array([2**40])}, "prompt.trailing has numbers beyond int32"),
        ({"x_vector": "abc"}, "prompt.x_vector .*must be floats"),
        ({"x_vector": np.ones(48, np.longdouble)}, "prompt.x_vector .*float128.*must be floats"),
    ],
)
def test_what_is_no_prompt_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_arrays(build(BASE, TURN, x_vector=X_VECTOR)._replace(**change))
    with pytest.raises(ValueError, match="prompt of type tuple: must be a Prompt"):
        as_arrays((1, 2))


def test_a_speaker_in_any_case() -> None:
    talker = msgspec.structs.replace(CUSTOM.talker_config, spk_id={"Alice_Smith": 3000, "ryan": 3061})
    named = msgspec.structs.replace(CUSTOM, talker_config=talker)
    assert [speaker_name(named, name) for name in ("alice_smith", "Alice_Smith", "RYAN")] == ["Alice_Smith", "Alice_Smith", "ryan"]
    with pytest.raises(ValueError, match="unknown speaker 'bob': this checkpoint has Alice_Smith, ryan"):
        speaker_name(named, "bob")
