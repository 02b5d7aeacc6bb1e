"""What one frame is: the row that the talker reads -> 16 codes and the row that it reads next. Compiled inside of engine/programs.py.

One frame is 80 ms: the talker reads the next input row, book 0 is drawn from its hidden state, the predictor draws books 1 to 15, and the
sum of the sixteen embeddings plus the next text row is the next input.
Source: `qwen-tts` 0.1.1, modeling_qwen3_tts.py (generate; Qwen3TTSTalkerForConditionalGeneration.forward).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qwen3_jax.model.sampling import draw, restrict
from qwen3_jax.model.talker import Talker
from qwen3_jax.shapes import I32, Array, Bool, Float

RUNNING, EOS, LENGTH, NOT_FINITE = 0, 1, 2, 4  # finish reasons on the device; the engine has one more, see engine/slots.py
DAMAGED = (  # what follows a NaN or an infinity, and what to do
    "the voice, or the checkpoint's weights, are damaged: clone the voice again; if other voices fail as well, download or convert the "
    "checkpoint again"
)


class PromptRows(NamedTuple):
    """A piece of prompts, right-padded; ``length`` is that of the whole prompts."""

    text: I32[Array, "B T"]
    codes: I32[Array, "B T K"]
    speaker: Bool[Array, "B T"]
    x_vector: Float[Array, "B H"]
    length: I32[Array, " B"]


def bucket(size: int, sizes: tuple[int, ...], what: str) -> int:
    """The smallest of ``sizes`` that holds ``size``.

    Raises:
        ValueError: none does.
    """
    for candidate in sizes:
        if size <= candidate:
            return candidate
    raise ValueError(f"{what}: {size} is more than the {sizes[-1]} that fit; split the text or shorten the reference")


def embed(talker: Talker, rows: PromptRows) -> Float[Array, "B T H"]:
    """Text row + code rows + x-vector of each position."""
    text = talker.text_rows(rows.text)
    speaker = jnp.where(rows.speaker[..., None], rows.x_vector[:, None].astype(text.dtype), 0)
    return text + (talker.code_rows(rows.codes) + speaker)


def advance(
    talker: Talker, state: Any, text: Float[Array, "B H"], active: Bool[Array, " B"]
) -> tuple[Any, I32[Array, "B K"], Float[Array, "B H"], Bool[Array, " B"]]:
    """One frame of the rows that are ``active`` and running; the others stay as they are. A row whose scores are not finite is stopped
    with NOT_FINITE, before the frame.

    Args:
        talker: the talker.
        state: programs.State; its fields from ``caches`` to ``reason`` change.
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
