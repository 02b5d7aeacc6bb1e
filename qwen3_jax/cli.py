"""``qwen3-jax``, or ``python -m qwen3_jax``: the commands. The program above the packages; nothing but ``__main__`` imports it.

What the user can put right is one line on stderr and exit status 2. Commands import what they need when they are given: ``--help`` and
``--version`` need no JAX, ``serve``, ``finetune`` and ``evaluate`` need an extra, and what lies in other rooms has a program of its own.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

import qwen3_jax
from qwen3_jax.checkpoint import hub
from qwen3_jax.runtime.extras import needed
from qwen3_jax.terminal import add_row, console, errors, path_option, stdin, tell

if TYPE_CHECKING:
    import numpy as np

    from qwen3_jax import SpeechStream, Voice

app = typer.Typer(no_args_is_help=True, add_completion=False)

ModelOption = Annotated[str, typer.Option("--model", envvar="TTS_MODEL_ID", help="A checkpoint's folder, a hub id, or embedded.")]
DeviceOption = Annotated[
    str | None, typer.Option(envvar="TTS_DEVICE", help="cpu, gpu, tpu, or one of several: cuda:1. `serve` also takes several, or `all`.")
]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        envvar="TTS_DTYPE",
        help="float32, bfloat16 or int8. Default: int8 if the folder was converted to it, else float32 on a CPU, bfloat16 elsewhere.",
    ),
]
VoicesOption = Annotated[
    str | None,
    typer.Option(
        envvar="TTS_VOICES_DIR",
        help="A folder of voices, or a bucket, above the user's and those that ship. Default: voices, if it exists.",
    ),
]
ShippedOption = Annotated[
    bool, typer.Option("--shipped-voices/--no-shipped-voices", envvar="TTS_SHIPPED_VOICES", help="Whether those that ship are there.")
]
Option = typer.Option


def _version(given: bool) -> None:
    if given:
        console.print(f"qwen3-jax {qwen3_jax.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def options(version: Annotated[bool, Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    """Qwen3-TTS in JAX: text to speech, streaming, cloning, serving."""


@app.command()
def say(
    text: Annotated[str, typer.Argument(help="What to say; - reads it from stdin.")],
    output: Annotated[Path | None, path_option("The file to write: .wav, .flac, .mp3, .ogg or .opus.", "-o", "--output")] = None,
    stream: Annotated[bool, Option("--stream", help="Write raw 16-bit little-endian mono PCM to stdout as it is made.")] = False,
    model: ModelOption = hub.EMBEDDED,
    voice: Annotated[str | None, Option(help="A voice of the folder, a .safetensors file, or a preset speaker.")] = None,
    reference: Annotated[Path | None, path_option("A recording to clone, 3 to 30 s.")] = None,
    transcript: Annotated[str | None, Option(help="Exactly what the recording says; without it only the timbre is cloned.")] = None,
    x_vector_only_mode: Annotated[
        bool | None, Option("--x-vector/--in-context", help="Clone the timbre only, or go on from the recording. Default: the model's.")
    ] = None,
    language: Annotated[str, Option(help="One of `info`'s languages, or Auto.")] = "Auto",
    instruct: Annotated[str | None, Option(help="How to speak, in words (voice_design and custom_voice checkpoints).")] = None,
    seed: Annotated[int | None, Option(help="The same seed gives the same audio. Default, and -1: a fresh one.")] = None,
    temperature: Annotated[float | None, Option(help="0 = always the most likely (greedy). Default: the checkpoint's.")] = None,
    top_k: Annotated[int | None, Option(help="0 = off.")] = None,
    top_p: Annotated[float | None, Option(help="1 = off.")] = None,
    repetition_penalty: Annotated[float | None, Option(help="1 = off.")] = None,
    max_frames: Annotated[int | None, Option(help="Stop after so many frames of 80 ms.")] = None,
    normalize: Annotated[
        bool | None, Option("--normalize/--no-normalize", help="Read numbers, dates, Markdown and the like as words. Default: the model's.")
    ] = None,
    split: Annotated[bool, Option("--split/--no-split", help="Speak a long text part by part, or as one prompt.")] = True,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    voices_dir: VoicesOption = None,
    shipped_voices: ShippedOption = True,
) -> None:
    """Speak a text of any length into a file, or to stdout as it is made."""
    with interruptible("what went to stdout is not all of the text" if output is None else "nothing was written"):
        import numpy as np

        from qwen3_jax import Qwen3TTS
        from qwen3_jax.audio.files import FORMATS, check_name, write_sound
        from qwen3_jax.runtime.devices import one_of
        from qwen3_jax.voices.choice import find_voice
        from qwen3_jax.voices.layers import VoiceLayers

        if stream == (output is not None):
            raise ValueError("where to? give either -o FILE or --stream")
        if output is not None:
            if str(output) == "-":
                endings = ", ".join(FORMATS)
                raise ValueError(f"-o - is not the name of a file: use --stream for raw PCM on stdout, or a name in one of {endings}")
            check_name(output)
        if transcript is not None and reference is None:
            raise ValueError("--transcript says what a --reference says: give that too")
        if voice is not None and reference is not None:
            raise ValueError("give either --voice or --reference")
        words = stdin() if text == "-" else text
        check_says_something(words, model, language, normalize)
        layers = VoiceLayers.of(voices_dir, shipped=shipped_voices)
        with errors.status("loading the model"):
            tts = Qwen3TTS.from_pretrained(model, device=one_of(device), dtype=dtype)
        if reference:
            speaker: Voice | str | None = tts.create_voice(reference, transcript, x_vector_only_mode=x_vector_only_mode)
        else:
            speaker = find_voice(tts, voice, layers, x_vector_only_mode, tell)
        tell(f"model: {hub.described(model)}")
        given = {**_temperature(temperature), "top_k": top_k, "top_p": top_p, "repetition_penalty": repetition_penalty}
        draw: Any = {name: value for name, value in given.items() if value is not None}
        how: Any = {"language": language, "instruct": instruct, "seed": None if seed == -1 else seed, "max_frames": max_frames}
        pieces = tts.stream(words, voice=speaker, split=split, normalize=normalize, **how, **draw)
        if output is None:
            reason = pieces.finish_reason if play(pieces) else "the reader"
        else:
            pcm = np.concatenate([np.zeros(0, np.float32), *watched(pieces)])
            write_sound(output, pcm, pieces.sample_rate)
            reason = pieces.finish_reason
    made = f"{len(pieces.frames) * 0.08:.2f} s, ended by {reason}, seed {pieces.seed}"
    tell(made if output is None else f"{output}: {made}")
    if reason == "length" and max_frames is None:
        tell("error: speech was cut: a sentence did not come to its end; try another --seed, or shorter sentences")
        raise typer.Exit(1)


@contextmanager
def interruptible(what: str) -> Iterator[None]:
    """Ctrl-C ends the command with status 130 and one line. ``what``: what became of the output."""
    try:
        yield
    except KeyboardInterrupt:
        tell(f"interrupted: {what}")
        raise typer.Exit(130) from None


def check_says_something(text: str, model: str, language: str, normalize: bool | None) -> None:
    """Refuse a text with nothing to say before any weights are read. A model that would have to be downloaded first is not asked how
    it reads text.

    Raises:
        ValueError: there is nothing to say, or it is written in none of the model's languages.
        FileNotFoundError: the model's folder is no checkpoint.
    """
    from qwen3_jax.model.model import read_configs
    from qwen3_jax.text.parts import parts_of

    languages: tuple[str, ...] = ()
    if (folder := hub.folder_here(model)) is not None:
        config, _, generation = read_configs(folder)
        languages, normalize = config.talker_config.languages, generation.normalize if normalize is None else normalize
    next(parts_of(text, language, normalize=bool(normalize), languages=languages), None)


def _temperature(given: float | None) -> dict[str, Any]:
    """``--temperature`` as fields of Sampling; 0 is greedy decoding, of all books."""
    from qwen3_jax.model.sampling import TEMPERATURES, greedy_at_zero

    if given is None:
        return {}
    if given == 0:
        return greedy_at_zero({"temperature": 0})
    if not TEMPERATURES[0] <= given <= TEMPERATURES[1]:
        raise ValueError(f"--temperature {given:g}: use 0 (greedy decoding), or a number from {TEMPERATURES[0]:g} to {TEMPERATURES[1]:g}")
    return {"temperature": given}


def watched(pieces: "SpeechStream") -> "Iterator[np.ndarray]":
    """The pieces, with the seconds spoken so far on stderr."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        task, samples = progress.add_task("speaking"), 0
        for pcm in pieces:
            samples += len(pcm)
            progress.update(task, description=f"spoken {samples / pieces.sample_rate:.2f} s in")
            yield pcm


def play(pieces: "SpeechStream") -> bool:
    """Raw PCM to stdout. Returns False if the reader left before the end, which is no error."""
    from qwen3_jax.audio.samples import to_pcm16

    try:
        for pcm in pieces:
            sys.stdout.buffer.write(to_pcm16(pcm))
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        pieces.cancel()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the interpreter's last flush does not fail as well
        return False
    return True


@app.command()
def info(
    model: Annotated[str | None, Option("--model", envvar="TTS_MODEL_ID", help="A checkpoint's folder, a hub id, or embedded.")] = None,
    dtype: Annotated[
        str | None,
        Option(
            envvar="TTS_DTYPE",
            help="For the sizes: float32, bfloat16 or int8. Default: int8 if the folder was converted to it, else float32.",
        ),
    ] = None,
) -> None:
    """Versions and devices; with --model, what the checkpoint is and how large (from its configs: no weights are read)."""
    import jax

    from qwen3_jax.kernels import library
    from qwen3_jax.runtime.devices import all_devices

    table = Table(show_header=False)
    add_row(table, "qwen3-jax", f"{qwen3_jax.__version__}, jax {jax.__version__}, Python {sys.version.split()[0]}")
    add_row(table, "devices", ", ".join(f"{device.platform}:{device.id} {device.device_kind}" for device in all_devices()))
    kernels = library.in_use()
    add_row(table, "compiled kernels", kernels.instructions or f"none ({kernels.why_not})")
    if model is not None:
        for row in describe(model, dtype):
            add_row(table, *row)
    console.print(table)


def describe(checkpoint: str, dtype: str | None) -> Iterator[tuple[str, str]]:
    """Rows about a checkpoint."""
    from jax import numpy as jnp

    from qwen3_jax.checkpoint.mapping import PARTS, flatten
    from qwen3_jax.model import model

    folder = hub.local_folder(checkpoint)
    config, codec, generation = model.read_configs(folder)
    yield "type", f"{config.tts_model_type}, {config.tts_model_size}, {codec.output_sample_rate} Hz"
    yield "languages", ", ".join(config.talker_config.languages)
    if config.talker_config.spk_id:
        yield "speakers", ", ".join(sorted(config.talker_config.spk_id))
    yield "longest speech", f"{generation.max_new_tokens * 0.08:.0f} s"
    int8 = model.is_int8(folder)
    dtype = dtype or ("int8" if int8 else "float32")
    if dtype not in model.DTYPES:
        raise ValueError(f"--dtype {dtype}: use float32, bfloat16 or int8")
    if int8:
        model.check_stays_int8(folder, jnp.dtype(dtype))
    yield "talker's matrices", f"{dtype}, a scale a row, under float32 arithmetic" if dtype == "int8" else dtype
    leaves = flatten(model.abstract(config, codec, jnp.dtype("float32" if dtype == "int8" else dtype), jnp.dtype(dtype))[1])
    for place in PARTS.values():
        part: list[Any] = [leaf for path, leaf in leaves.items() if path.startswith(place)]
        if part:
            parameters, size = sum(leaf.size for leaf in part), sum(leaf.size * leaf.dtype.itemsize for leaf in part)
            yield place.rstrip("."), f"{parameters:,} parameters, {size / 1e6:,.1f} MB"


OF_ITS_OWN: dict[str, Any] = {"add_help_option": False, "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True}}


@app.command(**OF_ITS_OWN)
def convert(context: typer.Context) -> None:
    """Convert a published checkpoint: SRC DST."""
    of_itself = not context.args or context.args[0] in ("convert", "verify")  # commands of that program
    run_program(context, "convert.__main__", *([] if of_itself else ["convert"]))


@app.command(**OF_ITS_OWN)
def verify(context: typer.Context) -> None:
    """Compare a checkpoint with recorded results of the official package: CHECKPOINT GOLDEN."""
    run_program(context, "convert.__main__", "verify")


@app.command(**OF_ITS_OWN)
def voices(context: typer.Context) -> None:
    """The folder of voices: list, add, check, remove; without a word: list."""
    listing = not context.args or (context.args[0].startswith("-") and context.args[0] != "--help")
    run_program(context, "server.voices.command", *(["list"] if listing else []))


@app.command(**OF_ITS_OWN)
def finetune(context: typer.Context) -> None:
    """Tune a Base checkpoint to a speaker: run; write what was learnt as a checkpoint: export (extra `finetune`)."""
    run_program(context, "qwen3_jax.finetune.command", extra="finetune")


@app.command(**OF_ITS_OWN)
def evaluate(context: typer.Context) -> None:
    """Judge a checkpoint's speech, its codec, or a folder of wavs, by independent judges (extra `eval`)."""
    run_program(context, "qwen3_jax.evaluate.command", extra="eval")


def run_program(context: typer.Context, module: str, *first: str, extra: str | None = None) -> None:
    """Run the typer app of another module with ``first`` and the arguments that the user gave. Raises NotHere."""
    program = needed(module, extra, str(context.info_name)).app
    path = context.command_path
    for name in first:
        path = path.removesuffix(f" {name}")  # which that program adds itself
    program([*first, *context.args], prog_name=path)


@app.command()
def serve(
    model: Annotated[str | None, Option("--model", help="Default: TTS_MODEL_ID, or embedded.")] = None,
    host: Annotated[str | None, Option(help="Default: TTS_HOST, or 127.0.0.1.")] = None,
    port: Annotated[int | None, Option(help="Default: TTS_PORT, or 8000.")] = None,
    device: DeviceOption = None,
    dtype: Annotated[str | None, Option(help="float32, bfloat16 or int8. Default: TTS_DTYPE, else as `say` has it.")] = None,
    voices_dir: Annotated[str | None, Option(help="Default: TTS_VOICES_DIR, else voices, if it exists; new voices go there.")] = None,
) -> None:
    """Serve /api/v1/speak. All other settings are TTS_* variables: `python -m server --help` lists them."""
    run = needed("server.run", "server", "serve").main
    run(model_id=model, host=host, port=port, device=device, dtype=dtype, voices_dir=voices_dir)


@app.command()
def demo(
    browser: Annotated[
        bool, Option("--browser/--no-browser", help="Open the page once the model is loaded, or only print its address.")
    ] = True,
    port: Annotated[int | None, Option(help="Default: TTS_PORT, or 8000; if that is in use, one that is free.")] = None,
) -> None:
    """Talk to the voice that ships, on a page in the browser (extras `listen` and `server`)."""
    needed("server.demo", "server", "demo").main(browser=browser, port=port)


def main(name: str = "python -m qwen3_jax") -> None:
    """Run the command line. ``name``: of the program, as it was called."""
    try:
        app(prog_name=name)
    except (ValueError, OSError, FloatingPointError) as error:
        tell(f"error: {error}", "red")
        sys.exit(2)
