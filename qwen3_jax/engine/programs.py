"""The compiled functions of a device: State of some rows in -> the same state, changed; donated, so that nothing is copied.

    begin        the first piece of a prompt -> a state of one row: keys, rules, limits, text, codec state, KV cache
    read         one more piece of the prompt [C rows] goes into that row's cache
    insert       the row, its prompt read, takes its place in the batch
    write_text   a row's text has grown
    step         up to N frames of every row that may make some: talker, predictor and codec, in one loop
    piece, sound frames that a step has made without the codec: to `model.decode.decode`, and their samples from there
    rewind       back to before the frames that are held, with another key
    keep         a copy of where a row's codec is, to go on from in another place
    take, widen  the batch gets other rows, or more columns

Everything about a row is traced, so one compiled step serves any mixture of requests. There is one program for each size of the batch,
see device.py. The codec decodes frame by frame inside the loop: so a row's codes and samples do not depend on the load or the size of
packets at all, and on the size of the batch and the place in it only in float32 rounding (3e-6 of a sample: a row at the edge of a tile
is summed in another order).

A row that may not go on still computes: its results are dropped, and what it writes to its cache's next column is overwritten by the
operation that makes the column visible (see model/cache.py). So a paused row needs no care.

A row that computes NaN or infinity is stopped with NOT_FINITE. Rows never mix, so the others go on; but a column that is masked is still
multiplied by 0, which leaves NaN: so a prompt is read into a cache of zeros, which takes the place of whatever the row held.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3_jax.checkpoint.mapping import flatten, unflatten
from qwen3_jax.codec.decoder import DecoderState
from qwen3_jax.engine.slots import RUNAWAY
from qwen3_jax.model.cache import KVCache, LayerCache, empty, grow
from qwen3_jax.model.frame import NOT_FINITE, RUNNING, PromptRows, advance, embed
from qwen3_jax.model.sampling import Draws, Rules, segment_key
from qwen3_jax.model.talker import Talker
from qwen3_jax.shapes import F32, I32, U32, Array, Bool, Float, Key

LAGS = 8  # frames back with which book 0 is compared


class Limits(NamedTuple):
    """See segment.Watch. In frames; rows that are not watched have limits that no utterance reaches."""

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
    """Some rows. Every leaf has the rows as its first axis."""

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
    hidden: Float[Array, "N B H"] | None  # that book 0 was drawn from, where it is asked for


def copies(talker: Any, rows: int) -> bool:
    """Whether the steps read a copy of the talker, in float32: of more than one row on a CPU, where bfloat16 matrices pay for a single row
    only (products.matmul). Not of int8 ones, which are chosen for their size."""
    return rows > 1 and bool(narrow(talker)) and all(place.platform == "cpu" for place in jax.tree.leaves(talker)[0].devices())


def narrow(talker: Any) -> dict[str, Any]:
    """The talker's matrices that are widened for several rows. Its tables are read by rows, so they are not."""
    leaves = flatten(talker)
    return {path: leaf for path, leaf in leaves.items() if leaf.dtype not in (jnp.float32, jnp.int8) and "embedding" not in path}


def for_rows(talker: Any, rows: int) -> Any:
    """The talker's parameters as the steps read them."""
    if not copies(talker, rows):
        return talker
    return unflatten(flatten(talker) | {path: leaf.astype(jnp.float32) for path, leaf in narrow(talker).items()}, talker)


def initial(talker: Talker, decoder: Any, rows: int, columns: int, text: int) -> State:
    """Rows that nobody owns, with room for ``text`` trailing ids. To be jitted, or only its shapes looked at (plan.py)."""
    layers, kv_heads, head_dim = talker.kv_shape
    entries, width = talker.model.codec_embedding.weight.shape

    def zeros(dtype: Any = jnp.int32, *axes: int) -> jax.Array:
        return jnp.zeros((rows, *axes), dtype)

    def draws() -> Any:
        return {"sample": zeros(bool), "temperature": zeros(jnp.float32) + 1, "top_k": zeros(), "top_p": zeros(jnp.float32) + 1}

    return State(
        caches=empty(layers, rows, kv_heads, columns, head_dim, talker.dtype),
        inputs=zeros(talker.dtype, width),
        position=zeros(),
        step=zeros(),
        seen=zeros(bool, entries),
        keys=jax.random.split(jax.random.key(0), rows),
        rules=Rules(Draws(**draws()), Draws(**draws()), zeros(jnp.float32) + 1),
        limit=zeros(),
        reason=zeros(),
        text=zeros(jnp.int32, text),
        text_length=zeros(),
        codec=decoder.initial(rows),
        limits=Limits(zeros(), zeros(), zeros(), zeros()),
        recent=zeros(jnp.int32, LAGS) - 1,
        runs=zeros(jnp.int32, LAGS),
        held=zeros(),
        mark=Mark(zeros(talker.dtype, width), zeros(), zeros(), zeros(bool, entries), decoder.initial(rows)),
    )


@functools.partial(jax.jit, static_argnames=("talker_graph", "decoder_graph", "rows", "columns", "text"))
def start(talker_graph: Any, talker: Any, decoder_graph: Any, decoder: Any, *, rows: int, columns: int, text: int) -> State:
    """`initial`, on the device of the parameters."""
    return initial(nnx.merge(talker_graph, talker), nnx.merge(decoder_graph, decoder), rows, columns, text)


class NewRow(NamedTuple):
    """What a row begins a segment with; one row of everything."""

    seed: U32[Array, "1"]
    segment: I32[Array, "1"]
    rules: Rules
    limit: I32[Array, "1"]
    text: I32[Array, "1 Q"]
    text_length: I32[Array, "1"]
    limits: Limits
    codec: DecoderState


@functools.partial(jax.jit, static_argnames=("talker_graph", "columns"))
def begin(talker_graph: Any, talker_params: Any, rows: PromptRows, new: NewRow, *, columns: int) -> State:
    """Read the first piece of a prompt: a state of one row. ``rows``: see `read`. ``columns``: of its cache, at least the piece's."""
    talker: Talker = nnx.merge(talker_graph, talker_params)
    x = embed(talker, rows)
    size, width = x.shape[1:]
    layers, kv_heads, head_dim = talker.kv_shape
    # As many columns as rows while reading: there is nothing before them to look at.
    caches = talker.model(x, empty(layers, 1, kv_heads, size, head_dim, x.dtype), jnp.zeros(1, jnp.int32))[1]
    entries = talker.model.codec_embedding.weight.shape[0]
    zero, none = jnp.zeros(1, jnp.int32), jnp.zeros((1, entries), bool)
    inputs, position = _last(x, rows, jnp.int32(0))
    return State(
        caches=grow(caches, columns),
        inputs=inputs,
        position=position,
        step=zero,
        seen=none,
        keys=jax.vmap(lambda seed, segment: segment_key(seed, segment, jnp.int32(0)))(new.seed, new.segment),
        rules=new.rules,
        limit=new.limit,
        reason=zero + RUNNING,
        text=new.text,
        text_length=new.text_length,
        codec=new.codec,
        limits=new.limits,
        recent=jnp.full((1, LAGS), -1, jnp.int32),
        runs=jnp.zeros((1, LAGS), jnp.int32),
        held=zero,
        mark=Mark(jnp.zeros((1, width), x.dtype), zero, zero, none, jax.tree.map(jnp.zeros_like, new.codec)),
    )


@functools.partial(jax.jit, static_argnames=("graph",), donate_argnames=("state",))
def read(graph: Any, params: Any, state: State, rows: PromptRows, at: I32[Array, ""]) -> State:
    """Read one more piece of a prompt into a state of one row.

    Args:
        graph, params: the talker, split.
        state: from `begin`.
        rows: ``text``, ``codes``, ``speaker`` [1 C ..] are the piece, ``length`` [1] is the whole prompt's.
        at: the piece's first position; at + C <= S.
    """
    talker: Talker = nnx.merge(graph, params)
    x = embed(talker, rows)
    caches = talker.model(x, state.caches, at[None])[1]
    inputs, position = _last(x, rows, at)
    return state._replace(caches=caches, inputs=inputs, position=position)


def _last(x: Float[Array, "1 C H"], rows: PromptRows, at: I32[Array, ""]) -> tuple[Float[Array, "1 H"], I32[Array, "1"]]:
    """The prompt's last row, which the first step reads again in place, and its position; not looked at before the last piece."""
    last = rows.length - 1
    inside = jnp.clip(last - at, 0, x.shape[1] - 1)
    return jnp.take_along_axis(x, inside[:, None, None], axis=1)[:, 0], last


@functools.partial(jax.jit, donate_argnames=("state",))
def insert(state: State, one: State, row: I32[Array, ""], carry: Bool[Array, ""]) -> State:
    """``one``, of one row, takes the place of a row; with ``carry`` the codec goes on from where the row has left it."""
    codec = jax.tree.map(lambda old, new: jnp.where(carry, jax.lax.dynamic_slice_in_dim(old, row, 1), new), state.codec, one.codec)
    return jax.tree.map(lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, row, 0), state, one._replace(codec=codec))


@jax.jit
def take(tree: Any, rows: I32[Array, " B"]) -> Any:
    """These rows of every array."""
    return jax.tree.map(lambda x: x[rows], tree)


@functools.partial(jax.jit, static_argnames=("columns",))
def widen(layer: LayerCache, *, columns: int) -> LayerCache:
    """The same cache with S = ``columns``."""
    return grow([layer], columns)[0]


@functools.partial(jax.jit, donate_argnames=("state",))
def write_text(
    state: State,
    row: I32[Array, ""],
    text: I32[Array, " Q"],
    length: I32[Array, ""],
    limit: I32[Array, ""],
    overdue: I32[Array, ""],
    overdue_end: I32[Array, ""],
) -> State:
    """The row's whole text as it is now, and the limits that follow from its length."""
    return state._replace(
        text=state.text.at[row].set(text),
        text_length=state.text_length.at[row].set(length),
        limit=state.limit.at[row].set(limit),
        limits=state.limits._replace(
            overdue=state.limits.overdue.at[row].set(overdue), overdue_end=state.limits.overdue_end.at[row].set(overdue_end)
        ),
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


@functools.partial(jax.jit, static_argnames=("talker_graph", "decoder_graph", "size", "hidden", "silent"), donate_argnames=("state",))
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
    hidden: bool = False,
    silent: bool = False,
) -> tuple[State, Made]:
    """Make up to ``quota`` frames of each row, ``limit`` (at most ``size``) at most. The caller sees to room in the cache. ``hidden``: hand
    out the talker's normed hidden states, too. ``silent``: without the codec, for rows that are not watched (a mark has its state).

    A row whose logits or samples are not finite ends with NOT_FINITE before that frame.
    """
    talker: Talker = nnx.merge(talker_graph, talker_params)
    decoder = nnx.merge(decoder_graph, decoder_params)
    rows = quota.shape[0]
    made = Made(
        codes=jnp.full((size, rows, talker.books), -1, jnp.int32),
        pcm=jnp.zeros((size, rows, decoder.samples), jnp.float32),
        counts=jnp.zeros(rows, jnp.int32),
        reason=state.reason,
        held=state.held,
        hidden=jnp.zeros((size, *state.inputs.shape), state.inputs.dtype) if hidden else None,
    )

    def going(carry: tuple[Any, State, Made]) -> Bool[Array, ""]:
        index, state, made = carry
        return (index < limit) & jnp.any((state.reason == RUNNING) & (made.counts < quota))

    def one(carry: tuple[Any, State, Made]) -> tuple[Any, State, Made]:
        index, before, made = carry
        at = jnp.minimum(before.step, before.text.shape[1] - 1)
        ids = jnp.where(before.step < before.text_length, jnp.take_along_axis(before.text, at[:, None], axis=1)[:, 0], pad_id)
        after, frame, drawn_from, alive = advance(talker, before, talker.text_rows(ids[:, None])[:, 0], made.counts < quota)
        pcm = made.pcm
        if not silent:
            after = _watched(before, after, frame[:, 0], alive)
            sound, codec = decoder(frame[:, None], before.codec)
            bad = alive & ~jnp.all(jnp.isfinite(sound), axis=1)
            alive = alive & ~bad
            after = after._replace(codec=_where(alive, codec, before.codec), reason=jnp.where(bad, NOT_FINITE, after.reason))
            pcm = pcm.at[index].set(sound)
        return (
            index + 1,
            after,
            made._replace(
                codes=made.codes.at[index].set(frame),
                pcm=pcm,
                counts=made.counts + alive.astype(jnp.int32),
                hidden=None if made.hidden is None else made.hidden.at[index].set(drawn_from),
            ),
        )

    _, state, made = jax.lax.while_loop(going, one, (jnp.int32(0), state, made))
    return state, made._replace(reason=state.reason, held=state.held)


@functools.partial(jax.jit, static_argnames=("frames",))
def piece(made: Made, at: I32[Array, ""], *, frames: int) -> tuple[I32[Array, "{frames} B K"], I32[Array, " B"]]:
    """The frames at, at + 1, ... of a silent step, and how many of them each row has, as `decode` takes them."""
    return jax.lax.dynamic_slice_in_dim(made.codes, at, frames), jnp.clip(made.counts - at, 0, frames)


@jax.jit
def sound(made: Made, samples: F32[Array, "B _"], at: I32[Array, ""]) -> tuple[I32[Array, " B"], Made]:
    """Put the samples of the frames at, at + 1, ... in; also returned: the rows' reasons, for State. A row with a sample that is not finite
    ends with NOT_FINITE before that frame."""
    rows, size = samples.shape[0], made.pcm.shape[2]
    new = jnp.swapaxes(samples.reshape(rows, -1, size), 0, 1)
    finite = jnp.cumprod(jnp.all(jnp.isfinite(new), axis=2).astype(jnp.int32), axis=0).sum(axis=0)  # frames before the first that is not
    bad = finite < jnp.clip(made.counts - at, 0, len(new))
    reason = jnp.where(bad, NOT_FINITE, made.reason)
    pcm = jax.lax.dynamic_update_slice_in_dim(made.pcm, new, at, 0)
    return reason, made._replace(pcm=pcm, counts=jnp.where(bad, at + finite, made.counts), reason=reason)


@functools.partial(jax.jit, donate_argnames=("state",))
def rewind(state: State, row: I32[Array, ""], seed: U32[Array, ""], segment: I32[Array, ""], attempt: I32[Array, ""]) -> State:
    """Forget the held frames of a row and go on from the mark with another key."""

    def back(whole: Any, marked: Any) -> Any:
        return jax.tree.map(lambda x, m: x.at[row].set(m[row]), whole, marked)

    return state._replace(
        inputs=back(state.inputs, state.mark.inputs),
        position=back(state.position, state.mark.position),
        step=back(state.step, state.mark.step),
        seen=back(state.seen, state.mark.seen),
        codec=back(state.codec, state.mark.codec),
        keys=state.keys.at[row].set(segment_key(seed, segment, attempt)),
        reason=state.reason.at[row].set(RUNNING),
        recent=state.recent.at[row].set(-1),
        runs=state.runs.at[row].set(0),
        held=state.held.at[row].set(0),
    )


@jax.jit
def keep(state: State, row: I32[Array, ""]) -> DecoderState:
    """One row of the codec's states."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, row, 1, axis=0), state.codec)
