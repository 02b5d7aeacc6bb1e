"""A recogniser of phonemes from levels: it says which errors of levels change what is heard, and so what is worth getting right.

An error of levels, however it is weighted, is mostly of loud and steady sounds; words are lost with what is soft and short. So what
reads codes (decoder_levels.py) and what finds them (straight_through.py) are also to make levels in which this recogniser, which has
heard true ones only, finds the same as in those that were said: the same phonemes (`PerceptualDifference.symbols`), and the same on the way
to them (`features`: arXiv 1603.08155). It is small, hears both ways, and is no judge: Whisper is (training/log.md).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from qwen3_jax.checkpoint.mapping import flatten, unflatten
from qwen3_jax.model.layers import LayerNorm
from qwen3_jax.shapes import F32, I32, Array
from training.initialisation import random_start
from training.latents.levels import LEVELS
from training.latents.phonemes import SYMBOLS
from training.mixed_precision import MixedLinear
from training.optimiser import Flat, optimiser, rate_at, running_average

COUNT = 2 * LEVELS  # of a column: two moments
HEARS = len(SYMBOLS) + 1  # symbols
WIDTH, TAPS, DILATIONS = 192, 5, (1, 2, 4)
NOISE, TILT = 0.25, 0.2  # of each number's spread: at every column, and over a whole crop
DECAY = 0.05
_GIVEN = ("mean", "spread")  # of columns; measured, not trained


class ContextLinear(nnx.Module):
    """``taps`` columns, ``dilation`` apart, around each -> one of ``outputs`` numbers: a convolution as one product."""

    def __init__(self, inputs: int, outputs: int, taps: int, dilation: int = 1) -> None:
        self.linear = MixedLinear(taps * inputs, outputs, bias=True)
        self.taps, self.dilation = taps, dilation

    def __call__(self, x: F32[Array, "B T I"]) -> F32[Array, "B T O"]:
        reach = self.taps // 2 * self.dilation
        padded = jnp.pad(x, ((0, 0), (reach, reach), (0, 0)))
        seen = [padded[:, tap * self.dilation : tap * self.dilation + x.shape[1]] for tap in range(self.taps)]
        return self.linear(jnp.concatenate(seen, axis=-1))


class RecogniserBlock(nnx.Module):
    """A residual one."""

    def __init__(self, dilation: int) -> None:
        self.norm = LayerNorm(WIDTH, 1e-5)
        self.around = ContextLinear(WIDTH, WIDTH, TAPS, dilation)
        self.out = MixedLinear(WIDTH, WIDTH, bias=True)

    def __call__(self, x: F32[Array, "B T C"]) -> F32[Array, "B T C"]:
        return x + self.out(jax.nn.gelu(self.around(self.norm(x)), approximate=False))


class PhonemeRecogniser(nnx.Module):
    """Columns (`loud.wanted`, channels last) -> log probabilities of the symbol in each, and what the blocks made."""

    def __init__(self) -> None:
        self.mean, self.spread = nnx.Param(jnp.zeros((COUNT,))), nnx.Param(jnp.ones((COUNT,)))
        self.begin = ContextLinear(COUNT, WIDTH, 3)
        self.blocks = nnx.List([RecogniserBlock(dilation) for dilation in DILATIONS])
        self.norm = LayerNorm(WIDTH, 1e-5)
        self.name = MixedLinear(WIDTH, HEARS, bias=True)

    def __call__(self, columns: F32[Array, "B T 56"]) -> tuple[F32[Array, "B T S"], list[F32[Array, "B T C"]]]:
        x = self.begin((columns - self.mean[...]) / self.spread[...])
        made = []
        for block in self.blocks:
            x = block(x)
            made.append(x)
        return jax.nn.log_softmax(self.name(self.norm(x))), made


@functools.cache
def definition() -> tuple[Any, Flat]:
    """Graph definition, and shapes by dotted path."""
    graph, state = nnx.split(nnx.eval_shape(PhonemeRecogniser))
    return graph, nnx.to_pure_dict(state)


def begin(columns: F32[np.ndarray, "56 B T"], seed: int) -> dict[str, Any]:
    """Training state of step 0; ``columns``: some, to be measured."""
    params = random_start(flatten(definition()[1]), seed)
    params["mean"], params["spread"] = columns.mean(axis=(1, 2)), np.maximum(columns.std(axis=(1, 2)), 1e-3)
    trained = {path: jnp.asarray(value) for path, value in params.items() if path not in _GIVEN}
    return {
        "step": jnp.zeros((), jnp.int32),
        "trained": trained,
        "frozen": {path: jnp.asarray(params[path]) for path in _GIVEN},
        "average": jax.tree.map(jnp.copy, trained),
        "moments": optimiser().init(trained),
    }


def _of(params: Flat) -> PhonemeRecogniser:
    graph, shapes = definition()
    return nnx.merge(graph, unflatten(params, shapes))


@functools.partial(jax.jit, donate_argnames="state")
def step(
    state: dict[str, Any], columns: F32[Array, "56 B T"], said: I32[Array, "B T"], seed: int, rate: float
) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """One step of naming what is said, on true columns with noise (drawn by ``seed``)."""
    heard = jnp.moveaxis(columns, 0, -1)
    every, whole = jax.random.split(jax.random.key(seed))
    noise = NOISE * jax.random.normal(every, heard.shape) + TILT * jax.random.normal(whole, (len(heard), 1, COUNT))
    heard = heard + state["frozen"]["spread"] * noise

    def loss(trained: Flat) -> tuple[jax.Array, jax.Array]:
        named = _of({**trained, **state["frozen"]})(heard)[0]
        return -jnp.take_along_axis(named, said[..., None], axis=-1).mean(), jnp.mean(named.argmax(axis=-1) == said)

    (lost, right), gradients = jax.value_and_grad(loss, has_aux=True)(state["trained"])
    steps, moments = optimiser(decay=DECAY).update(gradients, state["moments"], state["trained"])
    now = rate_at(state["step"], rate)
    trained = jax.tree.map(lambda param, step: param + now * step, state["trained"], steps)
    average = running_average(state["average"], trained, state["step"])
    figures = {"symbols": lost, "right": right, "gradient": optax.tree.norm(gradients)}
    return {**state, "trained": trained, "average": average, "moments": moments, "step": state["step"] + 1}, figures


@jax.jit
def agreement(params: Flat, columns: F32[Array, "56 B T"], said: I32[Array, "B T"]) -> tuple[jax.Array, jax.Array]:
    """Nats lost by naming what is said, and the share of columns that is named right."""
    named = _of(params)(jnp.moveaxis(columns, 0, -1))[0]
    return -jnp.take_along_axis(named, said[..., None], axis=-1).mean(), jnp.mean(named.argmax(axis=-1) == said)


class PerceptualDifference(NamedTuple):
    """Of what is heard in two kinds of columns: ``symbols`` is the divergence of their probabilities in nats (Kullback and Leibler,
    Annals of Mathematical Statistics 22, 1951), ``features`` the squared difference of what the blocks make, each normalised."""

    symbols: jax.Array
    features: jax.Array


def difference(params: Flat, made: F32[Array, "56 B T"], wanted: F32[Array, "56 B T"]) -> PerceptualDifference:
    """How differently columns sound from those that are wanted; mean over columns."""
    recogniser = _of(params)
    found, along = recogniser(jnp.moveaxis(made, 0, -1))
    true, ways = recogniser(jnp.moveaxis(wanted, 0, -1))
    off = [jnp.mean(jnp.square(_normal(one) - _normal(other))) for one, other in zip(along, ways, strict=True)]
    return PerceptualDifference(jnp.mean(jnp.sum(jnp.exp(true) * (true - found), axis=-1)), jnp.mean(jnp.stack(off)))


def _normal(x: jax.Array) -> jax.Array:
    x = x - x.mean(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-5)
