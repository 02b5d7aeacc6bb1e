"""Sentences and teachers -> a corpus on disk: 24 kHz int16 speech in shards that can be memory-mapped, and a manifest.

    python -m qwen3_jax.train.corpus OUT --hours 1 --voices heart,makima --text FOLDER --download

``OUT/VOICE/00000.npy`` is the speech of up to 64 sentences, one after another, int16 [F]; ``00000.jsonl`` beside it has a line for each
of them (`Line`), and is written last: a shard without it does not exist. So a run that is killed at any moment is taken up again by
the same command, and one with more hours adds to what is there. Which sentence is in which shard, and every sample, depends on the
voice, the texts and the packages only. ``OUT/manifest.jsonl`` is all lines of all shards, ``OUT/summary.json`` what they add up to.
"""

import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Annotated, Any, Protocol

import msgspec
import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from qwen3_jax.audio import write_wav
from qwen3_jax.evaluate.texts import SENTENCES, held_out
from qwen3_jax.shapes import I32
from qwen3_jax.train import plan, sources, teachers
from qwen3_jax.train.sentences import Sentence, number, training
from qwen3_jax.train.teachers import SAMPLE_RATE, Speaker, Teacher, Utterance

SHARD = 64  # sentences: about three minutes of speech
SAID = ".said.json"
PEAK = 0.95  # louder speech is turned down to it, so that nothing clips


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One utterance of the manifest. ``start`` and ``samples`` are places in the shard; ``durations`` as in `teachers.Utterance`."""

    id: str
    text: str
    voice: str
    shard: str
    start: int
    samples: int
    seed: int
    phonemes: str
    durations: list[int]
    source: str
    text_licence: str
    teacher: str
    versions: dict[str, str]
    licence: str = "Apache-2.0 (the teacher's; synthetic voice)"


class Speaks(Protocol):
    """What makes the speech: `Teacher`, or a stand-in in tests."""

    def speak(self, who: Speaker, text: str, seed: int) -> Utterance:
        """Say ``text``."""


def shards(who: Speaker, texts: list[Sentence]) -> list[list[Sentence]]:
    """The voice's own order of all sentences, cut into shards; everyday phrases first, so that a voice of few minutes has them, too."""
    first = set(sources.everyday())
    order = sorted(texts, key=lambda sentence: (sentence.text not in first, number(sentence.text, who.name)))
    return [order[start : start + SHARD] for start in range(0, len(order), SHARD)]


def make_shard(folder: Path, index: int, who: Speaker, batch: list[Sentence], teacher: Speaks) -> int:
    """Speak and write one shard. Returns its samples. What exists already is only counted."""
    done = folder / f"{index:05}.jsonl"
    if done.is_file():
        return sum(line.samples for line in read_lines(done))
    lines, waves, start = [], [], 0
    versions = teachers.versions()
    for place, sentence in enumerate(batch):
        seed = number(sentence.text, "seed") % 2**32
        made = teacher.speak(who, sentence.text, seed)
        wave = to_int16(made.wave)
        lines.append(
            Line(
                id=f"{who.name}-{index:05}-{place:02}", text=sentence.text, voice=who.name, shard=f"{who.name}/{index:05}.npy",
                start=start, samples=len(wave), seed=seed, phonemes=made.phonemes, durations=made.durations, source=sentence.source,
                text_licence=sources.LICENCES[sentence.source], teacher=who.made_by, versions=versions,
            )
        )  # fmt: skip
        waves.append(wave)
        start += len(wave)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as file:
        np.save(file, np.concatenate(waves))
        file.seek(0)
        write_atomically(folder / f"{index:05}.npy", file.read())
    write_atomically(done, msgspec.json.Encoder().encode_lines(lines))
    return start


def to_int16(wave: np.ndarray) -> np.ndarray:
    """float32 -> int16, turned down if it is louder than `PEAK`."""
    peak = float(np.abs(wave).max(initial=0.0))
    return np.rint(wave * (32767 * min(1.0, PEAK / max(peak, 1e-9)))).astype("<i2")


def write_atomically(path: Path, data: bytes) -> None:
    """The whole file under its name, or none."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_lines(path: Path) -> list[Line]:
    """Lines of a shard's or the whole manifest."""
    return msgspec.json.Decoder(Line).decode_lines(path.read_bytes())


def read_corpus(folder: Path, voices: list[str] | None = None) -> list[Line]:
    """All utterances of the corpus in ``folder``, by voice and shard; ``wave`` gives the speech of one.

    Raises:
        FileNotFoundError: there are none.
    """
    paths = sorted(path for path in folder.glob("*/*.jsonl") if voices is None or path.parent.name in voices)
    if not paths:
        which = "" if voices is None else f" of {', '.join(voices)}"
        raise FileNotFoundError(f"{folder} holds no corpus{which}: make one with python -m qwen3_jax.train.corpus")
    return [line for path in paths for line in read_lines(path)]


def wave(folder: Path, line: Line) -> np.ndarray:
    """The speech of one utterance: int16 [F], read from the disk when it is looked at."""
    return np.load(folder / line.shard, mmap_mode="r")[line.start : line.start + line.samples]


_TEACHER: list[Speaks] = []  # of a worker process


def end_with_parent() -> None:
    """In a worker process: be gone as soon as the process that started it is, however that ended. (A pool's workers wait for ever.)"""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only in a worker"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="watches-parent", daemon=True).start()


def _start(voices: Path | None) -> None:
    end_with_parent()
    _TEACHER[:] = [Teacher(voices)]


def _work(folder: Path, index: int, who: Speaker, batch: list[Sentence]) -> int:
    return make_shard(folder, index, who, batch, _TEACHER[0])


def fill(folder: Path, who: Speaker, texts: list[Sentence], seconds: float, pool: Any, workers: int) -> Iterator[int]:
    """Make shards until there are ``seconds`` of the voice; yields the samples of each as it is done, old ones included.

    Shards are started in order, one a worker, and only while those under way will not do; so a run ends with few too many, and
    with the first N of the voice.
    """
    waiting: set[Future[int]] = set()
    have, mean = 0, SHARD * 3.0 * SAMPLE_RATE
    plan = enumerate(shards(who, texts))
    more = True
    while more or waiting:
        while more and len(waiting) < workers and have + len(waiting) * mean < seconds * SAMPLE_RATE:
            job = next(plan, None)
            if job is None:
                more = False
                break
            waiting.add(pool.submit(_work, folder / who.name, job[0], who, job[1]))
        if not waiting:
            return
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            have += future.result()
            yield future.result()


def summarise(folder: Path) -> dict[str, Any]:
    """Write the manifest and the summary of what is in ``folder``; returns the summary."""
    lines = read_corpus(folder)
    write_atomically(folder / "manifest.jsonl", msgspec.json.Encoder().encode_lines(lines))
    voices: dict[str, dict[str, Any]] = {}
    for line in lines:
        entry = voices.setdefault(
            line.voice, {"utterances": 0, "seconds": 0.0, "words": 0, "teacher": line.teacher, "licence": line.licence}
        )
        entry["utterances"] += 1
        entry["seconds"] += line.samples / SAMPLE_RATE
        entry["words"] += len(line.text.split())
    for entry in voices.values():
        entry["seconds"] = round(entry["seconds"], 1)
    texts = {line.source: line.text_licence for line in lines}
    summary = {
        "voices": voices,
        "texts": texts,
        "versions": [dict(pairs) for pairs in sorted({tuple(line.versions.items()) for line in lines})],
    }
    write_atomically(folder / "summary.json", msgspec.json.format(msgspec.json.encode(summary), indent=1))
    return summary


def speak_held_out(folder: Path, who: Speaker, teacher: Speaks) -> None:
    """The teacher's own reading of the 100 held-out sentences, as wavs that ``evaluate --teacher`` compares with, and beside each of them
    what it says when (`said_in`)."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = held_out()
    for index, text in enumerate(texts):
        path = folder / f"{index:04}.wav"
        if not (path.is_file() and path.with_suffix(SAID).is_file()):
            made = teacher.speak(who, text, number(text, "seed") % 2**32)
            temporary = folder / f".{index:04}.partial"
            write_wav(temporary, to_int16(made.wave) / np.float32(32767))
            temporary.rename(path)
            write_atomically(path.with_suffix(SAID), msgspec.json.encode({"phonemes": made.phonemes, "durations": made.durations}))
    write_atomically(folder / SENTENCES, "".join(f"{text}\n" for text in texts).encode())


def said_in(wav: Path, frames: int) -> I32[np.ndarray, "N 4"]:
    """`plan.quarters` of one of ``speak_held_out``'s wavs; zeros for any other."""
    path = wav.with_suffix(SAID)
    if not path.is_file():
        return np.zeros((frames, plan.QUARTERS), np.int8)
    told = msgspec.json.decode(path.read_bytes())
    return plan.quarters(told["phonemes"], told["durations"], frames)


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
    with ProcessPoolExecutor(workers, context, _start, (styles,)) as pool, Progress(*columns, console=console) as progress:
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
        app(prog_name="python -m qwen3_jax.train.corpus")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
