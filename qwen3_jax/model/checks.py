"""What may enter the model: ids, codes and x-vectors against a checkpoint's config -> nothing, or a ValueError by name.

An id beyond a table reads NaN, which stays in the KV cache; so every way in comes by here: `prompt.build` and `prompt.check_prompt`.
"""

import numpy as np

from qwen3_jax.model.config import CONTROLS, ModelConfig
from qwen3_jax.shapes import F32, I32
from qwen3_jax.voices.voice import Voice, as_codes, as_x_vector


def check_voice(config: ModelConfig, voice: Voice) -> None:
    """Refuse a voice that the checkpoint cannot speak in.

    Raises:
        ValueError: its x-vector is of another width, or a code is no entry of its codebook; or its arrays have been damaged since.
    """
    try:
        x_vector(config, voice.x_vector)
        if voice.codes is not None:
            reference(config, voice.codes)
    except ValueError as error:
        raise ValueError(f"voice {voice.name!r}: {error}") from error


def x_vector(config: ModelConfig, values: np.ndarray) -> F32[np.ndarray, " H"]:
    """A speaker embedding of the talker's width, in float32.

    Raises:
        ValueError: another width, another type, or values that are not finite.
    """
    width = config.talker_config.hidden_size
    if np.shape(values) != (width,):
        raise ValueError(f"x-vector of shape {np.shape(values)}: this checkpoint takes ({width},); clone the voice with it again")
    return as_x_vector(values)


def reference(config: ModelConfig, values: np.ndarray) -> I32[np.ndarray, "N K"]:
    """A reference's frames in int32, each code an entry of its codebook.

    Raises:
        ValueError: not integers [frames, books], another number of books, none or too many frames, or a code that is no entry.
    """
    codes, talker = as_codes(values), config.talker_config
    _books(codes, talker.num_code_groups, talker.vocab_size - CONTROLS, talker.code_predictor_config.vocab_size, "codes", 0)
    return codes


def prompt_codes(config: ModelConfig, values: np.ndarray) -> None:
    """The codes [T K] of a prompt's rows: as a reference's, but book 0 has the control ids too, and -1 stands for no code.

    Raises:
        ValueError: another shape or type, or a code that the checkpoint does not have.
    """
    codes, talker = np.asarray(values), config.talker_config
    if codes.ndim != 2 or codes.dtype.kind not in "iu":
        raise ValueError(f"prompt codes of shape {codes.shape}, {codes.dtype}: must be integers [rows, books]")
    _books(codes, talker.num_code_groups, talker.vocab_size, talker.code_predictor_config.vocab_size, "prompt codes", -1)


def text_ids(config: ModelConfig, values: object, what: str, *, least: int = -1) -> I32[np.ndarray, " T"]:
    """Ids of the text vocabulary, in int32; -1, where ``least`` allows it, stands for no text.

    Raises:
        ValueError: not one axis of integers, or an id that the checkpoint does not have.
    """
    ids, size = np.asarray(values), config.talker_config.text_vocab_size
    if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
        raise ValueError(f"{what} of shape {ids.shape}, {ids.dtype}: must be one axis of integers")
    bad = np.flatnonzero((ids < least) | (ids >= size))
    if len(bad):
        raise ValueError(
            f"{what}[{bad[0]}] = {ids[bad[0]]}: must be an id of the checkpoint's text vocabulary, {least} to {size - 1}; use the "
            "tokenizer that belongs to the checkpoint"
        )
    return ids.astype(np.int32)


def _books(codes: np.ndarray, books: int, first: int, rest: int, what: str, least: int) -> None:
    if codes.shape[1] != books:
        raise ValueError(f"{what} of {codes.shape[1]} books: this checkpoint has {books}; clone the voice with it again")
    sizes = np.array([first] + [rest] * (books - 1))
    bad = np.argwhere((codes < least) | (codes >= sizes))
    if len(bad):
        row, book = bad[0]
        raise ValueError(
            f"{what}[{row}, {book}] = {codes[row, book]}, one of {len(bad)}: book {book} has the entries {least} to {sizes[book] - 1}; "
            "clone the voice again"
        )
