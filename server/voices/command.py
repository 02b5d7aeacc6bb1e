"""``python -m qwen3_jax voices``: what the REST interface does, offline, with the operator's rights."""

from pathlib import Path
from typing import Annotated

import typer
from rich.cells import cell_len
from rich.table import Table

from qwen3_jax.audio import recording as recordings
from qwen3_jax.checkpoint import hub
from qwen3_jax.checkpoint.folders import home_path
from qwen3_jax.terminal import add_row, console, path_argument, say
from qwen3_jax.text import files
from qwen3_jax.voices.folder import StoredVoice
from qwen3_jax.voices.layers import VoiceLayers
from server.languages import LANGUAGES
from server.languages import language as known_language
from server.voices import checks
from server.voices.store import Metadata, VoiceStore

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Voices: recordings that a Base checkpoint clones.")
Above = Annotated[
    str | None,
    typer.Option("--voices-dir", envvar="TTS_VOICES_DIR", help="A folder, or a bucket, above the user's voices and those that ship."),
]
Folder = Annotated[
    str | None,
    typer.Option(
        "--voices-dir", envvar="TTS_VOICES_DIR", help="A folder, or a bucket. Default: voices, if it exists, else the user's own."
    ),
]
Shipped = Annotated[
    bool, typer.Option("--shipped-voices/--no-shipped-voices", envvar="TTS_SHIPPED_VOICES", help="Whether those that ship are there.")
]
Recording = Annotated[Path, path_argument("WAV, FLAC, MP3, M4A or another format of recordings; 3 to 30 s, 5 to 10 are best.", "RECORDING")]
Transcript = Annotated[str | None, typer.Option(help="Exactly what it says, or a .txt file; without it only the timbre is cloned.")]
LONGEST_ID = 32  # columns of a terminal that an id has in the list; a longer one goes on in the next line


@app.command("list")
def list_voices(
    voices_dir: Above = None,
    shipped_voices: Shipped = True,
    model: Annotated[
        str, typer.Option("--model", envvar="TTS_MODEL_ID", help="Whose way of cloning is shown: a folder, a hub id, or embedded.")
    ] = hub.EMBEDDED,
) -> None:
    """List the voices that `say` and the server have, and what looks like one and cannot be used."""
    layers = VoiceLayers.of(voices_dir, shipped=shipped_voices)
    found = layers.look()
    if found.voices:
        x_vector_only_mode = _x_vector_only_mode(model)
        rows = [
            {
                "id": voice.id,
                "cloning": cloning(voice, x_vector_only_mode),
                "language": voice.metadata.language,
                "name": voice.metadata.name,
                "seconds": f"{voice.metadata.duration_seconds:.1f}" if voice.metadata.duration_seconds else "",
                "folder": layers.layer_of(voice).kind,
                "licence": voice.metadata.licence,
                "owner": voice.metadata.owner or "everybody",
            }
            for voice in found.voices.values()
        ]
        if not any(voice.metadata.owner for voice in found.voices.values()):
            rows = [{column: cell for column, cell in row.items() if column != "owner"} for row in rows]
        table = Table(show_edge=False)
        for column in rows[0]:
            widest = max(cell_len(word) for row in rows for word in [column, *row[column].split(" ")])
            table.add_column(column, overflow="fold", min_width=min(widest, LONGEST_ID) if column in ("id", "cloning") else None)
        for row in rows:
            add_row(table, *row.values())
        console.print(table)
    else:
        say("there is no voice; install one with: voices add reference.wav --id NAME ...")
    for kind, folder in layers.layers:
        say(f"{kind}: {folder.address}")
    for why in (*found.left_out.values(), *found.troubles):
        say(f"left out: {why}")


def cloning(voice: StoredVoice, x_vector_only_mode: bool) -> str:
    """What a model takes over of a voice, in words. ``x_vector_only_mode``: the model takes no more of any."""
    return "timbre" if x_vector_only_mode or voice.transcript is None else "timbre and manner (in-context)"


def _x_vector_only_mode(model: str) -> bool:
    """Whether a model clones by x-vector unless it is told otherwise; False where its files are not here."""
    from qwen3_jax.model.model import read_configs  # JAX, a second that the other commands do not need

    folder = hub.folder_here(model)
    return folder is not None and read_configs(folder)[2].x_vector_only_mode


@app.command()
def check(recording: Recording, transcript: Transcript = None) -> None:
    """Say whether a recording can be cloned, and what would make it better."""
    clip, _ = _checked(recording, transcript)
    say(f"{recording}: {clip.seconds:.1f} s at {clip.rate} Hz; it can be cloned")
    for advice in checks.advise(clip):
        say(f"  {advice}")


@app.command()
def add(
    recording: Recording,
    name: Annotated[str, typer.Option("--id", help="The voice's id: required.")] = "",
    consent: Annotated[str, typer.Option(help="The statement that the speaker agrees, or by what right you use it: required.")] = "",
    transcript: Transcript = None,
    title: Annotated[str, typer.Option("--name", help="What people call it.")] = "",
    language: Annotated[str, typer.Option(help="Of the recording.")] = "",
    licence: Annotated[str, typer.Option(help="Of the recording.")] = "",
    description: Annotated[str, typer.Option()] = "",
    voices_dir: Folder = None,
) -> None:
    """Install a voice for everybody. One with the id of a voice that ships takes its place."""
    if not name:
        raise ValueError("--id is required: give the voice an id, such as --id narrator")
    if not consent.strip():
        raise ValueError("--consent is required: say that the speaker agrees, or by what right you use the recording")
    for option, value in (("name", title), ("licence", licence), ("consent", consent), ("description", description)):
        checks.check_words(option, value, lines=option != "name")
    known = known_language(language) if language else ""
    if known is None:
        raise ValueError(f"--language {language}: use one of {', '.join(LANGUAGES)}")
    clip, words = _checked(recording, transcript)
    about = Metadata(name=title or name, language=known, licence=licence, consent=consent.strip(), description=description)
    store = _store(voices_dir)
    try:
        voice = store.add(clip, words, about, name)
    except OSError as error:
        if (where := store.layers.destination) is None:
            raise ValueError(str(error.strerror)) from error
        raise ValueError(
            f"voice {name!r} cannot be kept in {where}: {error.strerror or error}; give --voices-dir a folder that can be written to"
        ) from error
    say(f"{voice.folder}/{voice.name}: {clip.seconds:.1f} s, {'without' if voice.transcript is None else 'with'} the words that it says")
    for advice in checks.advise(clip):
        say(f"  {advice}")


@app.command()
def remove(name: Annotated[str, typer.Argument(help="The voice's id.")], voices_dir: Folder = None) -> None:
    """Delete a voice, whosever it is. One that ships and has the same id is there again."""
    store = _store(voices_dir)
    if voices_dir is not None and store.find(name) is None and name not in store.left_out:
        below = VoiceStore(VoiceLayers.of(voices_dir, shipped=False))  # `list` shows the user's own, too
        store = store if below.find(name) is None else below
    voice = store.find(name)
    if voice is None and name in store.left_out:
        raise ValueError(f"voice {name!r} is left out, and only its folder can be removed: {store.left_out[name]}")
    if voice is None:
        raise ValueError(f"voice {name!r} is not in {store.layers} (there is: {', '.join(store.voices) or 'nothing'})")
    store.remove(voice)
    say(f"removed: {voice.folder}/{voice.name}")


def _store(voices_dir: str | None) -> VoiceStore:
    """The folder that was named, and no other; else all of them."""
    return VoiceStore(VoiceLayers.of() if voices_dir is None else voices_dir)


def _checked(recording: Path, transcript: str | None) -> tuple[checks.Clip, str | None]:
    """The clip and its transcript. Raises ValueError with the rule's name."""
    if transcript is not None and transcript.endswith(".txt") and (file := home_path(transcript)).is_file():
        transcript = files.read(file)
    try:
        clip = recordings.load(recording)
        return clip, None if transcript is None else checks.check_transcript(transcript, clip.seconds)
    except checks.Refusal as error:
        raise ValueError(f"{error.code}: {error}") from error
