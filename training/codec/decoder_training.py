"""The decoder as it is trained: codes [B M K] -> the last ``crop`` frames of wave [B crop*1920], and the step that improves it.

What is computed is the decoder's own forward, from the start of a stream, but each part only over as much of the past as the rest can
still hear: frames before that cost nothing. All parameters train, the decoder's own copy of the books' entries among them.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from qwen3_jax.checkpoint.mapping import unflatten
from qwen3_jax.codec.decoder import Decoder, DecoderState
from qwen3_jax.model.config import CodecDecoderConfig
from qwen3_jax.shapes import F32, I32, Array
from training.codec import losses
from training.codec.discriminators import Discriminators
from training.latents.levels import LEVELS
from training.latents.quantiser import FRAME, Latents
from training.optimiser import Flat, optimiser, rate_at, running_average

_CONV, _UNITS = 6, 6 * (1 + 3 + 9)  # past inputs that a convolution of 7, and a block's three dilated ones, hear
Ranges = tuple[tuple[int, int | None], ...]  # of the first axes, from where to where
Held = tuple[tuple[str, Ranges], ...]  # parts of parameters that stay as they are


@functools.cache
def decoder_definition(cfg: CodecDecoderConfig) -> tuple[Any, Flat]:
    """Graph definition, and shapes by dotted path."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(cfg)))
    return graph, nnx.to_pure_dict(state)


@functools.cache
def critic_definition() -> tuple[Any, Flat]:
    """The discriminators' graph definition and shapes."""
    graph, state = nnx.split(nnx.eval_shape(Discriminators))
    return graph, nnx.to_pure_dict(state)


def trains(path: str) -> bool:
    """Whether a decoder parameter is trained: all but the entries' counts."""
    return not path.endswith("cluster_usage")


@functools.cache
def receptive_field(cfg: CodecDecoderConfig) -> tuple[int, ...]:
    """Past inputs, in steps of its own rate, that each part and all after it can hear: every stretching with its ConvNeXt, the first
    wide convolution, every upsampling block. The first number is in frames."""
    steps, found = _CONV, []
    for rate in reversed(cfg.upsample_rates):
        steps = -(-(steps + _UNITS) // rate) + 1
        found.append(steps)
    steps += _CONV
    found.append(steps)
    for rate in reversed(cfg.upsampling_ratios):
        steps = -(-(steps + _CONV) // rate)
        found.append(steps)
    return tuple(reversed(found))


def decode_crop(decoder: Decoder, codes: I32[Array, "B M K"], crop: int, past: tuple[int, ...]) -> F32[Array, "B {crop}*1920"]:
    """The last ``crop`` frames of what the decoder makes of ``codes``, M >= crop + past[0]; ``past``: `receptive_field`."""
    x, start, steps, needed = to_columns(decoder, codes, crop, past)
    first, *blocks, snake, last = decoder.decoder
    x, _ = first(x[:, :, -steps - next(needed) :], start.first_conv)
    for block, state in zip(blocks, start.blocks, strict=True):
        x, _ = block(x[:, :, -steps - next(needed) :], state, None)
        steps *= block.rate
    x, _ = last(snake(x[:, :, -steps - _CONV :]), start.last_conv)
    return x[0, :, -crop * FRAME :]  # not clipped: a clipped sample has no gradient


def to_columns(
    decoder: Decoder, codes: I32[Array, "B M K"], crop: int, past: tuple[int, ...]
) -> tuple[F32[Array, "C B T"], DecoderState, int, Iterator[int]]:
    """What the first wide convolution is given, at 50 Hz; the state that the decoder begins with, the steps of ``crop`` frames, and the
    pasts that the rest needs."""
    return from_entries(decoder, decoder.quantizer(codes), crop, past)


def from_entries(
    decoder: Decoder, named: F32[Array, "B M H"], crop: int, past: tuple[int, ...]
) -> tuple[F32[Array, "C B T"], DecoderState, int, Iterator[int]]:
    """`to_columns` of what the codes name."""
    start = decoder.initial(len(named))
    x, _ = decoder.pre_conv(jnp.moveaxis(named, -1, 0), start.pre_conv)
    x, _ = decoder.pre_transformer(x, start.window, start.position, None)
    steps = crop  # of the current rate, to which the past is added
    needed = iter(past)
    for (stretch, mix), tail in zip(decoder.upsample, start.convnext, strict=True):
        x, _ = mix(stretch(x[:, :, -steps - next(needed) :]), tail, None)
        steps *= stretch.rate
    return x, start, steps, needed


def generate(cfg: CodecDecoderConfig, trained: Flat, frozen: Flat, codes: I32[Array, "B M K"], crop: int) -> F32[Array, "B {crop}*1920"]:
    """`decode_crop` from flat parameters."""
    graph, shapes = decoder_definition(cfg)
    return decode_crop(nnx.merge(graph, unflatten({**trained, **frozen}, shapes)), codes, crop, receptive_field(cfg))


def _without(held: Held, changes: Flat) -> Flat:
    """Zero where parameters are held."""
    changes = dict(changes)
    for path, ranges in held:
        changes[path] = changes[path].at[tuple(slice(*some) for some in ranges)].set(0.0)
    return changes


def update(gradients: Flat, moments: Any, params: Flat, rate: jax.Array, held: Held = ()) -> tuple[Flat, Any]:
    """Parameters and moments after a step at ``rate``; what is held stays."""
    gradients = _without(held, gradients)
    steps, moments = optimiser().update(gradients, moments, params)
    steps = _without(held, steps)  # they decay, too
    return jax.tree.map(lambda param, step: param + rate * step, params, steps), moments


def begin(generator: Flat, critic: Flat) -> dict[str, Any]:
    """Training state of step 0: parameters by dotted path, their running average, both optimisers' moments, the step."""
    trained = {path: jnp.asarray(value) for path, value in generator.items() if trains(path)}
    frozen = {path: jnp.asarray(value) for path, value in generator.items() if not trains(path)}
    critic = {path: jnp.asarray(value) for path, value in critic.items()}
    return {
        "step": jnp.zeros((), jnp.int32),
        "trained": trained,
        "frozen": frozen,
        "average": jax.tree.map(jnp.copy, trained),
        "critic": critic,
        "moments": optimiser().init(trained),
        "critic_moments": optimiser().init(critic),
        "power": jnp.ones((2, LEVELS)),  # see decoder_levels.py
    }


def finish(state: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """The state after a step."""
    average = running_average(state["average"], changed["trained"], state["step"])
    return {**state, **changed, "average": average, "step": state["step"] + 1}


@functools.partial(jax.jit, static_argnames=("cfg", "crop", "held"), donate_argnames="state")
def spectral_step(
    state: dict[str, Any],
    codes: I32[Array, "B M K"],
    wave: F32[Array, "B F"],
    rate: float,
    *,
    cfg: CodecDecoderConfig,
    crop: int,
    held: Held = (),
) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """One step on the spectral losses alone."""

    def loss(trained: Flat) -> tuple[jax.Array, dict[str, jax.Array]]:
        made = generate(cfg, trained, state["frozen"], codes, crop)
        spectral, terms = losses.spectral(made, wave)
        terms["harmonic"] = losses.harmonic(made, wave)
        return spectral + HARMONIC * terms["harmonic"], terms

    (total, terms), gradients = jax.value_and_grad(loss, has_aux=True)(state["trained"])
    gradients = _without(held, gradients)  # for the figure, too: those are by far the largest
    trained, moments = update(gradients, state["moments"], state["trained"], rate_at(state["step"], rate), held)
    figures = {"spectral": total, **terms, "gradient": optax.tree.norm(gradients)}
    return finish(state, trained=trained, moments=moments), figures


SEEDED = 3  # books, the last ones, whose codes also seed the noise
HARMONIC = 2.0  # beside the spectral losses
WEIGHTS = {"spectral": 10.0, "adversarial": 1.0, "features": 4.0}


@functools.partial(jax.jit, static_argnames=("cfg", "crop", "judged", "pair", "held"), donate_argnames="state")
def adversarial_step(
    state: dict[str, Any], codes: I32[Array, "B M K"], wave: F32[Array, "B F"], start: I32[Array, " B"], rate: float, critic_rate: float,
    *, cfg: CodecDecoderConfig, crop: int, judged: int, pair: int, held: Held = (),
) -> tuple[dict[str, Any], dict[str, jax.Array]]:  # fmt: skip
    """One step of both sides, from the same forward; discriminators hear ``judged`` samples of each row, from ``start`` on.

    ``pair``: which of the discriminators take part, see Discriminators.
    """
    graph, shapes = critic_definition()
    window = jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, judged))
    real = window(wave, start)

    def judge(critic: Flat, sound: jax.Array) -> losses.Judgement:
        return nnx.merge(graph, unflatten(critic, shapes))(sound, pair)

    def loss(trained: Flat) -> tuple[jax.Array, tuple[jax.Array, dict[str, jax.Array]]]:
        made = generate(cfg, trained, state["frozen"], codes, crop)
        spectral, terms = losses.spectral(made, wave)
        heard = judge(state["critic"], window(made, start))
        terms |= {"spectral": spectral + HARMONIC * losses.harmonic(made, wave), "adversarial": losses.adversarial(heard)}
        terms["features"] = losses.feature_matching(judge(state["critic"], real), heard)
        return sum((WEIGHTS[name] * terms[name] for name in WEIGHTS), jnp.zeros(())), (made, terms)

    (_, (made, terms)), gradients = jax.value_and_grad(loss, has_aux=True)(state["trained"])
    gradients = _without(held, gradients)

    def critic_loss(critic: Flat) -> jax.Array:
        return losses.discriminator_loss(judge(critic, real), judge(critic, window(made, start)))

    terms["critic"], critic_gradients = jax.value_and_grad(critic_loss)(state["critic"])
    trained, moments = update(gradients, state["moments"], state["trained"], rate_at(state["step"], rate), held)
    critic, critic_moments = update(critic_gradients, state["critic_moments"], state["critic"], jnp.asarray(critic_rate))
    terms["gradient"] = optax.tree.norm(gradients)
    return finish(state, trained=trained, moments=moments, critic=critic, critic_moments=critic_moments), terms


def fill_books(generator: Flat, latents: Latents) -> Flat:
    """Put fitted books into a decoder's fresh parameters: acoustic vectors whitened into the first channels; what book 1 says of the
    phase, and seeds for noise, into the next; content into the rest."""
    generator = dict(generator)
    ramps = np.moveaxis(latents.pitch.ramps(), 2, 1).reshape(len(latents.cycles), -1)
    more = np.zeros((*latents.acoustic.shape[:2], ramps.shape[1] * 3 // 2), np.float32)
    more[0, :, : ramps.shape[1]] = ramps
    draw = np.random.default_rng(0)
    more[-SEEDED:, :, ramps.shape[1] :] = draw.uniform(0, 1 / SEEDED, (SEEDED, len(ramps), ramps.shape[1] // 2))
    acoustic, content = np.concatenate([latents.acoustic, more], axis=2), latents.content
    spread = np.concatenate([latents.spread, np.ones(more.shape[2], np.float32)])
    size = acoustic.shape[2]
    first = jnp.zeros(generator["quantizer.rvq_first.vq.embedding_sum"].shape).at[0, :, : content.shape[1]].set(content)
    generator |= {
        "quantizer.rvq_first.vq.embedding_sum": first,
        "quantizer.rvq_rest.vq.embedding_sum": jnp.asarray(acoustic),
        "quantizer.rvq_first.vq.cluster_usage": jnp.ones(first.shape[:2]),
        "quantizer.rvq_rest.vq.cluster_usage": jnp.ones(acoustic.shape[:2]),
    }
    rest = jnp.zeros((2 * size, size, 1)).at[jnp.arange(size), jnp.arange(size), 0].set(1 / jnp.asarray(spread))
    own = jnp.zeros((2 * size, size, 1)).at[size + jnp.arange(size), jnp.arange(size), 0].set(0.2)
    return generator | {"quantizer.rvq_rest.output_proj.weight": rest, "quantizer.rvq_first.output_proj.weight": own}
