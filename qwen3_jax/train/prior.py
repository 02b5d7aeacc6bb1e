"""What a decoder knows before its first step: it is a vocoder of pulses and noise already, and only has to learn their loudness.

All of it lies inside the published architecture; it is where the weights begin. Rates are those of `small.codec_config`.

    12.5 Hz   books -> main components of the spectrogram, what tells pitches apart, phases, seeds
    50 Hz     a column of the spectrogram, and the rest
    400 Hz    phase, its slope, seed, a one; 20 loudnesses, the only thing to be found
    8 kHz     phase and 16 loudnesses -> 22 harmonics, added up
    24 kHz    seed -> noise, times four loudnesses, filtered to four bands; the sum, low-passed

The latent of a frame is linear in four columns of a log-mel spectrogram (latents.py), and the first two stretchings make four steps of a
frame, so matrices turn the one into the other. A frame of locked speech has a known phase at every sample (locking.py): book 1 gives it
for 32 steps, with its slope, and a stretching by r adds j/r of the slope to the j-th step it makes. SnakeBeta, x + sin(a x)^2 / b, does
the rest:

    harmonics   sin^2(pi h x + pi/4 + u) + sin^2(pi h x - pi/4 - u) = 1 + sin 2u cos 2 pi h x: phase x, loudness u; the ramp that Snake
                adds is taken away by another channel
    products    sin^2(u + v) - sin^2(u - v) = sin 2u sin 2v: loudness u, carrier v
    noise       sin^2 of a large multiple of a curve in z, the time since the step began plus the step's seed, which the last books name

The vocoder so begun is a relative of hibari's and of DDSP (arXiv 2001.04643). Told the right loudness, it has DistillMOS 2.4 and WER .11
before any training (seven sentences of heart), where a decoder that saw the spectrogram only had 1.2 and .2 after 3500 steps. `held` is
what training leaves as it is, since a hundredth of a cycle matters; all else trains.
"""

import numpy as np

from qwen3_jax.shapes import NpF32
from qwen3_jax.train.latents import BINS, COLUMNS, Latents
from qwen3_jax.train.locking import RAMPS
from qwen3_jax.train.vocoder import Flat, Held, Ranges

STEADY = 300.0  # a constant channel that keeps the RMS norm at the transformer's end from following the sound's level
SILENT = 20.0  # a logarithm of Snake's height that leaves no sine
GROUPS = (*((harmonic,) for harmonic in range(1, 12)), (12, 13), (14, 15), (16, 17), (18, 19), (20, 21, 22))  # with one loudness each
HISS = 4  # bands of noise
SLOW = 4  # channels at 400 Hz and 2 kHz that only pass: phase, slope, seed, one
GAINS = len(GROUPS) + HISS
ALL = (0, None)
_PHASE, _SLOPE, _SEED, _ONE = range(4)
_SUM, _GAIN = 3, 4  # at 8 kHz: phase, seed, one, the sum, loudnesses
_HISS = 2  # at 24 kHz: the sum, seed, noise, its loudnesses
START = 0.4  # loudness before anything is learnt; 1 is 4 % of the most
LOUD, _HARMONIC = 0.375, 1 / 64  # a harmonic's highest amplitude; a quarter of a cycle has 16 of loudness. Exact in float16, or ramps stay
_NOISE = 0.353  # of the noise, root mean square
_PART, _FINE = 0.5, 0.05  # of noise and of its loudness, in a product
_EARLY = 3 / 60  # the last convolution is three samples late
# Of the noise. A steeper scatter is whiter, but rounding shows: at 2000, chunks of 1 and of 40 frames were 4e-4 apart; so, 5e-5.
_CURVE, _BEND, _SCATTER = np.log(0.25), -np.log(10.0), np.log(300.0)


class _Layout:
    """Where things are, by the sizes of a latent."""

    def __init__(self, latents: Latents) -> None:
        self.main, self.size = latents.components, latents.latent_size
        self.told = self.size - self.main  # numbers that tell pitches apart
        self.carried = 3 * RAMPS  # phases, slopes, seeds
        self.top = self.size + self.carried
        self.half = 2 * self.main + self.told  # at 25 Hz, the first of carried / 2
        self.quarter = BINS + self.told  # at 50 Hz, the first of carried / 4


def show(decoder: Flat, latents: Latents) -> Flat:
    """Make a decoder's fresh parameters those of the vocoder.

    Args:
        decoder: dotted path -> array; of `vocoder.fill_books`, so that the first channels are the whitened components, the next what
            tells pitches apart, then 32 each of phases, slopes and seeds.
        latents: what the books were fitted with.

    Raises:
        ValueError: the decoder is too narrow.
    """
    at = _Layout(latents)
    made = {path: np.array(value) for path, value in decoder.items()}
    width, wide = made["pre_transformer.input_proj.weight"].shape
    if width <= at.top or wide < max(at.half + at.carried // 2, at.quarter + at.carried // 4):
        raise ValueError(f"a latent of {at.size} numbers and {at.carried} more: hidden_size {width} and latent_dim {wide} are too small")
    _begin(made, at, width)
    _columns(made, at, latents)
    _slow(made, at)
    _harmonics(made)
    _hiss(made)
    return made


def _begin(made: Flat, at: _Layout, width: int) -> None:
    """Through the transformer, unchanged."""
    carry = np.arange(at.top)
    made["pre_conv.conv.weight"][: at.size] *= 0.3
    made["pre_conv.conv.weight"][at.size : at.top] = 0.0
    made["pre_conv.conv.weight"][carry, carry, -1] = 1.0
    inward = made["pre_transformer.input_proj.weight"]
    inward[: at.top + 1] = 0.0
    inward[carry, carry] = 1.0
    made["pre_transformer.input_proj.bias"][at.top] = STEADY
    usual = np.float32(np.sqrt((at.top + STEADY**2) / width))  # what the norms divide by
    for path in [path for path in made if path.startswith("pre_transformer.") and "norm.weight" in path]:
        made[path][:] = usual
        made[path][at.top] = usual / STEADY
    for path in [path for path in made if path.endswith("layer_scale.scale")]:
        made[path][at.main : at.top + 1] = 0.0
    outward = made["pre_transformer.output_proj.weight"]
    outward[: at.top] = 0.0
    outward[carry, carry] = 1.0


def _columns(made: Flat, at: _Layout, latents: Latents) -> None:
    """12.5 Hz -> 25 Hz: components in one of two places, for a frame's first half and its second; -> 50 Hz: a column of the spectrogram."""
    main, told = np.arange(at.main), np.arange(at.told)
    half = made["upsample.0.0.conv.weight"]
    half[:, : at.half + at.carried // 2] = 0.0
    half[main, main, 0] = 1.0
    half[main, at.main + main, 1] = 1.0
    quarter = made["upsample.1.0.conv.weight"]
    quarter[:, : at.quarter + at.carried // 4] = 0.0
    for column, matrix in enumerate(columns(latents)):
        first = 0 if column < COLUMNS // 2 else at.main
        quarter[first : first + at.main, :BINS, column % 2] = matrix
    for step in range(2):
        half[at.main + told, 2 * at.main + told, step] = 1.0
        quarter[2 * at.main + told, BINS + told, step] = 1.0
    _deal(half, at.size, at.half, RAMPS, 2)
    _deal(quarter, at.half, at.quarter, RAMPS // 2, 2)
    made["upsample.0.1.gamma"][at.half : at.half + at.carried // 2] = 0.0
    made["upsample.1.1.gamma"][at.quarter : at.quarter + at.carried // 4] = 0.0


def _deal(stretch: NpF32["I O k"], source: int, target: int, count: int, rate: int) -> None:
    """Give each of ``rate`` steps its own part of ``count`` phases, slopes and seeds."""
    own = count // rate
    some = np.arange(own)
    for step in range(rate):
        for kind in range(3):
            stretch[source + kind * count + step * own + some, target + kind * own + some, step] = 1.0


def _slow(made: Flat, at: _Layout) -> None:
    """50 Hz -> 400 Hz -> 2 kHz -> 8 kHz."""
    count = at.carried // 4
    first = made["decoder.0.conv.weight"]
    first[:count] = 0.0
    first[np.arange(count), at.quarter + np.arange(count), -1] = 1.0
    made["decoder.1.block.0.beta"][:count] = SILENT
    stretch = made["decoder.1.block.1.conv.weight"]
    rate = stretch.shape[2] // 2
    stretch[:, :SLOW] = 0.0
    _deal(stretch, 0, 0, RAMPS // 4, rate)
    rise = (np.arange(rate) + 1) / rate  # between two columns, in a straight line
    stretch[:count, SLOW : SLOW + GAINS] = 0.0
    gains = stretch[count:, SLOW : SLOW + GAINS]
    gains[:] = 0.3 * gains[:, :, :1] * np.concatenate([rise, 1 - rise])
    made["decoder.1.block.1.conv.bias"][SLOW : SLOW + GAINS] = START
    made["decoder.1.block.1.conv.bias"][_ONE] = 1.0
    for block, finer in ((2, 1), (3, 5)):
        name = f"decoder.{block}.block"
        made[f"{name}.0.beta"][: SLOW + GAINS] = SILENT
        stretch = made[f"{name}.1.conv.weight"]
        rate = stretch.shape[2] // 2
        last = block == 3  # there the slope is not needed any more
        seed, one = (1, 2) if last else (_SEED, _ONE)
        stretch[:, :SLOW] = 0.0
        stretch[_PHASE, _PHASE, :rate] = 1.0
        stretch[_SLOPE, _PHASE, :rate] = np.arange(rate) / rate + (0.0 if last else _EARLY)
        stretch[_SEED, seed, :rate] = 1.0
        stretch[_ONE, seed, :rate] = np.arange(rate) / rate / finer
        if not last:
            stretch[_SLOPE, _SLOPE, :rate] = 1.0 / rate
        made[f"{name}.1.conv.bias"][one] = 1.0
        stretch[:, SLOW : SLOW + GAINS] *= 0.003
        kept = np.arange(SLOW, SLOW + GAINS)
        stretch[kept, kept, :rate] = 1.0  # loudness stays on for all steps
        stretch[kept, kept, rate:] = 0.0
    for block in (1, 2):
        for unit in (2, 3, 4):
            mixed = made[f"decoder.{block}.block.{unit}.conv2.conv.weight"]
            mixed[:SLOW] = 0.0
            mixed[SLOW : SLOW + GAINS] *= 0.1 if block == 1 else 0.003


def _harmonics(made: Flat) -> None:
    """At 8 kHz: two units with eleven harmonics each."""
    block = "decoder.3.block"
    made[f"{block}.1.conv.weight"][:, _SUM] = 0.0
    for unit in (2, 3):
        first, second = (made[f"{block}.{unit}.conv{number}.conv.weight"] for number in (1, 2))
        made[f"{block}.{unit}.act1.beta"][:] = SILENT
        made[f"{block}.{unit}.act2.beta"][:] = SILENT
        first[:], second[:] = 0.0, 0.0
        ramp = len(first) - 2
        first[ramp, _PHASE, -1] = 16.0
        for number, group in enumerate(GROUPS):
            for harmonic in group:
                if (harmonic - 1) // 11 != unit - 2:
                    continue
                place = 2 * ((harmonic - 1) % 11)
                pair = [place, place + 1]
                first[pair, _PHASE, -1] = harmonic
                first[pair, _GAIN + number, -1] = _HARMONIC, -_HARMONIC
                made[f"{block}.{unit}.conv1.conv.bias"][pair] = 0.25, -0.25
                made[f"{block}.{unit}.act2.alpha"][pair] = np.log(np.pi)
                made[f"{block}.{unit}.act2.beta"][pair] = 0.0
                second[_SUM, pair] = LOUD
                second[_SUM, ramp] -= LOUD * 2 * harmonic / 16
                made[f"{block}.{unit}.conv2.conv.bias"][_SUM] -= LOUD
    last = made[f"{block}.4.conv2.conv.weight"]
    last[1:3] = 0.0
    last[_SUM:] *= 0.001


def _multiply(made: Flat, unit: str, products: list[tuple[int, int, int]]) -> None:
    """Add sin 2u sin 2v to a channel, u a part of the loudness and v of a carrier, for each (carrier, loudness, target)."""
    first, second = made[f"{unit}.conv1.conv.weight"], made[f"{unit}.conv2.conv.weight"][:, :, 0]
    for name in ("act1.beta", "act2.beta"):
        used = [place for carrier, gain, *_ in products for place in (carrier, gain)]
        made[f"{unit}.{name}"][used if name == "act1.beta" else slice(None)] = SILENT
    first[:] *= 0.1
    second[:] *= 0.01
    free = 2 * len(products)
    carriers = sorted({carrier for carrier, *_ in products})
    for number, carrier in enumerate(carriers):  # as they are, to take away what Snake leaves of them
        first[free + number] = 0.0
        first[free + number, carrier, -1] = 1.0
    for number, (carrier, gain, target) in enumerate(products):
        plus, minus = 2 * number, 2 * number + 1
        first[[plus, minus]] = 0.0
        first[[plus, minus], gain, -1] = _FINE  # so that a step of training changes loudness little
        first[plus, carrier, -1], first[minus, carrier, -1] = _PART, -_PART
        made[f"{unit}.act2.beta"][[plus, minus]] = 0.0
        second[target, [plus, minus]] = 1.0, -1.0
        second[target, free + carriers.index(carrier)] -= 2 * _PART


def _hiss(made: Flat) -> None:
    """At 24 kHz, the first unit makes noise of the seed, the second multiplies it; the last convolution filters."""
    block = "decoder.4.block"
    made[f"{block}.0.beta"][: _GAIN + GAINS] = SILENT
    stretch = made[f"{block}.1.conv.weight"]
    stretch[:, : 3 + HISS] = 0.0
    stretch[_SUM, 0, 0] = 1.0  # every third sample; the last convolution fills in
    stretch[1, 1, :3] = 1.0
    stretch[2, 1, :3] = np.arange(3) / 60
    for band in range(HISS):
        stretch[_GAIN + len(GROUPS) + band, 3 + band, :3] = 1.0
    made[f"{block}.2.act1.alpha"][1], made[f"{block}.2.act1.beta"][1] = _CURVE, _BEND
    first, second = made[f"{block}.2.conv1.conv.weight"], made[f"{block}.2.conv2.conv.weight"]
    first[:2] = 0.0
    first[:2, 1, -1] = 1.0
    made[f"{block}.2.act2.alpha"][0], made[f"{block}.2.act2.beta"][:2] = _SCATTER, (0.0, SILENT)
    second[:3] = 0.0
    second[3 : 3 + HISS] *= 0.003
    second[:, :2] = 0.0
    second[_HISS, :2, 0] = 1.0, -1.0
    made[f"{block}.2.conv2.conv.bias"][_HISS] = -0.5
    _multiply(made, f"{block}.3", [(_HISS, 3 + band, 3 + band) for band in range(HISS)])
    made[f"{block}.4.conv2.conv.weight"][: 3 + HISS] *= 0.003
    made["decoder.5.beta"][: 3 + HISS] = SILENT
    last = made["decoder.6.conv.weight"][0]
    last *= 0.1
    last[: 3 + HISS] = 0.0
    tap = np.arange(7) - 3
    last[0] = np.sinc(tap / 3) * (0.5 + 0.5 * np.cos(np.pi * tap / 4))
    last[3 : 3 + HISS] = filters()


def filters() -> NpF32["4 7"]:
    """Of the noise: bands around 1.5, 4.5, 7.5 and 10.5 kHz, through which nothing comes of the loudness itself."""
    tap = np.arange(7) - 3
    window = 0.5 + 0.5 * np.cos(np.pi * tap / 4)
    shape = window * np.cos(2 * np.pi * (1.5 + 3 * np.arange(HISS)[:, None]) / 24 * tap)
    return (0.5 * (shape - window * shape.sum(axis=1, keepdims=True) / window.sum())).astype(np.float32)


def loudness(harmonics: NpF32["T 22"], noise: NpF32["T 4"]) -> NpF32["T 20"]:
    """What the channels at 400 Hz must be for these amplitudes of harmonics, and these root mean squares of the bands of `filters`."""
    grouped = np.stack([harmonics[:, np.array(group) - 1].mean(axis=1) for group in GROUPS], axis=1)
    own = np.sin(2 * _PART * _NOISE) * np.sqrt(np.square(filters()).sum(axis=1))
    tone = np.arcsin(np.clip(grouped / LOUD, 0.0, 0.99)) / (2 * np.pi * _HARMONIC)
    return np.concatenate([tone, np.arcsin(np.clip(noise / own, 0.0, 0.99)) / (2 * _FINE)], axis=1).astype(np.float32)


def held(latents: Latents, layers: int) -> Held:
    """What carries phases and seeds and makes pulses and noise: it keeps what `show` has put there. ``layers``: of the transformer."""
    at = _Layout(latents)
    carried = (at.size, at.top)
    found: list[tuple[str, Ranges]] = [(f"quantizer.{name}.output_proj.weight", (carried,)) for name in ("rvq_first", "rvq_rest")]
    found += [(f"pre_conv.conv.{name}", (carried,)) for name in ("weight", "bias")]
    found += [(f"pre_transformer.input_proj.{name}", ((at.size, at.top + 1),)) for name in ("weight", "bias")]
    for layer in range(layers):
        name = f"pre_transformer.layers.{layer}"
        found += [(f"{name}.{scale}.scale", ((at.size, at.top + 1),)) for scale in ("mlp_layer_scale", "self_attn_layer_scale")]
    found += [("pre_transformer.norm.weight", (carried,))]
    found += [(f"pre_transformer.output_proj.{name}", (carried,)) for name in ("weight", "bias")]
    for stage, (start, count) in enumerate(((at.half, at.carried // 2), (at.quarter, at.carried // 4))):
        some = (start, start + count)
        found += [(f"upsample.{stage}.0.conv.weight", (ALL, some)), (f"upsample.{stage}.0.conv.bias", (some,))]
        found += [(f"upsample.{stage}.1.gamma", (some,))]
    some = (0, at.carried // 4)
    found += [("decoder.0.conv.weight", (some,)), ("decoder.0.conv.bias", (some,))]
    for block, (inputs, outputs) in enumerate(((at.carried // 4, SLOW), (SLOW, SLOW), (SLOW, _SUM), (_SUM, 2)), 1):
        name, out = f"decoder.{block}.block", ((1, 2) if block == 4 else (0, outputs))
        found += [(f"{name}.0.{kind}", ((0, inputs),)) for kind in ("alpha", "beta")]
        found += [(f"{name}.1.conv.weight", (ALL, out)), (f"{name}.1.conv.bias", (out,))]
        for unit in (2, 3, 4) if block < 3 else ():
            found += [(f"{name}.{unit}.conv2.conv.{kind}", ((0, SLOW),)) for kind in ("weight", "bias")]
    for unit in (2, 3):
        source = f"decoder.3.block.{unit}"
        found += [(f"{source}.{part}.conv.{kind}", (ALL,)) for part in ("conv1", "conv2") for kind in ("weight", "bias")]
        found += [(f"{source}.{part}.{kind}", (ALL,)) for part in ("act1", "act2") for kind in ("alpha", "beta")]
    found += [(f"decoder.3.block.4.conv2.conv.{kind}", ((1, 3),)) for kind in ("weight", "bias")]  # seed and one go on
    noise = "decoder.4.block.2"
    found += [(f"{noise}.act1.{kind}", ((1, 2),)) for kind in ("alpha", "beta")]
    found += [(f"{noise}.conv1.conv.{kind}", ((0, 2),)) for kind in ("weight", "bias")]
    found += [(f"{noise}.act2.{kind}", ((0, 2),)) for kind in ("alpha", "beta")]
    found += [
        (f"{noise}.conv2.conv.weight", (ALL, (0, 2))),
        (f"{noise}.conv2.conv.weight", ((1, 3),)),
        (f"{noise}.conv2.conv.bias", ((1, 3),)),
    ]
    return tuple(found)


def columns(latents: Latents) -> NpF32["4 C O"]:
    """For each column, whitened components [C] -> its 80 bins, as deviations from the mean in units of the spectrogram's spread."""
    back = latents.spread[: latents.components, None] * latents.basis  # [C 320]
    scale = np.sqrt(np.mean(np.sum(np.square(back), axis=0)))
    return np.moveaxis((back / scale).reshape(len(back), COLUMNS, BINS), 1, 0).astype(np.float32)
