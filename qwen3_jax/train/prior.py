"""What a decoder may know before its first step: the books' main components -> the spectrogram's columns, and their pitch -> pulses.

The latent of a frame is linear in four columns of a log-mel spectrogram (latents.py), and the decoder's first two stretchings make four
steps of a frame. So its projections are set to carry the components through, and the stretchings to turn them back into columns: from
the start the first 80 channels at 50 Hz are the quantised spectrogram.

A frame of locked speech has a known phase at every sample (locking.py). Book 1 gives it for 32 steps, with its slope; every stretching by
r adds j/r of the slope to the j-th step it makes, so at 8 kHz one channel is the phase itself, in cycles from 0 to 2. There the first
residual unit turns it into pulses, since SnakeBeta is x + sin(pi h x)^2 and so half a cosine of the h-th harmonic:

    channel c < 15:  h x + sin^2(pi h x), h = c + 1        channel 15:  16 x, no sine
    band            -2 g (sum over its h) + what channel 15 needs to cancel the h x  =  g (sum of cos(2 pi h x) - number of its h)

The pulses of four bands of harmonics go into four channels, and the rest of the decoder begins as the filter of a source-filter vocoder
(as hibari's and that of arXiv 1904.12088 are, but inside the published architecture). `HELD` is what must not be trained, since a
thousandth of a cycle matters; all else trains. One thousand steps without the spectrogram had not found the formants yet; 500 steps
without the pulses had not found the phase.
"""

import numpy as np

from qwen3_jax.shapes import NpF32
from qwen3_jax.train.latents import BINS, COLUMNS, Latents
from qwen3_jax.train.locking import RAMPS
from qwen3_jax.train.vocoder import Flat, Held, Ranges

STEADY = 300.0  # a constant channel that keeps the RMS norm at the transformer's end from following the sound's level
SILENT = 20.0  # a logarithm of Snake's height that leaves no sine
BANDS = ((1, 2), (3, 4, 5), (6, 7, 8, 9), (10, 11, 12, 13, 14, 15))
STRETCHES = (2, 2, 2, 4, 5, 4)  # that lead to the pulses' rate
_HARMONICS, _LOUDNESS = 15, 0.5
_REST = 0.3  # of the random weights, where they share outputs with what is set
ALL = (0, None)


def show(decoder: Flat, latents: Latents) -> Flat:
    """Put the ways from books to spectrogram and to pulses into a decoder's fresh parameters.

    Args:
        decoder: dotted path -> array; of `vocoder.fill_books`, so that the first channels are the whitened components, the next what
            tells pitches apart, then 32 phases, then 32 slopes.
        latents: what the books were fitted with.

    Raises:
        ValueError: the decoder is too narrow.
    """
    main, size = latents.components, latents.latent_size
    told = size - main  # numbers that tell pitches apart
    top = size + 2 * RAMPS
    made = {path: np.array(value) for path, value in decoder.items()}
    width, wide = made["pre_transformer.input_proj.weight"].shape
    if width <= top or wide < 2 * main + told + RAMPS or wide < BINS + told + RAMPS:
        raise ValueError(f"a latent of {size} numbers and {2 * RAMPS} of phase: hidden_size {width} and latent_dim {wide} are too small")
    carry = np.arange(top)
    made["pre_conv.conv.weight"][:size] *= _REST
    made["pre_conv.conv.weight"][size:top] = 0.0
    made["pre_conv.conv.weight"][carry, carry, -1] = 1.0
    inward = made["pre_transformer.input_proj.weight"]
    inward[: top + 1] = 0.0
    inward[carry, carry] = 1.0
    made["pre_transformer.input_proj.bias"][top] = STEADY
    usual = np.float32(np.sqrt((top + STEADY**2) / width))  # what the norms divide by
    for path in [path for path in made if path.startswith("pre_transformer.") and "norm.weight" in path]:
        made[path][:] = usual
        made[path][top] = usual / STEADY
    for path in [path for path in made if path.endswith("layer_scale.scale")]:
        made[path][main : top + 1] = 0.0
    outward = made["pre_transformer.output_proj.weight"]
    outward[:top] = 0.0
    outward[carry, carry] = 1.0
    # 12.5 Hz -> 25 Hz: components of the frame in two places, for its first half and its second; phases of the own half
    half = made["upsample.0.0.conv.weight"]
    kept = 2 * main + told
    half[:, : kept + RAMPS] = 0.0
    half[carry[:main], carry[:main], 0] = 1.0
    half[carry[:main], main + carry[:main], 1] = 1.0
    for step in range(2):
        half[main + np.arange(told), 2 * main + np.arange(told), step] = 1.0
    _split(half, size, kept, 2 * RAMPS)
    made["upsample.0.1.gamma"][kept : kept + RAMPS] = 0.0
    # 25 Hz -> 50 Hz: a column of the spectrogram
    quarter = made["upsample.1.0.conv.weight"]
    first = BINS + told
    quarter[:, : first + RAMPS // 2] = 0.0
    for column, matrix in enumerate(columns(latents)):
        at = 0 if column < COLUMNS // 2 else main
        quarter[at : at + main, :BINS, column % 2] = matrix
    for step in range(2):
        quarter[2 * main + np.arange(told), BINS + np.arange(told), step] = 1.0
    _split(quarter, kept, first, RAMPS)
    made["upsample.1.1.gamma"][first : first + RAMPS // 2] = 0.0
    held = np.arange(first, first + RAMPS // 2)
    made["decoder.0.conv.weight"][held] = 0.0
    made["decoder.0.conv.weight"][held, held, -1] = 1.0
    # 50 Hz -> 100 Hz -> 400 Hz: phases are dealt out; -> 2 kHz -> 8 kHz: the slope fills in
    at, phases = first, RAMPS // 4
    for block, rate in enumerate(STRETCHES[2:], 1):
        name = f"decoder.{block}.block"
        made[f"{name}.0.beta"][at : at + 2 * phases] = SILENT
        stretch = made[f"{name}.1.conv.weight"]
        if phases >= rate:
            stretch[:, : 2 * phases // rate] = 0.0
            _split(stretch, at, 0, 2 * phases, rate)
            phases //= rate
        else:
            stretch[:, :2] = 0.0
            stretch[at, 0, :rate] = 1.0
            stretch[at + 1, 0, :rate] = np.arange(rate) / rate
            stretch[at + 1, 1, :rate] = 1.0 / rate
        at = 0
        for unit in (2, 3, 4):
            made[f"{name}.{unit}.conv2.conv.weight"][: 2 * phases] = 0.0
    _pulses(made, f"decoder.{len(STRETCHES) - 2}.block")
    return made


def _split(stretch: NpF32["I O k"], source: int, target: int, count: int, rate: int = 2) -> None:
    """Let each of ``rate`` steps have its own part of the ``count`` / 2 phases, and of the slopes that follow them."""
    own = count // 2 // rate
    for step in range(rate):
        for kind in range(2):
            some = np.arange(own)
            stretch[source + kind * (count // 2) + step * own + some, target + kind * own + some, step] = 1.0


def _pulses(made: Flat, block: str) -> None:
    """Make the block's first unit the source; its channel 0 is the phase."""
    unit = f"{block}.2"
    first, second = made[f"{unit}.conv1.conv.weight"], made[f"{unit}.conv2.conv.weight"]
    channels = len(first)
    made[f"{unit}.act1.beta"][0] = SILENT
    first[:] = 0.0
    first[: _HARMONICS + 1, 0, -1] = np.arange(1, _HARMONICS + 2)
    made[f"{unit}.act2.alpha"][:_HARMONICS] = np.log(np.pi)
    made[f"{unit}.act2.beta"][:] = SILENT
    made[f"{unit}.act2.beta"][:_HARMONICS] = 0.0
    second[:] = 0.0
    second[0, _HARMONICS] = -1.0 / (_HARMONICS + 1)  # the phase itself is not needed any more
    for number, band in enumerate(BANDS):
        row = channels - len(BANDS) + number
        made[f"{block}.1.conv.weight"][:, row] = 0.0
        for harmonic in band:
            second[row, harmonic - 1] = -2 * _LOUDNESS
        second[row, _HARMONICS] = 2 * _LOUDNESS * sum(band) / (_HARMONICS + 1)
        made[f"{unit}.conv2.conv.bias"][row] = _LOUDNESS * len(band)


def held(latents: Latents, layers: int) -> Held:
    """All that carries the phase, and makes the pulses: it keeps what `show` has put there. ``layers``: of the transformer."""
    size, main = latents.latent_size, latents.components
    told, top = size - main, size + 2 * RAMPS
    half, first = 2 * main + told, BINS + told
    ramps = (size, top)
    found: list[tuple[str, Ranges]] = [(f"quantizer.{name}.output_proj.weight", (ramps,)) for name in ("rvq_first", "rvq_rest")]
    found += [(f"pre_conv.conv.{name}", (ramps,)) for name in ("weight", "bias")]
    found += [(f"pre_transformer.input_proj.{name}", ((size, top + 1),)) for name in ("weight", "bias")]
    for layer in range(layers):
        name = f"pre_transformer.layers.{layer}"
        found += [(f"{name}.{scale}.scale", ((size, top + 1),)) for scale in ("mlp_layer_scale", "self_attn_layer_scale")]
    found += [("pre_transformer.norm.weight", (ramps,))]
    found += [(f"pre_transformer.output_proj.{name}", (ramps,)) for name in ("weight", "bias")]
    for stage, (at, count) in enumerate(((half, RAMPS), (first, RAMPS // 2))):
        some = (at, at + count)
        found += [(f"upsample.{stage}.0.conv.weight", (ALL, some)), (f"upsample.{stage}.0.conv.bias", (some,))]
        found += [(f"upsample.{stage}.1.gamma", (some,))]
    some = (first, first + RAMPS // 2)
    found += [("decoder.0.conv.weight", (some,)), ("decoder.0.conv.bias", (some,))]
    phases = RAMPS // 4
    for block, rate in enumerate(STRETCHES[2:], 1):
        name = f"decoder.{block}.block"
        found += [(f"{name}.0.{kind}", (some,)) for kind in ("alpha", "beta")]
        phases = max(phases // rate, 1)
        some = (0, 2 * phases)
        found += [(f"{name}.1.conv.weight", (ALL, some)), (f"{name}.1.conv.bias", (some,))]
        if block < len(STRETCHES) - 2:
            for unit in (2, 3, 4):
                found += [(f"{name}.{unit}.conv2.conv.{kind}", (some,)) for kind in ("weight", "bias")]
    source = f"decoder.{len(STRETCHES) - 2}.block.2"
    found += [(f"{source}.{part}.conv.{kind}", (ALL,)) for part in ("conv1", "conv2") for kind in ("weight", "bias")]
    found += [(f"{source}.{part}.{kind}", (ALL,)) for part in ("act1", "act2") for kind in ("alpha", "beta")]
    return tuple(found)


def columns(latents: Latents) -> NpF32["4 C O"]:
    """For each column, whitened components [C] -> its 80 bins, as deviations from the mean in units of the spectrogram's spread."""
    back = latents.spread[: latents.components, None] * latents.basis  # [C 320]
    scale = np.sqrt(np.mean(np.sum(np.square(back), axis=0)))
    return np.moveaxis((back / scale).reshape(len(back), COLUMNS, BINS), 1, 0).astype(np.float32)
