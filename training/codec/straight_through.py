"""The encoder learns through the decoder: speech -> codes -> levels, which are to sound as those of the speech do (phoneme_recogniser.py).

The regression onto the latents (encoder_training.py) counts every error by its size, and knows nothing of what the decoder makes of it.
Here it goes on, so that codes keep their meaning for the language model, and beside it counts what comes out in the end. The entries that
are named are the nearest, as always; gradients see the mean of a book's entries, weighted by how near they are, where near is what that
book loses on average (straight through: arXiv 1308.3432). Pitch and book 0 are not touched by it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from qwen3_jax.checkpoint.mapping import unflatten
from qwen3_jax.model.config import CodecDecoderConfig, CodecEncoderConfig
from qwen3_jax.shapes import F32, Array, Float
from training.codec import decoder_levels, encoder_training
from training.codec.decoder_training import decoder_definition, from_entries, receptive_field
from training.codec.phoneme_recogniser import difference
from training.codec.vocoder_initialisation import STEPS
from training.mixed_precision import product
from training.optimiser import Flat, running_average

SKIPPED = 8  # frames at a crop's begin that are not heard
LEVELS, SYMBOLS, FEATURES = 20.0, 14.0, 8.0  # what errors of levels and what the recogniser hears count for, beside the regression
_REST = "quantizer.rvq_rest"


def soft_quantise(x: F32[Array, "B N D"], entries: F32[Array, "K V D"], named: F32[Array, "K V H"]) -> F32[Array, "B N H"]:
    """The mean of what the entries of all books stand for, by how near to x each is; books have their own numbers of x."""
    distance = jnp.square(entries).sum(axis=2) - 2 * jnp.einsum("bnd,kvd->bnkv", x, entries)
    own = (entries != 0).any(axis=1).astype(jnp.float32)
    lost = jnp.mean(jnp.square(x) @ own.T + distance.min(axis=3), axis=(0, 1))
    weight = jax.nn.softmax(-distance / jax.lax.stop_gradient(lost)[:, None])
    return product(weight.reshape(-1, distance[0, 0].size), named.reshape(-1, named.shape[2]).T).reshape(*x.shape[:2], -1)


def columns(
    encoder: Flat, decoder: Flat, found: F32[Array, "B N H"], *, cfg: CodecEncoderConfig, reads: CodecDecoderConfig
) -> F32[Array, "56 B _"]:
    """What the decoder makes of frames that the encoder found, as `decoder_levels.level_columns` gives it; gradients as described above.

    Args:
        encoder: of `encoder_training.export_weights`, so as wide as what is exported; decoder: as trained.
        found: what the quantiser is given.
        cfg: of the encoder; reads: of the decoder.
    """
    graph, shapes = encoder_training.encoder_definition(cfg, reads.num_quantizers)
    quantizer = nnx.merge(graph, unflatten(encoder, shapes)).quantizer
    graph, shapes = decoder_definition(reads)
    reader = nnx.merge(graph, unflatten(decoder, shapes))
    acoustic = quantizer.acoustic_residual_vector_quantizer
    x = found @ acoustic.input_proj.weight[...][:, :, 0].T
    outward = decoder[f"{_REST}.output_proj.weight"][:, :, 0]
    near = soft_quantise(x, acoustic.embed_sum[...][1:], decoder[f"{_REST}.vq.embedding_sum"][1:]) @ outward.T
    named = jax.lax.stop_gradient(reader.quantizer(quantizer(found)) - near) + near
    made, *_ = from_entries(reader, named, found.shape[1], tuple(0 for _ in receptive_field(reads)))
    return made[: decoder_levels.COUNT]


@functools.partial(jax.jit, static_argnames=("components", "cfg", "reads"), donate_argnames="state")
def step(
    state: dict[str, Any], given: Float[Array, "B T C"], wanted: F32[Array, "B N _"], told: F32[Array, "56 B _"],
    decoder: Flat, recogniser: Flat,
    spread: F32[Array, " D"], components: int, rate: float,
    *, cfg: CodecEncoderConfig, reads: CodecDecoderConfig,
) -> tuple[dict[str, Any], dict[str, jax.Array]]:  # fmt: skip
    """One step of what follows the first convolutions; how its numbers are widened stays.

    Args:
        state: of `encoder_training.begin`.
        given: of `encoder_training.lower_output`; wanted: of `encoder_training.target`; told: of `decoder_levels.target_columns`.
        decoder: parameters of one that reads codes, and recogniser: of a recogniser; they stay.
        spread: of the latents, the first ``components`` of which are those of levels.
        rate: the highest; it falls as elsewhere.
        cfg: of the encoder; reads: of the decoder.
    """
    graph, shapes = encoder_training.encoder_definition(cfg, reads.num_quantizers)

    def loss(trained: Flat) -> tuple[jax.Array, dict[str, jax.Array]]:
        encoder = encoder_training.export_weights({**state, "trained": trained}, components, "trained")
        found = encoder_training.upper(nnx.merge(graph, unflatten(encoder, shapes)), given.astype(jnp.float32))
        off, terms = encoder_training.regression(found[:, SKIPPED:], wanted[:, SKIPPED:], spread)
        made, true = (each[:, :, SKIPPED * STEPS :] for each in (columns(encoder, decoder, found, cfg=cfg, reads=reads), told))
        terms["levels"] = jnp.mean(jnp.square(decoder_levels.weighted(made) - decoder_levels.weighted(true)))
        heard = difference(recogniser, made, true)
        terms |= heard._asdict()
        return off + LEVELS * terms["levels"] + SYMBOLS * heard.symbols + FEATURES * heard.features, terms

    (_, terms), gradients = jax.value_and_grad(loss, has_aux=True)(state["trained"])
    trained, moments = encoder_training.updated_parameters(state, gradients, rate, cfg, False)
    average = running_average(state["average"], trained, state["step"])
    state = {**state, "trained": trained, "average": average, "moments": moments, "step": state["step"] + 1}
    return state, {**terms, "gradient": optax.tree.norm(gradients)}
