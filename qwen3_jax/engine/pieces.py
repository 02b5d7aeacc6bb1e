"""A prompt -> the pieces in which it is read. Their size follows from its length, not from the load. Each size is a program of its own."""

from collections.abc import Sequence

import numpy as np

from qwen3_jax.model.frame import PromptRows
from qwen3_jax.text.prompt import Prompt


def piece_for(sizes: Sequence[int], rows: int) -> int:
    """The first of ``sizes``, ascending, that holds so many rows; else the last, which is read again and again."""
    return next((size for size in sizes if rows <= size), sizes[-1])


def columns_for(lengths: Sequence[int], rows: int) -> int | None:
    """Columns of the cache that a prompt of so many rows begins with: the first of ``lengths`` with one to spare. None: it does not fit."""
    return next((length for length in lengths if length > rows), None)


def cut(prompt: Prompt, sizes: Sequence[int], width: int) -> list[tuple[PromptRows, int]]:
    """The pieces, each with its first position. ``width`` is that of the talker, H."""
    length = len(prompt.text)
    size = piece_for(sizes, length)
    x_vector = np.zeros(width, np.float32) if prompt.x_vector is None else prompt.x_vector

    def piece(array: np.ndarray, at: int, fill: int | bool) -> np.ndarray:
        part = array[at : at + size]
        return np.concatenate([part, np.full((size - len(part), *part.shape[1:]), fill, part.dtype)])[None]

    return [
        (
            PromptRows(
                piece(prompt.text, at, -1), piece(prompt.codes, at, -1), piece(prompt.speaker, at, False), x_vector[None],
                np.array([length], np.int32),
            ),
            at,
        )
        for at in range(0, length, size)
    ]  # fmt: skip


def silence(rows: int, books: int) -> Prompt:
    """A prompt of so many rows that says nothing."""
    return Prompt(np.full(rows, -1, np.int32), np.full((rows, books), -1, np.int32), np.zeros(rows, bool), None, np.zeros(0, np.int32))


def lengths_that_need(columns: int, lengths: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Lengths of prompts which between them need every program that a cache of so many columns, one of ``lengths``, begins with."""
    last = sizes[-1]
    ends = {*sizes, *(length - 1 for length in lengths if length <= last)}
    found: dict[tuple[int, bool], int] = {}
    for rows in sorted({1, *ends, *(end + 1 for end in ends), min(2 * last, lengths[-1] - 1)}):
        if columns_for(lengths, rows) == columns:
            found[piece_for(sizes, rows), rows > last] = rows
    return list(found.values()) or [columns // 2]
