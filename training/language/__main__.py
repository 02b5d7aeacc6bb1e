"""Train talker, predictor and speaker encoder of the small checkpoint together, and write it in the published layout.

    python -m training.language train CORPUS RUN        RUN has the codec's latents (`training.codec fit`); makes RUN/tokenizer.json
    python -m training.language export RUN CODEC OUT    a whole checkpoint: these weights, and the codec of `training.codec export`
    python -m training.language begin OUT RUN           a run that goes on from such a checkpoint (moments start anew)

The same command again goes on from the last checkpoint. It needs no trained codec: frames come from the latents.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import tokenizers
import typer
from safetensors.numpy import save_file

from qwen3_jax.audio.samples import load_audio
from qwen3_jax.checkpoint.atomic import new_folder
from qwen3_jax.checkpoint.mapping import flatten, unflatten
from qwen3_jax.checkpoint.published import CODEC_FOLDER, load_published
from qwen3_jax.finetune import loop
from qwen3_jax.model.config import GenerationConfig, ModelConfig
from qwen3_jax.model.config_values import parse
from qwen3_jax.model.model import abstract, read_configs
from qwen3_jax.runtime.allocation import KEEPING, restart_with_large_pages
from qwen3_jax.runtime.compilation import use_persistent_cache
from qwen3_jax.text.prompt import AUTO
from qwen3_jax.text.tokenizer import Tokenizer
from training.codec import export
from training.codec.checkpoints import LATENTS, STEPS, decoder_start
from training.codec.checkpoints import configured as codec_config
from training.corpus.sentences import training
from training.corpus.shards import read_phonemes
from training.language import auxiliary, objective, samples, tokenizer, utterances
from training.language.config import language_config, language_start
from training.language.corruption import CodeCorruption
from training.language.objective import LanguageBatch, LossWeights
from training.latents.quantiser import FRAME, Latents

SAMPLES = 8  # sentences of each teacher that are spoken at an evaluation
TOKENIZER, PLACE = "tokenizer.json", "language"
MAPS = ("hint", "sound", "spelling", "timing")  # that only training needs
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Option = typer.Option
Argument = typer.Argument
Run = Annotated[Path, Argument(help="The run's folder.")]


def configured(run: Path) -> tuple[dict[str, Any], ModelConfig, Latents, Tokenizer]:
    """``config.json`` as written and as parsed, the latents and the tokenizer of a run.

    Raises:
        FileNotFoundError: one is not there.
    """
    fitted = Latents.load(run / LATENTS)
    inner = tokenizers.Tokenizer.from_file(str(run / TOKENIZER))
    config = language_config(len(fitted.content), inner.get_vocab_size(), tokenizer.token_ids(inner))
    parsed = parse(ModelConfig, config)
    return config, parsed, fitted, Tokenizer.from_folder(run, parsed)


def start(config: ModelConfig, latent: int, seed: int) -> dict[str, Any]:
    """The training state before the first step; ``latent``: its main components."""
    _, shapes = objective.define(config)
    params = unflatten(language_start(flatten(shapes), seed), shapes)
    return objective.begin(params | maps(config, latent))


def maps(config: ModelConfig, latent: int) -> dict[str, Any]:
    """What only training needs, before the first step."""
    talker, predictor = config.talker_config.hidden_size, config.talker_config.code_predictor_config.hidden_size
    sizes = ((talker, latent), (predictor, latent), (talker, auxiliary.SPELLING), (talker, auxiliary.TIMING))
    return {name: auxiliary.begin_map(*size) for name, size in zip(MAPS, sizes, strict=True)}


def speaking(params: dict[str, Any]) -> dict[str, Any]:
    """Without what only training needs."""
    return {name: value for name, value in params.items() if name not in MAPS}


def held_out_batches(corpus: Path, config: ModelConfig, fitted: Latents, reader: Tokenizer, rows: int) -> list[LanguageBatch]:
    """One batch of each voice that has read the held-out sentences: those that fit the shorter length."""
    found = []
    for folder in sorted(path.parent for path in (corpus / "held_out").glob("*/sentences.txt")):  # it is written last
        texts = (folder / "sentences.txt").read_text("utf-8").splitlines()
        taught: list[objective.LanguageExample] = []
        mels = []
        for number, text in enumerate(texts):
            wave = load_audio(folder / f"{number:04}.wav")
            whole = np.pad(wave, (0, -len(wave) % FRAME))
            said = read_phonemes(folder / f"{number:04}.wav", len(whole) // FRAME)
            utterance = utterances.TrainingUtterance(0, reader.assistant(text), fitted.read(whole, said).codes, None, timing=said)
            if utterances.size_of(utterance, streaming_text=False) > utterances.SHORT:
                continue
            form = utterances.RowLayout(len(taught) % 2 == 0, AUTO)
            read = utterance if form.streaming_text else utterances.without_leading_silence(utterance)
            taught.append(utterances.rows_of(config, read, form))
            mels.append(utterances.reference_mel(np.rint(wave * 32767).astype(np.int16), np.random.default_rng(number)))
            if len(taught) == rows // utterances.SHORT:
                break
        noise = np.random.default_rng(0)
        found.append(objective.assemble(taught, mels, utterances.SHORT, utterances.REFERENCE // 256, 512, noise))
    return found


@app.command()
def train(
    corpus: Annotated[Path, Argument(help="Of training.corpus.")], run: Run,
    hours: Annotated[float, Option(help="Of each voice, at most.")] = 100.0,
    pause_file: Annotated[Path | None, Option(help="Compute nothing while this file exists.")] = None,
    steps: Annotated[int, Option(help="In all.")] = 1_000_000, minutes: Annotated[float, Option(help="This time.")] = float("inf"),
    rows: Annotated[int, Option(help="Positions of a batch.")] = 1280,
    picks: Annotated[int, Option(help="Frames the predictor sees.")] = 512,
    glances: Annotated[int, Option(help="Frames of which it sees book 0.")] = 512,
    rate: Annotated[float, Option(help="Highest learning rate.")] = 2.5e-3,
    cool: Annotated[int, Option(help="Over so many of the last steps (see --steps) the rate falls to nothing.")] = 0,
    predictor: Annotated[float, Option(help="Weight of books 1 to 15; book 0 has 1.")] = 3.0,
    guidance: Annotated[float, Option(help="Weight of the guided heads.")] = 0.3,
    hint: Annotated[float, Option(help="Weight of the latent's error.")] = 1.0,
    spelling: Annotated[float, Option(help="Weight of the words' phonemes.")] = 0.5,
    timing: Annotated[float, Option(help="Weight of the quarters' phonemes.")] = 0.5, seed: int = 0,
    mixed: Annotated[bool, Option(help="Products of bfloat16, added up in float32.")] = True,
) -> None:  # fmt: skip
    """Train, for as long as there is time."""
    if not (run / TOKENIZER).is_file():
        tokenizer.train((sentence.text for sentence in training(corpus / "text")), tokenizer.PIECES).save(str(run / TOKENIZER))
    _, config, fitted, reader = configured(run)
    graphs, _ = objective.define(config, mixed=mixed)
    eos = config.talker_config.codec_eos_token_id
    speech, missteps = utterances.load(corpus, run, hours, fitted, reader), CodeCorruption(fitted)
    batch = utterances.batches(config, speech, rows=rows, picks=picks, glances=glances, seed=seed, missteps=missteps)
    judged = held_out_batches(corpus, config, fitted, reader, rows)
    weights = LossWeights(predictor=predictor, guidance=guidance, hint=hint, spelling=spelling, timing=timing)

    def step(state: loop.State, number: int) -> tuple[loop.State, loop.Figures]:
        now = rate * min(1.0, (steps - number) / max(cool, 1))
        return objective.train_step(state, batch(number), now, graphs=graphs, eos=eos, weights=weights)

    def evaluate(state: loop.State, folder: Path) -> loop.Figures:
        ended = {}
        if loop.saved(run / "decoder"):  # it may be trained at the same time
            side = loop.resume(run / "decoder", decoder_start(fitted, 0))
            model = samples.assemble_model(config, codec_config(fitted), speaking(state["average"]), {**side["average"], **side["frozen"]})
            for teacher in sorted(path.parent for path in (corpus / "held_out").glob("*/sentences.txt")):
                ended[f"ended_{teacher.name}"] = samples.speak(model, reader, teacher, SAMPLES, folder / teacher.name)
        found = [objective.judge(state["average"], each, graphs=graphs, eos=eos) for each in judged]
        names = ("book_0", "books_1_15", "right_0", "right_1_15", "end_recall", "end_early")
        return ended | {f"held_out_{name}": np.mean([float(each[name]) for each in found]) for name in names if found}

    state = loop.resume(run / PLACE, start(config, fitted.components, seed))
    loop.train(run / PLACE, state, step, loop.Schedule(steps=steps, minutes=minutes, pause=pause_file, evaluate_every=500), evaluate)


@app.command("export")
def export_command(
    run: Run, codec: Annotated[Path, Argument(help="Of `training.codec export`.")],
    out: Annotated[Path, Argument(help="A folder to be made.")],
    temperature: Annotated[float, Option(help="Default of book 0.")] = 0.3,
    subtalker_temperature: Annotated[float, Option(help="Default of books 1..15.")] = 0.05,
    x_vector_only_mode: Annotated[bool, Option("--x-vector/--in-context", help="How voices are cloned by default.")] = True,
    streaming_text: Annotated[bool, Option("--streaming-text/--whole-text", help="How a text is read by default.")] = False,
) -> None:  # fmt: skip
    """Write a checkpoint in the published layout, float16, with the running averages of the weights."""
    config, parsed, fitted, _ = configured(run)
    state = loop.resume(run / PLACE, start(parsed, fitted.components, 0))
    # no penalty of repetition: 512 entries must come again and again
    defaults = GenerationConfig(
        temperature=temperature,
        subtalker_temperature=subtalker_temperature,
        repetition_penalty=1.0,
        x_vector_only_mode=x_vector_only_mode,
        non_streaming_mode=not streaming_text,
        normalize=True,
    )
    with new_folder(out) as temporary:
        save_file(export.published_tensors(flatten(speaking(state["average"])), np.float16), temporary / export.FILE, {"format": "pt"})
        (temporary / export.CONFIG).write_text(json.dumps(config, indent=1), "utf-8")
        (temporary / "generation_config.json").write_bytes(msgspec.json.format(msgspec.json.encode(defaults), indent=1))
        shutil.copyfile(run / TOKENIZER, temporary / TOKENIZER)
        shutil.copytree(codec / CODEC_FOLDER, temporary / CODEC_FOLDER)
        steps = json.loads((codec / STEPS).read_text("utf-8")) | {PLACE: int(state["step"])}
        (temporary / STEPS).write_text(json.dumps(steps), "utf-8")
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    loop.console.print(f"{out}: {total / 1e6:.1f} MB; steps {steps}")


@app.command("begin")
def begin_command(source: Annotated[Path, Argument(help="A checkpoint, of `export`.")], run: Run) -> None:
    """Put the language model of a checkpoint into a run (which has the codec's latents): its weights and step."""
    if loop.saved(run / PLACE):
        raise ValueError(f"{run / PLACE} has checkpoints already; take another folder")
    run.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / TOKENIZER, run / TOKENIZER)
    config, codec, _ = read_configs(source)
    params = load_published(source, abstract(config, codec)[1])
    size = Latents.load(run / LATENTS).components
    state = objective.begin({name: params[name] for name in ("talker", "speaker_encoder")} | maps(config, size))
    state["step"] = jnp.asarray(json.loads((source / STEPS).read_text("utf-8"))[PLACE], jnp.int32)
    loop.save(run / PLACE, jax.block_until_ready(state))


if __name__ == "__main__":
    restart_with_large_pages(KEEPING)
    use_persistent_cache()
    try:
        app(prog_name="python -m training.language")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
