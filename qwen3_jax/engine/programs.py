"""The engine's compiled functions: State of all slots in -> the same state, changed; donated, so that nothing is copied.

    open_row     a slot gets a new owner: keys, rules, limits, text, codec state; what it held is cleared
    read         one piece of a prompt [C rows] goes into the slot's columns, in place; the others' columns are not touched
    write_text   the slot's text has grown
    step         up to N frames of every slot that may make some: talker, predictor and codec, in one loop
    rewind       back to before the frames that are held, with another key
    keep         a copy of where a slot's codec is, to go on from in another slot

Everything about a slot is traced, so one compiled step serves any mixture of requests. The batch has one shape, whoever is in it, and
the codec decodes frame by frame inside the loop: so a row's codes and samples do not depend on the load or the size of packets at all,
and on the slot only in float32 rounding (a row at the edge of a tile is summed in another order; 3e-6 of a sample). (Timed for 10
rows of the small codec on two cores: 22 to 27 ms a frame one by one in the loop, 29 to 30 ms for four at once.)

A row that may not go on still computes: its results are dropped, and what it writes to its cache's next column is overwritten by the
operation that makes the column visible (see cache.py). So a paused slot needs no care, nor one whose prompt is half read.

A row that computes NaN or infinity is stopped with NOT_FINITE. Rows never mix, so the others go on; but a column that is masked is still
multiplied by 0, which leaves NaN: so an owner's columns are cleared before the next one reads any (2 x layers x J x S x D numbers; 6 MB of
the small voice, 235 MB in float32 and 117 in bfloat16 of the 0.6B one, at 1024 columns).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3_jax.cache import KVCache, LayerCache, SlotCache, empty
from qwen3_jax.codec.decoder import DecoderState
from qwen3_jax.engine.slots import RUNAWAY
from qwen3_jax.generate import NOT_FINITE, RUNNING, PromptRows, advance, embed
from qwen3_jax.sampling import Draws, Rules, segment_key
from qwen3_jax.shapes import F32, I32, Array, Bool, Float, Integer, Key
from qwen3_jax.talker import Talker

LAGS = 8  # frames back with which book 0 is compared


class Limits(NamedTuple):
    """See requests.Watch. In frames; rows that are not watched have limits that no utterance reaches."""

    hold: I32[Array, "..."]
    repeats: I32[Array, "..."]
    overdue: I32[Array, "..."]
    overdue_end: I32[Array, "..."]


class Mark(NamedTuple):
    """The rows as they were before the first frame that is held."""

    inputs: Float[Array, "B H"]
    position: I32[Array, " B"]
    step: I32[Array, " B"]
    seen: Bool[Array, "B V"]
    codec: DecoderState


class State(NamedTuple):
    """All slots. The first nine fields are those of generate.GenState, for `generate.advance`."""

    caches: KVCache  # per layer, k and v [B J S D]
    inputs: Float[Array, "B H"]
    position: I32[Array, " B"]
    step: I32[Array, " B"]
    seen: Bool[Array, "B V"]
    keys: Key[Array, " B"]
    rules: Rules
    limit: I32[Array, " B"]
    reason: I32[Array, " B"]
    text: I32[Array, "B Q"]  # trailing ids; their rows are made frame by frame, so that text may grow
    text_length: I32[Array, " B"]
    codec: DecoderState
    limits: Limits
    recent: I32[Array, "B LAGS"]  # book 0 of the last frames, the newest first; -1: none
    runs: I32[Array, "B LAGS"]  # for each lag, frames in a row that repeated
    held: I32[Array, " B"]  # frames since the mark; 0: no suspicion
    mark: Mark


class Made(NamedTuple):
    """What a step made. Row b's frames are the first counts[b]; beyond that is garbage."""

    codes: I32[Array, "N B K"]
    pcm: F32[Array, "N B F"]
    counts: I32[Array, " B"]
    reason: I32[Array, " B"]
    held: I32[Array, " B"]


def copies(talker: Any, slots: int) -> bool:
    """Whether the steps read a copy of the talker, in float32: of more than one row on a CPU, where narrower matrices pay for a single row
    only (layers.matmul)."""
    leaves = jax.tree.leaves(talker)
    return slots > 1 and any(leaf.dtype != jnp.float32 for leaf in leaves) and all(it.platform == "cpu" for it in leaves[0].devices())


def for_rows(talker: Any, slots: int) -> Any:
    """The talker's parameters as the steps read them."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), talker) if copies(talker, slots) else talker


def initial(talker: Talker, decoder: Any, slots: int, columns: int) -> State:
    """Slots that nobody owns. To be jitted, or only its shapes looked at (plan.py)."""
    layers, kv_heads, head_dim = talker.kv_shape
    entries, width = talker.model.codec_embedding.weight.shape

    def zeros(dtype: Any = jnp.int32, *axes: int) -> jax.Array:
        return jnp.zeros((slots, *axes), dtype)

    def draws() -> Any:
        return {"sample": zeros(bool), "temperature": zeros(jnp.float32) + 1, "top_k": zeros(), "top_p": zeros(jnp.float32) + 1}

    return State(
        caches=empty(layers, slots, kv_heads, columns, head_dim, talker.dtype),
        inputs=zeros(talker.dtype, width),
        position=zeros(),
        step=zeros(),
        seen=zeros(bool, entries),
        keys=jax.random.split(jax.random.key(0), slots),
        rules=Rules(Draws(**draws()), Draws(**draws()), zeros(jnp.float32) + 1),
        limit=zeros(),
        reason=zeros(),
        text=zeros(jnp.int32, columns),
        text_length=zeros(),
        codec=decoder.initial(slots),
        limits=Limits(zeros(), zeros(), zeros(), zeros()),
        recent=zeros(jnp.int32, LAGS) - 1,
        runs=zeros(jnp.int32, LAGS),
        held=zeros(),
        mark=Mark(zeros(talker.dtype, width), zeros(), zeros(), zeros(bool, entries), decoder.initial(slots)),
    )


@functools.partial(jax.jit, static_argnames=("talker_graph", "decoder_graph", "slots", "columns"))
def start(talker_graph: Any, talker: Any, decoder_graph: Any, decoder: Any, *, slots: int, columns: int) -> State:
    """`initial`, on the device of the parameters."""
    return initial(nnx.merge(talker_graph, talker), nnx.merge(decoder_graph, decoder), slots, columns)


def _put(whole: Any, row: Any, slot: I32[Array, ""]) -> Any:
    """Write one row of every array, or the beginning of one; ``row`` has the rows' axis too, of length 1."""
    return jax.tree.map(lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new.astype(x.dtype), slot, axis=0), whole, row)


class Opening(NamedTuple):
    """What a slot gets with a new segment; one row of everything."""

    seed: Integer[Array, ""]
    segment: I32[Array, ""]
    rules: Rules
    limit: I32[Array, ""]
    text: I32[Array, " Q"]
    text_length: I32[Array, ""]
    limits: Limits  # scalars
    codec: DecoderState | None  # None: the slot goes on with what it has, for the same owner


@functools.partial(jax.jit, donate_argnames=("state",))
def open_row(state: State, slot: I32[Array, ""], new: Opening) -> State:
    """A segment begins in a slot; its prompt is to be read next. Compiled twice: with a codec state, and without."""
    if new.codec is not None:
        state = _cleared(state, slot)._replace(codec=_put(state.codec, new.codec, slot))
    return state._replace(
        position=state.position.at[slot].set(0),
        step=state.step.at[slot].set(0),
        seen=state.seen.at[slot].set(False),
        keys=state.keys.at[slot].set(segment_key(new.seed, new.segment, jnp.int32(0))),
        rules=_put(state.rules, new.rules, slot),
        limit=state.limit.at[slot].set(new.limit),
        reason=state.reason.at[slot].set(RUNNING),
        text=state.text.at[slot].set(new.text),
        text_length=state.text_length.at[slot].set(new.text_length),
        limits=Limits(*(x.at[slot].set(value) for x, value in zip(state.limits, new.limits, strict=True))),
        recent=state.recent.at[slot].set(-1),
        runs=state.runs.at[slot].set(0),
        held=state.held.at[slot].set(0),
    )


def _cleared(state: State, slot: I32[Array, ""]) -> State:
    """Zeros for all numbers of a row that a NaN could hide in, but those of the codec."""

    def zeros(tree: Any) -> Any:
        return _put(tree, jax.tree.map(lambda x: jnp.zeros((1, *x.shape[1:]), x.dtype), tree), slot)

    return state._replace(caches=zeros(state.caches), inputs=zeros(state.inputs), mark=zeros(state.mark))


@functools.partial(jax.jit, donate_argnames=("state",))
def write_text(
    state: State,
    slot: I32[Array, ""],
    text: I32[Array, " Q"],
    length: I32[Array, ""],
    limit: I32[Array, ""],
    overdue: I32[Array, ""],
    overdue_end: I32[Array, ""],
) -> State:
    """The slot's whole text as it is now, and the limits that follow from its length."""
    return state._replace(
        text=state.text.at[slot].set(text),
        text_length=state.text_length.at[slot].set(length),
        limit=state.limit.at[slot].set(limit),
        limits=state.limits._replace(
            overdue=state.limits.overdue.at[slot].set(overdue), overdue_end=state.limits.overdue_end.at[slot].set(overdue_end)
        ),
    )


@functools.partial(jax.jit, static_argnames=("graph", "first"), donate_argnames=("state",))
def read(
    graph: Any, params: Any, state: State, slot: I32[Array, ""], rows: PromptRows, at: I32[Array, ""], *, first: bool = False
) -> State:
    """Read one piece of a prompt.

    Args:
        graph, params: the talker, split.
        state: all slots.
        slot: whose prompt it is.
        rows: one row; ``text``, ``codes``, ``speaker`` [1 C ..] are the piece, ``length`` [1] is the whole prompt's.
        at: the piece's first position; at + C <= S.
        first: at = 0, so there is nothing before the piece to look at.
    """
    talker: Talker = nnx.merge(graph, params)
    x = embed(talker, rows)
    size = x.shape[1]

    if first:
        layers, kv_heads, head_dim = talker.kv_shape
        own = talker.model(x, empty(layers, 1, kv_heads, size, head_dim, x.dtype), at[None])[1]
        caches = _put(state.caches, own, slot)
    else:
        written = talker.model(x, [SlotCache(*layer, slot) for layer in state.caches], at[None])[1]
        caches = [LayerCache(layer.k, layer.v) for layer in written]
    last = rows.length[0] - 1
    inside = jnp.clip(last - at, 0, size - 1)
    return state._replace(
        caches=caches,
        # Of the last piece this is the prompt's last row, which the first step reads again in place; of others it is not looked at.
        inputs=state.inputs.at[slot].set(x[0, inside]),
        # Other rows' steps write garbage to this slot's column `position`: it must be one that is still to be written.
        position=state.position.at[slot].set(jnp.minimum(at + size, last)),
    )


def _where(rows: Bool[Array, " B"], new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(rows.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old)


def _watched(before: State, after: State, first: I32[Array, " B"], alive: Bool[Array, " B"]) -> State:
    """Count repeats, hold suspect frames, mark the state before the first of them, and stop rows that have gone too far."""
    runs = jnp.where(alive[:, None], jnp.where(first[:, None] == before.recent, before.runs + 1, 0), before.runs)
    recent = jnp.where(alive[:, None], jnp.concatenate([first[:, None], before.recent[:, :-1]], axis=1), before.recent)
    longest, limits = jnp.max(runs, axis=1), before.limits
    suspect = (longest >= limits.hold) | (after.step >= limits.overdue)
    gone = alive & (after.reason == RUNNING) & ((longest >= limits.repeats) | (after.step >= limits.overdue_end))
    entering = alive & suspect & (before.held == 0)
    mark = before.mark
    return after._replace(
        reason=jnp.where(gone, RUNAWAY, after.reason),
        recent=recent,
        runs=runs,
        held=jnp.where(alive, jnp.where(suspect, before.held + 1, 0), before.held),
        mark=Mark(
            inputs=_where(entering, before.inputs, mark.inputs),
            position=_where(entering, before.position, mark.position),
            step=_where(entering, before.step, mark.step),
            seen=_where(entering, before.seen, mark.seen),
            # Hardly ever, and then for megabytes a row: so not with a select in every frame.
            codec=jax.lax.cond(jnp.any(entering), lambda: _where(entering, before.codec, mark.codec), lambda: mark.codec),
        ),
    )


@functools.partial(jax.jit, static_argnames=("talker_graph", "decoder_graph", "size"), donate_argnames=("state",))
def step(
    talker_graph: Any,
    talker_params: Any,
    decoder_graph: Any,
    decoder_params: Any,
    state: State,
    quota: I32[Array, " B"],
    limit: I32[Array, ""],
    pad_id: I32[Array, ""],
    *,
    size: int,
) -> tuple[State, Made]:
    """Make up to ``quota`` frames of each row, ``limit`` (at most ``size``) at most. The caller sees to room in the cache.

    A row whose logits or samples are not finite ends with NOT_FINITE before that frame.
    """
    talker: Talker = nnx.merge(talker_graph, talker_params)
    decoder = nnx.merge(decoder_graph, decoder_params)
    slots = quota.shape[0]
    samples = jax.eval_shape(decoder, jnp.zeros((slots, 1, talker.books), jnp.int32), state.codec)[0].shape[1]
    made = (
        jnp.full((size, slots, talker.books), -1, jnp.int32),
        jnp.zeros((size, slots, samples), jnp.float32),
        jnp.zeros(slots, jnp.int32),
    )

    def going(carry: tuple[Any, State, Any]) -> Bool[Array, ""]:
        index, state, (_, _, counts) = carry
        return (index < limit) & jnp.any((state.reason == RUNNING) & (counts < quota))

    def one(carry: tuple[Any, State, Any]) -> tuple[Any, State, Any]:
        index, before, (codes, pcm, counts) = carry
        at = jnp.minimum(before.step, before.text.shape[1] - 1)
        ids = jnp.where(before.step < before.text_length, jnp.take_along_axis(before.text, at[:, None], axis=1)[:, 0], pad_id)
        after, frame, _, alive = advance(talker, before, talker.text_rows(ids[:, None])[:, 0], counts < quota)
        after = _watched(before, after, frame[:, 0], alive)
        sound, codec = decoder(frame[:, None], before.codec)
        bad = alive & ~jnp.all(jnp.isfinite(sound), axis=1)
        alive = alive & ~bad
        after = after._replace(codec=_where(alive, codec, before.codec), reason=jnp.where(bad, NOT_FINITE, after.reason))
        return index + 1, after, (codes.at[index].set(frame), pcm.at[index].set(sound), counts + alive.astype(jnp.int32))

    _, state, (codes, pcm, counts) = jax.lax.while_loop(going, one, (jnp.int32(0), state, made))
    return state, Made(codes, pcm, counts, state.reason, state.held)


@functools.partial(jax.jit, donate_argnames=("state",))
def rewind(state: State, slot: I32[Array, ""], seed: Integer[Array, ""], segment: I32[Array, ""], attempt: I32[Array, ""]) -> State:
    """Forget the held frames of a slot and go on from the mark with another key."""

    def back(whole: Any, marked: Any) -> Any:
        return jax.tree.map(lambda x, m: x.at[slot].set(m[slot]), whole, marked)

    return state._replace(
        inputs=back(state.inputs, state.mark.inputs),
        position=back(state.position, state.mark.position),
        step=back(state.step, state.mark.step),
        seen=back(state.seen, state.mark.seen),
        codec=back(state.codec, state.mark.codec),
        keys=state.keys.at[slot].set(segment_key(seed, segment, attempt)),
        reason=state.reason.at[slot].set(RUNNING),
        recent=state.recent.at[slot].set(-1),
        runs=state.runs.at[slot].set(0),
        held=state.held.at[slot].set(0),
    )


@jax.jit
def keep(state: State, slot: I32[Array, ""]) -> DecoderState:
    """One row of the codec's states."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, slot, 1, axis=0), state.codec)
