"""States of the codec's training: how they start, what of them is exported, and how a run goes on from an export.

An export is ``speech_tokenizer/`` in the published layout, and beside it what only training needs: latents, discriminators, steps.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import typer
from safetensors.numpy import load_file, save_file

from qwen3_jax.checkpoint.atomic import new_folder
from qwen3_jax.checkpoint.mapping import flatten
from qwen3_jax.finetune import loop
from qwen3_jax.model.config import CodecConfig
from training.codec import decoder_levels, decoder_training, encoder_training, export, phoneme_recogniser, vocoder_initialisation
from training.codec.config import codec_config, parsed_config
from training.initialisation import random_start
from training.latents.quantiser import Latents

LATENTS = "latents.safetensors"
CRITIC = "critic.safetensors"
CODEC = "speech_tokenizer"
STEPS = "steps.json"
KINDS = ("trained", "average")  # of a decoder's parameters in its state
Argument = typer.Argument
Option = typer.Option
Run = Annotated[Path, Argument(help="The run's folder.")]


def configured(fitted: Latents) -> CodecConfig:
    """The config that goes with these books."""
    return parsed_config(fitted.latent_size, len(fitted.content))


def decoder_start(fitted: Latents, seed: int) -> dict[str, Any]:
    """The decoder's training state before its first step."""
    _, shapes = decoder_training.decoder_definition(configured(fitted).decoder_config)
    _, critic = decoder_training.critic_definition()
    generator = decoder_training.fill_books(random_start(flatten(shapes), seed), fitted)
    return decoder_training.begin(vocoder_initialisation.initialise(generator, fitted), random_start(flatten(critic), seed))


def encoder_start(fitted: Latents, seed: int) -> dict[str, Any]:
    """The encoder's training state before its first step."""
    _, shapes = encoder_training.encoder_definition(configured(fitted).encoder_config, len(fitted.acoustic) + 1)
    return encoder_training.begin(encoder_training.fill_books(random_start(flatten(shapes), seed), fitted))


def load_recogniser(run: Path) -> dict[str, Any] | None:
    """The recogniser of a run, if it has one."""
    if not loop.saved(run / "recogniser"):
        return None
    state = loop.resume(run / "recogniser", phoneme_recogniser.begin(np.zeros((phoneme_recogniser.COUNT, 1, 1), np.float32), 0))
    return {**state["average"], **state["frozen"]}


def averaged(run: Path, fitted: Latents) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The codec's parameters, by dotted path, from the last checkpoints; and the discriminators'. An untrained half is as it starts."""
    ends = {name: loop.resume(run / name, start(fitted, 0)) for name, start in (("decoder", decoder_start), ("encoder", encoder_start))}
    trained = {**ends["decoder"]["average"], **ends["decoder"]["frozen"]}
    halves = {
        "decoder": vocoder_initialisation.widen_levels(trained, fitted, decoder_levels.wider(ends["decoder"]["power"])),
        "encoder": encoder_training.export_weights(ends["encoder"], fitted.components),
    }
    params = {f"{name}.{path}": np.asarray(value) for name, half in halves.items() for path, value in half.items()}
    return params, {path: np.asarray(value) for path, value in ends["decoder"]["critic"].items()}


def export_codec(run: Run, out: Annotated[Path, Argument(help="A folder to be made.")]) -> None:
    """Write the averaged weights in the published layout, float16, and beside them what a run goes on from."""
    fitted = Latents.load(run / LATENTS)
    params, critic = averaged(run, fitted)
    steps = {name: int(path[-1].name) if (path := loop.saved(run / name)) else 0 for name in ("decoder", "encoder")}
    with new_folder(out) as temporary:
        export.write_codec(temporary / CODEC, codec_config(fitted.latent_size, len(fitted.content)), params)
        save_file({path: value.astype(np.float16) for path, value in critic.items()}, temporary / CRITIC)
        shutil.copyfile(run / LATENTS, temporary / LATENTS)
        (temporary / STEPS).write_text(json.dumps(steps), "utf-8")
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    codec = (out / CODEC / export.FILE).stat().st_size
    loop.console.print(f"{out}: {total / 1e6:.1f} MB, the codec {codec / 1e6:.1f} MB; steps {steps}")


def mean_of_exports(
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


def begin_run(
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
            state = encoder_training.begin_at(start, mine, steps[name])
        else:
            kinds = {kind: {path: jnp.copy(mine[path]) for path in start[kind]} for kind in KINDS}
            judges = {path: jnp.asarray(critic[path]) for path in start["critic"]}
            wider = jnp.asarray(vocoder_initialisation.measured_widening(mine, fitted))
            power = jnp.stack([wider**-2, jnp.ones_like(wider)])
            state = {**start, **kinds, "critic": judges, "power": power, "step": jnp.asarray(steps[name], jnp.int32)}
        if steps[name]:
            loop.save(run / name, state)
