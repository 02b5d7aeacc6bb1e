"""What may enter the model: codes, ids and x-vectors against a checkpoint's config, and a voice on its own; refusals name the value."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from qwen3_jax import Voice
from qwen3_jax.model.checks import check_voice
from qwen3_jax.model.config import ModelConfig
from qwen3_jax.model.config_values import parse
from qwen3_jax.testing import tiny_config
from qwen3_jax.text.prompt import Prompt, build, check_prompt
from qwen3_jax.voices.voice import FORMAT, MAX_FRAMES

BASE = parse(ModelConfig, tiny_config())
X_VECTOR = np.linspace(-1, 1, 48, dtype=np.float32)
CODES = np.arange(80, dtype=np.int32).reshape(5, 16)
TURN = np.array([257, 256, 10, 1, 2, 3, 258, 10, 257, 256, 10])  # body 1 2 3
REFERENCE = np.array([257, 256, 10, 7, 8, 258, 10])  # body 7 8


def at(array: np.ndarray, index: Any, value: Any) -> np.ndarray:
    """A copy with one value changed."""
    copied = array.copy()
    copied[index] = value
    return copied


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_vector": at(X_VECTOR, 3, np.nan)}, r"x_vector\[3\] = nan, one of 1: every value must be finite, .*; clone the voice again"),
        ({"x_vector": at(X_VECTOR, 3, -np.inf)}, r"x_vector\[3\] = -inf"),
        ({"x_vector": at(X_VECTOR.astype(np.float64), 3, 1e39)}, r"x_vector\[3\] = 1e\+39"),
        ({"x_vector": at(X_VECTOR, 3, -3.4e38)}, r"x_vector\[3\] = -3\.39.*e\+38, .*and at most 1e\+17, or float32 and bfloat16 overflow"),
        ({"x_vector": at(X_VECTOR, 3, 2e17)}, r"x_vector\[3\] = 1.99.*e\+17"),
        ({"x_vector": np.arange(48)}, r"x_vector of shape \(48,\), int64: must be one axis of finite floats"),
        ({"x_vector": X_VECTOR[None]}, r"x_vector of shape \(1, 48\), float32"),
        ({"x_vector": X_VECTOR[:0]}, r"x_vector of shape \(0,\)"),
        ({"x_vector": X_VECTOR.astype(complex)}, "complex128"),
        ({"codes": CODES.astype(float)}, r"codes of shape \(5, 16\), float64: must be integers \[frames, books\]"),
        ({"codes": CODES > 3}, "bool: must be integers"),
        ({"codes": CODES[0]}, r"codes of shape \(16,\)"),
        ({"codes": CODES[:0]}, r"codes of shape \(0, 16\), int32: must be integers .* with at least one frame"),
        ({"codes": CODES[:, :0]}, r"codes of shape \(5, 0\)"),
        ({"codes": at(CODES, (2, 5), -1)}, r"codes\[2, 5\] = -1: must be an entry of book 5, from 0 on; clone the voice again"),
        ({"codes": at(CODES.astype(np.int64), (2, 5), 2**31)}, r"codes\[2, 5\] = 2147483648"),
        (
            {"codes": np.zeros((MAX_FRAMES + 1, 16), np.int32)},
            "codes of 4097 frames: at most 4096 can be read; clone the voice from 3 to 30 s",
        ),
        ({"transcript": 5}, "transcript of type int: must be a string"),
        ({"name": None}, "name of type NoneType: must be a string"),
        ({"transcript": None}, "both codes and transcript"),
    ],
)
def test_a_voice_that_is_none_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Voice(**({"x_vector": X_VECTOR, "codes": CODES, "transcript": "Words.", "name": "v"} | changes))


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_a_voice_keeps_float32_and_int32(dtype: Any) -> None:
    voice = Voice(X_VECTOR.astype(dtype), CODES.astype(np.uint16), "Words.")
    assert (voice.x_vector.dtype, voice.codes.dtype) == (np.float32, np.int32)
    np.testing.assert_allclose(voice.x_vector, X_VECTOR, atol=4e-3)
    np.testing.assert_array_equal(voice.codes, CODES)


def saved(**arrays: np.ndarray) -> bytes:
    return save({"x_vector": X_VECTOR, "codes": CODES} | arrays, {"format": FORMAT, "name": "v", "transcript": "Words."})


def test_a_saved_voice_that_is_damaged_is_a_value_error(tmp_path: Path) -> None:
    for content, message in (
        (saved(x_vector=at(X_VECTOR, 3, np.nan)), r"x_vector\[3\] = nan"),
        (saved(codes=at(CODES, (0, 0), -3)), r"codes\[0, 0\] = -3"),
        (saved(codes=CODES.astype(np.float32)), "float32: must be integers"),
        (saved()[:-1], ""),
        (saved()[: len(saved()) // 2], ""),
        (b"", ""),
    ):
        (tmp_path / "v.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=f"v.safetensors is not a voice file: .*{message}"):
            Voice.load(tmp_path / "v.safetensors")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_happens_to_a_saved_voice_is_a_value_error_or_a_voice(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = bytearray(saved())
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(whole[: data.draw(st.integers(len(whole) // 2, len(whole)))])
    try:
        voice = Voice.load(path)
    except ValueError:
        return
    assert np.isfinite(voice.x_vector).all() and (voice.codes is None or voice.codes.min() >= 0)


@pytest.mark.parametrize(
    ("x_vector", "codes", "message"),
    [
        (X_VECTOR[:-1], CODES, r"voice 'v': x-vector of shape \(47,\): this checkpoint takes \(48,\); clone the voice with it again"),
        (X_VECTOR, CODES[:, :15], "voice 'v': codes of 15 books: this checkpoint has 16"),
        (
            X_VECTOR,
            at(CODES, (4, 0), 2048),
            r"voice 'v': codes\[4, 0\] = 2048, one of 1: book 0 has the entries 0 to 2047; clone the voice",
        ),
        (X_VECTOR, at(CODES, (4, 15), 2048), r"codes\[4, 15\] = 2048, one of 1: book 15 has the entries 0 to 2047"),
        (X_VECTOR, at(CODES, slice(2), 99999), r"codes\[0, 0\] = 99999, one of 32"),
    ],
)
def test_a_voice_of_another_checkpoint_is_refused_by_name(x_vector: np.ndarray, codes: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_voice(BASE, Voice(x_vector, codes, "Words.", "v"))


def test_a_voice_that_was_damaged_after_it_was_made_is_refused_where_it_is_used() -> None:
    voice = Voice(X_VECTOR.copy(), CODES.copy(), "Words.", "v")
    check_voice(BASE, voice)
    voice.codes[1, 1] = -7
    with pytest.raises(ValueError, match=r"voice 'v': codes\[1, 1\] = -7"):
        check_voice(BASE, voice)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"input_ids": at(TURN, 4, 320)},
            r"input_ids\[4\] = 320: must be an id of the checkpoint's text vocabulary, 0 to 319; use the tok",
        ),
        ({"input_ids": at(TURN, 4, -1)}, r"input_ids\[4\] = -1"),
        ({"reference_ids": at(REFERENCE, 3, 320)}, r"reference_ids\[3\] = 320"),
        ({"instruct_ids": np.array([1.5])}, r"instruct_ids of shape \(1,\), float64: must be one axis of integers"),
        ({"reference_codes": at(CODES, (2, 0), 2149)}, r"codes\[2, 0\] = 2149, one of 1: book 0 has the entries 0 to 2047"),
        ({"x_vector": at(X_VECTOR, 0, np.nan)}, r"x_vector\[0\] = nan"),
    ],
)
def test_a_prompt_is_built_of_what_the_checkpoint_has(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"input_ids": TURN, "x_vector": X_VECTOR, "reference_ids": REFERENCE, "reference_codes": CODES}
    check_prompt(BASE, build(BASE, **given))
    with pytest.raises(ValueError, match=message):
        build(BASE, **(given | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": np.array([320, 1])}, r"prompt text\[0\] = 320: must be an id of the checkpoint's text vocabulary, -1 to 319"),
        ({"text": np.array([-2, 1])}, r"prompt text\[0\] = -2"),
        ({"text": np.array([0.5, 1])}, "prompt text of shape .*float64"),
        ({"trailing": np.array([4, 320])}, r"trailing text\[1\] = 320"),
        ({"codes": np.full((2, 16), 3072)}, r"prompt codes\[0, 0\] = 3072, one of 32: book 0 has the entries -1 to 3071"),
        ({"codes": np.full((2, 16), -2)}, r"prompt codes\[0, 0\] = -2"),
        ({"codes": np.full((2, 15), 1)}, "prompt codes of 15 books"),
        ({"codes": np.full((2, 16), 1.0)}, "prompt codes of shape .*float64: must be integers"),
        ({"codes": np.full((3, 16), 1)}, "a prompt of 2 text ids, 3 rows of codes"),
        ({"speaker": np.zeros(2, int)}, "a speaker array of .*int64: must be"),
        ({"text": np.zeros(0, int), "codes": np.zeros((0, 16), int), "speaker": np.zeros(0, bool)}, "at least one row"),
        ({"x_vector": np.full(48, np.inf)}, r"x_vector\[0\] = inf, one of 48"),
        ({"x_vector": np.zeros(47)}, r"x-vector of shape \(47,\)"),
    ],
)
def test_a_prompt_made_by_hand_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    whole = Prompt(np.array([-1, 319]), np.array([[3071] + [-1] * 15] * 2), np.zeros(2, bool), None, np.zeros(0, np.int32))
    check_prompt(BASE, whole)
    with pytest.raises(ValueError, match=message):
        check_prompt(BASE, whole._replace(**changes))
