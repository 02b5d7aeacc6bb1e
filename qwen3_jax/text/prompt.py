"""Token ids and a voice -> prompt rows. Everything here is integers on the host; the device sums the embeddings.

Each position of a prompt adds up to three things, so three arrays say all of it:

    text    [T]     id in the text vocabulary, or -1           -> T(id)
    codes   [T 16]  code per book, or -1                       -> sum of C_book(code)
    speaker [T]     True where the x-vector stands             -> x-vector

    row          0 1 2 | 3     4         5      6       7     8    | 9 ...
    text         role  | pad   pad       pad    pad     pad   bos  | the text, or its first token
    codes        -     | think think_bos lang   think_e spk   pad  | bos, pad or the reference frames

``trailing`` [Q] holds the text ids that are added, one a frame, while speech is being made; after them every frame adds
tts_pad. Source: `qwen-tts` 0.1.1, modeling_qwen3_tts.py (generate, generate_icl_prompt); layout in words in that package's
comments.
"""

from typing import NamedTuple

import numpy as np

from qwen3_jax.model import checks
from qwen3_jax.model.config import ModelConfig
from qwen3_jax.shapes import F32, I32, Float, Integer
from qwen3_jax.text.languages import language_name, spoken_elsewhere
from qwen3_jax.voices.voice import spelling

ROLE = 3  # <|im_start|> assistant \n
CLOSING = 5  # <|im_end|> \n <|im_start|> assistant \n
REFERENCE_CLOSING = 2  # <|im_end|> \n
AUTO = "auto"


class Prompt(NamedTuple):
    """One request, before any embedding."""

    text: I32[np.ndarray, " T"]
    codes: I32[np.ndarray, "T K"]
    speaker: np.ndarray  # bool [T]
    x_vector: Float[np.ndarray, " H"] | None
    trailing: I32[np.ndarray, " Q"]


class _Rows:
    """Collects rows; each part of the prompt appends its own."""

    def __init__(self, books: int) -> None:
        self.books = books
        self.text: list[int] = []
        self.codes: list[list[int]] = []
        self.speaker: list[bool] = []

    def add(self, text: int = -1, code: int = -1, frame: list[int] | None = None, speaker: bool = False) -> None:
        self.text.append(text)
        self.codes.append(frame if frame is not None else [code] + [-1] * (self.books - 1))
        self.speaker.append(speaker)


def language_id(config: ModelConfig, language: str, speaker: str | None) -> int | None:
    """The codec id of a language; None for Auto. A preset speaker of a dialect speaks it in Chinese and in Auto.

    Raises:
        ValueError: a language or speaker that the checkpoint does not have.
    """
    talker = config.talker_config
    name = language_name(language)
    if speaker is not None and name in ("chinese", AUTO):
        dialect = talker.spk_is_dialect[speaker_name(config, speaker)]
        if isinstance(dialect, str):
            return talker.codec_language_id[dialect]
    if name == AUTO:
        return None
    if name not in talker.codec_language_id:
        raise ValueError(
            f"language {language!r}: this checkpoint speaks {', '.join(talker.languages)}, or auto{spoken_elsewhere(language)}"
        )
    return talker.codec_language_id[name]


def speaker_name(config: ModelConfig, speaker: str) -> str:
    """The checkpoint's spelling of a preset speaker.

    Raises:
        ValueError: the checkpoint has no such speaker.
    """
    known = config.talker_config.spk_id
    found = spelling(speaker, known)
    if found is None:
        have = f"this checkpoint has {', '.join(sorted(known))}" if known else "this checkpoint has no preset speakers; clone a voice"
        raise ValueError(f"unknown speaker {speaker!r}: {have}")
    return found


def build(
    config: ModelConfig,
    input_ids: Integer[np.ndarray, " T"],
    *,
    language: str = AUTO,
    speaker: str | None = None,
    x_vector: F32[np.ndarray, " H"] | None = None,
    reference_ids: Integer[np.ndarray, " _"] | None = None,
    reference_codes: I32[np.ndarray, "N K"] | None = None,
    instruct_ids: Integer[np.ndarray, " _"] | None = None,
    streaming_text: bool = True,
) -> Prompt:
    """Lay out one request.

    Args:
        config: the checkpoint's.
        input_ids: the whole assistant turn, role and closing included.
        language: a name of the checkpoint's, or auto.
        speaker: a preset speaker (custom_voice checkpoints).
        x_vector: the cloned voice's speaker embedding [H]; excludes ``speaker``.
        reference_ids: the reference transcript's turn; with ``reference_codes`` it selects in-context cloning.
        reference_codes: the reference audio's frames [N 16].
        instruct_ids: the instruction's turn.
        streaming_text: consume one text token a frame, instead of reading all of it before the first frame.

    Raises:
        ValueError: unknown language or speaker, text without a token, half a reference; ids, codes or an x-vector that the checkpoint
            does not have (model/checks.py).
    """
    talker = config.talker_config
    for name, ids in (("input_ids", input_ids), ("reference_ids", reference_ids), ("instruct_ids", instruct_ids)):
        if ids is not None:
            checks.text_ids(config, ids, name, least=0)
    body = np.asarray(input_ids)[ROLE:-CLOSING].tolist()
    if not body:
        raise ValueError("the text has no tokens: give at least one character that is spoken")
    if (reference_ids is None) != (reference_codes is None):
        raise ValueError("in-context cloning takes both the reference's transcript and its codes; give both or neither")
    if x_vector is not None:
        x_vector = checks.x_vector(config, x_vector)
    if reference_codes is not None:
        reference_codes = checks.reference(config, reference_codes)

    rows = _Rows(talker.num_code_groups)
    for token in [] if instruct_ids is None else np.asarray(instruct_ids).tolist():
        rows.add(text=token)
    for token in np.asarray(input_ids)[:ROLE].tolist():
        rows.add(text=token)
    _control(rows, config, language_id(config, language, speaker), speaker, x_vector is not None)
    if reference_ids is None or reference_codes is None:
        trailing = _plain(rows, config, body, streaming_text)
    else:
        reference = np.asarray(reference_ids)[ROLE:-REFERENCE_CLOSING].tolist()
        trailing = _in_context(rows, config, reference + body, np.asarray(reference_codes).tolist(), streaming_text)
    return Prompt(
        np.array(rows.text, np.int32),
        np.array(rows.codes, np.int32),
        np.array(rows.speaker, bool),
        x_vector,
        np.array(trailing, np.int32),
    )


def as_arrays(prompt: Prompt) -> Prompt:
    """A prompt that was laid out by hand, in the arrays that the device takes.

    Raises:
        ValueError: something that is no Prompt, or an array of another kind.
    """
    if not isinstance(prompt, Prompt):
        raise ValueError(f"prompt of type {type(prompt).__name__}: must be a Prompt")
    kinds = {"text": "iu", "codes": "iu", "speaker": "b", "trailing": "iu"}
    arrays = {name: np.asarray(getattr(prompt, name)) for name in kinds}
    for name, array in arrays.items():
        if array.size and array.dtype.kind not in kinds[name]:
            what = {"speaker": "bool", "codes": "integers [rows, books]"}.get(name, "one axis of integers")
            raise ValueError(f"prompt.{name} of shape {array.shape}, {array.dtype}: must be {what}")
        if array.dtype.kind != "b" and array.size and not -(2**31) <= array.min() <= array.max() < 2**31:
            raise ValueError(f"prompt.{name} has numbers beyond int32: must be ids of the checkpoint")
    x_vector = None if prompt.x_vector is None else np.asarray(prompt.x_vector)
    if x_vector is not None and x_vector.dtype.name not in ("float16", "bfloat16", "float32", "float64"):
        raise ValueError(f"prompt.x_vector of shape {x_vector.shape}, {x_vector.dtype}: must be floats of 16 to 64 bits")
    return Prompt(
        arrays["text"].astype(np.int32, copy=False),
        arrays["codes"].astype(np.int32, copy=False),
        arrays["speaker"].astype(bool, copy=False),
        x_vector,
        arrays["trailing"].astype(np.int32, copy=False),
    )


def check_prompt(config: ModelConfig, prompt: Prompt) -> None:
    """Refuse a prompt that would make NaN: one that was laid out by hand, or for another checkpoint.

    Raises:
        ValueError: arrays of other shapes or types, no row, or a value that the checkpoint does not have.
    """
    rows = len(checks.text_ids(config, prompt.text, "prompt text"))
    checks.text_ids(config, prompt.trailing, "trailing text")
    checks.prompt_codes(config, prompt.codes)
    speaker = np.asarray(prompt.speaker)
    if not rows or len(prompt.codes) != rows or speaker.shape != (rows,) or speaker.dtype != bool:
        raise ValueError(
            f"a prompt of {rows} text ids, {len(prompt.codes)} rows of codes and a speaker array of {speaker.shape}, {speaker.dtype}: must "
            "be one of each a row, bool for the speaker, and at least one row"
        )
    if prompt.x_vector is not None:
        checks.x_vector(config, prompt.x_vector)


def _control(rows: _Rows, config: ModelConfig, language: int | None, speaker: str | None, cloned: bool) -> None:
    """Language tag, speaker row, pad: text channel tts_pad, and tts_bos at the end. (codec_bos comes with the text.)"""
    talker = config.talker_config
    if language is None:
        tag = [talker.codec_nothink_id, talker.codec_think_bos_id, talker.codec_think_eos_id]
    else:
        tag = [talker.codec_think_id, talker.codec_think_bos_id, language, talker.codec_think_eos_id]
    for code in tag:
        rows.add(text=config.tts_pad_token_id, code=code)
    if cloned:
        rows.add(text=config.tts_pad_token_id, speaker=True)
    elif speaker is not None:
        rows.add(text=config.tts_pad_token_id, code=talker.spk_id[speaker_name(config, speaker)])
    rows.add(text=config.tts_bos_token_id, code=talker.codec_pad_id)


def _plain(rows: _Rows, config: ModelConfig, body: list[int], streaming_text: bool) -> list[int]:
    """x-vector, preset speaker or voice design."""
    talker = config.talker_config
    if streaming_text:
        rows.add(text=body[0], code=talker.codec_bos_id)
        return [*body[1:], config.tts_eos_token_id]
    for token in [*body, config.tts_eos_token_id]:
        rows.add(text=token, code=talker.codec_pad_id)
    rows.add(text=config.tts_pad_token_id, code=talker.codec_bos_id)
    return []


def _in_context(rows: _Rows, config: ModelConfig, text: list[int], frames: list[list[int]], streaming_text: bool) -> list[int]:
    """The reference's transcript runs beside its frames, and the new text follows."""
    talker = config.talker_config
    text = [*text, config.tts_eos_token_id]
    lane: list[list[int]] = [[talker.codec_bos_id] + [-1] * (rows.books - 1), *frames]
    if not streaming_text:
        for token in text:
            rows.add(text=token, code=talker.codec_pad_id)
        for frame in lane:
            rows.add(text=config.tts_pad_token_id, frame=frame)
        return []
    for position, frame in enumerate(lane):
        rows.add(text=text[position] if position < len(text) else config.tts_pad_token_id, frame=frame)
    return text[len(lane) :]
