"""Train the small codec, by stages: a corpus -> latents and books -> its two halves -> ``speech_tokenizer/``.

    python -m training.codec fit CORPUS RUN         locked speech, levels, k-means: RUN/latents.safetensors
    python -m training.codec encoder CORPUS RUN     speech -> the latents of its codes
    python -m training.codec recogniser CORPUS RUN       levels -> phonemes: a recogniser, by which both halves learn from then on
    python -m training.codec decoder CORPUS RUN     codes -> speech: its levels, then spectral losses, then adversarial ones
    python -m training.codec export RUN OUT         the averaged weights in the published layout, and what a run goes on from
    python -m training.codec mean OUT A B ...       the mean of such exports' weights
    python -m training.codec begin FROM RUN         a run that goes on from such an export (moments start anew)
    python -m training.codec reconstruct OUT WAVS TO  speech through an export's codec and back

The same command again goes on from the last checkpoint.
"""

import json
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import typer
from rich.progress import track

from qwen3_jax.audio.samples import load_audio, write_wav
from qwen3_jax.checkpoint.mapping import flatten
from qwen3_jax.finetune import loop
from qwen3_jax.runtime.allocation import KEEPING, restart_with_large_pages
from qwen3_jax.runtime.compilation import use_persistent_cache
from training.codec import (
    decoder_levels,
    decoder_training,
    encoder_training,
    export,
    phoneme_recogniser,
    straight_through,
    vocoder_initialisation,
)
from training.codec.checkpoints import (
    CODEC,
    KINDS,
    LATENTS,
    begin_run,
    configured,
    decoder_start,
    encoder_start,
    export_codec,
    load_recogniser,
    mean_of_exports,
)
from training.codec.chunked import decode_clip, encode_clip, encode_voice, lower_features
from training.codec.discriminators import PERIODS
from training.codec.evaluation import agreement, held_out, listen
from training.corpus.shards import read_phonemes
from training.latents import quantiser, voice_streams
from training.latents.quantiser import FRAME, Latents

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Option = typer.Option
Argument = typer.Argument
Corpus = Annotated[Path, Argument(help="Of training.corpus.")]
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
    fitted, report = quantiser.fit(*voice_streams.parts_to_fit(corpus, hours, entries), latent=size, content=content, most=most)
    run.mkdir(parents=True, exist_ok=True)
    fitted.save(run / LATENTS)
    text = json.dumps({"kept": report.kept, "unexplained": report.unexplained, "phonemes": report.phonemes})
    (run / "latents.json").write_text(text, "utf-8")
    loop.console.print(text)


@app.command()
def recogniser(
    corpus: Corpus, run: Run, hours: Hours = 4.0, pause_file: Pause = None,
    steps: Annotated[int, Option(help="In all.")] = 5000, minutes: Annotated[float, Option(help="This time.")] = float("inf"),
    rows: Annotated[int, Option(help="Crops of a step.")] = 24, crop: Annotated[int, Option(help="Frames of a crop.")] = 50,
    rate: Annotated[float, Option(help="Highest learning rate; it falls to nothing over the last half.")] = 2e-3, seed: int = 0,
) -> None:  # fmt: skip
    """Train the recogniser that says which errors of levels are heard."""
    fitted = Latents.load(run / LATENTS)
    streams, said = voice_streams.load_streams(corpus, run, hours, fitted), voice_streams.phonemes_by_voice(corpus, hours)
    clips = [
        (decoder_levels.target_columns(fitted.read(wave, names).levels[None]), names.reshape(1, -1))
        for _, wave, names in held_out(corpus, 10)
    ]
    some = decoder_levels.target_columns(np.concatenate([stream.levels[:2000] for stream in streams]).astype(np.float32)[None])
    state = loop.resume(run / "recogniser", phoneme_recogniser.begin(some, seed))

    def step(state: loop.State, number: int) -> tuple[loop.State, loop.Figures]:
        found = voice_streams.places(streams, rows, crop, seed, number)
        told = np.stack([stream.levels[at : at + crop] for stream, at in found]).astype(np.float32)
        names = np.stack([said[stream.voice][at : at + crop] for stream, at in found]).reshape(rows, -1)
        return phoneme_recogniser.step(
            state, decoder_levels.target_columns(told), names.astype(np.int32), number, rate * min(1.0, 2 * (steps - number) / steps)
        )

    def evaluate(state: loop.State, folder: Path) -> loop.Figures:
        params = {**state["average"], **state["frozen"]}
        heard = np.array([phoneme_recogniser.agreement(params, *clip) for clip in clips])
        return dict(zip(("held_symbols", "held_right"), heard.mean(axis=0), strict=True)) if clips else {}

    loop.train(
        run / "recogniser", state, step, loop.Schedule(steps=steps, minutes=minutes, pause=pause_file, evaluate_every=1000), evaluate
    )


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
    held = vocoder_initialisation.held(flatten(decoder_training.decoder_definition(cfg)[1]), fitted)
    place = run / "decoder"
    streams = voice_streams.load_streams(corpus, run, hours, fitted)
    context = cfg.sliding_window - crop // 2
    judged = crop // 2 * FRAME
    state = loop.resume(place, decoder_start(fitted, seed))
    judge = load_recogniser(run)
    by_encoder = {stream.voice: stream.codes for stream in streams}
    if int(state["step"]) < levels_until and loop.saved(run / "encoder"):
        params = encoder_training.export_weights(loop.resume(run / "encoder", encoder_start(fitted, 0)), fitted.components)
        for stream in track(streams, "hearing", console=loop.console):
            by_encoder[stream.voice] = encode_voice(configured(fitted), params, stream.wave)

    def step(state: loop.State, number: int) -> tuple[loop.State, loop.Figures]:
        before = max(context, decoder_training.receptive_field(cfg)[0])
        if number < levels_until:
            noise = np.random.default_rng([seed, number, 3])
            size = before + crop
            found = voice_streams.places(streams, 4 * rows, size, seed, number)
            by = [by_encoder[stream.voice] if noise.random() < decoder_levels.HEARD else stream.codes for stream, _ in found]
            codes = np.stack([some[at : at + size] for some, (_, at) in zip(by, found, strict=True)]).astype(np.int32)
            codes = decoder_levels.with_other_codes(codes, np.stack([some[noise.integers(len(some), size=size)] for some in by]), noise)
            told = np.stack([stream.levels[at + before : at + before + crop] for stream, at in found]).astype(np.float32)
            return decoder_levels.step(state, codes, decoder_levels.target_columns(told), judge, rate, cfg=cfg, crop=crop, held=held)
        if number == levels_until:  # what is heard from now on is as wide as what will be exported
            wide = {
                kind: jax.tree.map(
                    jnp.asarray, vocoder_initialisation.widen_levels(state[kind], fitted, decoder_levels.wider(state["power"]))
                )
                for kind in KINDS
            }
            state = {**state, **wide}
        batch = voice_streams.crops(streams, rows, before, crop, seed, number)
        if number < adversarial_from:
            return decoder_training.spectral_step(state, batch.codes, batch.wave, rate, cfg=cfg, crop=crop, held=held)
        start = np.random.default_rng([seed, number, 1]).integers(0, batch.wave.shape[1] - judged + 1, rows)
        return decoder_training.adversarial_step(
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
        return listen(
            corpus, fitted, cfg, vocoder_initialisation.widen_levels(params, fitted, decoder_levels.wider(state["power"])), folder
        )

    loop.train(place, state, step, loop.Schedule(steps=steps, minutes=minutes, pause=pause_file), evaluate)


@app.command()
def encoder(
    corpus: Corpus, run: Run, hours: Hours = 2.0, pause_file: Pause = None,
    steps: Annotated[int, Option(help="In all.")] = 1_000_000, minutes: Annotated[float, Option(help="This time.")] = float("inf"),
    rows: Annotated[int, Option(help="Crops of a step.")] = 16, crop: Annotated[int, Option(help="Frames of a crop.")] = 48,
    rate: Annotated[float, Option(help="Highest learning rate.")] = 1e-3,
    cool: Annotated[int, Option(help="Over so many of the last steps (see --steps) the rate falls to nothing.")] = 0,
    whole: Annotated[bool, Option("--whole", help="Train the first convolutions, too: several times the work.")] = False,
    by_decoder: Annotated[bool, Option("--through-decoder", help="Learn by what the run's decoder and recogniser make of it.")] = False,
    readings: Annotated[int, Option(help="Of voices of few hours: 2, 3 have the borders of frames elsewhere.")] = 2, seed: int = 0,
) -> None:  # fmt: skip
    """Train the encoder onto the latents."""
    fitted = Latents.load(run / LATENTS)
    cfg = configured(fitted)
    judge, reader = load_recogniser(run), {}
    if by_decoder:
        if whole or judge is None or not loop.saved(run / "decoder"):
            raise ValueError(
                f"--through-decoder takes the decoder and the recogniser that {run} has (train them first), and goes without --whole"
            )
        reader = loop.resume(run / "decoder", decoder_start(fitted, 0))
        reader = {**reader["average"], **reader["frozen"]}
    streams = [stream for again in range(readings) for stream in voice_streams.load_streams(corpus, run, hours, fitted, again=again)]
    state = loop.resume(run / "encoder", encoder_start(fitted, seed))
    heard, spread = {}, 0.0
    if not whole:
        state = encoder_training.with_averaged_lower(state, cfg.encoder_config)
        heard = {id(stream): lower_features(state, stream.wave, cfg) for stream in track(streams, "listening", console=loop.console)}
        spread = np.concatenate([each[:1000] for each in heard.values()]).astype(np.float32).std(axis=(0, 1))

    def step(state: loop.State, number: int) -> tuple[loop.State, loop.Figures]:
        found = voice_streams.places(streams, rows, crop, seed, number)
        if whole:
            given = np.stack([stream.wave[at * FRAME : (at + crop) * FRAME] for stream, at in found]).astype(np.float32) / 32768
        else:
            given = np.stack([heard[id(stream)][at : at + crop] for stream, at in found]).astype(np.float32)
            noise = np.random.default_rng([seed, number, 2])
            given += encoder_training.BLURRED * spread * noise.standard_normal(given.shape, np.float32)
            given = given.reshape(rows, -1, given.shape[-1])
        main = np.stack([stream.main[at : at + crop] for stream, at in found])
        codes = np.stack([stream.codes[at : at + crop] for stream, at in found])
        wanted = encoder_training.target(fitted, fitted.latent(main, codes[..., 1]), codes[..., 0])
        now = rate * min(1.0, (steps - number) / max(cool, 1))
        if by_decoder:
            told = decoder_levels.target_columns(np.stack([stream.levels[at : at + crop] for stream, at in found]).astype(np.float32))
            return straight_through.step(
                state, given, wanted, told, reader, judge, fitted.spread, fitted.components, now,
                cfg=cfg.encoder_config, reads=cfg.decoder_config,
            )  # fmt: skip
        return encoder_training.regression_step(
            state, given, wanted, fitted.spread, now, cfg=cfg.encoder_config, books=cfg.encoder_valid_num_quantizers
        )

    def evaluate(state: loop.State, folder: Path) -> loop.Figures:
        return agreement(corpus, fitted, cfg, encoder_training.export_weights(state, fitted.components))

    plan = loop.Schedule(steps=steps, minutes=minutes, pause=pause_file, evaluate_every=1000)
    loop.train(run / "encoder", state, step, plan, evaluate)


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
        said = read_phonemes(path, len(whole) // FRAME)
        codes = fitted.read(whole, said).codes if direct else encode_clip(cfg, halves["encoder."], whole)
        write_wav(to / path.name, decode_clip(cfg.decoder_config, halves["decoder."], codes)[: len(wave)])
    if (wavs / "sentences.txt").is_file():
        lines = (wavs / "sentences.txt").read_text("utf-8").splitlines()[:limit]
        (to / "sentences.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")


app.command("export")(export_codec)
app.command("mean")(mean_of_exports)
app.command("begin")(begin_run)


if __name__ == "__main__":
    restart_with_large_pages(KEEPING)
    use_persistent_cache()
    try:
        app(prog_name="python -m training.codec")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
