"""Prompts -> frames: prefill, then chunks of N frames from one compiled ``lax.while_loop``.

    prefill          prompt rows [B T] -> GenState (KV caches, next input row, keys, limits; all per row)
    generate_chunk   GenState -> GenState, frames [N B 16], counts [B]

One iteration of the loop is one frame (80 ms): the talker reads the next input row, book 0 is drawn from its hidden state,
the predictor draws books 1..15, and the sum of the sixteen embeddings plus the next text row is the next input. Streaming
and offline generation call the same function; only the number of frames per call differs.
Source: `qwen-tts` 0.1.1, modeling_qwen3_tts.py (generate; Qwen3TTSTalkerForConditionalGeneration.forward).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qwen3_jax.cache import KVCache, empty, grow
from qwen3_jax.prompt import Prompt
from qwen3_jax.sampling import Rules, draw, restrict
from qwen3_jax.shapes import I32, Array, Bool, Float, Key
from qwen3_jax.talker import Talker

RUNNING, EOS, LENGTH, NOT_FINITE = 0, 1, 2, 4  # finish reasons on the device; the engine has one more, see engine/slots.py
FINISH_REASONS = {EOS: "eos", LENGTH: "length", NOT_FINITE: "error"}
DAMAGED = (  # what follows a NaN or an infinity, and what to do
    "the voice, or the checkpoint's weights, are damaged: clone the voice again; if other voices fail as well, download or convert the "
    "checkpoint again"
)
PROMPT_BUCKETS = (32, 48, 64, 80, 96, 128, 160, 192, 256, 384, 512, 768, 1024, 2048, 4096)  # prompt rows; one trace each
TEXT_BUCKETS = (256, 2048)  # trailing text rows
CACHE_BUCKETS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)  # KV columns


class GenState(NamedTuple):
    """All that a batch carries from one chunk to the next. Every leaf has one entry per row."""

    caches: KVCache  # per layer, k and v [B J S D]
    inputs: Float[Array, "B H"]  # the row that the talker reads next
    position: I32[Array, " B"]  # the column it goes to
    step: I32[Array, " B"]  # frames made so far
    seen: Bool[Array, "B V"]  # book-0 ids made so far
    keys: Key[Array, " B"]
    rules: Rules
    limit: I32[Array, " B"]  # frames at most
    reason: I32[Array, " B"]  # RUNNING, EOS, LENGTH or NOT_FINITE
    trailing: Float[Array, "B Q H"]  # text rows still to be spoken, one a frame
    trailing_length: I32[Array, " B"]
    pad: Float[Array, "B H"]  # T(tts_pad), added once the text rows are used up


class Chunk(NamedTuple):
    """What one call made. Row b's frames are codes[:counts[b], b]; beyond that is garbage."""

    codes: I32[Array, "N B K"]
    hidden: Float[Array, "N B H"]  # the talker's normed hidden state that book 0 was drawn from
    counts: I32[Array, " B"]


class PromptRows(NamedTuple):
    """Prompts of a batch, right-padded to their buckets."""

    text: I32[Array, "B T"]
    codes: I32[Array, "B T K"]
    speaker: Bool[Array, "B T"]
    x_vector: Float[Array, "B H"]
    length: I32[Array, " B"]
    trailing: I32[Array, "B Q"]
    trailing_length: I32[Array, " B"]


def bucket(size: int, sizes: tuple[int, ...], what: str) -> int:
    """The smallest of ``sizes`` that holds ``size``.

    Raises:
        ValueError: none does.
    """
    for candidate in sizes:
        if size <= candidate:
            return candidate
    raise ValueError(f"{what}: {size} is more than the {sizes[-1]} that fit; split the text or shorten the reference")


def stack(prompts: list[Prompt], width: int) -> PromptRows:
    """Pad prompts to one bucket. ``width`` is the talker's hidden size.

    Raises:
        ValueError: a prompt or text longer than the largest bucket.
    """
    rows = bucket(max(len(p.text) for p in prompts), PROMPT_BUCKETS, "prompt rows")
    texts = bucket(max(len(p.trailing) for p in prompts), TEXT_BUCKETS, "text tokens")

    def padded(array: np.ndarray, length: int, fill: int | bool) -> np.ndarray:
        return np.concatenate([array, np.full((length - len(array), *array.shape[1:]), fill, array.dtype)])

    return PromptRows(
        np.stack([padded(p.text, rows, -1) for p in prompts]),
        np.stack([padded(p.codes, rows, -1) for p in prompts]),
        np.stack([padded(p.speaker, rows, False) for p in prompts]),
        np.stack([np.zeros(width, np.float32) if p.x_vector is None else p.x_vector for p in prompts]),
        np.array([len(p.text) for p in prompts], np.int32),
        np.stack([padded(p.trailing, texts, -1) for p in prompts]),
        np.array([len(p.trailing) for p in prompts], np.int32),
    )


def embed(talker: Talker, rows: PromptRows) -> Float[Array, "B T H"]:
    """Text row + code rows + x-vector of each position."""
    text = talker.text_rows(rows.text)
    speaker = jnp.where(rows.speaker[..., None], rows.x_vector[:, None].astype(text.dtype), 0)
    return text + (talker.code_rows(rows.codes) + speaker)


@functools.partial(jax.jit, static_argnames=("graphdef", "columns"))
def prefill(
    graphdef: Any,
    params: Any,
    rows: PromptRows,
    keys: Key[Array, " B"],
    rules: Rules,
    limit: I32[Array, " B"],
    pad_id: I32[Array, ""],
    *,
    columns: int,
) -> GenState:
    """Read the prompts; the state returned makes its first frame from their last row.

    Args:
        graphdef, params: the talker, split.
        rows: prompts padded to one bucket.
        keys: one PRNG key per row.
        rules: how each row draws.
        limit: frames each row may make.
        pad_id: id of tts_pad.
        columns: S of the KV cache, at least the prompt bucket plus one.
    """
    talker: Talker = nnx.merge(graphdef, params)
    batch, length = rows.text.shape
    x = embed(talker, rows)
    layers, kv_heads, head_dim = talker.kv_shape
    # Prompt-sized while reading, so that attention costs T x T; the last row is read again by the first step, in place.
    _, caches = talker.model(x, empty(layers, batch, kv_heads, length, head_dim, x.dtype), jnp.zeros(batch, jnp.int32))
    last = jnp.maximum(rows.length - 1, 0)
    return GenState(
        caches=grow(caches, columns),
        inputs=jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0],
        position=last,
        step=jnp.zeros(batch, jnp.int32),
        seen=jnp.zeros((batch, talker.codec_head.weight.shape[0]), bool),
        keys=keys,
        rules=rules,
        limit=limit,
        reason=jnp.where(limit > 0, RUNNING, LENGTH).astype(jnp.int32),
        trailing=talker.text_rows(rows.trailing),
        trailing_length=rows.trailing_length,
        pad=jnp.broadcast_to(talker.text_rows(pad_id[None]), (batch, x.shape[-1])),
    )


def advance(
    talker: Talker, state: Any, text: Float[Array, "B H"], active: Bool[Array, " B"]
) -> tuple[Any, I32[Array, "B K"], Float[Array, "B H"], Bool[Array, " B"]]:
    """One frame of the rows that are ``active`` and running; the others stay as they are. A row whose scores are not finite is stopped
    with NOT_FINITE, before the frame.

    Args:
        talker: the talker.
        state: GenState, or any NamedTuple with its fields from ``caches`` to ``reason`` (the engine's).
        text: text row of each row's next input.
        active: rows that may make a frame. A column that another row writes is garbage until it is that row's turn.

    Returns:
        the state, codes, the hidden state that book 0 was drawn from, and whether the row really made the frame.
    """
    hidden, caches = talker.model(state.inputs[:, None], state.caches, state.position)
    hidden = hidden[:, 0]
    keys = jax.vmap(jax.random.fold_in)(state.keys, state.step)
    books = jax.vmap(lambda key: jax.random.split(key, talker.books))(keys)  # [B 16]

    logits = talker.codec_head(hidden).astype(jnp.float32)
    logits = restrict(logits, state.seen, state.step, state.rules.penalty, talker.eos_id)
    first = draw(logits, books[:, 0], state.rules.talker)
    running = (state.reason == RUNNING) & active
    ended = running & (first == talker.eos_id)

    rest = talker.code_predictor.predict(
        hidden,
        talker.model.codec_embedding(first, talker.dtype),
        lambda scores, book: draw(scores, books[:, book], state.rules.predictor),
    )
    codes = jnp.concatenate([first[:, None], rest], axis=1)
    alive = running & ~ended & jnp.all(codes >= 0, axis=1)  # `draw` gives -1 where there is nothing to draw from
    one = alive.astype(jnp.int32)
    step = state.step + one
    state = state._replace(
        caches=caches,
        inputs=jnp.where(alive[:, None], talker.code_rows(codes[:, None])[:, 0] + text, state.inputs),
        position=state.position + one,
        step=step,
        seen=state.seen | (alive[:, None] & (jnp.arange(state.seen.shape[1])[None] == first[:, None])),
        reason=jnp.where(
            alive,
            jnp.where(step >= state.limit, LENGTH, state.reason),
            jnp.where(ended, EOS, jnp.where(running, NOT_FINITE, state.reason)),
        ),
    )
    return state, codes, hidden, alive


def frame(talker: Talker, state: GenState) -> tuple[GenState, I32[Array, "B K"], Float[Array, "B H"], Bool[Array, " B"]]:
    """One frame of every row: its codes, the hidden state, and whether the row really made it (else it had ended)."""
    text = jnp.take_along_axis(state.trailing, jnp.minimum(state.step, state.trailing.shape[1] - 1)[:, None, None], axis=1)[:, 0]
    text = jnp.where((state.step < state.trailing_length)[:, None], text, state.pad)
    return advance(talker, state, text, jnp.ones(text.shape[0], bool))


def chunk(talker: Talker, state: GenState, limit: I32[Array, ""], size: int) -> tuple[GenState, Chunk]:
    """Up to ``limit`` (at most ``size``) frames; stops early when every row has ended."""
    batch, width = state.inputs.shape
    made = Chunk(
        jnp.full((size, batch, talker.books), -1, jnp.int32),
        jnp.zeros((size, batch, width), state.inputs.dtype),
        jnp.zeros(batch, jnp.int32),
    )

    def going(carry: tuple[I32[Array, ""], GenState, Chunk]) -> Bool[Array, ""]:
        index, state, _ = carry
        return (index < limit) & jnp.any(state.reason == RUNNING)

    def one(carry: tuple[I32[Array, ""], GenState, Chunk]) -> tuple[I32[Array, ""], GenState, Chunk]:
        index, state, made = carry
        state, codes, hidden, alive = frame(talker, state)
        made = Chunk(made.codes.at[index].set(codes), made.hidden.at[index].set(hidden), made.counts + alive.astype(jnp.int32))
        return index + 1, state, made

    _, state, made = jax.lax.while_loop(going, one, (jnp.int32(0), state, made))
    return state, made


@functools.partial(jax.jit, static_argnames=("graphdef", "size"), donate_argnames=("state",))
def generate_chunk(graphdef: Any, params: Any, state: GenState, limit: I32[Array, ""], *, size: int) -> tuple[GenState, Chunk]:
    """Compiled ``chunk``. The caller sees to it that position + size <= S (see ``columns_for`` and ``grow_caches``)."""
    return chunk(nnx.merge(graphdef, params), state, limit, size)


@functools.partial(jax.jit, static_argnames=("columns",))
def grow_caches(caches: KVCache, *, columns: int) -> KVCache:
    """The same caches with S = ``columns``."""
    return grow(caches, columns)


def columns_for(position: int, size: int) -> int:
    """The cache bucket in which ``size`` more frames fit after column ``position``.

    Raises:
        ValueError: more than the largest bucket.
    """
    return bucket(position + size, CACHE_BUCKETS, "positions (prompt and frames)")
