"""The encoder as it is trained: wave [B F] -> the vector before its quantiser [B N H], and the step that moves it onto the latents.

The first D channels of that vector are to be the whitened latent, the next O the vector of book 0's entry; the quantiser's projections
take them apart again (`fill_books`), so the encoder's codes are the latents' codes as far as it is right. What it cannot know it guesses
as nearly nothing, and dull speech would come of that: the projection widens each number to what it should vary (`export_weights`), which
adds .3 of DistillMOS to what comes through codec and back. Book 0 names what the next frame says, which it cannot hear: there it is less
often right than elsewhere, and only in-context cloning reads it.

Its first convolutions, from 24 kHz to 200 Hz, are most of the work. They are kept as they are once they hear well enough (`lower`), and
what they make of the corpus is computed once; what follows them (`upper`) then learns from several times as much speech in the same time
(training/log.md).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from qwen3_jax.checkpoint.mapping import unflatten
from qwen3_jax.codec.encoder import Encoder
from qwen3_jax.model.config import CodecEncoderConfig
from qwen3_jax.shapes import F32, I32, Array, Float
from training.latents.quantiser import Latents
from training.optimiser import Flat, optimiser, rate_at, running_average

WIDEST = 5.0  # by which a number is widened, at most
UPPER = 3  # layers of the convolutions that `upper` has: a residual block, the last strided convolution, the last one
BLURRED = 0.2  # of its spread, noise on what `lower` made: without it, three hours were learnt by heart
DECAY = 0.1  # of weights, where only `upper` trains
SKIPPED = 4  # frames at a crop's begin, whose past the encoder does not hear
_ACOUSTIC = "quantizer.acoustic_residual_vector_quantizer"


@functools.cache
def encoder_definition(cfg: CodecEncoderConfig, books: int) -> tuple[Any, Flat]:
    """Graph definition, and shapes by dotted path."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Encoder(cfg, books)))
    return graph, nnx.to_pure_dict(state)


def trains(path: str) -> bool:
    """Whether an encoder parameter is trained: all but the quantiser's, which are fitted."""
    return not path.startswith("quantizer.")


def embed(encoder: Encoder, wave: F32[Array, "B F"], valid: I32[Array, " B"]) -> F32[Array, "B N H"]:
    """What the quantiser is given."""
    return _downsampled(encoder, *encoder.encoder(wave[None], valid))


def lower(encoder: Encoder, wave: F32[Array, "B F"]) -> F32[Array, "B T C"]:
    """What the last residual block of the convolutions is given; T is F / 120 as published."""
    x, _ = encoder.encoder.through(encoder.encoder.order[:-UPPER], wave[None], jnp.full(len(wave), wave.shape[1], jnp.int32))
    return jnp.moveaxis(x, 0, -1)


def upper(encoder: Encoder, heard: F32[Array, "B T C"]) -> F32[Array, "B N H"]:
    """What the quantiser is given, from what `lower` made."""
    valid = jnp.full(len(heard), heard.shape[1], jnp.int32)
    return _downsampled(encoder, *encoder.encoder.through(encoder.encoder.order[-UPPER:], jnp.moveaxis(heard, -1, 0), valid))


def _downsampled(encoder: Encoder, x: F32[Array, "H B T"], steps: I32[Array, " B"]) -> F32[Array, "B N H"]:
    x, _ = encoder.downsample(encoder.encoder_transformer(x), steps)
    return jnp.moveaxis(x, 0, -1)


def fill_books(encoder: Flat, latents: Latents) -> Flat:
    """Put fitted books and the projections that go with them into an encoder's parameters."""
    size, (entries, content) = latents.latent_size, latents.content.shape
    width = encoder["quantizer.semantic_residual_vector_quantizer.input_proj.weight"].shape[1]
    if size + content > width:
        raise ValueError(f"latent {size} + content {content} do not fit into the encoder's {width} channels")
    take_latent, take_content = np.zeros((size, width, 1), np.float32), np.zeros((size, width, 1), np.float32)
    take_latent[np.arange(size), np.arange(size), 0] = latents.spread
    take_content[np.arange(content), size + np.arange(content), 0] = 1.0
    first = np.zeros((1, entries, size), np.float32)
    first[0, :, :content] = latents.content
    semantic, acoustic = "quantizer.semantic_residual_vector_quantizer", _ACOUSTIC
    return {
        **encoder,
        f"{semantic}.input_proj.weight": take_content, f"{semantic}.embed_sum": first,
        f"{semantic}.cluster_usage": np.ones((1, entries), np.float32),
        f"{acoustic}.input_proj.weight": take_latent, f"{acoustic}.embed_sum": np.asarray(latents.acoustic),
        f"{acoustic}.cluster_usage": np.ones(latents.acoustic.shape[:2], np.float32),
    }  # fmt: skip


def target(latents: Latents, latent: np.ndarray, entry: np.ndarray) -> np.ndarray:
    """What the first channels are to be, [B N D+O]; ``entry``: of book 0."""
    return np.concatenate([latent.astype(np.float32) / latents.spread, latents.content[entry]], axis=-1)


def begin(encoder: Flat) -> dict[str, Any]:
    """Training state of step 0."""
    trained = {path: jnp.asarray(value) for path, value in encoder.items() if trains(path)}
    frozen = {path: jnp.asarray(value) for path, value in encoder.items() if not trains(path)}
    average = jax.tree.map(jnp.copy, trained)
    return {
        "step": jnp.zeros((), jnp.int32),
        "trained": trained,
        "frozen": frozen,
        "average": average,
        "moments": optimiser().init(trained),
        "power": jnp.ones((2, encoder[f"{_ACOUSTIC}.input_proj.weight"].shape[0])),  # of what is found and of what is wanted, by number
    }


def begin_at(state: dict[str, Any], exported: Flat, step: int) -> dict[str, Any]:
    """``state``, but with the weights that `export_weights` gave once, and as wide."""
    path = f"{_ACOUSTIC}.input_proj.weight"
    wider = jnp.abs(exported[path]).sum(axis=(1, 2)) / jnp.abs(state["frozen"][path]).sum(axis=(1, 2))
    kinds = {kind: {name: jnp.copy(exported[name]) for name in state[kind]} for kind in ("trained", "average")}
    return {**state, **kinds, "power": jnp.stack([wider**-2, jnp.ones_like(wider)]), "step": jnp.asarray(step, jnp.int32)}


def export_weights(state: dict[str, Any], components: int, kind: str = "average") -> Flat:
    """The averaged parameters (or those ``trained`` now), with the latent's main ``components`` widened."""
    found, wanted = state["power"]
    wider = jnp.clip(jnp.sqrt(wanted / found), 1.0, WIDEST).at[components:].set(1.0)
    path = f"{_ACOUSTIC}.input_proj.weight"
    return {**state[kind], **state["frozen"], path: state["frozen"][path] * wider[:, None, None]}


def is_lower(path: str, cfg: CodecEncoderConfig) -> bool:
    """Whether a parameter is of what `lower` computes."""
    upper_from = 3 * len(cfg.upsampling_ratios) - 2  # the published number of the first of the `UPPER`
    return path.startswith("encoder.layers.") and int(path.split(".")[2]) < upper_from


def with_averaged_lower(state: dict[str, Any], cfg: CodecEncoderConfig) -> dict[str, Any]:
    """``state``, but what `lower` computes is as its average is, which `lower_output` uses."""
    trained = {path: jnp.copy(state["average"][path]) if is_lower(path, cfg) else value for path, value in state["trained"].items()}
    return {**state, "trained": trained}


@functools.partial(jax.jit, static_argnames=("cfg", "books"))
def lower_output(state: dict[str, Any], wave: F32[Array, "B F"], *, cfg: CodecEncoderConfig, books: int) -> Float[Array, "B T C"]:
    """`lower` of the averaged parameters, float16."""
    graph, shapes = encoder_definition(cfg, books)
    return lower(nnx.merge(graph, unflatten({**state["average"], **state["frozen"]}, shapes)), wave).astype(jnp.float16)


def regression(found: F32[Array, "B N H"], wanted: F32[Array, "B N _"], spread: F32[Array, " D"]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The error, counted as the books' distances count it (so by spread), and a little of it evenly; and its terms."""
    size = len(spread)
    off = jnp.square(found[..., : wanted.shape[2]] - wanted)
    weight = jnp.square(spread)
    by_distance = jnp.mean(off[..., :size] @ (weight / weight.sum()))
    content = jnp.mean(off[..., size:]) / jnp.mean(jnp.square(wanted[..., size:]))
    evenly = jnp.mean(off[..., :size])
    return by_distance + content + 0.2 * evenly, {"latent": by_distance, "content": content, "evenly": evenly}


def updated_parameters(state: dict[str, Any], gradients: Flat, rate: float, cfg: CodecEncoderConfig, whole: bool) -> tuple[Flat, Any]:
    """Parameters and moments after a step; but for ``whole``, what `lower` computes stays."""
    adam = optimiser() if whole else optimiser(decay=DECAY)
    steps, moments = adam.update(gradients, state["moments"], state["trained"])
    now = rate_at(state["step"], rate)
    held = {path for path in steps if not whole and is_lower(path, cfg)}
    return {path: value if path in held else value + now * steps[path] for path, value in state["trained"].items()}, moments


@functools.partial(jax.jit, static_argnames=("cfg", "books"), donate_argnames="state")
def regression_step(
    state: dict[str, Any], heard: F32[Array, "B F"] | Float[Array, "B T C"], wanted: F32[Array, "B N _"],
    spread: F32[Array, " D"], rate: float,
    *, cfg: CodecEncoderConfig, books: int,
) -> tuple[dict[str, Any], dict[str, jax.Array]]:  # fmt: skip
    """One step, on waves or on what `lower_output` made of them; then what made it stays as it is."""
    graph, shapes = encoder_definition(cfg, books)
    size, wave = len(spread), heard.ndim == 2

    def loss(trained: Flat) -> tuple[jax.Array, tuple[dict[str, jax.Array], jax.Array]]:
        encoder = nnx.merge(graph, unflatten({**trained, **state["frozen"]}, shapes))
        if wave:
            found = embed(encoder, heard, jnp.full(len(heard), heard.shape[1], jnp.int32))
        else:
            found = upper(encoder, heard.astype(jnp.float32))
        power = jnp.stack([jnp.mean(jnp.square(each[:, SKIPPED:, :size]), axis=(0, 1)) for each in (found, wanted)])
        off, terms = regression(found[:, SKIPPED:], wanted[:, SKIPPED:], spread)
        return off, (terms, power)

    (_, (terms, now_power)), gradients = jax.value_and_grad(loss, has_aux=True)(state["trained"])
    trained, moments = updated_parameters(state, gradients, rate, cfg, wave)
    average, power = running_average((state["average"], state["power"]), (trained, now_power), state["step"])
    state = {**state, "trained": trained, "average": average, "moments": moments, "power": power, "step": state["step"] + 1}
    return state, {**terms, "gradient": optax.tree.norm(gradients)}
