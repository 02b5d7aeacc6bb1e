"""Train the small codec, by stages: a corpus -> latents and books -> its two halves -> ``speech_tokenizer/``.

    python -m training.codec.codec fit CORPUS RUN         locked speech, levels, k-means: RUN/latents.safetensors
    python -m training.codec.codec encoder CORPUS RUN     speech -> the latents of its codes
    python -m training.codec.codec ear CORPUS RUN         levels -> phonemes: a recogniser, by which both halves learn from then on
    python -m training.codec.codec decoder CORPUS RUN     codes -> speech: its levels, then spectral losses, then adversarial ones
    python -m training.codec.codec export RUN OUT         the averaged weights in the published layout, and what a run goes on from
    python -m training.codec.codec mean OUT A B ...       the mean of such exports' weights
    python -m training.codec.codec begin FROM RUN         a run that goes on from such an export (moments start anew)
    python -m training.codec.codec reconstruct OUT WAVS TO  speech through an export's codec and back

The same command again goes on from the last checkpoint.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer
from rich.progress import track
from safetensors.numpy import load_file, save_file

from qwen3_jax.allocation import KEEPING, restart_with_large_pages
from qwen3_jax.atomic import new_folder
from qwen3_jax.audio import load_audio, write_wav
from qwen3_jax.compilation import use_persistent_cache
from qwen3_jax.config import CodecConfig
from qwen3_jax.finetune import loop
from qwen3_jax.mapping import flatten
from training import small
from training.codec import ear as ears
from training.codec import export, listener, losses, loud, prior, through, vocoder
from training.codec.discriminators import PERIODS
from training.codec.pieces import decode_all, encode_all, heard_codes, held_out, listened
from training.corpus.corpus import said_in
from training.latents import data, latents
from training.latents.latents import FRAME, Latents

LATENTS = "latents.safetensors"
CRITIC = "critic.safetensors"
CODEC = "speech_tokenizer"
STEPS = "steps.json"
_KINDS = ("trained", "average")  # of a decoder's parameters in its state
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Option = typer.Option
Argument = typer.Argument
Corpus = Annotated[Path, Argument(help="Of training.corpus.corpus.")]
Run = Annotated[Path, Argument(help="The run's folder.")]
Hours = Annotated[float, Option(help="Of each voice, at most.")]
Pause = Annotated[Path | None, Option(help="Compute nothing while this file exists.")]


@app.command()
def fit(
    corpus: Corpus, run: Run, hours: Hours = 2.0, size: Annotated[int, Option(help="Main components.")] = 88,
    content: Annotated[int, Option(help="Numbers of a content vector.")] = 24, entries: Annotated[int, Option(help="Of a book.")] = 512,
    most: Annotated[int, Option(help="Frames in the k-means.")] = 60000,
) -> None:  # fmt: skip
    """Fit latents and books."""
    if (run / LATENTS).exists():
        raise ValueError(f"{run / LATENTS} exists: codes of other books would mean something else, so take another folder")
    fitted, report = latents.fit(*data.parts_to_fit(corpus, hours, entries), latent=size, content=content, most=most)
    run.mkdir(parents=True, exist_ok=True)
    fitted.save(run / LATENTS)
    text = json.dumps({"kept": report.kept, "unexplained": report.unexplained, "phonemes": report.phonemes})
    (run / "latents.json").write_text(text, "utf-8")
    loop.console.print(text)


def configured(fitted: Latents) -> CodecConfig:
    """The config that goes with these books."""
    return small.parsed(fitted.latent_size, len(fitted.content))


def decoder_start(fitted: Latents, seed: int) -> dict[str, Any]:
    """The decoder's training state before its first step."""
    _, shapes = vocoder.decoder_definition(configured(fitted).decoder_config)
    _, critic = vocoder.critic_definition()
    generator = vocoder.fill_books(small.random_start(flatten(shapes), seed), fitted)
    return vocoder.begin(prior.show(generator, fitted), small.random_start(flatten(critic), seed))


def encoder_start(fitted: Latents, seed: int) -> dict[str, Any]:
    """The encoder's training state before its first step."""
    _, shapes = listener.encoder_definition(configured(fitted).encoder_config, len(fitted.acoustic) + 1)
    return listener.begin(listener.fill_books(small.random_start(flatten(shapes), seed), fitted))


@app.command()
def ear(
    corpus: Corpus, run: Run, hours: Hours = 4.0, pause_file: Pause = None,
    steps: Annotated[int, Option(help="In all.")] = 5000, minutes: Annotated[float, Option(help="This time.")] = float("inf"),
    rows: Annotated[int, Option(help="Crops of a step.")] = 24, crop: Annotated[int, Option(help="Frames of a crop.")] = 50,
    rate: Annotated[float, Option(help="Highest learning rate; it falls to nothing over the last half.")] = 2e-3, seed: int = 0,
) -> None:  # fmt: skip
    """Train the recogniser that says which errors of levels are heard."""
    fitted = Latents.load(run / LATENTS)
    streams, said = data.load_streams(corpus, run, hours, fitted), data.sayings(corpus, hours)
    clips = [(loud.wanted(fitted.read(wave, names).levels[None]), names.reshape(1, -1)) for _, wave, names in held_out(corpus, 10)]
    some = loud.wanted(np.concatenate([stream.levels[:2000] for stream in streams]).astype(np.float32)[None])
    state = loop.resume(run / "ear", ears.begin(some, seed))

    def step(state: loop.State, number: int) -> tuple[loop.State, loop.Figures]:
        found = data.places(streams, rows, crop, seed, number)
        told = np.stack([stream.levels[at : at + crop] for stream, at in found]).astype(np.float32)
        names = np.stack([said[stream.voice][at : at + crop] for stream, at in found]).reshape(rows, -1)
        return ears.step(state, loud.wanted(told), names.astype(np.int32), number, rate * min(1.0, 2 * (steps - number) / steps))

    def evaluate(state: loop.State, folder: Path) -> loop.Figures:
        params = {**state["average"], **state["frozen"]}
        heard = np.array([ears.agreement(params, *clip) for clip in clips])
        return dict(zip(("held_symbols", "held_right"), heard.mean(axis=0), strict=True)) if clips else {}

    loop.train(run / "ear", state, step, loop.Plan(steps=steps, minutes=minutes, pause=pause_file, evaluate_every=1000), evaluate)


def heard_by(run: Path) -> dict[str, Any] | None:
    """The recogniser of a run, if it has one."""
    if not loop.saved(run / "ear"):
        return None
    state = loop.resume(run / "ear", ears.begin(np.zeros((ears.COUNT, 1, 1), np.float32), 0))
    return {**state["average"], **state["frozen"]}


@app.command()
def decoder(
    corpus: Corpus, run: Run, hours: Hours = 2.0, pause_file: Pause = None,
    steps: Annotated[int, Option(help="In all.")] = 1_000_000, minutes: Annotated[float, Option(help="This time.")] = float("inf"),
    rows: Annotated[int, Option(help="Crops of a step; four times as many while levels are learnt.")] = 4,
    crop: Annotated[int, Option(help="Frames of a crop.")] = 16,
    rate: Annotated[float, Option(help="Highest learning rate.")] = 7e-4,
    levels_until: Annotated[int, Option(help="Step up to which only levels are learnt.")] = 20000,
    adversarial_from: Annotated[int, Option(help="Step from which discriminators take part.")] = 25000,
    adversarial_rate: Annotated[float, Option(help="Highest rate from there on.")] = 4e-4, seed: int = 0,
) -> None:  # fmt: skip
    """Train the decoder on the codes of the corpus's latents."""
    fitted = Latents.load(run / LATENTS)
    cfg = configured(fitted).decoder_config
    held = prior.held(flatten(vocoder.decoder_definition(cfg)[1]), fitted)
    place = run / "decoder"
    streams = data.load_streams(corpus, run, hours, fitted)
    context = cfg.sliding_window - crop // 2
    judged = crop // 2 * FRAME
    state = loop.resume(place, decoder_start(fitted, seed))
    recogniser = heard_by(run)
    by_encoder = {stream.voice: stream.codes for stream in streams}
    if int(state["step"]) < levels_until and loop.saved(run / "encoder"):
        params = listener.finished(loop.resume(run / "encoder", encoder_start(fitted, 0)), fitted.components)
        for stream in track(streams, "hearing", console=loop.console):
            by_encoder[stream.voice] = heard_codes(configured(fitted), params, stream.wave)

    def step(state: loop.State, number: int) -> tuple[loop.State, loop.Figures]:
        before = max(context, vocoder.heard(cfg)[0])
        if number < levels_until:
            noise = np.random.default_rng([seed, number, 3])
            size = before + crop
            found = data.places(streams, 4 * rows, size, seed, number)
            by = [by_encoder[stream.voice] if noise.random() < loud.HEARD else stream.codes for stream, _ in found]
            codes = np.stack([some[at : at + size] for some, (_, at) in zip(by, found, strict=True)]).astype(np.int32)
            codes = loud.slipped(codes, np.stack([some[noise.integers(len(some), size=size)] for some in by]), noise)
            told = np.stack([stream.levels[at + before : at + before + crop] for stream, at in found]).astype(np.float32)
            return loud.step(state, codes, loud.wanted(told), recogniser, rate, cfg=cfg, crop=crop, held=held)
        if number == levels_until:  # what is heard from now on is as wide as what will be exported
            wide = {kind: jax.tree.map(jnp.asarray, prior.play(state[kind], fitted, loud.wider(state["power"]))) for kind in _KINDS}
            state = {**state, **wide}
        batch = data.crops(streams, rows, before, crop, seed, number)
        if number < adversarial_from:
            return vocoder.spectral_step(state, batch.codes, batch.wave, rate, cfg=cfg, crop=crop, held=held)
        start = np.random.default_rng([seed, number, 1]).integers(0, batch.wave.shape[1] - judged + 1, rows)
        return vocoder.adversarial_step(
            state,
            batch.codes,
            batch.wave,
            start.astype(np.int32),
            adversarial_rate,
            adversarial_rate,
            cfg=cfg,
            crop=crop,
            judged=judged,
            pair=number % len(PERIODS),
            held=held,
        )

    def evaluate(state: loop.State, folder: Path) -> loop.Figures:
        params = {**state["average"], **state["frozen"]}
        return listen(corpus, fitted, cfg, prior.play(params, fitted, loud.wider(state["power"])), folder)

    loop.train(place, state, step, loop.Plan(steps=steps, minutes=minutes, pause=pause_file), evaluate)


@app.command()
def encoder(
    corpus: Corpus, run: Run, hours: Hours = 2.0, pause_file: Pause = None,
    steps: Annotated[int, Option(help="In all.")] = 1_000_000, minutes: Annotated[float, Option(help="This time.")] = float("inf"),
    rows: Annotated[int, Option(help="Crops of a step.")] = 16, crop: Annotated[int, Option(help="Frames of a crop.")] = 48,
    rate: Annotated[float, Option(help="Highest learning rate.")] = 1e-3,
    cool: Annotated[int, Option(help="Over so many of the last steps (see --steps) the rate falls to nothing.")] = 0,
    whole: Annotated[bool, Option("--whole", help="Train the first convolutions, too: several times the work.")] = False,
    by_decoder: Annotated[bool, Option("--through", help="Learn what the run's decoder makes of it, and its ear hears.")] = False,
    readings: Annotated[int, Option(help="Of voices of few hours: 2, 3 have the borders of frames elsewhere.")] = 2, seed: int = 0,
) -> None:  # fmt: skip
    """Train the encoder onto the latents."""
    fitted = Latents.load(run / LATENTS)
    cfg = configured(fitted)
    recogniser, reader = heard_by(run), {}
    if by_decoder:
        if whole or recogniser is None or not loop.saved(run / "decoder"):
            raise ValueError(f"--through takes the decoder and the ear that {run} has (train them first), and goes without --whole")
        reader = loop.resume(run / "decoder", decoder_start(fitted, 0))
        reader = {**reader["average"], **reader["frozen"]}
    streams = [stream for again in range(readings) for stream in data.load_streams(corpus, run, hours, fitted, again=again)]
    state = loop.resume(run / "encoder", encoder_start(fitted, seed))
    heard, spread = {}, 0.0
    if not whole:
        state = listener.settled(state, cfg.encoder_config)
        heard = {id(stream): listened(state, stream.wave, cfg) for stream in track(streams, "listening", console=loop.console)}
        spread = np.concatenate([each[:1000] for each in heard.values()]).astype(np.float32).std(axis=(0, 1))

    def step(state: loop.State, number: int) -> tuple[loop.State, loop.Figures]:
        found = data.places(streams, rows, crop, seed, number)
        if whole:
            given = np.stack([stream.wave[at * FRAME : (at + crop) * FRAME] for stream, at in found]).astype(np.float32) / 32768
        else:
            given = np.stack([heard[id(stream)][at : at + crop] for stream, at in found]).astype(np.float32)
            noise = np.random.default_rng([seed, number, 2])
            given += listener.BLURRED * spread * noise.standard_normal(given.shape, np.float32)
            given = given.reshape(rows, -1, given.shape[-1])
        main = np.stack([stream.main[at : at + crop] for stream, at in found])
        codes = np.stack([stream.codes[at : at + crop] for stream, at in found])
        wanted = listener.target(fitted, fitted.latent(main, codes[..., 1]), codes[..., 0])
        now = rate * min(1.0, (steps - number) / max(cool, 1))
        if by_decoder:
            told = loud.wanted(np.stack([stream.levels[at : at + crop] for stream, at in found]).astype(np.float32))
            return through.step(
                state, given, wanted, told, reader, recogniser, fitted.spread, fitted.components, now,
                cfg=cfg.encoder_config, reads=cfg.decoder_config,
            )  # fmt: skip
        return listener.regression_step(
            state, given, wanted, fitted.spread, now, cfg=cfg.encoder_config, books=cfg.encoder_valid_num_quantizers
        )

    def evaluate(state: loop.State, folder: Path) -> loop.Figures:
        return agreement(corpus, fitted, cfg, listener.finished(state, fitted.components))

    plan = loop.Plan(steps=steps, minutes=minutes, pause=pause_file, evaluate_every=1000)
    loop.train(run / "encoder", state, step, plan, evaluate)


def listen(corpus: Path, fitted: Latents, cfg: Any, params: dict[str, Any], folder: Path) -> loop.Figures:
    """Decode a few held-out clips into ``folder``; the spectral loss on them."""
    clips = held_out(corpus, 2)
    found = []
    for name, wave, said in clips:
        made = decode_all(cfg, params, fitted.read(wave, said).codes)
        folder.mkdir(parents=True, exist_ok=True)
        write_wav(folder / f"{name}.wav", made)
        found.append(float(losses.spectral(jnp.asarray(made[None]), jnp.asarray(wave[None]))[0]))
    return {"held_out": float(np.mean(found))} if found else {}


def agreement(corpus: Path, fitted: Latents, cfg: CodecConfig, params: dict[str, Any]) -> loop.Figures:
    """Share of held-out frames whose codes are those of the latents: of book 0, 1, 2, and of all 16 on average."""
    same = [encode_all(cfg, params, wave) == fitted.read(wave, said).codes for _, wave, said in held_out(corpus, 5)]
    if not same:
        return {}
    share = np.concatenate(same).mean(axis=0)
    return {"agrees_0": share[0], "agrees_1": share[1], "agrees_2": share[2], "agrees_all": share.mean()}


def averaged(run: Path, fitted: Latents) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The codec's parameters, by dotted path, from the last checkpoints; and the discriminators'. An untrained half is as it starts."""
    ends = {name: loop.resume(run / name, start(fitted, 0)) for name, start in (("decoder", decoder_start), ("encoder", encoder_start))}
    trained = {**ends["decoder"]["average"], **ends["decoder"]["frozen"]}
    halves = {
        "decoder": prior.play(trained, fitted, loud.wider(ends["decoder"]["power"])),
        "encoder": listener.finished(ends["encoder"], fitted.components),
    }
    params = {f"{name}.{path}": np.asarray(value) for name, half in halves.items() for path, value in half.items()}
    return params, {path: np.asarray(value) for path, value in ends["decoder"]["critic"].items()}


@app.command("export")
def export_command(run: Run, out: Annotated[Path, Argument(help="A folder to be made.")]) -> None:
    """Write the averaged weights in the published layout, float16, and beside them what a run goes on from."""
    fitted = Latents.load(run / LATENTS)
    params, critic = averaged(run, fitted)
    steps = {name: int(path[-1].name) if (path := loop.saved(run / name)) else 0 for name in ("decoder", "encoder")}
    with new_folder(out) as temporary:
        export.write_codec(temporary / CODEC, small.codec_config(fitted.latent_size, len(fitted.content)), params)
        save_file({path: value.astype(np.float16) for path, value in critic.items()}, temporary / CRITIC)
        shutil.copyfile(run / LATENTS, temporary / LATENTS)
        (temporary / STEPS).write_text(json.dumps(steps), "utf-8")
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    codec = (out / CODEC / export.FILE).stat().st_size
    loop.console.print(f"{out}: {total / 1e6:.1f} MB, the codec {codec / 1e6:.1f} MB; steps {steps}")


@app.command()
def mean(
    out: Annotated[Path, Argument(help="A folder to be made.")],
    exports: Annotated[list[Path], Argument(help="Of `export`: a run's at different steps, or of runs that went on from one.")],
) -> None:
    """Write the mean of exports' weights, which may err less than each of them (arXiv 2203.05482; training/log.md); all else is the
    last one's.

    Raises:
        ValueError: of a single one, or of runs that did not begin with the same books and sizes.
    """
    if len(exports) < 2:
        raise ValueError(f"a mean takes two exports or more, got {', '.join(map(str, exports))}")
    found = [export.read_codec(folder / CODEC)[1] for folder in exports]
    shapes = [{path: value.shape for path, value in params.items()} for params in found]
    books = [(folder / LATENTS).read_bytes() for folder in exports]
    for folder, shape, book in zip(exports, shapes, books, strict=True):
        if shape != shapes[0] or book != books[0]:
            raise ValueError(f"{folder} has other parameters or books than {exports[0]}: a mean is of exports that went on from one run")
    with new_folder(out) as temporary:
        shutil.copytree(exports[-1], temporary, dirs_exist_ok=True)
        shutil.rmtree(temporary / CODEC)
        config = json.loads((exports[-1] / CODEC / export.CONFIG).read_text("utf-8"))
        export.write_codec(temporary / CODEC, config, {path: np.mean([params[path] for params in found], axis=0) for path in found[0]})


@app.command("begin")
def begin_command(
    source: Annotated[Path, Argument(help="Of `export`, or a whole checkpoint with STEPS.")], run: Run,
    beside: Annotated[Path | None, Option(help="Where the latents and the discriminators are, if not there too.")] = None,
) -> None:  # fmt: skip
    """Make a run that goes on from an export: its weights and steps; the optimisers' moments are empty."""
    run.mkdir(parents=True, exist_ok=True)
    if any(run.iterdir()):
        raise ValueError(f"{run} is not empty; take another folder")
    beside = beside or source
    fitted = Latents.load(beside / LATENTS)
    shutil.copyfile(beside / LATENTS, run / LATENTS)
    _, params = export.read_codec(source / CODEC)
    critic = {path: value.astype(np.float32) for path, value in load_file(beside / CRITIC).items()}
    steps = json.loads((source / STEPS).read_text("utf-8"))
    for name, start in (("decoder", decoder_start(fitted, 0)), ("encoder", encoder_start(fitted, 0))):
        mine = {path.removeprefix(f"{name}."): jnp.asarray(value) for path, value in params.items() if path.startswith(f"{name}.")}
        if name == "encoder":
            state = listener.begin_at(start, mine, steps[name])
        else:
            kinds = {kind: {path: jnp.copy(mine[path]) for path in start[kind]} for kind in _KINDS}
            judges = {path: jnp.asarray(critic[path]) for path in start["critic"]}
            wider = jnp.asarray(prior.widening(mine, fitted))
            power = jnp.stack([wider**-2, jnp.ones_like(wider)])
            state = {**start, **kinds, "critic": judges, "power": power, "step": jnp.asarray(steps[name], jnp.int32)}
        if steps[name]:
            loop.save(run / name, state)


@app.command()
def reconstruct(
    source: Annotated[Path, Argument(help="Of `export`.")], wavs: Annotated[Path, Argument(help="Clips, *.wav.")],
    to: Annotated[Path, Argument(help="Where the same names are written.")], limit: int = 100,
    direct: Annotated[bool, Option("--direct", help="Codes by the latents, without the encoder.")] = False,
) -> None:  # fmt: skip
    """Send clips through the codec and back; ``sentences.txt`` goes along, for ``evaluate --judge``."""
    cfg, params = export.read_codec(source / CODEC)
    fitted = Latents.load(source / LATENTS)
    to.mkdir(parents=True, exist_ok=True)
    halves = {
        name: {path.removeprefix(name): value for path, value in params.items() if path.startswith(name)}
        for name in ("decoder.", "encoder.")
    }
    for path in sorted(wavs.glob("*.wav"))[:limit]:
        wave = load_audio(path)
        whole = np.pad(wave, (0, -len(wave) % FRAME))
        codes = fitted.read(whole, said_in(path, len(whole) // FRAME)).codes if direct else encode_all(cfg, halves["encoder."], whole)
        write_wav(to / path.name, decode_all(cfg.decoder_config, halves["decoder."], codes)[: len(wave)])
    if (wavs / "sentences.txt").is_file():
        lines = (wavs / "sentences.txt").read_text("utf-8").splitlines()[:limit]
        (to / "sentences.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")


if __name__ == "__main__":
    restart_with_large_pages(KEEPING)
    use_persistent_cache()
    try:
        app(prog_name="python -m training.codec.codec")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
