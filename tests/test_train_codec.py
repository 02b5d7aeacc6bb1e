"""The codec's training: losses against NumPy, latents that come back, steps that learn, runs that go on bit for bit, exports that load."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qwen3_jax.codec import init_state
from qwen3_jax.config import CodecConfig, parse
from qwen3_jax.mapping import flatten, unflatten
from qwen3_jax.testing import tiny_codec_config
from qwen3_jax.train import export, latents, listener, locking, loop, losses, loud, prior, small, vocoder
from qwen3_jax.train.data import Stream, crops
from qwen3_jax.train.discriminators import PERIODS, Discriminators
from qwen3_jax.train.latents import FRAME

CROP, ROWS, ENTRIES = 2, 2, 48
LATENT = 8 + 28  # main components, and what tells pitches apart


def tiny() -> dict[str, Any]:
    config = tiny_codec_config()
    config["encoder_config"] |= {
        "codebook_size": ENTRIES,
        "num_quantizers": 16,
        "hidden_size": 40,
        "codebook_dim": LATENT,
        "vector_quantization_hidden_dimension": LATENT,
    }
    config["decoder_config"] |= {"codebook_size": ENTRIES, "sliding_window": 32, "codebook_dim": 2 * (LATENT + 3 * locking.RAMPS)}
    return config


CFG = parse(CodecConfig, tiny())


def sounds(frames: int, seed: int = 0) -> np.ndarray:
    """int16 tones and noise."""
    noise = np.random.default_rng(seed)
    time = np.arange(frames * FRAME) / 24000
    pitch = 150 + 60 * np.sin(2 * np.pi * 1.3 * time)
    wave = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / 24000) * (0.6 + 0.4 * np.sin(2 * np.pi * 2.1 * time))
    return np.rint(32767 * (wave + 0.01 * noise.standard_normal(len(wave)))).astype(np.int16)


def part_of(wave: np.ndarray) -> latents.Part:
    """For fitting; its phonemes are drawn."""
    locked = locking.lock(wave.astype(np.float32) / 32768, None)
    labels = np.random.default_rng(1).integers(0, 5, len(wave) // 600)
    return latents.Part("a", latents.log_mel(locked.wave), labels, locked.cycles[locked.voiced], locked.bends[locked.voiced])


@pytest.fixture(scope="module")
def fitted() -> latents.Latents:
    return latents.fit([part_of(sounds(160))], latent=8, content=4, entries=ENTRIES, steps=3)[0]


@pytest.fixture(scope="module")
def stream(fitted: latents.Latents) -> Stream:
    wave = sounds(60)
    read = fitted.read(wave.astype(np.float32) / 32768, "a")
    return Stream("a", wave, np.rint(read.wave * 32767).astype(np.int16), read.codes, read.main, read.content)


def decoder_state(fitted: latents.Latents, seed: int = 0) -> dict[str, Any]:
    shapes = flatten(vocoder.decoder_definition(CFG.decoder_config)[1])
    generator = vocoder.fill_books(small.random_start(shapes, seed), fitted)
    return vocoder.begin(generator, small.random_start(flatten(vocoder.critic_definition()[1]), seed))


@jax.jit
def streamed(params: dict[str, Any], codes: jax.Array) -> jax.Array:
    """The decoder as the product runs it."""
    graph, shapes = vocoder.decoder_definition(CFG.decoder_config)
    return nnx.merge(graph, unflatten(params, shapes))(codes, init_state(CFG.decoder_config, len(codes)))[0]


GENERATE = jax.jit(vocoder.generate, static_argnums=(0, 4))


def batch(stream: Stream, step: int) -> Any:
    return crops([stream], ROWS, vocoder.heard(CFG.decoder_config)[0] + 3, CROP, 5, step)


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
    filters = latents.mel_filters(losses.MEL_BINS[fft], fft).astype(np.float64)
    filters = (filters / np.maximum(filters.sum(axis=1, keepdims=True), 1)).T
    mel = np.abs(np.log(m @ filters + floor) - np.log(r @ filters + floor)).mean()
    assert [float(terms[name]) for name in ("convergence", "log", "mel")] == pytest.approx([convergence, log, mel], rel=1e-3)
    assert float(loss) == pytest.approx(convergence + 0.5 * log + mel, rel=1e-3)


def test_equal_waves_have_no_loss_and_finite_gradients() -> None:
    silence = jnp.zeros((1, 4096))
    assert float(losses.spectral(silence, silence)[0]) < 0.02
    assert bool(jnp.isfinite(jax.grad(lambda wave: losses.spectral(wave, silence)[0])(silence)).all())


# latents


def test_a_frame_hears_nothing_after_it() -> None:
    wave = sounds(6)
    changed = wave.copy()
    changed[4 * FRAME :] = 0
    assert np.array_equal(latents.log_mel(wave)[:4], latents.log_mel(changed)[:4])
    assert not np.array_equal(latents.log_mel(wave)[4], latents.log_mel(changed)[4])


def test_books_explain_more_and_more(stream: Stream, fitted: latents.Latents, tmp_path: Path) -> None:
    locked = stream.locked.astype(np.float32) / 32767
    main = fitted.main(latents.log_mel(locked))
    rest, left = fitted.latent(main, stream.codes[:, 1]), [np.square(main).sum()]
    for number, book in enumerate(fitted.acoustic):
        rest = rest - book[stream.codes[:, number + 1]]
        left.append(np.square(rest).sum())
    assert left[1] == pytest.approx(left[0]), "book 1 takes the pitch away, whole"
    assert left[3] < 0.5 * left[0] and left[15] < left[3]
    fitted.save(tmp_path / "l.safetensors")
    again = latents.Latents.load(tmp_path / "l.safetensors")
    codes = again.codes(again.latent(main, stream.codes[:, 1]), again.content_vector(main, "a"))
    assert (codes == stream.codes).mean() > 0.99  # the wave went through int16


def test_occupancy_counts_every_unit() -> None:
    shares = latents.occupancy(np.array([0, 1, 1, 2, 2, 2, 2, 0] * 2), 3).reshape(-1, 4, 3)
    assert shares.shape == (5, 4, 3) and np.allclose(shares.sum(axis=2), 1)
    assert shares[0, 0].tolist() == [1, 0, 0]  # samples 0..479 of unit 0
    assert shares[0, 1] == pytest.approx([0.25, 0.75, 0])  # samples 480..959: 120 of unit 0


# the decoder in training


@pytest.fixture(scope="module")
def begun() -> tuple[latents.Latents, CodecConfig, dict[str, Any]]:
    """The small decoder before its first step, and a run of codes."""
    fitted = latents.fit([part_of(sounds(160))], latent=40, content=4, entries=ENTRIES, steps=3)[0]
    cfg = small.parsed(fitted.latent_size, ENTRIES)
    shapes = vocoder.decoder_definition(cfg.decoder_config)[1]
    return fitted, cfg, prior.show(vocoder.fill_books(small.random_start(flatten(shapes), 0), fitted), fitted)


def test_before_its_first_step_a_decoder_is_a_vocoder(begun: Any) -> None:
    """It sees the spectrogram's columns; told how loud harmonics are to be, it makes them with the phase that book 1 says; and its
    noise is white."""
    fitted, cfg, start = begun
    graph, shapes = vocoder.decoder_definition(cfg.decoder_config)
    decoder = nnx.merge(graph, unflatten({path: jnp.asarray(value, jnp.float32) for path, value in start.items()}, shapes))
    read = fitted.read(sounds(40).astype(np.float32) / 32768, "a")
    state = decoder.initial(1)
    x, _ = decoder.pre_conv(jnp.moveaxis(decoder.quantizer(jnp.asarray(read.codes[None])), -1, 0), state.pre_conv)
    x, _ = decoder.pre_transformer(x, state.window, state.position, None)
    for (stretch, mix), tail in zip(decoder.upsample, state.convnext, strict=True):
        x, _ = mix(stretch(x), tail, None)
    wanted = (latents.log_mel(read.wave) - fitted.mean).reshape(-1, latents.BINS)
    assert (
        np.corrcoef(np.asarray(x[: latents.BINS, 0]).T.ravel(), wanted.ravel())[0, 1] > 0.65
    )  # of a tone and noise, whose 40 components are nearly alike

    first, *blocks, snake, last = decoder.decoder
    x, _ = first(x, state.first_conv)
    x, _ = blocks[0](x, state.blocks[0], None)
    tone = np.zeros((prior.GAINS, 1, x.shape[2]), np.float32)
    tone[1] = 4.0  # the second harmonic only
    x = x.at[prior.SLOW : prior.SLOW + prior.GAINS].set(tone)
    for block, own in zip(blocks[1:], state.blocks[1:], strict=True):
        x, _ = block(x, own, None)
    wave = np.asarray(last(snake(x), state.last_conv)[0][0, 0])
    ramps = fitted.pitch.ramps()[read.codes[:, 1]]
    phase = (ramps[..., :1] + ramps[..., 1:] * (np.arange(60) / 60)).reshape(-1)
    ideal = prior.LOUD * np.sin(4.0 * 2 * np.pi / 64) * np.cos(4 * np.pi * phase)
    voiced = np.repeat(read.codes[:, 1] > 0, FRAME)
    assert voiced.mean() > 0.5 and np.corrcoef(wave[voiced], ideal[voiced])[0, 1] > 0.95
    assert np.std(wave[voiced]) == pytest.approx(np.std(ideal[voiced]), rel=0.1)
    noise = np.asarray(x[2, 0])
    power = np.square(np.abs(np.fft.rfft(noise.reshape(-1, 480) * np.hanning(480)))).mean(axis=0)[4:-4]
    assert abs(noise.mean()) < 0.02 and noise.std() == pytest.approx(0.353, abs=0.02) and power.max() < 4 * power.min()

    narrow = small.random_start(flatten(vocoder.decoder_definition(CFG.decoder_config)[1]), 0)
    with pytest.raises(ValueError, match="are too small"):
        prior.show(narrow, fitted)


@pytest.mark.slow
def test_loudness_is_learnt_and_what_is_held_stays(begun: Any, tmp_path: Path) -> None:
    fitted, cfg, start = begun
    wave = sounds(60)
    read = fitted.read(wave.astype(np.float32) / 32768, "a")
    stream = Stream("a", wave, np.rint(read.wave * 32767).astype(np.int16), read.codes, read.main, read.content)
    aim = loud.wanted(stream, fitted, tmp_path / "a.npy")
    assert aim.shape == (60 * loud.STEPS, prior.GAINS) and aim[:, 0].max() > 4 * aim[:, 6].max()  # a tone has no overtones
    assert np.array_equal(loud.wanted(stream, fitted, tmp_path / "a.npy"), aim)
    held = prior.held(fitted, cfg.decoder_config.num_hidden_layers)
    state = vocoder.begin(start, small.random_start(flatten(vocoder.critic_definition()[1]), 0))
    past = vocoder.heard(cfg.decoder_config)[0]
    codes, some = read.codes[None, : past + 4], aim[None, past * loud.STEPS : (past + 4) * loud.STEPS].astype(np.float32)
    seen = []
    for _ in range(25):
        state, figures = loud.step(state, codes, some, 1e-3, cfg=cfg.decoder_config, crop=4, held=held)
        seen.append(float(figures["loudness"]))
    assert seen[-1] < 0.6 * seen[0]
    state, _ = vocoder.spectral_step(
        state, codes, read.wave[None, past * FRAME : (past + 4) * FRAME], 1e-3, cfg=cfg.decoder_config, crop=4, held=held
    )
    changed = {path for path, value in state["trained"].items() if not np.array_equal(value, start[path])}
    assert "decoder.0.conv.weight" in changed and "decoder.3.block.2.conv1.conv.weight" not in changed
    for path, ranges in held:
        index = tuple(slice(*some) for some in ranges)
        assert np.array_equal(np.asarray(state["trained"][path])[index], np.asarray(start[path], np.float32)[index]), path


def test_a_crop_is_what_the_decoder_streams(stream: Stream, fitted: latents.Latents) -> None:
    state = decoder_state(fitted)
    codes = jnp.asarray(stream.codes[None, :14])
    whole = streamed({**state["trained"], **state["frozen"]}, codes)
    crop = GENERATE(CFG.decoder_config, state["trained"], state["frozen"], codes, CROP)
    assert float(jnp.abs(whole).max()) > 1e-4
    np.testing.assert_allclose(crop, whole[:, -CROP * FRAME :], atol=2e-6)


def test_everything_that_is_to_train_has_a_gradient(stream: Stream, fitted: latents.Latents) -> None:
    state = decoder_state(fitted)
    first = batch(stream, 0)

    def loss(trained: Any) -> jax.Array:
        return losses.spectral(vocoder.generate(CFG.decoder_config, trained, state["frozen"], first.codes, CROP), first.wave)[0]

    gradients = jax.jit(jax.grad(loss))(state["trained"])
    assert [path for path, value in gradients.items() if not float(jnp.abs(value).max()) > 0] == []
    assert {path.rsplit(".", 1)[-1] for path in state["frozen"]} == {"embedding_sum", "cluster_usage"} and len(state["frozen"]) == 4

    critic = nnx.split(nnx.eval_shape(Discriminators))[0]
    shapes = vocoder.critic_definition()[1]

    def judged(params: Any, pair: int) -> jax.Array:
        scores, _ = nnx.merge(critic, unflatten(params, shapes))(first.wave, pair)
        return sum((jnp.mean(jnp.square(1 - score)) for score in scores), jnp.zeros(()))

    for pair in range(len(PERIODS)):  # a pair trains its own two discriminators and no other
        gradients = jax.jit(jax.grad(judged), static_argnums=1)(state["critic"], pair)
        touched = {path for path, value in gradients.items() if float(jnp.abs(value).max()) > 0}
        assert touched == {path for path in gradients if path.startswith((f"periods.{pair}.", f"spectra.{pair}."))}


def runner(stream: Stream, adversarial_from: int) -> Any:
    def step(state: Any, number: int) -> Any:
        got = batch(stream, number)
        if number < adversarial_from:
            return vocoder.spectral_step(state, got.codes, got.wave, 2e-3, cfg=CFG.decoder_config, crop=CROP)
        start = jnp.zeros(ROWS, jnp.int32)
        return vocoder.adversarial_step(
            state, got.codes, got.wave, start, 1e-3, 1e-3, cfg=CFG.decoder_config, crop=CROP, judged=CROP * FRAME, pair=1
        )

    return step


@pytest.mark.slow
def test_loss_falls_and_a_run_goes_on_bit_for_bit(stream: Stream, fitted: latents.Latents, tmp_path: Path) -> None:
    step = runner(stream, 36)

    def evaluate(state: Any, folder: Path) -> dict[str, float]:
        return {"held_out": 1.0}

    def run(name: str, steps: int) -> Any:
        plan = loop.Plan(steps=steps, log_every=4, evaluate_at=(8,))
        return loop.train(tmp_path / name, loop.resume(tmp_path / name, decoder_state(fitted)), step, plan, evaluate)

    whole = run("whole", 40)
    run("parts", 38)  # both stages, with a break in the second
    with (tmp_path / "parts" / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": 39, "seconds": 1e9}) + "\n")  # of a process that was killed after its checkpoint
    parts = run("parts", 40)
    for (path, one), (_, other) in zip(loop.named(whole).items(), loop.named(parts).items(), strict=True):
        assert np.array_equal(one, other), path
    assert int(parts["step"]) == 40
    entries = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [4, 8, 12, 16, 20, 24, 28, 32, 36, 40] and entries[1]["held_out"] == 1.0
    assert entries[8]["spectral"] < 0.8 * entries[0]["spectral"]
    assert {"critic", "features", "adversarial"} <= entries[9].keys()
    assert (tmp_path / "parts" / "loss.png").stat().st_size > 1000
    assert [path.name for path in loop.saved(tmp_path / "parts")] == ["00000038", "00000040"]


def test_a_pause_file_holds_the_run_until_it_goes(tmp_path: Path) -> None:
    assert loop.wait_while(None) == pytest.approx(0, abs=0.1)
    (tmp_path / "pause").touch()
    assert loop.wait_while(tmp_path / "pause", lambda: True) < 0.5  # a run that is told to stop does not wait


# the encoder in training, and the export


def encoder_state(fitted: latents.Latents) -> dict[str, Any]:
    shapes = flatten(listener.encoder_definition(CFG.encoder_config, 16)[1])
    return listener.begin(listener.fill_books(small.random_start(shapes, 0), fitted))


def test_a_right_embedding_has_the_latents_codes(stream: Stream, fitted: latents.Latents) -> None:
    state = encoder_state(fitted)
    graph, shapes = listener.encoder_definition(CFG.encoder_config, 16)
    encoder = nnx.merge(graph, unflatten({**state["trained"], **state["frozen"]}, shapes))
    wanted = listener.target(fitted, fitted.latent(stream.main, stream.codes[:, 1]), stream.content)
    codes = np.asarray(encoder.quantizer(jnp.pad(wanted, ((0, 0), (0, 40 - wanted.shape[1])))[None])[0])
    own = fitted.codes(fitted.latent(stream.main, stream.codes[:, 1]), stream.content)
    assert (codes == own).mean() > 0.99  # ties of float32 apart
    assert np.array_equal(codes[:, 1], stream.codes[:, 1])


def test_the_encoder_learns_and_nothing_of_it_is_frozen(stream: Stream, fitted: latents.Latents) -> None:
    state = encoder_state(fitted)
    before = jax.tree.map(np.asarray, state["trained"])
    wave = stream.wave[: 16 * FRAME].reshape(2, -1).astype(np.float32) / 32768
    wanted = listener.target(
        fitted, fitted.latent(stream.main[:16], stream.codes[:16, 1]).reshape(2, 8, -1), stream.content[:16].reshape(2, 8, -1)
    )
    seen = []
    for _ in range(20):
        state, figures = listener.regression_step(state, wave, wanted, fitted.spread, 2e-2, cfg=CFG.encoder_config, books=16)
        seen.append(float(figures["latent"]))
    assert seen[-1] < 0.9 * seen[0]
    assert [path for path, value in before.items() if np.array_equal(value, state["trained"][path])] == []


def test_an_export_is_the_trained_decoder(stream: Stream, fitted: latents.Latents, tmp_path: Path) -> None:
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
    trained = vocoder.generate(cfg.decoder_config, side["trained"], side["frozen"], codes, CROP)
    np.testing.assert_allclose(loaded[:, -CROP * FRAME :], trained, atol=0.02 * float(jnp.abs(trained).max()))
    with pytest.raises(ValueError, match="one side only"):
        export.write_codec(tmp_path / "other", tiny(), dict(list(params.items())[1:]))
    first = next(iter(params))
    with pytest.raises(ValueError, match="cannot hold"):
        export.write_codec(tmp_path / "other", tiny(), params | {first: jnp.full_like(params[first], 1e6)})
