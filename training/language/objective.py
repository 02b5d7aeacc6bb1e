"""Talker, predictor and speaker encoder as they are trained: a batch of utterances -> losses, and the step that improves them.

Rows and labels are those of finetune/teacher_forcing.py, and one more kind of label:

    spoken         -   | rows of the text tokens that are said in that frame (the teachers state when they say what)

Beside the labels there are hints (auxiliary.py), used in training only. From
the hidden state a linear map is to find the frame's main components, which tells the talker at every row what the predictor sees of few;
another, from the predictor's state when it has read book 0. From the rows where a word of the text ends, as they are when the first
guided head looks at them, the word's phonemes: spelling is learnt from the text itself, and not only through what is heard of it. What
the second guided layer hands on is to tell the phoneme in each quarter of the frame and of the two after it.
The teachers' durations guide attention: one head in each of two layers is rewarded for looking at the rows of the tokens that are being
said, which spares the model finding the alignment by itself (after the guided attention of arXiv 1710.08969, with the true places in
place of a diagonal).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from qwen3_jax.finetune.teacher_forcing import (
    align,
    code_losses,
    masked_mean,
    pad,
    predictor_logits,
    predictor_states,
    stack_rows,
    whole_frames,
)
from qwen3_jax.model.cache import causal_mask, empty
from qwen3_jax.model.config import ModelConfig
from qwen3_jax.model.frame import PromptRows, embed
from qwen3_jax.model.layers import DecoderLayer, rope_angles, rotate
from qwen3_jax.model.talker import Talker
from qwen3_jax.model.x_vector import SpeakerEncoder
from qwen3_jax.shapes import F32, I32, Array, Bool, Float, Integer
from qwen3_jax.text.prompt import Prompt
from training.language.auxiliary import AHEAD, PHONEMES, Params, component_loss, phoneme_loss
from training.language.corruption import CodeCorruption
from training.latents.phonemes import QUARTERS
from training.mixed_precision import mix
from training.optimiser import rate_at, running_average

Rope = tuple[Float[Array, "B T D"], Float[Array, "B T D"]]


class Definitions(NamedTuple):
    """What is trained, without its numbers; hashable."""

    talker: Any
    speaker: Any


class LanguageBatch(NamedTuple):
    """Utterances side by side; N frames of them are for the predictor."""

    rows: PromptRows  # [B T], prompts and frames; their x_vector and trailing are not read
    mel: F32[Array, "B F 128"]  # a reference of each row's voice
    mel_length: I32[Array, " B"]
    labels: I32[Array, "B T K"]  # of each row, -1 where there is none; the end of speech has book 0 only
    spoken: I32[Array, "B T 2"]  # of each row with a label: the first row that is to be looked at, and the first one after; equal: none
    latent: F32[Array, "B T D"]  # main components of the frame that each row's label names, whitened; D = 0: no hint
    sounds: I32[Array, "B T S"]  # phonemes of the word that ends with the row's text token; -1 where there is none
    timing: I32[Array, "B T 12"]  # phonemes of the quarters of the frame that each row's label names, and of the next two; -1: not known
    picks: I32[Array, " N"]  # places of `labels`, counted through rows, that hold a whole frame; one without a frame is padding
    told: I32[Array, "N K"] | None = None  # codes that the predictor is told of the picks, where they are not the labels
    rest: I32[Array, "N K"] | None = None  # and what it is to answer; -1: nothing
    glances: I32[Array, " _"] | None = None  # more such places, at which the predictor reads book 0 and no further; None: `picks`


class LanguageExample(NamedTuple):
    """One utterance, ready to be stacked."""

    rows: Prompt  # of the prompt and of all frames
    labels: I32[np.ndarray, "T K"]
    spoken: Integer[np.ndarray, "T 2"]
    latent: F32[np.ndarray, "T D"]
    sounds: I32[np.ndarray, "T S"]
    timing: I32[np.ndarray, "T 12"]
    start: int  # the row before which the frames to be learnt begin: it has the first label


class LanguageOutputs(NamedTuple):
    """What the parameters make of a batch."""

    first: F32[Array, "B T V"]  # of book 0, at every row
    rest: F32[Array, "N 15 _"]  # of books 1..15, of the picked frames
    told: Float[Array, "F _"]  # the predictor's states when it has read book 0 of the frames at a glance
    looks: F32[Array, "B T"]  # `attention_to`, averaged over the guided heads
    hidden: Float[Array, "B T H"]
    early: Float[Array, "B T H"]  # what the first guided layer is given, its root mean square 1
    late: Float[Array, "B T H"]  # what the last one hands on, likewise


class LossWeights(NamedTuple):
    """Of the loss: ``predictor`` times the mean over books 1..15, ``guidance`` times that of the guided heads, and ``hint`` times the
    hints' errors are added to book 0's, ``spelling`` times that of words' phonemes, and ``timing`` times that of quarters'."""

    predictor: float = 1.0
    guidance: float = 0.0
    hint: float = 0.0
    spelling: float = 0.0
    timing: float = 0.0


def define(config: ModelConfig, *, mixed: bool = False) -> tuple[Definitions, Params]:
    """Definitions, and the tree of shapes; ``mixed``: the talker's and the predictor's products are those of `mixed`."""
    abstract = nnx.eval_shape(lambda: Talker(config.talker_config))
    if mixed:
        mix(abstract)
    talker, talker_state = nnx.split(abstract)
    speaker, speaker_state = nnx.split(nnx.eval_shape(lambda: SpeakerEncoder(config.speaker_encoder_config)))
    shapes = {"talker": nnx.to_pure_dict(talker_state), "speaker_encoder": nnx.to_pure_dict(speaker_state)}
    return Definitions(talker, speaker), shapes


def make_example(
    prompt: Prompt,
    frames: I32[np.ndarray, "N K"],
    config: ModelConfig,
    spoken: Integer[np.ndarray, "N+1 2"] | None = None,
    latent: Float[np.ndarray, "N D"] | None = None,
    sounds: dict[int, list[int]] | None = None,
    timing: Integer[np.ndarray, "N 4"] | None = None,
) -> LanguageExample:
    """Prompt and frames -> the rows that the talker reads while it makes them, and the labels of these rows.

    Args:
        prompt: from `prompt.build`.
        frames: what it is to say.
        config: the checkpoint's.
        spoken: of each frame and of the end of speech, the rows to look at; rows that are not there yet are cut off.
        latent: of each frame, for the hint.
        sounds: of some rows, the phonemes of the word that ends there; rows that are not there are left out.
        timing: of each frame, the phonemes of its quarters.
    """
    rows, labels, first = align(prompt, frames, config)
    count, start = len(frames), first + 1
    looks = np.zeros((start + count, 2), np.int32)
    if spoken is not None:
        looks[start - 1 :] = np.minimum(spoken, np.arange(start, start + count + 1)[:, None])
    hint = np.zeros((start + count, 0 if latent is None else latent.shape[1]), np.float32)
    if latent is not None:
        hint[start - 1 : -1] = latent
    heard = np.full((start + count, PHONEMES), -1, np.int32)
    for row, phonemes in (sounds or {}).items():
        if row < len(heard):
            heard[row, : len(phonemes) + 1] = [*phonemes, 0][:PHONEMES]
    quarters = np.full((start + count, AHEAD, QUARTERS), -1, np.int32)
    if timing is not None:
        for later in range(AHEAD):
            quarters[start - 1 : start - 1 + max(count - later, 0), later] = timing[later:]
    return LanguageExample(rows, labels, looks, hint, heard, quarters.reshape(start + count, -1), first)


def assemble(
    taught: list[LanguageExample], mels: list[F32[np.ndarray, "_ 128"]], length: int, mel_length: int, picks: int,
    noise: np.random.Generator, missteps: CodeCorruption | None = None, glances: int = 0,
) -> LanguageBatch:  # fmt: skip
    """Pad to ``length`` rows and ``mel_length`` frames of mel; draw the predictor's frames, some of which go wrong by ``missteps``, and as
    many ``glances``.

    Raises:
        ValueError: an utterance or a mel that is longer.
    """
    if (longest := max(len(one.labels) for one in taught)) > length or max(map(len, mels)) > mel_length:
        raise ValueError(f"{longest} rows, {max(map(len, mels))} frames of mel: {length} and {mel_length} fit")

    labels = np.stack([pad(one.labels, -1, length) for one in taught])
    latent = np.stack([pad(one.latent, 0.0, length) for one in taught])
    places = whole_frames(labels)
    chosen = np.sort(noise.choice(places, picks, replace=len(places) < picks)).astype(np.int32)
    told = rest = None
    if missteps is not None:
        told, rest = missteps.books(labels.reshape(-1, labels.shape[-1])[chosen], latent.reshape(-1, latent.shape[-1])[chosen], noise)
    return LanguageBatch(
        stack_rows([one.rows for one in taught], length),
        np.stack([pad(mel, 0.0, mel_length) for mel in mels]),
        np.array([len(mel) for mel in mels], np.int32),
        labels,
        np.stack([pad(one.spoken, 0, length) for one in taught]),
        latent,
        np.stack([pad(one.sounds, -1, length) for one in taught]),
        np.stack([pad(one.timing, -1, length) for one in taught]),
        chosen,
        told,
        rest,
        glances=noise.choice(places, glances, replace=len(places) < glances).astype(np.int32) if glances else None,
    )


def attention_to(
    layer: DecoderLayer, x: Float[Array, "B T H"], rope: Rope, mask: Bool[Array, "B T S"], spoken: I32[Array, "B T 2"]
) -> F32[Array, "B T"]:
    """Logarithm of what the layer's first head gives to the rows of ``spoken``, from the layer's own input; -inf where there are none."""
    rows, length, _ = x.shape
    own, y = layer.self_attn, layer.input_layernorm(x)
    query = own.q_norm(own.q_proj(y).reshape(rows, length, own.heads, own.head_dim))[:, :, :1]
    key = own.k_norm(own.k_proj(y).reshape(rows, length, own.kv_heads, own.head_dim))[:, :, :1]
    scores = jnp.einsum("btad,bsad->bts", rotate(query, *rope), rotate(key, *rope)).astype(jnp.float32) * own.head_dim**-0.5
    lowest = jnp.finfo(jnp.float32).min
    logs = jax.nn.log_softmax(jnp.where(mask, scores, lowest))
    columns = jnp.arange(length)
    right = (columns >= spoken[..., :1]) & (columns < spoken[..., 1:])
    return jax.nn.logsumexp(jnp.where(right, logs, lowest), axis=-1)


def talker_states(
    talker: Talker, rows: PromptRows, spoken: I32[Array, "B T 2"]
) -> tuple[Float[Array, "B T H"], F32[Array, "B T"], Float[Array, "B T H"], Float[Array, "B T H"]]:
    """Normed hidden states of all rows, how well the guided heads look, what the first of them looks at, and what the last one's layer
    hands on. What is right of a row is not seen, so padding is free."""
    x = embed(talker, rows)
    layers, kv_heads, head_dim = talker.kv_shape
    batch, length = rows.text.shape
    start = jnp.zeros(batch, jnp.int32)
    rope = rope_angles(jnp.broadcast_to(jnp.arange(length), (batch, length)), head_dim, talker.model.theta, x.dtype)
    mask, caches = causal_mask(start, length, length), empty(layers, batch, kv_heads, length, head_dim, x.dtype)
    looks, early, late = [], x, x
    for number, (layer, cache) in enumerate(zip(talker.model.layers, caches, strict=True)):
        if number in guided(len(caches)):
            looks.append(attention_to(layer, x, rope, mask, spoken))
            early = x if len(looks) == 1 else early
        x, _ = layer(x, rope, cache, start, mask)
        late = x if number in guided(len(caches)) else late
    return talker.model.norm(x), sum(looks[1:], looks[0]) / len(looks), _evened(early), _evened(late)


def _evened(x: Float[Array, "B T H"]) -> Float[Array, "B T H"]:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


def guided(layers: int) -> tuple[int, ...]:
    """The layers whose first head is guided: what comes before can put words and sounds together, what comes after can use them."""
    return tuple(sorted({layers // 3, 2 * layers // 3}))


def forward(graphs: Definitions, params: Params, batch: LanguageBatch) -> LanguageOutputs:
    """`scores`, with the speaker row made from the batch's references."""
    x_vector = nnx.merge(graphs.speaker, params["speaker_encoder"])(batch.mel, batch.mel_length)
    return scores(nnx.merge(graphs.talker, params["talker"]), batch._replace(rows=batch.rows._replace(x_vector=x_vector)))


def scores(talker: Talker, batch: LanguageBatch) -> LanguageOutputs:
    """Of a batch whose speaker rows are made."""
    hidden, looks, early, late = talker_states(talker, batch.rows, batch.spoken)
    picked = batch.labels.reshape(-1, talker.books)[batch.picks] if batch.told is None else batch.told
    flat, labels = hidden.reshape(-1, hidden.shape[-1]), batch.labels.reshape(-1, talker.books)
    first = talker.model.codec_embedding(picked[:, 0], talker.dtype)
    rest = predictor_logits(talker.code_predictor, flat[batch.picks], first, picked[:, 1:])
    at = batch.picks if batch.glances is None else batch.glances
    seen = talker.model.codec_embedding(jnp.maximum(labels[at, 0], 0), talker.dtype)
    told = predictor_states(talker.code_predictor, jnp.stack([flat[at], seen], axis=1))[:, 1]
    return LanguageOutputs(talker.codec_head(hidden).astype(jnp.float32), rest, told, looks, hidden, early, late)


def losses(
    graphs: Definitions, params: Params, batch: LanguageBatch, eos: int, weights: LossWeights
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`weighted_losses`, of what the parameters make of a batch; the error of the phonemes, and the hint's."""
    made = forward(graphs, params, batch)
    total, figures = weighted_losses(made, batch, eos, weights)
    if weights.spelling:
        figures["spelling"] = phoneme_loss(made.early, params["spelling"], batch.sounds)
        total += weights.spelling * figures["spelling"]
    if weights.timing:
        figures["timing"] = phoneme_loss(made.late, params["timing"], batch.timing)
        total += weights.timing * figures["timing"]
    if not weights.hint:
        return total, figures
    whole = batch.labels[..., -1] >= 0
    figures["hint"] = component_loss(made.hidden, params["hint"], batch.latent, whole)
    at = batch.picks if batch.glances is None else batch.glances
    picked = batch.latent.reshape(-1, batch.latent.shape[-1])[at]
    figures["sound"] = component_loss(made.told, params["sound"], picked, whole.reshape(-1)[at])
    return total + weights.hint * (figures["hint"] + figures["sound"]), figures


def weighted_losses(made: LanguageOutputs, batch: LanguageBatch, eos: int, weights: LossWeights) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of some `scores` and its parts: means over frames, in nats, and shares of right guesses. Picks of no frame do not count."""
    targets = (batch.labels.reshape(-1, batch.labels.shape[-1])[batch.picks] if batch.rest is None else batch.rest)[:, 1:]
    figures = code_losses(made.first, made.rest, batch.labels, targets, eos)
    places = batch.spoken[..., 0] < batch.spoken[..., 1]
    figures["guidance"] = -masked_mean(made.looks, places)
    return figures["book_0"] + weights.predictor * figures["books_1_15"] + weights.guidance * figures["guidance"], figures


def optimiser() -> optax.GradientTransformation:
    """AdamW without its learning rate, which the step passes. Gradients are clipped to length 1; only matrices decay."""
    decay = optax.add_decayed_weights(0.01, mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params))
    return optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(0.9, 0.98), decay, optax.scale(-1.0))


def begin(params: Params) -> dict[str, Any]:
    """Training state of step 0: parameters, their running average, the optimiser's moments, the step."""
    trained = jax.tree.map(jnp.array, params)  # its own: a step gives its state's arrays away
    average = jax.tree.map(jnp.copy, trained)
    return {"step": jnp.zeros((), jnp.int32), "trained": trained, "average": average, "moments": optimiser().init(trained)}


@functools.partial(jax.jit, static_argnames=("graphs", "eos", "weights"), donate_argnames="state")
def train_step(
    state: dict[str, Any], batch: LanguageBatch, rate: float, *, graphs: Definitions, eos: int, weights: LossWeights
) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """One step at the highest rate ``rate``; see `optimiser.rate_at`."""

    def loss(trained: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
        return losses(graphs, trained, batch, eos, weights)

    (_, figures), gradients = jax.value_and_grad(loss, has_aux=True)(state["trained"])
    change, moments = optimiser().update(gradients, state["moments"], state["trained"])
    now = rate_at(state["step"], rate)
    trained = jax.tree.map(lambda param, by: param + now * by, state["trained"], change)
    average = running_average(state["average"], trained, state["step"])
    figures |= {"gradient": optax.tree.norm(gradients)}
    return {"step": state["step"] + 1, "trained": trained, "average": average, "moments": moments}, figures


@functools.partial(jax.jit, static_argnames=("graphs", "eos"))
def judge(params: Params, batch: LanguageBatch, *, graphs: Definitions, eos: int) -> dict[str, jax.Array]:
    """The figures of a batch."""
    return losses(graphs, params, batch, eos, LossWeights())[1]
