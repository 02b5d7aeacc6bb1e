"""Teachers -> the voices that ship: ``OUT/{id}/{reference.wav, transcript.txt, metadata.json}``, all of them synthetic.

python -m training.corpus.voices KOKORO OUT        KOKORO: style vectors, as `training.corpus --download` leaves them in CORPUS/kokoro
"""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import typer
from rich.console import Console

from qwen3_jax.audio.samples import write_wav
from qwen3_jax.checkpoint.atomic import new_folder
from qwen3_jax.voices.folder import METADATA, REFERENCE, TRANSCRIPT
from training.corpus import teachers

TEXT = "Good evening. I have been waiting for you, so sit down with me, and we will begin at once."
SEED = 11
ACCENTS = {"makima": "Japanese speaker, speaking English", "heart": "US English", "emma": "British English", "george": "British English"}
NAMES = {"makima": "Makima (default)", "heart": "Heart", "emma": "Emma", "george": "George"}
app = typer.Typer(add_completion=False)


def metadata(who: teachers.TeacherVoice) -> dict[str, Any]:
    """``metadata.json`` of a voice."""
    return {
        "name": NAMES[who.name],
        "language": "English",
        "description": who.description,
        "licence": "Apache-2.0",
        "consent": "synthetic: no person's recording; the teacher's licence allows it",
        "accent": ACCENTS[who.name],
        "made_by": who.made_by,
        "versions": teachers.versions(),
    }


def make(out: Path, who: teachers.TeacherVoice, teacher: teachers.Teacher) -> float:
    """One voice's folder; returns the seconds of its reference.

    Raises:
        ValueError: a package of the extra `train` or a style vector is missing.
        FileExistsError: the folder is there.
    """
    wave = teacher.speak(who, TEXT, SEED).wave
    wave = wave * np.float32(0.5 / max(np.abs(wave).max(), 1e-6))
    with new_folder(out / who.name) as temporary:
        write_wav(temporary / REFERENCE, wave)
        (temporary / TRANSCRIPT).write_text(f"{TEXT}\n", "utf-8")
        (temporary / METADATA).write_bytes(msgspec.json.format(msgspec.json.encode(metadata(who)), indent=2) + b"\n")
    return len(wave) / teachers.SAMPLE_RATE


@app.command()
def main(
    kokoro: Annotated[Path, typer.Argument(help="Folder of style vectors.")],
    out: Annotated[Path, typer.Argument(help="Folder of voices.")],
) -> None:
    """Make the voices that are not there yet."""
    teacher = teachers.Teacher(kokoro)
    for name in NAMES:
        if not (out / name).exists():
            Console(stderr=True).print(f"{out / name}: {make(out, teachers.speaker(name), teacher):.1f} s")


if __name__ == "__main__":
    try:
        app(prog_name="python -m training.corpus.voices")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
