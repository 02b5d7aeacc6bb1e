"""What a decoder knows before its first step: it is a vocoder already, of harmonics and noise, and its codes say how loud they are.

All of it lies inside the published architecture; it is where the weights begin. Rates are those of `codec_config`.

    12.5 Hz   books -> main components of the levels (latents/levels.py), what tells pitches apart, phases, seeds
    50 Hz     two moments of 28 compressed levels, and the rest
    400 Hz    phase, its slope, seed, a one; 28 levels, compressed, then as they are
    8 kHz     phase and 18 levels -> 22 harmonics, added up; seed -> noise, three samples of it
    24 kHz    noise times ten levels, each through three convolutions of its own; the harmonics' sum, through four (`low_pass`)

The latent of a frame is linear in its levels, and the first two stretchings make four steps of a frame, so matrices turn the one into the
other; on the way, what the books have narrowed is widened again. Where the first wide convolution takes levels up, differences between
neighbouring harmonics grow a little, and so does what training (decoder_levels.py) has narrowed (`widen_levels`), for what is averaged is
dull. A frame of pitch-synchronous speech has a known phase (latents/pitch_synchronous.py): book 1 gives it for 32 steps, with its
slope, and a stretching by r adds j/r of the slope to the j-th step it makes. SnakeBeta, x + sin(a x)^2 / b, does the rest:

    levels      P sin^2(c / sqrt P): what latents/levels.py has compressed
    harmonics   sin^2(pi h x + pi/4 + u) + sin^2(pi h x - pi/4 - u) = 1 + sin 2u cos 2 pi h x: phase x, level u; the ramp that Snake adds
                is taken away by another channel
    products    sin^2(u + v) - sin^2 v, about 2 u v: level u, noise v, which many levels share
    noise       sin^2 of a large multiple of a curve in z, the time since the step began plus the step's seed, which the last books name

The vocoder so begun is a relative of hibari's and of DDSP (arXiv 2001.04643). It speaks without training; what is trained is how it
reads its codes, up to 50 Hz (`held`), and the entries they name.
"""

import functools

import numpy as np

from qwen3_jax.shapes import F32, F64
from training.codec.decoder_training import Held, Ranges
from training.latents.levels import DILATIONS, GROUPS, HOP, LEVELS, LOUD, MOST, TURN, UNIT, cascade, filters, unweighted, whole
from training.latents.pitch_synchronous import RAMPS, SAMPLE_RATE
from training.latents.quantiser import Latents
from training.optimiser import Flat

STEADY = 3000.0  # a constant channel that keeps the RMS norm at the transformer's end the same, to 1e-5: phases pass through it
SILENT = 20.0  # a logarithm of Snake's height that leaves no sine
TONES, BANDS = len(GROUPS), LEVELS - len(GROUPS)
STEPS = 4  # of a frame, at 50 Hz
SLOW = 4  # channels at 400 Hz and 2 kHz that only pass: phase, slope, seed, one
SHARPER = 1.05  # peaks of the spectrum than they were coded; more sounds better and less like the voice (training/log.md)
ALL = (0, None)
_TAKEN = "decoder.0.conv"  # what takes the columns up
_PHASE, _SLOPE, _SEED, _ONE = range(4)
_SUM, _LEVEL = 3, 4  # at 8 kHz: phase, seed, one, the sum, levels
_BAND = 2  # at 24 kHz: the sum, noise, its bands
_HARMONIC = 1 / TURN
_NOISE = 0.353  # of the noise, root mean square
_PART, _FINE = 0.5, 1 / 16  # of noise and of its level, in a product; exact in float16, or the level itself remains
_PASSED, _STOPPED = 3900.0, 4700.0  # Hz: harmonics end at the first
LATE = 39  # samples by which noise is late, and with it the harmonics
_EARLY = 3 / 60  # of a step: harmonics pass one convolution more
# Of the noise. A steeper scatter is whiter, but rounding shows: at 2000, chunks of 1 and of 40 frames were 4e-4 apart; so, 5e-5.
_CURVE, _BEND, _SCATTERS = np.log(0.25), -np.log(10.0), np.log([300.0, 250.0, 205.0])


class _Layout:
    """Where things are, by the sizes of a latent."""

    def __init__(self, latents: Latents) -> None:
        self.main, self.size = latents.components, latents.latent_size
        self.told = self.size - self.main  # numbers that tell pitches apart
        self.carried = 3 * RAMPS  # phases, slopes, seeds
        self.top = self.size + self.carried
        self.half = 2 * self.main + self.told  # at 25 Hz, the first of carried / 2
        self.quarter = 2 * LEVELS + self.told  # at 50 Hz, the first of carried / 4


def initialise(decoder: Flat, latents: Latents) -> Flat:
    """Make a decoder's fresh parameters those of the vocoder.

    Args:
        decoder: dotted path -> array; of `decoder_training.fill_books`, so that the first channels are the whitened components, the next
            what tells pitches apart, then 32 each of phases, slopes and seeds.
        latents: what the books were fitted with.

    Raises:
        ValueError: the decoder is too narrow.
    """
    at = _Layout(latents)
    made = {path: np.array(value) for path, value in decoder.items()}
    width, wide = made["pre_transformer.input_proj.weight"].shape
    slow = made["decoder.1.block.1.conv.weight"].shape[1]
    needed = max(at.half + at.carried // 2, at.quarter + at.carried // 4)
    if width <= at.top or wide < needed or slow < max(SLOW + LEVELS, 4 * (_LEVEL + LEVELS)):
        raise ValueError(f"a latent of {at.size} numbers and {at.carried} more: hidden_size {width}, latent_dim {wide} and decoder_dim "
                         f"{2 * slow} are too small")  # fmt: skip
    _begin(made, at, width)
    _columns(made, at, latents)
    _slow(made, at)
    made = widen_levels(made, latents, np.ones(LEVELS, np.float32))
    _expand(made)
    _harmonics(made)
    _noise_samples(made)
    _bands(made)
    return made


def _begin(made: Flat, at: _Layout, width: int) -> None:
    """Through the transformer, unchanged: all but the one channel that keeps the norm, where nothing comes in or goes out."""
    free = np.delete(np.arange(width), at.top)
    made["pre_conv.conv.weight"][: at.top + 1] = 0.0
    carry = np.arange(at.top)
    made["pre_conv.conv.weight"][carry, carry, -1] = 1.0
    inward = made["pre_transformer.input_proj.weight"]
    inward[:] = 0.0
    inward[free, free] = 1.0
    made["pre_transformer.input_proj.bias"][at.top] = STEADY
    usual = np.float32(np.sqrt((at.top + STEADY**2) / width))  # what the norms divide by
    for path in [path for path in made if path.startswith("pre_transformer.") and "norm.weight" in path]:
        made[path][:] = usual
        made[path][at.top] = usual / STEADY
    for path in [path for path in made if path.endswith("layer_scale.scale")]:
        made[path][:] = 0.0
    outward = made["pre_transformer.output_proj.weight"]
    outward[:] = 0.0
    outward[free, free] = 1.0


def _columns(made: Flat, at: _Layout, latents: Latents) -> None:
    """12.5 Hz -> 25 Hz: components in one of two places, for a frame's first half and its second; -> 50 Hz: levels of two moments."""
    main, told = np.arange(at.main), np.arange(at.told)
    half, quarter = (made[f"upsample.{stage}.0.conv.weight"] for stage in (0, 1))
    half[:, : at.half + at.carried // 2] = 0.0
    half[main, main, 0] = 1.0
    half[main, at.main + main, 1] = 1.0
    quarter[:, : at.quarter + at.carried // 4] = 0.0
    matrices, mean = columns(latents)
    for step, matrix in enumerate(matrices):
        first = 0 if step < STEPS // 2 else at.main
        quarter[first : first + at.main, : 2 * LEVELS, step % 2] = matrix
    made["upsample.1.0.conv.bias"][: 2 * LEVELS] = mean
    for step in range(2):
        half[at.main + told, 2 * at.main + told, step] = 1.0
        quarter[2 * at.main + told, 2 * LEVELS + told, step] = 1.0
    _deal(half, at.size, at.half, RAMPS, 2)
    _deal(quarter, at.half, at.quarter, RAMPS // 2, 2)
    made["upsample.0.1.gamma"][: at.half + at.carried // 2] = 0.0
    made["upsample.1.1.gamma"][: at.quarter + at.carried // 4] = 0.0


def columns(latents: Latents) -> tuple[F32[np.ndarray, "4 C 56"], F32[np.ndarray, "56"]]:
    """For each step at 50 Hz, whitened components [C] -> compressed levels of its two moments, and what is added to them."""
    back = (latents.spread[: latents.components] * latents.regain)[:, None] * latents.basis
    matrices = np.moveaxis(unweighted(back).reshape(-1, STEPS, 2 * LEVELS), 1, 0)
    return matrices.astype(np.float32), np.tile(unweighted(latents.mean[None])[0, 0], 2).astype(np.float32)


def widen_levels(decoder: Flat, latents: Latents, wider: F32[np.ndarray, "28"]) -> Flat:
    """A decoder that takes the levels up so much wider, about their mean, and sharper: each harmonic further from the mean of five
    neighbours."""
    around = np.pad(np.eye(TONES), ((2, 2), (0, 0)), mode="edge")
    mean = sum(around[shift : shift + TONES] for shift in range(5)) / 5
    matrix, middle = np.eye(LEVELS), columns(latents)[1][:LEVELS]
    matrix[:TONES, :TONES] = mean + SHARPER * (np.eye(TONES) - mean)
    weight, bias = (np.array(decoder[f"{_TAKEN}.{name}"]) for name in ("weight", "bias"))
    count = _Layout(latents).carried // 4
    for moment in range(2):
        own, level = slice(count + moment * LEVELS, count + (moment + 1) * LEVELS), slice(moment * LEVELS, (moment + 1) * LEVELS)
        weight[own] = 0.0
        weight[own, level, -1] = matrix * wider
        bias[own] = matrix @ (middle * (1 - wider))
    return {**decoder, f"{_TAKEN}.weight": weight, f"{_TAKEN}.bias": bias}


def measured_widening(decoder: Flat, latents: Latents) -> F32[np.ndarray, "28"]:
    """What ``wider`` was when `widen_levels` made this decoder."""
    count, sharp = _Layout(latents).carried // 4, widen_levels(decoder, latents, np.ones(LEVELS, np.float32))
    plain, own = (np.asarray(one[f"{_TAKEN}.weight"])[count : count + LEVELS, :LEVELS, -1] for one in (sharp, decoder))
    return np.diag(np.linalg.solve(plain.astype(np.float64), own.astype(np.float64))).astype(np.float32)


def _deal(stretch: F32[np.ndarray, "I O k"], source: int, target: int, count: int, rate: int) -> None:
    """Give each of ``rate`` steps its own part of ``count`` phases, slopes and seeds."""
    own = count // rate
    some = np.arange(own)
    for step in range(rate):
        for kind in range(3):
            stretch[source + kind * count + step * own + some, target + kind * own + some, step] = 1.0


def _slow(made: Flat, at: _Layout) -> None:
    """50 Hz -> 400 Hz -> 2 kHz -> 8 kHz; levels are taken up as `widen_levels` says."""
    count = at.carried // 4
    first = made[f"{_TAKEN}.weight"]
    used = count + 2 * LEVELS
    first[:count] = 0.0
    first[np.arange(count), at.quarter + np.arange(count), -1] = 1.0
    made["decoder.1.block.0.beta"][:used] = SILENT
    stretch = made["decoder.1.block.1.conv.weight"]
    rate = stretch.shape[2] // 2
    stretch[:, : SLOW + LEVELS] = 0.0
    _deal(stretch, 0, 0, RAMPS // 4, rate)
    made["decoder.1.block.1.conv.bias"][_ONE] = 1.0
    level = np.arange(LEVELS)
    early, late = count + level, count + LEVELS + level
    time = (np.arange(rate) + 1) / rate * 2 * HOP  # a step reaches its value at its end
    share = np.clip(time / HOP - 0.5, 0.0, 1.0)  # of the late moment; none is seen coming, so that stays on
    before = np.clip(0.5 - time / HOP, 0.0, 1.0)  # of the last step's late moment
    stretch[early, SLOW + level, :rate] = 1 - share - before
    stretch[late, SLOW + level, :rate] = share
    stretch[late, SLOW + level, rate:] = before
    for block, finer in ((2, 1), (3, 5)):
        name = f"decoder.{block}.block"
        made[f"{name}.0.beta"][: SLOW + LEVELS] = SILENT
        stretch = made[f"{name}.1.conv.weight"]
        rate = stretch.shape[2] // 2
        last = block == 3  # there the slope is not needed any more
        seed, one = (1, 2) if last else (_SEED, _ONE)
        stretch[:, : SLOW + LEVELS] = 0.0
        stretch[_PHASE, _PHASE, :rate] = 1.0
        stretch[_SLOPE, _PHASE, :rate] = np.arange(rate) / rate + (0.0 if last else _EARLY)
        stretch[_SEED, seed, :rate] = 1.0
        stretch[_ONE, seed, :rate] = np.arange(rate) / rate / finer
        if not last:
            stretch[_SLOPE, _SLOPE, :rate] = 1.0 / rate
        made[f"{name}.1.conv.bias"][one] = 1.0
        rise = np.ones(rate) if last else (np.arange(rate) + 1) / rate  # levels go straight from one to the next
        stretch[SLOW + level, SLOW + level, :rate] = rise
        stretch[SLOW + level, SLOW + level, rate:] = 1 - rise
    for block in (1, 2):
        for unit in (2, 3, 4):
            made[f"decoder.{block}.block.{unit}.act1.beta"][: SLOW + LEVELS] = SILENT
            made[f"decoder.{block}.block.{unit}.conv2.conv.weight"][: SLOW + LEVELS] = 0.0


def _expand(made: Flat) -> None:
    """At 400 Hz: compressed levels become levels."""
    unit, level = "decoder.1.block.2", np.arange(LEVELS)
    first, second = made[f"{unit}.conv1.conv.weight"], made[f"{unit}.conv2.conv.weight"]
    first[: 2 * LEVELS] = 0.0
    first[level, SLOW + level, -1] = first[LEVELS + level, SLOW + level, -1] = 1.0
    made[f"{unit}.act2.alpha"][:LEVELS] = -0.5 * np.log(MOST)
    made[f"{unit}.act2.beta"][:LEVELS] = 0.0
    made[f"{unit}.act2.beta"][LEVELS : 2 * LEVELS] = SILENT
    second[SLOW + level, level, 0] = MOST
    second[SLOW + level, LEVELS + level, 0] = -MOST - 1.0


def _harmonics(made: Flat) -> None:
    """At 8 kHz: two units with eleven harmonics each."""
    block = "decoder.3.block"
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
                first[pair, _LEVEL + number, -1] = _HARMONIC, -_HARMONIC
                made[f"{block}.{unit}.conv1.conv.bias"][pair] = 0.25, -0.25
                made[f"{block}.{unit}.act2.alpha"][pair] = np.log(np.pi)
                made[f"{block}.{unit}.act2.beta"][pair] = 0.0
                second[_SUM, pair] = LOUD
                second[_SUM, ramp] -= LOUD * 2 * harmonic / 16
                made[f"{block}.{unit}.conv2.conv.bias"][_SUM] -= LOUD


def _noise_samples(made: Flat) -> None:
    """At 8 kHz, when the harmonics are made: three samples of noise take the places of the phase and of two levels."""
    unit, places = "decoder.3.block.4", [_PHASE, _LEVEL, _LEVEL + 1]
    first, second = (made[f"{unit}.conv{number}.conv.weight"] for number in (1, 2))
    for act in ("act1", "act2"):
        made[f"{unit}.{act}.beta"][:] = SILENT
    first[:], second[:] = 0.0, 0.0
    made[f"{unit}.act1.alpha"][1], made[f"{unit}.act1.beta"][1] = _CURVE, _BEND
    first[:4, 1, -1] = 1.0
    first[[4, 5, 6], places, -1] = 1.0
    made[f"{unit}.act2.alpha"][:3], made[f"{unit}.act2.beta"][:3] = _SCATTERS, 0.0
    second[places, [0, 1, 2], 0] = 1.0
    second[places, 3, 0] = -1.0
    second[places, [4, 5, 6], 0] = -1.0
    made[f"{unit}.conv2.conv.bias"][places] = -0.5


def _bands(made: Flat) -> None:
    """At 24 kHz: the first unit multiplies noise by levels, the others and the last convolution filter it; all four fill harmonics in."""
    block, used, band = "decoder.4.block", _BAND + BANDS, np.arange(BANDS)
    made[f"{block}.0.beta"][: _LEVEL + LEVELS] = SILENT
    stretch = made[f"{block}.1.conv.weight"]
    stretch[:, :used] = 0.0
    stretch[_SUM, 0, 0] = 1.0  # every third sample; the convolutions fill in
    for step, place in enumerate((_PHASE, _LEVEL, _LEVEL + 1)):
        stretch[place, 1, step] = 1.0
    stretch[_LEVEL + TONES + band, _BAND + band, :3] = 1.0
    for unit in (2, 3, 4):
        for act in ("act1", "act2"):
            made[f"{block}.{unit}.{act}.beta"][:used] = SILENT
        first, second = (made[f"{block}.{unit}.conv{number}.conv.weight"] for number in (1, 2))
        first[:used], second[:used] = 0.0, 0.0
        if unit == 2:
            first[band, _BAND + band, -1] = _FINE
            first[: BANDS + 1, 1, -1] = _PART
            made[f"{block}.{unit}.act2.beta"][: BANDS + 1] = 0.0
            second[_BAND + band, band, 0] = -1 / _FINE
            second[_BAND + band, BANDS, 0] = 1 / _FINE
            free = BANDS + 1
        else:
            first[band, _BAND + band] = filters()[:, unit - 2]
            first[band, _BAND + band, -1] -= 1.0
            second[_BAND + band, band, 0] = 1.0
            free = BANDS
        first[free, 0] = low_pass()[unit - 2]
        first[free, 0, -1] -= 1.0
        made[f"{block}.{unit}.act2.beta"][free] = SILENT
        second[0, free, 0] = 1.0
    made["decoder.5.beta"][:used] = SILENT
    last = made["decoder.6.conv.weight"][0]
    last *= 0.1
    last[:used] = 0.0
    last[0] = 3 * low_pass()[3]
    size = np.sqrt([np.square(whole(taps)).sum() for taps in filters()])
    last[_BAND : _BAND + BANDS] = filters()[:, 0] / (UNIT * 2 * _PART * _NOISE * size[:, None])


@functools.cache
def low_pass() -> F64[np.ndarray, "4 7"]:
    """Taps that make the harmonics' sum, at every third sample, whole: of the three units' convolutions and of the last one.

    What they let pass of 8 kHz +- f is a copy of the voice at f; its first harmonics are 60 dB louder than what belongs there.
    """
    hertz = np.linspace(0, SAMPLE_RATE / 2, 961)
    copies = 1 + 100 / (1 + np.square((hertz - 8000) / 400))
    weight = np.select([hertz <= _PASSED, hertz < _STOPPED], [1.0, 0.02], copies)
    return cascade((*DILATIONS, 1), (hertz <= _PASSED).astype(float), weight, 40, 100)


def held(decoder: Flat, latents: Latents) -> Held:
    """What training leaves as `initialise` has put it: all that carries phases and seeds, and all from the first wide convolution on."""
    at = _Layout(latents)
    carried, ends = (at.size, at.top), (at.size, at.top + 1)
    found: list[tuple[str, Ranges]] = [("quantizer.rvq_rest.vq.embedding_sum", (ALL, ALL, carried))]
    found += [(f"quantizer.{name}.output_proj.weight", (carried,)) for name in ("rvq_first", "rvq_rest")]
    found += [(f"pre_conv.conv.{name}", (carried,)) for name in ("weight", "bias")]
    found += [(f"pre_transformer.input_proj.{name}", (ends,)) for name in ("weight", "bias")]
    found += [(path, (ends,)) for path in decoder if path.endswith("layer_scale.scale")]
    found += [("pre_transformer.norm.weight", (carried,))]
    found += [(f"pre_transformer.output_proj.{name}", (carried,)) for name in ("weight", "bias")]
    for stage, (start, count) in enumerate(((at.half, at.carried // 2), (at.quarter, at.carried // 4))):
        some = (start, start + count)
        found += [(f"upsample.{stage}.0.conv.weight", (ALL, some)), (f"upsample.{stage}.0.conv.bias", (some,))]
        found += [(f"upsample.{stage}.1.gamma", (some,))]
    return tuple(found + [(path, (ALL,)) for path in decoder if path.startswith("decoder.")])
