"""``python -m qwen3_jax voices``: what the REST interface does, offline, with the operator's rights."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from qwen3_jax.voice_folder import default_folder
from server import protocol
from server.voices import checks
from server.voices.store import Metadata, VoiceStore

console = Console()
app = typer.Typer(no_args_is_help=True, add_completion=False, help="Voices: recordings that a Base checkpoint clones.")
OWN = "voices"  # what is added or removed is the user's; those that come with the package are only read
Folder = Annotated[str, typer.Option("--voices-dir", envvar="TTS_VOICES_DIR", help="The folder of voices, or a bucket.")]
ReadFolder = Annotated[
    str,
    typer.Option(
        "--voices-dir",
        envvar="TTS_VOICES_DIR",
        default_factory=lambda: str(default_folder()),
        show_default="voices, or those that come with the package",
        help="The folder of voices, or a bucket.",
    ),
]
Recording = Annotated[Path, typer.Argument(help="WAV, FLAC, OGG or MP3; 3 to 30 s, 5 to 10 are best.")]
Transcript = Annotated[str | None, typer.Option(help="Exactly what it says, or a .txt file; without it only the timbre is cloned.")]
MAX_BYTES = 100 * 1024 * 1024  # an operator's own file may be larger than an upload


@app.command("list")
def list_voices(voices_dir: ReadFolder) -> None:
    """List the voices."""
    found = VoiceStore(voices_dir).voices
    if not found:
        console.print(f"{voices_dir} holds no voice; install one with: voices add reference.wav --id NAME ...", soft_wrap=True)
        return
    table = Table("id", "cloning", "seconds", "name", "language", "licence", "owner")
    for voice in found.values():
        about = voice.metadata
        seconds = f"{about.duration_seconds:.1f}" if about.duration_seconds else ""
        table.add_row(voice.id, voice.mode, seconds, about.name, about.language, about.licence, about.owner or "everybody")
    console.print(table)


@app.command()
def check(recording: Recording, transcript: Transcript = None) -> None:
    """Say whether a recording can be cloned, and what would make it better."""
    clip, _ = _checked(recording, transcript)
    console.print(f"{recording}: {clip.seconds:.1f} s at {clip.rate} Hz; it can be cloned", soft_wrap=True, highlight=False)
    for advice in checks.advise(clip):
        console.print(f"  {advice}", soft_wrap=True, highlight=False)


@app.command()
def add(
    recording: Recording,
    name: Annotated[str, typer.Option("--id", help="The voice's id.")],
    consent: Annotated[str, typer.Option(help="The statement that the speaker agrees, or by what right you use it.")] = "",
    transcript: Transcript = None,
    title: Annotated[str, typer.Option("--name", help="What people call it.")] = "",
    language: Annotated[str, typer.Option(help="Of the recording.")] = "",
    licence: Annotated[str, typer.Option(help="Of the recording.")] = "",
    description: Annotated[str, typer.Option()] = "",
    voices_dir: Folder = OWN,
) -> None:
    """Install a voice for everybody."""
    if not consent.strip():
        raise ValueError("--consent is required: say that the speaker agrees, or by what right you use the recording")
    known = protocol.language(language) if language else ""
    if known is None:
        raise ValueError(f"--language {language}: use one of {', '.join(protocol.LANGUAGES)}")
    clip, words = _checked(recording, transcript)
    about = Metadata(name=title or name, language=known, licence=licence, consent=consent.strip(), description=description)
    if "://" not in voices_dir:
        Path(voices_dir).mkdir(parents=True, exist_ok=True)
    voice = VoiceStore(voices_dir).add(clip, words, about, name)
    console.print(f"{voices_dir}/{voice.id}: {clip.seconds:.1f} s, cloning {voice.mode}", soft_wrap=True, highlight=False)
    for advice in checks.advise(clip):
        console.print(f"  {advice}", soft_wrap=True, highlight=False)


@app.command()
def remove(name: Annotated[str, typer.Argument(help="The voice's id.")], voices_dir: Folder = OWN) -> None:
    """Delete a voice, whosever it is."""
    store = VoiceStore(voices_dir)
    if name not in store.voices:
        raise ValueError(f"voice {name!r} is not in {voices_dir} (there is: {', '.join(store.voices) or 'nothing'})")
    store.remove(name)


def _checked(recording: Path, transcript: str | None) -> tuple[checks.Clip, str | None]:
    """The clip and its transcript. Raises ValueError with the rule's name."""
    if not recording.is_file():
        raise FileNotFoundError(f"{recording}: no such audio file")
    if transcript is not None and transcript.endswith(".txt") and Path(transcript).is_file():
        transcript = Path(transcript).read_text("utf-8")
    try:
        clip = checks.check(recording.read_bytes(), MAX_BYTES)
        return clip, None if transcript is None else checks.check_transcript(transcript, clip.seconds)
    except checks.Refusal as error:
        raise ValueError(f"{recording}: {error.code}: {error}") from error
