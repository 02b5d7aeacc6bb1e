"""Requests of one batch -> chunks of pcm [B N*1920] float32 at 24 kHz.

A Session owns its states and hands them through two compiled calls, which donate them: nothing is computed twice and no
audio is decoded again for context. Two calls, not one: the loop is compiled per cache bucket and the codec per chunk size, so
together they would be compiled for every pair. Rows are padded to a batch bucket by rows that have ended before they begin.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qwen3_jax import checks, generate
from qwen3_jax.codec.decoder import DecoderState, check_state, init_state
from qwen3_jax.generate import FINISH_REASONS, bucket
from qwen3_jax.model import Model
from qwen3_jax.prompt import Prompt, check_prompt
from qwen3_jax.sampling import Sampling, rules, segment_key
from qwen3_jax.shapes import F32, I32, Array, Integer, Key

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32)
_PRIME = 16  # frames of reference decoded at a time: one trace for every length, and 150 MB of temporaries at full size


class Request(NamedTuple):
    """One row of a batch."""

    prompt: Prompt
    sampling: Sampling
    seed: int
    max_frames: int
    codec_state: DecoderState | None = None  # in-context cloning: where the reference leaves the codec, see `prime`; one row
    tokens: int = 0  # of the text to be spoken
    segment: int = 0  # which sentence of a text it is: each one draws with a key of its own
    pause: float = 0.0  # seconds of silence before it


class Piece(NamedTuple):
    """What one row got from one chunk."""

    pcm: F32[np.ndarray, " F"]  # 1920 samples a frame
    codes: I32[np.ndarray, "N K"]


@functools.partial(jax.jit, static_argnames=("graph",), donate_argnames=("state",))
def decode(graph: Any, decoder: Any, codes: I32[Array, "N B K"], state: DecoderState) -> tuple[F32[Array, "B F"], DecoderState]:
    """The samples of every row's next N frames; codes of -1 (rows that have ended) make noise that nobody reads."""
    return nnx.merge(graph, decoder)(jnp.swapaxes(codes, 0, 1), state)


@functools.partial(jax.jit, static_argnames=("graph",), donate_argnames=("state",))
def _remember(graph: Any, decoder: Any, codes: I32[Array, "B N K"], valid: I32[Array, " B"] | None, state: DecoderState) -> DecoderState:
    return nnx.merge(graph, decoder)(codes, state, valid)[1]


def prime(model: Model, reference: I32[np.ndarray, "N K"], begun: DecoderState | None = None) -> DecoderState:
    """The codec's state after these frames, one row; their audio is not kept. It serves any number of requests.

    Args:
        model: the checkpoint.
        reference: the frames.
        begun: where the codec begins, one row; None: at the start of a stream.

    Raises:
        ValueError: codes that the checkpoint does not have.
        FloatingPointError: the decoder computed NaN or infinity.
    """
    reference = checks.reference(model.config, reference)
    fresh = init_state(model.codec_config.decoder_config, 1)
    state = fresh if begun is None else jax.tree.map(jnp.copy, begun)
    for start in range(0, len(reference), _PRIME):
        piece = reference[start : start + _PRIME]
        codes = np.pad(piece, ((0, _PRIME - len(piece)), (0, 0)))[None]
        valid = None if len(piece) == _PRIME else np.array([len(piece)], np.int32)  # whole pieces are cheaper to remember
        state = _remember(model.graphs.codec_decoder, model.params["codec"]["decoder"], codes, valid, state)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state)):
        raise FloatingPointError(f"what the codec's decoder computed for the reference is NaN or infinite; {generate.DAMAGED}")
    return state


@jax.jit
def _side_by_side(states: list[DecoderState]) -> DecoderState:
    """Rows of one each -> a batch; always a copy, since decoding gives its state away."""
    return jax.tree.map(lambda *rows: jnp.copy(jnp.concatenate(rows)), *states)


@jax.jit
def _keys(seeds: Integer[Array, " B"], segments: I32[Array, " B"]) -> Key[Array, " B"]:
    return jax.vmap(lambda seed, segment: segment_key(seed, segment, jnp.int32(0)))(seeds.astype(jnp.uint32), segments)


class Session:
    """One batch from prefill to its end.

    Args:
        model: the checkpoint.
        requests: at most ``BATCH_BUCKETS[-1]``.
        carried: whether `ended` will be asked for.

    Raises:
        ValueError: too many requests, one that does not fit, or one that would make NaN (`check_prompt`, `check_state`).
    """

    def __init__(self, model: Model, requests: Sequence[Request], *, carried: bool = False) -> None:
        self.ended: list[DecoderState | None] = [None] * len(requests)  # where each row that has ended left the codec, if `carried`
        self._carried = carried
        for request in requests:
            check_prompt(model.config, request.prompt)
            if request.codec_state is not None:
                check_state(model.codec_config.decoder_config, request.codec_state)
        self._model = model
        self._count = len(requests)
        rows = bucket(self._count, BATCH_BUCKETS, "requests in one batch")
        padded = [*requests, *[requests[0]._replace(max_frames=0, codec_state=None)] * (rows - self._count)]
        prompts = generate.stack([request.prompt for request in padded], model.config.talker_config.hidden_size)
        self._position = int(prompts.length.max()) - 1
        self._columns = generate.columns_for(prompts.text.shape[1], 1)
        self._state = generate.prefill(
            model.graphs.talker,
            model.params["talker"],
            prompts,
            _keys(*(np.array(column) for column in zip(*((request.seed, request.segment) for request in padded), strict=True))),
            rules([request.sampling for request in padded]),
            np.array([request.max_frames for request in padded], np.int32),
            np.int32(model.config.tts_pad_token_id),
            columns=self._columns,
        )
        fresh = init_state(model.codec_config.decoder_config, 1)
        self._codec_state = _side_by_side([fresh if request.codec_state is None else request.codec_state for request in padded])

    @property
    def running(self) -> bool:
        """Whether any row has more to say. Waits for the device."""
        return bool((np.asarray(self._state.reason) == generate.RUNNING).any())

    @property
    def finish_reasons(self) -> list[str | None]:
        """Per request: ``eos``, ``length``, ``error`` (then `step` has raised), or None while it is running."""
        return [FINISH_REASONS.get(int(reason)) for reason in np.asarray(self._state.reason)[: self._count]]

    @property
    def books(self) -> int:
        """Codes per frame."""
        return self._model.config.talker_config.num_code_groups

    def step(self, size: int) -> list[Piece]:
        """Make ``size`` more frames of every row that is running. Returns one Piece per request, empty where a row had ended.

        Raises:
            ValueError: the utterance has outgrown the largest cache.
            FloatingPointError: what the model computed for a row is not finite; nothing of these frames is handed out.
        """
        self._grow(generate.columns_for(self._position + 1, size))
        graphs, params = self._model.graphs, self._model.params
        self._state, made = generate.generate_chunk(graphs.talker, params["talker"], self._state, np.int32(size), size=size)
        # A row that ends within the chunk leaves the codec in the chunk's midst: from before the chunk, that place is found again.
        before = jax.tree.map(jnp.copy, self._codec_state) if self._carried else None
        pcm, self._codec_state = decode(graphs.codec_decoder, params["codec"]["decoder"], made.codes, self._codec_state)
        self._position += size
        codes, counts, wave, reasons = jax.device_get((made.codes, made.counts, pcm, self._state.reason))
        samples = self._model.codec_config.decode_upsample_rate
        pieces = [Piece(wave[row, : samples * counts[row]], codes[: counts[row], row]) for row in range(self._count)]
        for row, piece in enumerate(pieces):
            if reasons[row] == generate.NOT_FINITE or not np.isfinite(piece.pcm).all():
                raise FloatingPointError(f"request {row}: what the model computed is NaN or infinite; {generate.DAMAGED}")
            if before is not None and self.ended[row] is None and reasons[row] != generate.RUNNING:
                here = jax.tree.map(lambda rows, at=row: rows[at : at + 1], before)
                self.ended[row] = prime(self._model, piece.codes, here) if len(piece.codes) else here
        return pieces

    def _grow(self, columns: int) -> None:
        if columns > self._columns:
            self._state = self._state._replace(caches=generate.grow_caches(self._state.caches, columns=columns))
            self._columns = columns


def warm_up(model: Model, sizes: Sequence[int], prompt_rows: Sequence[int], columns: Sequence[int]) -> None:
    """Compile, by running them once on silence, the programs that single requests of these sizes need.

    Args:
        model: the checkpoint.
        sizes: frames per chunk.
        prompt_rows: prompt buckets.
        columns: cache buckets, ascending.
    """
    books = model.config.talker_config.num_code_groups

    def silence(rows: int) -> Request:
        pad = np.full(rows, model.config.tts_pad_token_id, np.int32)
        prompt = Prompt(pad, np.full((rows, books), -1, np.int32), np.zeros(rows, bool), None, pad[:0])
        return Request(prompt, Sampling(), seed=0, max_frames=sum(sizes) * len(columns))

    for rows in sorted(prompt_rows, reverse=True):  # the shortest last: it leaves room in the smallest cache
        session = Session(model, [silence(rows)])
    if model.config.tts_model_type == "base":
        prime(model, np.zeros((_PRIME + 1, books), np.int32))
    for bucket_columns in columns:
        session._grow(bucket_columns)
        for size in sizes:
            session.step(size)
