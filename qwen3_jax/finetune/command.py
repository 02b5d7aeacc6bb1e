"""Fine-tune a published Base checkpoint to one speaker, and write it as a custom_voice checkpoint in the published layout.

    python -m qwen3_jax.finetune.command run CHECKPOINT CLIPS RUN [--lora RANK]   the same command goes on from the last save
    python -m qwen3_jax.finetune.command export CHECKPOINT RUN OUT --name NAME

CLIPS: see clips.py. RUN: settings.json, speech/ (the clips as the model has them), and what loop.py says. The recipe is the official one
(`qwen-tts`, finetuning): all text before the first frame, language Auto, the x-vector as speaker row, cross-entropy of book 0 with the end
of speech, 0.3 of the predictor's, AdamW at 2e-5 with decay 0.01, gradients clipped at 1 and accumulated over 4 batches. What differs is
the alignment: labels and hidden states stand where speaking puts them (teacher_forcing.py).
"""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import optax
import typer
from flax import nnx
from rich.progress import track

from qwen3_jax.checkpoint import converted as checkpoint
from qwen3_jax.checkpoint import hub, published
from qwen3_jax.checkpoint.atomic import check_free
from qwen3_jax.checkpoint.mapping import flatten
from qwen3_jax.finetune import clips, loop, lora, teacher_forcing
from qwen3_jax.finetune.teacher_forcing import Example, ExampleBatch
from qwen3_jax.model.config import ModelConfig
from qwen3_jax.model.config_values import parse
from qwen3_jax.model.frame import bucket
from qwen3_jax.model.model import Model, abstract, load, read_configs
from qwen3_jax.runtime.allocation import KEEPING, restart_with_large_pages
from qwen3_jax.runtime.compilation import use_persistent_cache
from qwen3_jax.runtime.devices import all_devices
from qwen3_jax.text.prompt import AUTO, build
from qwen3_jax.text.tokenizer import Tokenizer

PREDICTOR = 0.3  # weight of books 1..15 in the loss; book 0 has 1
RATE, LORA_RATE = 2e-5, 2e-4
PASSES = 3  # through the clips, when no number of steps is given
LENGTHS = (64, 128, 256, 512, 1024, 2048)  # rows of prompt and frames; a trace each, or two
ROW = 952  # after the entries of book 0: row 3000 of the published table of 2048 and 1024
SETTINGS, SPEECH = "settings.json", "speech"
State = dict[str, Any]
app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Tune a published Base checkpoint to one speaker."
)
Option = typer.Option
Argument = typer.Argument
Source = Annotated[str, Argument(metavar="CHECKPOINT", help="A Base checkpoint in the published layout: a folder or a hub id.")]
Run = Annotated[Path, Argument(help="The run's folder.")]


class RunSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was begun with and must go on with; the rate may change."""

    checkpoint: str  # sha256 of its config and weights
    clips: str  # sha256
    lora: int  # rank; 0: full
    batch: int
    accumulate: int
    held_out: int
    seed: int


# data


def taught(config: ModelConfig, speech: clips.EncodedClips) -> list[Example]:
    """Every clip's rows and labels, all text beforehand.

    Raises:
        ValueError: a clip that is too long; names it.
    """
    made = []
    for clip in speech.clips:
        prompt = build(config, clip.ids, language=AUTO, x_vector=speech.x_vector, streaming_text=False)
        made.append(teacher_forcing.align(prompt, clip.codes.astype(np.int32), config))
        if len(made[-1].labels) > LENGTHS[-1]:
            raise ValueError(f"clip {clip.name}: {len(made[-1].labels)} rows of text and frames, {LENGTHS[-1]} fit; cut it in two")
    return made


def assembled(groups: Sequence[Sequence[Example]]) -> list[ExampleBatch]:
    """A batch of each group, all of one shape; each frame is picked once."""
    length = bucket(max(len(one.labels) for group in groups for one in group), LENGTHS, "rows")
    most = max(sum(int((one.labels[:, -1] >= 0).sum()) for one in group) for group in groups)
    frames = -(-most // length) * length  # few shapes
    return [_assembled(group, length, frames) for group in groups]


def _assembled(group: Sequence[Example], length: int, frames: int) -> ExampleBatch:
    rows = teacher_forcing.stack_rows([one.rows for one in group], length)
    labels = np.stack([teacher_forcing.pad(one.labels, -1, length) for one in group])
    places = teacher_forcing.whole_frames(labels)
    picks = np.zeros(frames, np.int32)  # place 0 is a row of the role, so it has no frame and pads
    picks[: len(places)] = places
    return ExampleBatch(rows, labels, picks)


def batches(training: list[Example], *, batch: int, accumulate: int, seed: int) -> Callable[[int], ExampleBatch]:
    """step -> its ``accumulate`` batches, stacked. The clips come in passes, each in an order of its own, which seed and number say."""
    size = batch * accumulate

    def at(step: int) -> ExampleBatch:
        chosen = []
        for place in range(step * size, (step + 1) * size):
            order = np.random.default_rng([seed, place // len(training)]).permutation(len(training))
            chosen.append(training[order[place % len(training)]])
        made = assembled([chosen[start : start + batch] for start in range(0, size, batch)])
        return jax.tree.map(lambda *leaves: np.stack(leaves), *made)

    return at


def divided(made: list[Any], held_out: int, seed: int) -> tuple[list[Any], list[Any]]:
    """(to train on, to judge by).

    Raises:
        ValueError: nothing is left to train on.
    """
    if not 0 <= held_out < len(made):
        raise ValueError(f"held-out {held_out}: must be from 0 to {len(made) - 1}, as there are {len(made)} clips")
    order = np.random.default_rng(seed).permutation(len(made))
    return [made[number] for number in order[held_out:]], [made[number] for number in order[:held_out]]


# the step


def optimiser() -> optax.GradientTransformation:
    """PyTorch's AdamW without its learning rate, which the step passes."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.add_decayed_weights(0.01), optax.scale(-1.0))


def start(talker: dict[str, Any], rank: int, seed: int) -> State:
    """The training state of step 0: what trains (the talker with its predictor, or adapters), and its moments."""
    trained = lora.begin(talker, rank, seed) if rank else jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), talker)
    return {"step": jnp.zeros((), jnp.int32), "trained": trained, "moments": optimiser().init(trained)}


def speaking(trained: dict[str, Any], frozen: dict[str, Any] | None) -> dict[str, Any]:
    """The talker's tree; ``frozen`` is the base under adapters."""
    return trained if frozen is None else lora.merge(frozen, trained)


def _losses(
    trained: dict[str, Any], frozen: Any, batch: ExampleBatch, graph: Any, eos: int, dtype: str
) -> tuple[jax.Array, dict[str, jax.Array]]:
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), speaking(trained, frozen))
    made = teacher_forcing.scores(nnx.merge(graph, params), batch)
    targets = batch.labels.reshape(-1, batch.labels.shape[-1])[batch.picks][:, 1:]
    figures = teacher_forcing.code_losses(made.first, made.rest, batch.labels, targets, eos)
    loss = figures["book_0"] + PREDICTOR * figures["books_1_15"]
    return loss, figures | {"loss": loss}


@functools.partial(jax.jit, static_argnames=("graph", "eos", "dtype"), donate_argnames="state")
def train_step(
    state: State, frozen: dict[str, Any] | None, stacked: ExampleBatch, rate: float, *, graph: Any, eos: int, dtype: str
) -> tuple[State, dict[str, jax.Array]]:
    """One step of the optimiser, on the mean gradient of several batches.

    Args:
        state: of `start`.
        frozen: the base's talker under adapters, else None.
        stacked: leaves have one more axis in front, over the batches.
        rate: learning rate.
        graph: the talker's definition.
        eos: end of speech in book 0.
        dtype: of the arithmetic; what trains is float32.
    """

    def one(sums: Any, batch: ExampleBatch) -> tuple[Any, dict[str, jax.Array]]:
        gradient = jax.value_and_grad(_losses, has_aux=True)
        (_, figures), gradients = gradient(state["trained"], frozen, batch, graph, eos, dtype)
        return jax.tree.map(jnp.add, sums, gradients), figures

    sums, figures = jax.lax.scan(one, jax.tree.map(jnp.zeros_like, state["trained"]), stacked)
    gradients = jax.tree.map(lambda leaf: leaf / len(stacked.picks), sums)
    change, moments = optimiser().update(gradients, state["moments"], state["trained"])
    trained = jax.tree.map(lambda param, by: param + rate * by, state["trained"], change)
    means = {name: jnp.mean(values) for name, values in figures.items()} | {"gradient": optax.tree.norm(gradients)}
    return {"step": state["step"] + 1, "trained": trained, "moments": moments}, means


@functools.partial(jax.jit, static_argnames=("graph", "eos", "dtype"))
def judge(trained: dict[str, Any], frozen: Any, batch: ExampleBatch, *, graph: Any, eos: int, dtype: str) -> dict[str, jax.Array]:
    """The figures of a batch."""
    return _losses(trained, frozen, batch, graph, eos, dtype)[1]


# the commands


def base_folder(source: str) -> tuple[Path, ModelConfig]:
    """The folder of a Base checkpoint in the published layout.

    Raises:
        FileNotFoundError: no checkpoint.
        ValueError: another kind.
    """
    folder = hub.local_folder(source)
    config = read_configs(folder)[0]
    if checkpoint.is_converted(folder):
        raise ValueError(f"{folder} is a converted checkpoint; give the published folder that it came from, whose layout is written back")
    if config.tts_model_type != "base":
        raise ValueError(f"{folder} is a {config.tts_model_type} checkpoint: only a Base one has the speaker encoder that the recipe needs")
    return folder, config


def identity(folder: Path) -> str:
    """sha256 (hex) of a published folder's config and weights."""
    made = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted({source.file for source in published.scan(folder).values()}):
        with file.open("rb") as stream:
            made.update(hashlib.file_digest(stream, "sha256").digest())
    return made.hexdigest()


def kept(run: Path, settings: RunSettings) -> None:
    """Write a run's settings, or compare with those that it was begun with.

    Raises:
        ValueError: one differs; says which.
    """
    file = run / SETTINGS
    if not file.is_file():
        run.mkdir(parents=True, exist_ok=True)
        loop.replace(file, msgspec.json.format(msgspec.json.encode(settings), indent=1))
        return
    before = msgspec.json.decode(file.read_bytes(), type=RunSettings)
    for name in RunSettings.__struct_fields__:
        old, new = getattr(before, name), getattr(settings, name)
        if old != new:
            raise ValueError(f"{run} was begun with {name} {old!r}, now it is {new!r}: give the same, or another folder for the run")


def speech_of(run: Path, model: Model, folder: Path, found: list[clips.TranscribedClip]) -> clips.EncodedClips:
    """The clips as the model has them, encoded once."""
    if not (run / SPEECH).is_dir():
        tokenizer = Tokenizer.from_folder(folder, model.config)
        waiting = iter(track(found, "encoding", console=loop.console, disable=not loop.console.is_terminal))
        clips.save(run / SPEECH, clips.encode(model, tokenizer, found, lambda: next(waiting, None)))
    return clips.load(run / SPEECH)


@app.command("run")
def run_command(
    source: Source, recordings: Annotated[Path, Argument(metavar="CLIPS", help="Recordings and transcripts of the speaker.")], run: Run,
    lora_rank: Annotated[int | None, Option("--lora", help="Rank of adapters on a frozen base. Default: train everything.")] = None,
    steps: Annotated[int | None, Option(help="In all; default: three passes through the clips.")] = None,
    minutes: Annotated[float, Option(help="This time.")] = float("inf"),
    rate: Annotated[float | None, Option(help=f"Learning rate; default {RATE:g}, adapters {LORA_RATE:g}.")] = None,
    batch: Annotated[int, Option(help="Clips of a batch.")] = 2, accumulate: Annotated[int, Option(help="Batches of a step.")] = 4,
    held_out: Annotated[int, Option(help="Clips to judge by, which are not trained on.")] = 0,
    evaluate_every: Annotated[int, Option(help="Steps between judgements.")] = 50,
    dtype: Annotated[str | None, Option(help="float32 or bfloat16, of the arithmetic. Default: float32 on a CPU, else bfloat16.")] = None,
    save_minutes: Annotated[float, Option(help="Between saves.")] = 5.0, seed: int = 0,
) -> None:  # fmt: skip
    """Fine-tune, or go on."""
    use_persistent_cache()
    rank = 0 if lora_rank is None else lora_rank
    at_least = {"--batch": batch, "--accumulate": accumulate, "--evaluate-every": evaluate_every, "--steps": 1 if steps is None else steps}
    for option, value in (at_least | {"--lora": 1 if lora_rank is None else lora_rank}).items():
        if value < 1:
            raise ValueError(f"{option} {value}: must be 1 or more")
    rate = (LORA_RATE if rank else RATE) if rate is None else rate
    if not (rate > 0 and math.isfinite(rate)):
        raise ValueError(f"--rate {rate}: must be above 0, such as {RATE:g}")
    dtype = dtype or ("float32" if all_devices()[0].platform == "cpu" else "bfloat16")
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"--dtype {dtype}: must be float32 or bfloat16{'; train first, and convert to int8' if dtype == 'int8' else ''}")
    folder, config = base_folder(source)
    found = clips.find(recordings)
    divided(found, held_out, seed)  # refuse before any work
    base = jnp.dtype(dtype if rank else "float32")
    model = load(folder, dtype=base, stored=base)
    talker, graph = model.params["talker"], model.graphs.talker
    shapes = jax.eval_shape(functools.partial(start, rank=rank, seed=seed), talker)
    chosen = RunSettings(
        checkpoint=identity(folder), clips=clips.digest(found), lora=rank, batch=batch, accumulate=accumulate, held_out=held_out, seed=seed
    )
    kept(run, chosen)
    speech = speech_of(run, model, folder, found)
    training, judged = divided(taught(config, speech), held_out, seed)
    data, eos = batches(training, batch=batch, accumulate=accumulate, seed=seed), config.talker_config.codec_eos_token_id
    judging = [assembled([judged[first : first + batch]])[0] for first in range(0, held_out, batch)]
    state = loop.resume(run, shapes) if loop.saved(run) else start(talker, rank, seed)
    state = jax.device_put(state, jax.devices()[0])  # committed, as a step's own results are: else the second step compiles anew
    frozen = talker if rank else None
    del model, talker
    steps = math.ceil(PASSES * len(training) / (batch * accumulate)) if steps is None else steps

    def step(state: State, number: int) -> tuple[State, loop.Figures]:
        return train_step(state, frozen, data(number), rate, graph=graph, eos=eos, dtype=dtype)

    def evaluate(state: State, _: Path) -> loop.Figures:
        made = [judge(state["trained"], frozen, each, graph=graph, eos=eos, dtype=dtype) for each in judging]
        return {f"held_out_{name}": np.mean([float(each[name]) for each in made]) for name in made[0]} if made else {}

    seconds = sum(len(clip.codes) for clip in speech.clips) * 0.08
    trains = sum(leaf.size for leaf in jax.tree.leaves(state["trained"]))
    loop.console.print(
        f"{len(found)} clips, {seconds:.0f} s; speaker row of {speech.reference}; {trains:,} parameters train; {steps} steps"
    )
    plan = loop.Schedule(
        steps=steps, minutes=minutes, save_minutes=save_minutes, log_every=1 if steps <= 200 else 10,
        evaluate_at=(steps,), evaluate_every=evaluate_every,
    )  # fmt: skip
    loop.train(run, state, step, plan, evaluate)


def custom_voice(config: dict[str, Any], name: str, row: int) -> dict[str, Any]:
    """``config.json`` of a checkpoint with one preset speaker."""
    talker = config["talker_config"] | {"spk_id": {name: row}, "spk_is_dialect": {name: False}}
    return config | {"tts_model_type": "custom_voice", "talker_config": talker}


@app.command("export")
def export_command(
    source: Source, run: Run, out: Annotated[Path, Argument(help="A folder to be made.")],
    name: Annotated[str, Option(help="Of the speaker; case does not count.")],
) -> None:  # fmt: skip
    """Write what a run has learnt, adapters merged, as a custom_voice checkpoint with one speaker."""
    name = name.strip().lower()  # the official package looks speakers up in lower case
    if not name:
        raise ValueError("--name is empty: the speaker needs one")
    check_free(out)
    folder, config = base_folder(source)
    if not (run / SETTINGS).is_file() or not loop.saved(run):
        raise ValueError(f"{run} has no checkpoints: train first, by `run`")
    settings = msgspec.json.decode((run / SETTINGS).read_bytes(), type=RunSettings)
    if identity(folder) != settings.checkpoint:
        raise ValueError(f"{run} was begun from another checkpoint than {folder}: give that one")
    row = config.talker_config.code_predictor_config.vocab_size + ROW
    if row >= config.talker_config.vocab_size:
        raise ValueError(f"the table of book 0 has {config.talker_config.vocab_size} rows, the speaker would be row {row}")
    params = published.load_published(folder, abstract(config, read_configs(folder)[1])[1])
    shapes = jax.eval_shape(functools.partial(start, rank=settings.lora, seed=settings.seed), params["talker"])
    state = loop.resume(run, shapes)
    talker = speaking(state["trained"], params["talker"] if settings.lora else None)
    table = talker["model"]["codec_embedding"]
    table["weight"] = jnp.asarray(table["weight"]).at[row].set(clips.load(run / SPEECH).x_vector)
    written = custom_voice(json.loads((folder / "config.json").read_text("utf-8-sig")), name, row)
    parse(ModelConfig, written)
    tree = {"talker": talker, "codec": params["codec"]}
    published.write_published(out, tree, folder, config=written, dtype=published.talker_dtype(folder))
    loop.console.print(f"{out}: speaker {name}, {int(state['step'])} steps, {len(flatten(tree))} parameters", soft_wrap=True)


if __name__ == "__main__":
    restart_with_large_pages(KEEPING)
    try:
        app(prog_name="python -m qwen3_jax.finetune.command")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
