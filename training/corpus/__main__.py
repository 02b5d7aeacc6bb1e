"""Make a corpus of teacher speech, or add to it.

    python -m training.corpus OUT --hours 1 --voices heart,makima --text FOLDER --download

A run that is killed at any moment is taken up again by the same command, and one with more hours adds to what is there.
"""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from training.corpus import sources, teachers
from training.corpus.sentences import training
from training.corpus.shards import speak_held_out, summarise
from training.corpus.teachers import SAMPLE_RATE, Teacher
from training.corpus.workers import fill, start

app = typer.Typer(add_completion=False)
console = Console(stderr=True)
Option = typer.Option


@app.command()
def main(
    out: Annotated[Path, typer.Argument(help="The corpus's folder; what is there is kept and added to.")],
    hours: Annotated[float, Option(help="Of speech, for each voice.")] = 1.0,
    voices: Annotated[
        str, Option(help="Names with commas: " + ", ".join(teachers.SPEAKERS) + ", blend-0, blend-1, ..., af_sarah.")
    ] = "heart",
    text: Annotated[Path | None, Option(help="A folder of text (default: OUT/text).")] = None,
    kokoro_voices: Annotated[Path | None, Option(help="Kokoro's style vectors, NAME.bin (default: OUT/kokoro).")] = None,
    download: Annotated[bool, Option("--download", help="Fetch what is missing: text with apt-get, style vectors with npm.")] = False,
    workers: Annotated[int, Option(help="Processes, one thread each.")] = 2,
    held_out_only: Annotated[bool, Option("--held-out", help="Speak the 100 held-out sentences into OUT/held_out/VOICE instead.")] = False,
) -> None:
    """Make a corpus of teacher speech, or add to it."""
    text, styles = text or out / "text", kokoro_voices or out / "kokoro"
    speakers = [teachers.speaker(name.strip()) for name in voices.split(",")]
    if download:
        if not held_out_only:
            sources.download_text(text)
        if any(who.mix for who in speakers):
            sources.download_voices(styles)
    teachers.prepare(speakers)
    if held_out_only:
        for who in speakers:
            with console.status(f"{who.name}: the held-out sentences"):
                speak_held_out(out / "held_out" / who.name, who, Teacher(styles))
        return
    with console.status("reading the sentences"):
        texts = training(text)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, start, (styles,)) as pool, Progress(*columns, console=console) as progress:
        for who in speakers:
            task = progress.add_task(who.name, total=hours * 3600, speed="")
            began, seconds = time.monotonic(), 0.0
            for samples in fill(out, who, texts, hours * 3600, pool, workers):
                seconds += samples / SAMPLE_RATE
                rate = f"{seconds / 60:.1f} min, {seconds / (time.monotonic() - began):.1f}x"
                progress.update(task, completed=seconds, speed=rate)
    show(summarise(out))


def show(summary: dict[str, Any]) -> None:
    """The summary as a table."""
    table = Table("voice", "minutes", "utterances", "words", "teacher", "licence")
    for name, entry in summary["voices"].items():
        table.add_row(
            name, f"{entry['seconds'] / 60:.1f}", str(entry["utterances"]), str(entry["words"]), entry["teacher"], entry["licence"]
        )
    console.print(table)


if __name__ == "__main__":
    try:
        app(prog_name="python -m training.corpus")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
