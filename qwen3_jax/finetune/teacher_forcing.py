"""Teacher forcing: a prompt and the frames that follow it -> rows and labels -> scores of every book -> cross-entropy.

The forward is the one that speaks. An example is its prompt's rows (prompt.build) and one more row a frame, which is what generate.frame
feeds the talker after that frame: its sixteen codes and the next text token. `frame.embed` and the modules do the rest.

    row            ... | P-1           P            P+1          ...  P-1+N
    reads          ... | end of prompt frame 0      frame 1      ...  frame N-1
    label, book 0  -   | frame 0       frame 1      frame 2      ...  end of speech
    predictor      -   | frame 0       frame 1      frame 2      ...  -            from that row's hidden state and book 0

Nothing is shifted after that: a row's label stands at the row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_jax.model.cache import empty
from qwen3_jax.model.config import ModelConfig
from qwen3_jax.model.frame import PromptRows, embed
from qwen3_jax.model.predictor import Predictor
from qwen3_jax.model.talker import Talker
from qwen3_jax.shapes import F32, I32, Array, Float, Integer
from qwen3_jax.text.prompt import Prompt


class Example(NamedTuple):
    """One utterance: the rows that the talker reads, and their labels."""

    rows: Prompt  # of the prompt and of all frames
    labels: I32[np.ndarray, "T K"]  # of each row, -1 where there is none; the end of speech has book 0 only
    start: int  # the first row with a label


class ExampleBatch(NamedTuple):
    """Examples side by side, padded to one length."""

    rows: PromptRows  # [B T]; their x_vector is the speaker row's, their trailing is not read
    labels: I32[Array, "B T K"]
    picks: I32[Array, " N"]  # places of `labels`, counted through rows, that hold a whole frame; one without a frame is padding


class Scores(NamedTuple):
    """Logits of a batch."""

    first: F32[Array, "B T V"]  # of book 0, at every row
    rest: F32[Array, "N 15 _"]  # of books 1..15, of the picked frames


def align(prompt: Prompt, frames: I32[np.ndarray, "N K"], config: ModelConfig) -> Example:
    """Prompt and frames -> the rows that the talker reads while it makes them, and the labels of these rows."""
    count, start = len(frames), len(prompt.text)
    text = np.full(count, config.tts_pad_token_id, np.int32)
    text[: len(prompt.trailing)] = prompt.trailing[:count]
    labels = np.full((start + count, frames.shape[1]), -1, np.int32)
    labels[start - 1 : -1] = frames
    labels[-1, 0] = config.talker_config.codec_eos_token_id
    rows = Prompt(
        np.concatenate([prompt.text, text]),
        np.concatenate([prompt.codes, frames.astype(np.int32)]),
        np.concatenate([prompt.speaker, np.zeros(count, bool)]),
        prompt.x_vector,
        prompt.trailing[:0],
    )
    return Example(rows, labels, start - 1)


def pad(array: np.ndarray, fill: float, length: int) -> np.ndarray:
    """``array``, with rows of ``fill`` up to ``length``."""
    return np.concatenate([array, np.full((length - len(array), *array.shape[1:]), fill, array.dtype)])


def stack_rows(rows: Sequence[Prompt], length: int) -> PromptRows:
    """Rows of several examples, padded to ``length``."""
    x_vectors = [np.zeros(0, np.float32) if each.x_vector is None else each.x_vector for each in rows]
    return PromptRows(
        np.stack([pad(each.text, -1, length) for each in rows]),
        np.stack([pad(each.codes, -1, length) for each in rows]),
        np.stack([pad(each.speaker, False, length) for each in rows]),
        np.stack(x_vectors).astype(np.float32),
        np.array([len(each.text) for each in rows], np.int32),
    )


def whole_frames(labels: I32[np.ndarray, "B T K"]) -> Integer[np.ndarray, " N"]:
    """Places, counted through rows, whose label is a whole frame."""
    return np.flatnonzero(labels[:, :, -1].reshape(-1) >= 0)


def scores(talker: Talker, batch: ExampleBatch) -> Scores:
    """Logits of a batch. What is right of a row is not seen, so padding is free."""
    x = embed(talker, batch.rows)
    layers, kv_heads, head_dim = talker.kv_shape
    rows, length = batch.rows.text.shape
    hidden, _ = talker.model(x, empty(layers, rows, kv_heads, length, head_dim, x.dtype), jnp.zeros(rows, jnp.int32))
    picked = batch.labels.reshape(-1, talker.books)[batch.picks]
    first = talker.model.codec_embedding(picked[:, 0], talker.dtype)
    rest = predictor_logits(talker.code_predictor, hidden.reshape(-1, hidden.shape[-1])[batch.picks], first, picked[:, 1:])
    return Scores(talker.codec_head(hidden).astype(jnp.float32), rest)


def predictor_logits(
    predictor: Predictor, hidden: Float[Array, "N H"], embedding: Float[Array, "N H"], rest: I32[Array, "N 15"]
) -> F32[Array, "N 15 _"]:
    """Logits of books 1..15, given the books before each; ``embedding``: of book 0."""
    known = predictor.embed(rest, hidden.dtype)[:, :-1]
    states = predictor_states(predictor, jnp.concatenate([hidden[:, None], embedding[:, None], known], axis=1))
    logits = [head(states[:, number + 1]) for number, head in enumerate(predictor.lm_head)]
    return jnp.stack(logits, axis=1).astype(jnp.float32)


def predictor_states(predictor: Predictor, x: Float[Array, "N T H"]) -> Float[Array, "N T _"]:
    """The predictor's normed hidden states of whole sequences."""
    layers, kv_heads, head_dim = predictor.kv_shape
    cache = empty(layers, len(x), kv_heads, x.shape[1], head_dim, x.dtype)
    return predictor.hidden(x, cache, jnp.zeros(len(x), jnp.int32))[0]


def cross_entropy(logits: F32[Array, "... V"], labels: I32[Array, "..."]) -> F32[Array, "..."]:
    """Of each place, in nats; labels of -1 give numbers that nobody reads."""
    logs = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(logs, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean over the places of ``mask``; 0 if there is none."""
    counted = jnp.sum(jnp.where(mask, values.astype(jnp.float32), 0.0))
    return counted / jnp.maximum(jnp.sum(mask), 1).astype(jnp.float32)


def code_losses(
    first: F32[Array, "B T V"], rest: F32[Array, "N 15 _"], labels: I32[Array, "B T K"], targets: I32[Array, "N 15"], eos: int
) -> dict[str, jax.Array]:
    """Cross-entropies and shares of right guesses, means over frames.

    Args:
        first: logits of book 0.
        rest: logits of books 1..15, of picked frames.
        labels: of each row.
        targets: books 1..15 of the picked frames; -1: does not count.
        eos: end of speech in book 0.
    """
    label = labels[..., 0]
    there, ends = label >= 0, label == eos
    guess = jnp.argmax(first, axis=-1)
    return {
        "book_0": masked_mean(cross_entropy(first, label), there),
        "books_1_15": masked_mean(cross_entropy(rest, targets), targets >= 0),
        "right_0": masked_mean(guess == label, there),
        "right_1_15": masked_mean(jnp.argmax(rest, axis=-1) == targets, targets >= 0),
        "end_recall": masked_mean(guess == eos, ends),  # ends that are taken for one
        "end_early": masked_mean(guess == eos, there & ~ends),  # frames taken for an end
    }
