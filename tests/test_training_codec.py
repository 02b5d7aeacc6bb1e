"""The codec's training: losses against NumPy, latents that come back, steps that learn, runs that go on bit for bit, exports that load."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from flax import nnx

from qwen3_jax.checkpoint.mapping import flatten, unflatten
from qwen3_jax.codec import init_state
from qwen3_jax.finetune import loop
from qwen3_jax.model.config import CodecConfig
from qwen3_jax.model.config_values import parse
from qwen3_jax.testing import tiny_codec_config
from tests.unoptimised import unoptimised
from training.codec import __main__ as codec_commands
from training.codec import (
    checkpoints,
    chunked,
    decoder_levels,
    decoder_training,
    encoder_training,
    export,
    losses,
    phoneme_recogniser,
    straight_through,
    vocoder_initialisation,
)
from training.codec.config import codec_config, parsed_config
from training.codec.discriminators import PERIODS, Discriminators
from training.corpus import shards, teachers
from training.corpus.sentences import CorpusSentence
from training.corpus.teachers import UNIT, TeacherSpeech, TeacherVoice
from training.initialisation import random_start
from training.latents import levels, phonemes, pitch_synchronous, quantiser
from training.latents.quantiser import FRAME
from training.latents.voice_streams import VoiceStream, begun_later, chosen_lines, crops, load_streams

CROP, ROWS, ENTRIES = 2, 2, 48
LATENT = 16 + 28  # main components, and what tells pitches apart


def tiny() -> dict[str, Any]:
    config = tiny_codec_config()
    config["encoder_config"] |= {
        "codebook_size": ENTRIES,
        "num_quantizers": 16,
        "hidden_size": 48,
        "codebook_dim": LATENT,
        "vector_quantization_hidden_dimension": LATENT,
    }
    config["decoder_config"] |= {"codebook_size": ENTRIES, "sliding_window": 32, "codebook_dim": 2 * (LATENT + 3 * pitch_synchronous.RAMPS)}
    return config


CFG = parse(CodecConfig, tiny())


def sounds(frames: int, seed: int = 0) -> np.ndarray:
    """int16 tones and noise."""
    noise = np.random.default_rng(seed)
    time = np.arange(frames * FRAME) / 24000
    pitch = 150 + 60 * np.sin(2 * np.pi * 1.3 * time)
    wave = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / 24000) * (0.6 + 0.4 * np.sin(2 * np.pi * 2.1 * time))
    return np.rint(32767 * (wave + 0.01 * noise.standard_normal(len(wave)))).astype(np.int16)


def told(frames: int) -> np.ndarray:
    """What is said in some frames, drawn."""
    return np.random.default_rng(1).integers(0, 5, (frames, 4)).astype(np.int8)


def fit(wave: np.ndarray, latent: int) -> quantiser.Latents:
    """Latents of one voice."""
    sound = wave.astype(np.float32) / 32768
    free = pitch_synchronous.synchronise(sound, None)
    pitch = quantiser.fit_pitch(free.cycles[free.voiced], free.bends[free.voiced], ENTRIES, steps=3)
    locked = pitch_synchronous.synchronise(sound, pitch)
    part = quantiser.FitPart(levels.levels(locked.wave, locked.entry, pitch), locked.entry, told(len(locked.entry)))
    return quantiser.fit([part], pitch, latent=latent, content=4, steps=3)[0]


def stream_of(fitted: quantiser.Latents, wave: np.ndarray) -> VoiceStream:
    read = fitted.read(wave.astype(np.float32) / 32768, told(len(wave) // FRAME))
    return VoiceStream("a", wave, np.rint(read.wave * 32767).astype(np.int16), read.levels, read.codes, read.main)


@pytest.fixture(scope="module")
def fitted() -> quantiser.Latents:
    return fit(sounds(160), 16)


@pytest.fixture(scope="module")
def stream(fitted: quantiser.Latents) -> VoiceStream:
    return stream_of(fitted, sounds(60))


def decoder_state(fitted: quantiser.Latents, seed: int = 0) -> dict[str, Any]:
    shapes = flatten(decoder_training.decoder_definition(CFG.decoder_config)[1])
    generator = decoder_training.fill_books(random_start(shapes, seed), fitted)
    return decoder_training.begin(generator, random_start(flatten(decoder_training.critic_definition()[1]), seed))


@jax.jit
def streamed(params: dict[str, Any], codes: jax.Array) -> jax.Array:
    """The decoder as the product runs it."""
    graph, shapes = decoder_training.decoder_definition(CFG.decoder_config)
    return nnx.merge(graph, unflatten(params, shapes))(codes, init_state(CFG.decoder_config, len(codes)))[0]


GENERATE = jax.jit(decoder_training.generate, static_argnums=(0, 4))


def batch(stream: VoiceStream, step: int) -> Any:
    return crops([stream], ROWS, decoder_training.receptive_field(CFG.decoder_config)[0] + 3, CROP, 5, step)


# losses


def numpy_magnitude(wave: np.ndarray, fft: int) -> np.ndarray:
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(fft) / fft)
    count = (len(wave) - fft) // (fft // 4) + 1
    return np.abs([np.fft.rfft(window * wave[i * fft // 4 : i * fft // 4 + fft]) for i in range(count)])


@pytest.mark.parametrize("fft", losses.RESOLUTIONS)
def test_spectral_loss_is_numpys(fft: int) -> None:
    noise = np.random.default_rng(fft)
    made, real = noise.standard_normal((2, 1, 3 * 2048)) * 0.1
    loss, terms = losses.spectral(jnp.asarray(made, jnp.float32), jnp.asarray(real, jnp.float32), (fft,))
    m, r = numpy_magnitude(made[0], fft), numpy_magnitude(real[0], fft)
    floor = fft / 4 * losses.QUIET
    convergence = np.linalg.norm(m - r) / np.sqrt(np.sum(r**2) + 1e-2)
    log = np.abs(np.log(m + floor) - np.log(r + floor)).mean()
    filters = quantiser.mel_filters(losses.MEL_BINS[fft], fft).astype(np.float64)
    filters = (filters / np.maximum(filters.sum(axis=1, keepdims=True), 1)).T
    mel = np.abs(np.log(m @ filters + floor) - np.log(r @ filters + floor)).mean()
    assert [float(terms[name]) for name in ("convergence", "log", "mel")] == pytest.approx([convergence, log, mel], rel=1e-3)
    assert float(loss) == pytest.approx(convergence + 0.5 * log + mel, rel=1e-3)


def test_equal_waves_have_no_loss_and_finite_gradients() -> None:
    silence = jnp.zeros((1, 4096))
    loss, gradient = jax.jit(jax.value_and_grad(lambda wave: losses.spectral(wave, silence)[0]))(silence)
    assert float(loss) < 0.02 and bool(jnp.isfinite(gradient).all())


# latents


def test_books_explain_more_and_more(stream: VoiceStream, fitted: quantiser.Latents, tmp_path: Path) -> None:
    main = stream.main
    rest, left = fitted.latent(main, stream.codes[:, 1]), [np.square(main).sum()]
    for number, book in enumerate(fitted.acoustic):
        rest = rest - book[stream.codes[:, number + 1]]
        left.append(np.square(rest).sum())
    assert left[1] == pytest.approx(left[0]), "book 1 takes the pitch away, whole"
    assert left[3] < 0.5 * left[0] and left[15] < left[3]
    places = [set(np.flatnonzero(book.any(axis=0))) for book in fitted.acoustic]
    assert sum(map(len, places)) == len(set.union(*places)) == fitted.latent_size, "each number is one book's alone"
    fitted.save(tmp_path / "l.safetensors")
    again = quantiser.Latents.load(tmp_path / "l.safetensors")
    said = told(len(main))
    read = again.read(stream.wave.astype(np.float32) / 32768, said)
    assert np.array_equal(read.codes, stream.codes)
    assert np.array_equal(again.codes(again.latent(main, read.codes[:, 1]), said), read.codes)


def test_components_are_shared_out_so_that_least_is_lost() -> None:
    """Against all ways to cut seven components in three; a level that drowns a component keeps it out."""
    variance, bits = np.array([9.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.01]), 2.0

    def lost(some: np.ndarray) -> float:
        low, high = 0.0, float(some.max())
        for _ in range(100):
            level = (low + high) / 2
            spent = 0.5 * np.log2(np.maximum(some / level, 1)).sum()
            low, high = (level, high) if spent > bits else (low, level)
        return float(np.minimum(some, level).sum())

    ways = [(0, a, b, 7) for a in range(1, 6) for b in range(a + 1, 7)]
    best = min(ways, key=lambda way: sum(lost(variance[i:j]) for i, j in itertools.pairwise(way)))
    assert quantiser.shared_out(variance, 3, bits) == list(best)
    with pytest.raises(ValueError, match="8 books for 7 components"):
        quantiser.shared_out(variance, 8, bits)


def test_a_plan_says_what_comes_next() -> None:
    """Quarters are read in their middle, stress is part of what it stands before, and what book 0 names is one frame ahead."""
    said = phonemes.quarters("_m\u02c8a _", [2, 1, 1, 3, 1, 2], 5)
    m, a, gap = (1 + phonemes.SYMBOLS.index(symbol) for symbol in "ma ")
    # units of 600 samples: _ _ m a a a a gap _ _; quarters of 480 have their middles at 240, 720, 1200 (of m already), ...
    assert said.tolist()[:3] == [[0, 0, m, m], [a, a, a, a], [a, gap, 0, 0]] and not said[3:].any()
    assert phonemes.following(said).tolist() == [*said[1:].tolist(), [0, 0, 0, 0]]
    book = phonemes.fit(np.concatenate([said] * 3), 4)
    assert {tuple(entry) for entry in book} == {tuple(frame) for frame in said}
    assert np.array_equal(book[phonemes.codes(said, book)], said)
    near = said.copy()
    near[1, 3] = m
    assert phonemes.codes(near, book)[1] == phonemes.codes(said, book)[1], "most quarters right"
    with pytest.raises(ValueError, match="cannot fill a book of 5"):
        phonemes.fit(said, 5)


def test_vectors_of_a_plan_tell_its_entries_apart() -> None:
    book = phonemes.fit(told(400), 40)
    found = phonemes.vectors(book, np.ones(40, np.int64), 8)
    assert np.array_equal(quantiser.nearest(found, found), np.arange(40))
    assert np.sqrt(np.square(found).mean(axis=0)).max() == pytest.approx(8.0)


# the decoder in training


@pytest.fixture(scope="module")
def begun() -> tuple[quantiser.Latents, CodecConfig, dict[str, Any]]:
    """The small decoder before its first step, and a run of codes."""
    fitted = fit(sounds(160), 40)
    cfg = parsed_config(fitted.latent_size, ENTRIES)
    shapes = decoder_training.decoder_definition(cfg.decoder_config)[1]
    return fitted, cfg, vocoder_initialisation.initialise(decoder_training.fill_books(random_start(flatten(shapes), 0), fitted), fitted)


@pytest.mark.slow
def test_before_its_first_step_a_decoder_is_a_vocoder(begun: Any) -> None:
    """Its columns are the levels; told how loud harmonics and bands are to be, it makes them: with the phase that book 1 says, and of
    noise that is white."""
    fitted, cfg, start = begun
    graph, shapes = decoder_training.decoder_definition(cfg.decoder_config)
    params = unflatten({path: jnp.asarray(value, jnp.float32) for path, value in start.items()}, shapes)
    read = fitted.read(sounds(40).astype(np.float32) / 32768, told(40))
    codes = jnp.asarray(read.codes[None])
    past = decoder_training.receptive_field(cfg.decoder_config)
    x = jax.jit(lambda params: decoder_training.to_columns(nnx.merge(graph, params), codes, 40, past)[0])(params)
    wanted = decoder_levels.target_columns(read.levels[None])[:, 0]
    columns = np.asarray(x[: decoder_levels.COUNT, 0])
    assert columns.shape == wanted.shape == (56, 160)
    off = np.square(columns - wanted).sum() / np.square(wanted - wanted.mean(axis=1, keepdims=True)).sum()
    assert off < 0.2, "what the books of 48 entries leave"

    @jax.jit
    def wave_of(params: Any, columns: jax.Array) -> jax.Array:
        decoder = nnx.merge(graph, params)
        (first, *blocks, snake, last), state = decoder.decoder, decoder.initial(1)
        y, _ = first(columns, state.first_conv)
        for block, own in zip(blocks, state.blocks, strict=True):
            y, _ = block(y, own, None)
        return last(snake(y), state.last_conv)[0][0, 0]

    def played(level: np.ndarray) -> np.ndarray:
        """The wave of these levels at every moment."""
        return np.asarray(wave_of(params, x.at[: decoder_levels.COUNT, 0].set(np.tile(levels.compressed(level), 2)[:, None])))

    level = np.zeros(levels.LEVELS)
    level[1] = 4.0  # the second harmonic only
    wave, ramps = played(level), fitted.pitch.ramps()[read.codes[:, 1]]
    phase = (ramps[..., :1] + ramps[..., 1:] * (np.arange(60) / 60)).reshape(-1)
    ideal = levels.LOUD * np.sin(4.0 * 2 * np.pi / levels.TURN) * np.cos(4 * np.pi * phase)
    ideal = np.roll(ideal, vocoder_initialisation.LATE)
    voiced = np.repeat(read.codes[:, 1] > 0, FRAME) & (np.arange(len(wave)) > FRAME)
    assert voiced.mean() > 0.5 and np.corrcoef(wave[voiced], ideal[voiced])[0, 1] > 0.98
    assert np.std(wave[voiced]) == pytest.approx(np.std(ideal[voiced]), rel=0.1)

    hertz = np.fft.rfftfreq(480, 1 / 24000)
    for band, centre in enumerate(levels.CENTRES):
        level = np.zeros(levels.LEVELS)
        level[vocoder_initialisation.TONES + band] = 0.02 * levels.UNIT
        noise = played(level)[FRAME:]
        noise = noise - np.convolve(noise, np.hanning(481) / 240, "same")  # entry 0 and a zero level leave nothing but what is slow
        power = np.square(np.abs(np.fft.rfft(noise[: len(noise) // 480 * 480].reshape(-1, 480) * np.hanning(480)))).mean(axis=0)
        assert np.std(noise) == pytest.approx(0.02, rel=0.25), centre
        edges = np.array([0.0, *levels.CENTRES, 13500.0])[[band, band + 2]]
        inside = (hertz > edges[0] - 100) & (hertz < edges[1] + 100)
        assert power[inside].sum() > 0.85 * power.sum(), centre

    narrow = random_start(flatten(decoder_training.decoder_definition(CFG.decoder_config)[1]), 0)
    with pytest.raises(ValueError, match="are too small"):
        vocoder_initialisation.initialise(narrow, fitted)


def test_what_is_played_has_no_copies_of_the_voice() -> None:
    """Every third sample is made; the low-pass keeps harmonics as they are and drowns their images, above all the loud ones' around 8 kHz,
    with the taps that float16 has."""
    angle = np.pi * np.linspace(0, 1, 961)
    response = np.ones(961)
    for dilation, taps in zip((*levels.DILATIONS, 1), vocoder_initialisation.low_pass().astype(np.float16).astype(float), strict=True):
        response *= taps[3] + 2 * sum(taps[3 + k] * np.cos(k * dilation * angle) for k in (1, 2, 3))
    hertz = np.linspace(0, 12000, 961)
    decibels = 20 * np.log10(np.abs(response) + 1e-9)
    assert np.abs(decibels[hertz < 3700]).max() < 0.6
    assert decibels[hertz > 5000].max() < -45 and decibels[np.abs(hertz - 8000) < 1000].max() < -60


def test_levels_are_those_of_the_sound() -> None:
    """A tone's level is its amplitude's, its overtones have none; noise has its bands', and none below 3.9 kHz under a voice."""
    time = np.arange(60 * FRAME) / 24000
    cycles = 200.0 * time
    tone = 0.2 * np.cos(2 * np.pi * cycles).astype(np.float32)
    free = pitch_synchronous.synchronise(tone, None)
    pitch = quantiser.fit_pitch(free.cycles[free.voiced], free.bends[free.voiced], ENTRIES, steps=3)
    noise = (0.01 * np.random.default_rng(0).standard_normal(len(time))).astype(np.float32)
    for sound in (tone, tone + noise):
        locked = pitch_synchronous.synchronise(sound, pitch)
        found = levels.unweighted(levels.levels(locked.wave, locked.entry, pitch))[5:-5]
        level = levels.MOST * np.square(np.sin(found / np.sqrt(levels.MOST)))
        assert locked.voiced[5:-5].all()
        amplitude = levels.LOUD * np.sin(np.median(level[..., 0]) * 2 * np.pi / levels.TURN)
        assert amplitude == pytest.approx(0.2, rel=0.03) and np.median(level[..., 1:18]) < 0.02 * np.median(level[..., 0])
        assert level[..., vocoder_initialisation.TONES : vocoder_initialisation.TONES + 5].max() < 1e-6
    high = np.sqrt(np.mean(np.square(level[..., -1]))) / levels.UNIT
    share = np.sqrt(np.square(levels.whole(levels.filters()[-1])).sum())
    assert high == pytest.approx(0.01 * share, rel=0.1)


@pytest.mark.slow
def test_levels_are_learnt_and_what_is_held_stays(begun: Any) -> None:
    fitted, cfg, start = begun
    read = fitted.read(sounds(60).astype(np.float32) / 32768, told(60))
    held = vocoder_initialisation.held(start, fitted)
    state = decoder_training.begin(start, random_start(flatten(decoder_training.critic_definition()[1]), 0))
    past = decoder_training.receptive_field(cfg.decoder_config)[0]
    codes, some = read.codes[None, : past + 4], decoder_levels.target_columns(read.levels[None, past : past + 4])
    seen = []
    for _ in range(25):
        state, figures = decoder_levels.step(state, codes, some, None, 1e-3, cfg=cfg.decoder_config, crop=4, held=held)
        seen.append(float(figures["levels"]))
    assert seen[-1] < 0.6 * seen[0]
    found, wanted = np.asarray(state["power"])
    assert np.allclose(wanted, some.reshape(2, 28, -1).var(axis=2).mean(axis=0), rtol=1e-3, atol=1e-6) and (found > 0).all()
    state, _ = decoder_training.spectral_step(
        state, codes, read.wave[None, past * FRAME : (past + 4) * FRAME], 1e-3, cfg=cfg.decoder_config, crop=4, held=held
    )
    changed = {path for path, value in state["trained"].items() if not np.array_equal(value, start[path])}
    assert "upsample.1.0.conv.weight" in changed and not [path for path in changed if path.startswith("decoder.")]
    books = "quantizer.rvq_rest.vq.embedding_sum"
    same = np.all(np.asarray(state["trained"][books]) == start[books], axis=(0, 1))
    assert not same[: fitted.components].any() and same[fitted.latent_size :].all(), "what entries say of the phase and of noise stays"
    for path, ranges in held:
        index = tuple(slice(*some) for some in ranges)
        assert np.array_equal(np.asarray(state["trained"][path])[index], np.asarray(start[path], np.float32)[index]), path


def test_levels_are_taken_up_wider_about_their_mean_and_a_run_goes_on_as_wide(begun: Any) -> None:
    fitted, _, start = begun
    wider = np.linspace(1.0, 1.4, levels.LEVELS).astype(np.float32)
    made = vocoder_initialisation.widen_levels(start, fitted, wider)
    assert {path for path in made if not np.array_equal(made[path], start[path])} == {"decoder.0.conv.weight", "decoder.0.conv.bias"}
    assert np.allclose(vocoder_initialisation.measured_widening(made, fitted), wider, atol=1e-5) and np.allclose(
        vocoder_initialisation.measured_widening(start, fitted), 1.0, atol=1e-5
    )
    _, mean = vocoder_initialisation.columns(fitted)
    taken = [
        (one["decoder.0.conv.weight"][:, : decoder_levels.COUNT, -1] @ columns + one["decoder.0.conv.bias"])[
            : 24 + decoder_levels.COUNT
        ]  # others are free
        for one, columns in ((start, mean), (made, mean), (start, mean + 0.1 * np.tile(wider, 2)), (made, mean + 0.1))
    ]
    np.testing.assert_allclose(taken[1], taken[0], atol=1e-5)  # the mean stays
    np.testing.assert_allclose(taken[3], taken[2], atol=1e-5)
    power = np.stack([wider**-2, np.ones_like(wider)])
    assert np.allclose(decoder_levels.wider(jnp.asarray(power)), wider) and decoder_levels.wider(jnp.asarray(power[::-1])).max() == 1.0, (
        "nothing is narrowed"
    )


def test_a_few_codes_slip_and_never_the_pitch() -> None:
    codes = np.zeros((8, 400, 16), np.int32)
    slips = decoder_levels.with_other_codes(codes, codes + 1, np.random.default_rng(0))
    assert slips.mean() == pytest.approx(decoder_levels.SLIPS, rel=0.2) and not slips[..., 1].any()


@pytest.mark.slow
def test_a_crop_is_what_the_decoder_streams(stream: VoiceStream, fitted: quantiser.Latents) -> None:
    state = decoder_state(fitted)
    codes = jnp.asarray(stream.codes[None, :14])
    whole = streamed({**state["trained"], **state["frozen"]}, codes)
    crop = GENERATE(CFG.decoder_config, state["trained"], state["frozen"], codes, CROP)
    assert float(jnp.abs(whole).max()) > 1e-4
    np.testing.assert_allclose(crop, whole[:, -CROP * FRAME :], atol=2e-6)


@pytest.mark.slow
def test_everything_that_is_to_train_has_a_gradient(stream: VoiceStream, fitted: quantiser.Latents) -> None:
    state = decoder_state(fitted)
    with unoptimised():
        after, _ = runner(stream, 1)(decoder_state(fitted), 0)
    assert [path for path, value in after["moments"][1].mu.items() if not float(jnp.abs(value).max()) > 0] == []
    assert {path.rsplit(".", 1)[-1] for path in state["frozen"]} == {"cluster_usage"} and len(state["frozen"]) == 2


@pytest.mark.slow
def test_a_pair_of_discriminators_trains_itself_and_no_other(stream: VoiceStream, fitted: quantiser.Latents) -> None:
    state, first = decoder_state(fitted), batch(stream, 0)
    critic = nnx.split(nnx.eval_shape(Discriminators))[0]
    shapes = decoder_training.critic_definition()[1]

    def judged(params: Any, pair: int) -> jax.Array:
        scores, _ = nnx.merge(critic, unflatten(params, shapes))(jnp.asarray(first.wave), pair)
        return sum((jnp.mean(jnp.square(1 - score)) for score in scores), jnp.zeros(()))

    for pair in range(len(PERIODS)):
        with unoptimised():
            gradients = jax.jit(jax.grad(judged), static_argnums=1)(state["critic"], pair)
        touched = {path for path, value in gradients.items() if float(jnp.abs(value).max()) > 0}
        assert touched == {path for path in gradients if path.startswith((f"periods.{pair}.", f"spectra.{pair}."))}


def runner(stream: VoiceStream, adversarial_from: int) -> Any:
    def step(state: Any, number: int) -> Any:
        got = batch(stream, number)
        if number < adversarial_from:
            return decoder_training.spectral_step(state, got.codes, got.wave, 1e-2, cfg=CFG.decoder_config, crop=CROP)
        start = jnp.zeros(ROWS, jnp.int32)
        return decoder_training.adversarial_step(
            state, got.codes, got.wave, start, 1e-3, 1e-3, cfg=CFG.decoder_config, crop=CROP, judged=CROP * FRAME, pair=1
        )

    return step


@pytest.mark.slow
def test_loss_falls_and_a_run_goes_on_bit_for_bit(stream: VoiceStream, fitted: quantiser.Latents, tmp_path: Path) -> None:
    step = runner(stream, 12)

    def evaluate(state: Any, folder: Path) -> dict[str, float]:
        return {"held_out": 1.0}

    def run(name: str, steps: int) -> Any:
        plan = loop.Schedule(steps=steps, log_every=2, evaluate_at=(4,))
        return loop.train(tmp_path / name, loop.resume(tmp_path / name, decoder_state(fitted)), step, plan, evaluate)

    whole = run("whole", 16)
    run("parts", 14)  # both stages, with a break in the second
    with (tmp_path / "parts" / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": 15, "seconds": 1e9}) + "\n")  # of a process that was killed after its checkpoint
    parts = run("parts", 16)
    for (path, one), (_, other) in zip(loop.named(whole).items(), loop.named(parts).items(), strict=True):
        assert np.array_equal(one, other), path
    assert int(parts["step"]) == 16
    entries = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [2, 4, 6, 8, 10, 12, 14, 16] and entries[1]["held_out"] == 1.0
    assert entries[5]["spectral"] < 0.8 * entries[0]["spectral"]
    assert {"critic", "features", "adversarial"} <= entries[7].keys()
    assert (tmp_path / "parts" / "loss.png").stat().st_size > 1000
    assert [path.name for path in loop.saved(tmp_path / "parts")] == ["00000014", "00000016"]


def test_a_pause_file_holds_the_run_until_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pause, slept = tmp_path / "pause", []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            pause.unlink()

    monkeypatch.setattr(loop, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: sum(slept)))
    assert loop.wait_while(None) == loop.wait_while(pause) == 0
    pause.touch()
    assert loop.wait_while(pause, lambda: True) == 0, "a run that is told to stop does not wait"
    assert loop.wait_while(pause) == 3 == len(slept)


class Hum:
    """A teacher of one sound, so and so fast."""

    def speak(self, who: TeacherVoice, text: str, seed: int) -> TeacherSpeech:
        wave = sounds(round(15 / who.speed)).astype(np.float32) / 32768
        return TeacherSpeech(wave, "_m_", [2, len(wave) // UNIT - 3, 1])


def test_what_was_read_of_a_corpus_is_kept_and_not_taken_for_anothers(fitted: quantiser.Latents, tmp_path: Path) -> None:
    batch = [CorpusSentence("A sound.", "text"), CorpusSentence("And a sound.", "text")]
    for name, speed in (("slow", 1.0), ("fast", 1.5)):
        shards.make_shard(tmp_path / name / "heart", 0, msgspec.structs.replace(teachers.SPEAKERS["heart"], speed=speed), batch, Hum())
    loaded = [load_streams(tmp_path / name, tmp_path / "run", 1.0, fitted) for name in ("slow", "fast", "slow")]
    slow, fast, again = (streams[0] for streams in loaded)
    assert len(slow.codes) == 2 * 15 and len(fast.codes) == 2 * 10
    assert slow.codes.tolist() == again.codes.tolist() and np.array_equal(slow.wave, again.wave)
    assert len(list((tmp_path / "run" / "read").glob("*.read.npz"))) == 2


def test_a_voice_of_few_hours_is_read_again_with_other_borders_of_frames(fitted: quantiser.Latents, tmp_path: Path) -> None:
    who = msgspec.structs.replace(teachers.SPEAKERS["heart"], speed=1.0)
    shards.make_shard(tmp_path / "heart", 0, who, [CorpusSentence("A sound.", "text")], Hum())
    seconds = 15 * FRAME / 24000
    (first,) = load_streams(tmp_path, tmp_path / "run", 2.1 * seconds / 3600, fitted)
    (later,) = load_streams(tmp_path, tmp_path / "run", 2.1 * seconds / 3600, fitted, again=1)
    assert np.array_equal(later.wave[: 14 * FRAME], first.wave[UNIT:][: 14 * FRAME])  # a unit of the pause is cut
    assert (later.codes[:14, 2:] != first.codes[:14, 2:]).mean() > 0.2
    (line,) = chosen_lines(tmp_path, 1.0, 1)["heart"]
    assert line.durations == [1, 15 * FRAME // UNIT - 3, 1] and line.samples == 15 * FRAME - UNIT
    assert begun_later(line, 1) == line  # no pause is left to cut from
    assert not chosen_lines(tmp_path, 1.9 * seconds / 3600, 1)  # it does not fit in twice


def test_the_mean_of_exports_is_of_one_runs(fitted: quantiser.Latents, tmp_path: Path) -> None:
    fitted_config = codec_config(fitted.latent_size, len(fitted.content))
    for half in ("encoder_config", "decoder_config"):
        fitted_config[half]["codebook_size"] = ENTRIES
    shapes = export.codec_shapes(parse(CodecConfig, fitted_config))
    for number, name in enumerate(("a", "b", "other")):
        export.write_codec(tmp_path / name / checkpoints.CODEC, fitted_config, random_start(shapes, number))
        fitted.save(tmp_path / name / checkpoints.LATENTS)
        (tmp_path / name / checkpoints.STEPS).write_text(json.dumps({"encoder": number}))
    checkpoints.mean_of_exports(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])
    one, other, found = (export.read_codec(tmp_path / name / checkpoints.CODEC)[1] for name in ("a", "b", "out"))
    assert found.keys() == one.keys() and any(np.abs(one[path] - other[path]).max() > 0.1 for path in one)
    for path, value in found.items():
        np.testing.assert_allclose(value, (one[path] + other[path]) / 2, rtol=1e-3, atol=1e-6)
    assert (
        json.loads((tmp_path / "out" / checkpoints.STEPS).read_text()) == {"encoder": 1}
        and (tmp_path / "out" / checkpoints.LATENTS).is_file()
    )
    (tmp_path / "other" / checkpoints.LATENTS).write_bytes(b"other books")
    with pytest.raises(ValueError, match="other has other parameters or books than .*a: a mean is of exports"):
        checkpoints.mean_of_exports(tmp_path / "not", [tmp_path / "a", tmp_path / "other"])
    with pytest.raises(ValueError, match="two exports or more"):
        checkpoints.mean_of_exports(tmp_path / "not", [tmp_path / "a"])
    assert not (tmp_path / "not").exists()


# the encoder in training, and the export


def encoder_state(fitted: quantiser.Latents) -> dict[str, Any]:
    shapes = flatten(encoder_training.encoder_definition(CFG.encoder_config, 16)[1])
    return encoder_training.begin(encoder_training.fill_books(random_start(shapes, 0), fitted))


def test_a_right_embedding_has_the_latents_codes(stream: VoiceStream, fitted: quantiser.Latents) -> None:
    state = encoder_state(fitted)
    graph, shapes = encoder_training.encoder_definition(CFG.encoder_config, 16)
    encoder = nnx.merge(graph, unflatten({**state["trained"], **state["frozen"]}, shapes))
    wanted = encoder_training.target(fitted, fitted.latent(stream.main, stream.codes[:, 1]), stream.codes[:, 0])
    codes = np.asarray(encoder.quantizer(jnp.pad(wanted, ((0, 0), (0, 48 - wanted.shape[1])))[None])[0])
    own = fitted.codes(fitted.latent(stream.main, stream.codes[:, 1]), told(len(stream.main)))
    assert (codes == own).mean() > 0.99  # ties of float32 apart
    assert np.array_equal(codes[:, 1], stream.codes[:, 1])


@pytest.mark.slow
def test_the_encoder_learns_and_nothing_of_it_is_frozen(stream: VoiceStream, fitted: quantiser.Latents) -> None:
    state = encoder_state(fitted)
    before = jax.tree.map(np.asarray, state["trained"])
    wave = stream.wave[: 16 * FRAME].reshape(2, -1).astype(np.float32) / 32768
    wanted = encoder_training.target(
        fitted, fitted.latent(stream.main[:16], stream.codes[:16, 1]).reshape(2, 8, -1), stream.codes[:16, 0].reshape(2, 8)
    )
    seen = []
    for _ in range(20):
        with unoptimised():
            state, figures = encoder_training.regression_step(state, wave, wanted, fitted.spread, 2e-2, cfg=CFG.encoder_config, books=16)
            seen.append(float(figures["latent"]))
    assert seen[-1] < 0.9 * seen[0]
    assert [path for path, value in before.items() if np.array_equal(value, state["trained"][path])] == []
    # what it is not sure of is widened, and a run that goes on from the export is as wide
    path = "quantizer.acoustic_residual_vector_quantizer.input_proj.weight"
    made = encoder_training.export_weights(state, fitted.components)
    wider = np.asarray(made[path] / jnp.where(state["frozen"][path] == 0, 1, state["frozen"][path])).sum(axis=(1, 2))
    power = np.asarray(state["power"])
    assert np.allclose(wider[:16], np.clip(np.sqrt(power[1] / power[0]), 1, encoder_training.WIDEST)[:16], rtol=1e-5) and np.all(
        wider[16:] == 1
    )
    again = encoder_training.export_weights(encoder_training.begin_at(encoder_state(fitted), made, 20), fitted.components)
    assert again.keys() == made.keys() and all(np.allclose(again[name], made[name], rtol=1e-5) for name in made)


@pytest.mark.slow
def test_the_encoders_upper_part_learns_alone_from_what_the_lower_one_hears(
    stream: VoiceStream, fitted: quantiser.Latents, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = CFG.encoder_config
    monkeypatch.setattr(chunked, "_FEATURES", 12 * FRAME)  # two pieces
    state = encoder_state(fitted)
    state["average"] = {path: value + 0.01 for path, value in state["average"].items()}
    state = encoder_training.with_averaged_lower(state, cfg)
    before = jax.tree.map(np.asarray, state["trained"])
    wave = stream.wave[: 16 * FRAME].reshape(2, -1).astype(np.float32) / 32768
    heard = encoder_training.lower_output(state, wave, cfg=cfg, books=16)
    graph, shapes = encoder_training.encoder_definition(cfg, 16)
    encoder = nnx.merge(graph, unflatten({**state["trained"], **state["frozen"]}, shapes))
    whole = encoder_training.embed(encoder, jnp.asarray(wave), jnp.full(2, wave.shape[1], jnp.int32))
    np.testing.assert_allclose(encoder_training.upper(encoder, heard.astype(jnp.float32)), whole, atol=2e-3 * float(jnp.abs(whole).max()))
    # in pieces, as a corpus is listened to
    joined = chunked.lower_features(state, stream.wave[: 16 * FRAME], CFG)
    assert joined.shape[0] == 16
    steps = heard.shape[1] // 8
    np.testing.assert_allclose(joined[1:8].reshape(-1, heard.shape[2]), heard[0, steps:], atol=1e-3)  # before the first there is silence

    wanted = encoder_training.target(
        fitted, fitted.latent(stream.main[:16], stream.codes[:16, 1]).reshape(2, 8, -1), stream.codes[:16, 0].reshape(2, 8)
    )
    seen = []
    for _ in range(20):
        with unoptimised():
            state, figures = encoder_training.regression_step(state, heard, wanted, fitted.spread, 2e-2, cfg=cfg, books=16)
            seen.append(float(figures["latent"]))
    assert seen[-1] < 0.9 * seen[0]
    kept = {path for path, value in before.items() if np.array_equal(value, state["trained"][path])}
    assert kept == {path for path in before if encoder_training.is_lower(path, cfg)} and 0 < len(kept) < len(before)


def test_a_voice_is_encoded_in_pieces_as_in_one(stream: VoiceStream, fitted: quantiser.Latents, monkeypatch: pytest.MonkeyPatch) -> None:
    state = encoder_state(fitted)
    params = {path: np.asarray(value) for path, value in {**state["trained"], **state["frozen"]}.items()}
    monkeypatch.setattr(chunked, "_ENCODED", 20 * FRAME)
    whole = chunked.encode_voice(CFG, params, stream.wave[: 20 * FRAME])
    monkeypatch.setattr(chunked, "_ENCODED", 8 * FRAME)
    joined = chunked.encode_voice(CFG, params, stream.wave[: 20 * FRAME])
    assert (
        whole.shape == (20, 16) and (joined[:8] == whole[:8]).all() and (joined == whole).mean() > 0.9
    )  # further on the past ends elsewhere


def test_an_export_is_the_trained_decoder(stream: VoiceStream, fitted: quantiser.Latents, tmp_path: Path) -> None:
    sides = {"decoder": decoder_state(fitted), "encoder": encoder_state(fitted)}
    params = {f"{name}.{path}": value for name, side in sides.items() for path, value in {**side["trained"], **side["frozen"]}.items()}
    export.write_codec(tmp_path / "speech_tokenizer", tiny(), params)
    cfg, found = export.read_codec(tmp_path / "speech_tokenizer")
    assert cfg == CFG and found.keys() == params.keys()
    for path in found:
        half = np.asarray(params[path], np.float32).astype(np.float16)
        assert np.array_equal(found[path], half.astype(np.float32)), path
    codes = jnp.asarray(stream.codes[None, :14])
    loaded = streamed({path.removeprefix("decoder."): value for path, value in found.items() if path.startswith("decoder.")}, codes)
    side = sides["decoder"]
    trained = GENERATE(cfg.decoder_config, side["trained"], side["frozen"], codes, CROP)
    np.testing.assert_allclose(loaded[:, -CROP * FRAME :], trained, atol=0.02 * float(jnp.abs(trained).max()))
    with pytest.raises(ValueError, match="one side only"):
        export.write_codec(tmp_path / "other", tiny(), dict(list(params.items())[1:]))
    first = next(iter(params))
    with pytest.raises(ValueError, match="cannot hold"):
        export.write_codec(tmp_path / "other", tiny(), params | {first: jnp.full_like(params[first], 1e6)})


# a recogniser, and what learns by it


@pytest.fixture(scope="module")
def hearing() -> dict[str, Any]:
    """A recogniser of columns whose first number says what is said, and whose tenth is as large and says nothing; and some of them."""
    noise = np.random.default_rng(0)
    said = np.repeat(noise.integers(0, 3, (8, 10)), 4, axis=1).astype(np.int32)
    columns = noise.standard_normal((phoneme_recogniser.COUNT, *said.shape)).astype(np.float32)
    columns[0], columns[9] = said, np.repeat(noise.integers(0, 3, (8, 10)), 4, axis=1)
    state, lost = phoneme_recogniser.begin(columns, 0), []
    for number in range(60):
        with unoptimised():
            state, figures = phoneme_recogniser.step(state, columns, said, number, 3e-3)
            lost.append(float(figures["symbols"]))
    return {"lost": lost, "params": {**state["trained"], **state["frozen"]}, "columns": columns, "said": said}


@pytest.mark.slow
def test_a_recogniser_learns_what_is_said(hearing: dict[str, Any]) -> None:
    assert hearing["lost"][0] > 2 and hearing["lost"][-1] < 0.5
    nats, right = phoneme_recogniser.agreement(hearing["params"], hearing["columns"], hearing["said"])
    assert float(right) > 0.95 and float(nats) < 0.3


@pytest.mark.slow
def test_what_tells_sounds_apart_counts_more_than_what_does_not(hearing: dict[str, Any]) -> None:
    params, columns = hearing["params"], hearing["columns"]
    same = phoneme_recogniser.difference(params, jnp.asarray(columns), jnp.asarray(columns))
    assert float(same.symbols) == pytest.approx(0, abs=1e-6) and float(same.features) == pytest.approx(0, abs=1e-6)
    off = {}
    for channel in (0, 9):
        other = columns.copy()
        other[channel] = np.roll(columns[channel], 4, axis=1)
        off[channel] = phoneme_recogniser.difference(params, jnp.asarray(other), jnp.asarray(columns))
    assert float(off[0].symbols) > 10 * float(off[9].symbols) and float(off[0].features) > float(off[9].features)
    graph, shapes = phoneme_recogniser.definition()
    found, true = (np.asarray(nnx.merge(graph, unflatten(params, shapes))(jnp.moveaxis(jnp.asarray(x), 0, -1))[0], np.float64)
                   for x in (other, columns))  # fmt: skip
    assert float(off[9].symbols) == pytest.approx(np.sum(np.exp(true) * (true - found), axis=-1).mean(), rel=1e-3)


@pytest.mark.slow
def test_a_decoder_learns_what_is_heard(begun: Any, hearing: dict[str, Any]) -> None:
    """By a recogniser it comes sooner to sound alike than without one."""
    fitted, cfg, start = begun
    read = fitted.read(sounds(60).astype(np.float32) / 32768, told(60))
    past = decoder_training.receptive_field(cfg.decoder_config)
    codes, some = read.codes[None, : past[0] + 4], decoder_levels.target_columns(read.levels[None, past[0] : past[0] + 4])
    off = {}
    for name, params in (("with", hearing["params"]), ("without", None)):
        state = decoder_training.begin(start, random_start(flatten(decoder_training.critic_definition()[1]), 0))
        for _ in range(8):
            state, figures = decoder_levels.step(
                state, codes, some, params, 1e-3, cfg=cfg.decoder_config, crop=4, held=vocoder_initialisation.held(start, fitted)
            )
        assert ("features" in figures) == (params is not None)
        graph, shapes = decoder_training.decoder_definition(cfg.decoder_config)
        decoder = nnx.merge(graph, unflatten({**state["trained"], **state["frozen"]}, shapes))
        off[name] = float(
            phoneme_recogniser.difference(
                hearing["params"], decoder_levels.level_columns(decoder, jnp.asarray(codes), 4, past), jnp.asarray(some)
            ).features
        )
    assert off["with"] < 0.85 * off["without"], off


@pytest.fixture(scope="module")
def both(begun: Any) -> dict[str, Any]:
    """A small codec before its first step, whose encoder is to hear what its decoder says."""
    fitted, _, start = begun
    cfg = parsed_config(fitted.latent_size, len(fitted.content))
    config = codec_config(fitted.latent_size, len(fitted.content))
    for half in ("encoder_config", "decoder_config"):
        config[half]["codebook_size"] = ENTRIES
    cfg = parse(CodecConfig, config)
    shapes = flatten(encoder_training.encoder_definition(cfg.encoder_config, 16)[1])
    state = encoder_training.begin(encoder_training.fill_books(random_start(shapes, 0), fitted))
    state["power"] = state["power"].at[0].set(0.5)  # so a little is widened
    return {"cfg": cfg, "state": state, "decoder": {path: jnp.asarray(value, jnp.float32) for path, value in start.items()}}


@pytest.mark.slow
def test_through_the_decoder_come_the_codes_and_gradients_reach_what_was_found(begun: Any, both: dict[str, Any]) -> None:
    fitted, cfg = begun[0], both["cfg"]
    encoder = encoder_training.export_weights(both["state"], fitted.components)
    noise = np.random.default_rng(3)
    found = jnp.asarray(noise.standard_normal((2, 12, cfg.encoder_config.hidden_size)), jnp.float32)

    @jax.jit
    def read(encoder: Any, decoder: Any, found: jax.Array, slope: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """By codes; through the encoder's vectors, and the gradient there."""
        graph, shapes = encoder_training.encoder_definition(cfg.encoder_config, 16)
        codes = nnx.merge(graph, unflatten(encoder, shapes)).quantizer(found)
        graph, shapes = decoder_training.decoder_definition(cfg.decoder_config)
        reader = nnx.merge(graph, unflatten(decoder, shapes))
        alone = decoder_levels.level_columns(reader, codes, 12, tuple(0 for _ in decoder_training.receptive_field(cfg.decoder_config)))
        configs = {"cfg": cfg.encoder_config, "reads": cfg.decoder_config}
        made, back = jax.vjp(lambda found: straight_through.columns(encoder, decoder, found, **configs), found)
        return alone, made, back(slope)[0]

    slope = jnp.asarray(noise.standard_normal((decoder_levels.COUNT, 2, 48)), jnp.float32)
    alone, made, gradient = read(encoder, both["decoder"], found, slope)
    np.testing.assert_allclose(made, alone, atol=1e-4)
    reached = np.abs(gradient).max(axis=(0, 1)) > 0
    assert reached[: fitted.components].all() and not reached[fitted.components :].any()


def test_what_gradients_see_is_a_books_mean_by_nearness() -> None:
    noise = np.random.default_rng(0)
    entries, named = np.zeros((2, 5, 3), np.float32), noise.standard_normal((2, 5, 4)).astype(np.float32)
    entries[0, :, :2], entries[1, :, 2:] = noise.standard_normal((5, 2)), noise.standard_normal((5, 1))
    x = noise.standard_normal((1, 7, 3)).astype(np.float32)
    wanted = np.zeros((7, 4))
    for book, own in enumerate(([0, 1], [2])):
        distance = np.square(x[0][:, None, own] - entries[book][None, :, own]).sum(axis=2)
        weight = np.exp(-(distance - distance.min(axis=1, keepdims=True)) / distance.min(axis=1).mean())
        wanted += weight / weight.sum(axis=1, keepdims=True) @ named[book]
    np.testing.assert_allclose(
        straight_through.soft_quantise(*map(jnp.asarray, (x, entries, named)))[0], wanted, atol=0.02
    )  # products of bfloat16


@pytest.mark.slow
def test_an_encoder_learns_through_the_decoder(begun: Any, both: dict[str, Any], hearing: dict[str, Any]) -> None:
    fitted, cfg = begun[0], both["cfg"]
    read = fitted.read(sounds(16).astype(np.float32) / 32768, told(16))
    state = encoder_training.with_averaged_lower(jax.tree.map(jnp.copy, both["state"]), cfg.encoder_config)
    before = jax.tree.map(np.asarray, state["trained"])
    given = encoder_training.lower_output(state, sounds(16)[None].astype(np.float32) / 32768, cfg=cfg.encoder_config, books=16)
    wanted = encoder_training.target(fitted, fitted.latent(read.main, read.codes[:, 1])[None], read.codes[None, :, 0])
    told_ = decoder_levels.target_columns(read.levels[None])
    seen = []
    for _ in range(15):
        state, figures = straight_through.step(
            state, given, wanted, told_, both["decoder"], hearing["params"], fitted.spread, fitted.components, 3e-3,
            cfg=cfg.encoder_config, reads=cfg.decoder_config,
        )  # fmt: skip
        seen.append([float(figures[name]) for name in ("latent", "levels", "symbols")])
    assert np.all(np.mean(seen[-3:], axis=0) < 0.95 * np.array(seen[0]))
    kept = {path for path, value in before.items() if np.array_equal(value, state["trained"][path])}
    assert kept == {path for path in before if encoder_training.is_lower(path, cfg.encoder_config)}
    assert np.array_equal(state["power"], both["state"]["power"]) and int(state["step"]) == 15


def test_an_encoder_learns_through_no_decoder_that_is_not_there(fitted: quantiser.Latents, tmp_path: Path) -> None:
    fitted.save(tmp_path / checkpoints.LATENTS)
    with pytest.raises(ValueError, match="the decoder and the recogniser that .* has"):
        codec_commands.encoder(tmp_path / "corpus", tmp_path, by_decoder=True)
    assert checkpoints.load_recogniser(tmp_path) is None
    state = phoneme_recogniser.begin(np.ones((phoneme_recogniser.COUNT, 2, 8), np.float32), 3)
    loop.save(tmp_path / "recogniser", state)
    found = checkpoints.load_recogniser(tmp_path)
    assert found is not None and found.keys() == {**state["trained"], **state["frozen"]}.keys()
    assert all(np.array_equal(found[path], value) for path, value in state["trained"].items())
