"""Take up the training of the voice that ships, all of it, for as long as there is time.

    python -m training FOLDER --minutes 150

FOLDER/corpus is made where it is missing (extra `train`), FOLDER/run begins from the checkpoint that ships and from what the repository's
``training/`` keeps of it. Language model, encoder and decoder get their shares of the time in turns, and FOLDER/out is the new checkpoint.
Given again, it goes on.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

TRAINING = Path(__file__).parent  # has the latents and the discriminators, which no product needs
EMBEDDED = TRAINING.parent / "qwen3_jax" / "embedded"
VOICES = {"heart": 1.0, "makima": 0.15, "george": 0.01, "emma": 0.01, "michael": 0.01}  # of the hours; Kokoro is slow
SHARES = (
    ("language", "train", 0.7, 1.0),
    ("codec", "recogniser", 0.05, 0.1),
    ("codec", "decoder", 0.1, 0.1),
    ("codec", "encoder --through-decoder", 0.15, 0.2),  # each half of the codec learns from what the other became
)  # of time, of hours
app = typer.Typer(add_completion=False)


def run(module: str, *arguments: object) -> None:
    """One of the package's commands; its failure is ours."""
    subprocess.run([sys.executable, "-m", f"training.{module}", *map(str, arguments)], check=True)


@app.command()
def main(
    folder: Annotated[Path, typer.Argument(help="Where corpus, run and the new checkpoint go.")],
    minutes: Annotated[float, typer.Option(help="Of training.")] = 150.0,
    turns: Annotated[int, typer.Option(help="How often each part gets its share.")] = 2,
    hours: Annotated[float, typer.Option(help="Of heart's speech; of the other voices parts of it.")] = 40.0,
) -> None:
    """Go on training, and write a checkpoint."""
    corpus, state, out = folder / "corpus", folder / "run", folder / "out"
    for voice, share in VOICES.items():
        run("corpus", corpus, "--voices", voice, "--hours", hours * share, "--download")
    run("corpus", corpus, "--voices", "heart,makima", "--held-out")
    if not state.is_dir():
        run("codec", "begin", EMBEDDED, state, "--beside", TRAINING)
        run("language", "begin", EMBEDDED, state)
    began = time.monotonic()
    for _ in range(turns):
        for module, command, share, part in SHARES:
            run(module, *command.split(), corpus, state, "--minutes", minutes * share / turns, "--hours", hours * part)
    print(f"trained {(time.monotonic() - began) / 60:.0f} minutes")
    for place in (folder / "codec", out):
        shutil.rmtree(place, ignore_errors=True)  # of an earlier call
    run("codec", "export", state, folder / "codec")
    run("language", "export", state, folder / "codec", out)


if __name__ == "__main__":
    try:
        app(prog_name="python -m training")
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"error: {error}") from error
