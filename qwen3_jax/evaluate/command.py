"""``python -m qwen3_jax evaluate``: a checkpoint, its codec alone, or a folder of wavs -> figures, wavs and a page.

Three ways: ``--model M --voice V`` speaks sentences and judges the speech; ``--model M --codec-only WAVS`` sends wavs through the codec
and back; ``--judge WAVS`` judges what is there, whoever made it. WAVS holds 0000.wav, 0001.wav, ... and ``sentences.txt``, or
NAME.wav and NAME.txt.
"""

import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import qwen3_jax
from qwen3_jax import Qwen3TTS, Voice
from qwen3_jax.audio.samples import SAMPLE_RATE, load_audio, write_wav
from qwen3_jax.checkpoint import hub
from qwen3_jax.evaluate import judges, speak
from qwen3_jax.evaluate.judges import Figure
from qwen3_jax.evaluate.report import Report, ReportRow, table, write
from qwen3_jax.evaluate.texts import SENTENCES, held_out, read_sentences, wavs_and_sentences
from qwen3_jax.runtime.devices import one_of
from qwen3_jax.shapes import F32
from qwen3_jax.terminal import console, errors, path_option, tell
from qwen3_jax.voices.choice import find_voice
from qwen3_jax.voices.layers import VoiceLayers, decode

KNOWN, OF_ORIGINALS = tuple(judges.PACKAGES), ("stoi", "pesq")
app = typer.Typer(add_completion=False)
Option = typer.Option
Waves = list[F32[np.ndarray, " _"]]


@app.command()
def evaluate(
    model: Annotated[str | None, Option(help="A checkpoint's folder, or a hub id (default: embedded).", envvar="TTS_MODEL_ID")] = None,
    voice: Annotated[str | None, Option(help="As for `say`.")] = None,
    x_vector_only_mode: Annotated[bool | None, Option("--x-vector/--in-context", help="As for `say`.")] = None,
    language: Annotated[str, Option(help="As for `say`.")] = "English",
    sentences: Annotated[Path | None, path_option("One a line (default: 100 that no training saw).")] = None,
    limit: Annotated[int | None, Option(help="The first so many of them only.")] = None,
    teacher: Annotated[Path | None, path_option("WAVS: the teacher's reading of the same sentences.", metavar="WAVS")] = None,
    other: Annotated[
        list[Path] | None,
        path_option("WAVS of another voice, to tell it from (default: the others in its folder).", metavar="WAVS"),
    ] = None,
    codec_only: Annotated[Path | None, path_option("WAVS to encode and decode.", metavar="WAVS")] = None,
    judge: Annotated[Path | None, path_option("WAVS to judge as they are.", metavar="WAVS")] = None,
    judging: Annotated[str, Option("--judges", help="Some of " + ", ".join(KNOWN) + ".")] = ",".join(KNOWN),
    out: Annotated[Path, path_option("Where wavs, figures.json and index.html go.", metavar="FOLDER")] = Path("evaluation"),
    seed: Annotated[int, Option(help="Of the first sentence; then one more each.")] = 0,
    device: Annotated[str | None, Option(envvar="TTS_DEVICE", help="As for `say`.")] = None,
    dtype: Annotated[str | None, Option(envvar="TTS_DTYPE", help="As for `say`.")] = None,
    voices_dir: Annotated[str | None, Option(envvar="TTS_VOICES_DIR", help="As for `say`.")] = None,
    shipped_voices: Annotated[bool, Option(envvar="TTS_SHIPPED_VOICES", help="As for `say`.")] = True,
) -> None:
    """Judge speech: word errors, ends, length, naturalness, likeness, speed; by independent judges (extra `eval`)."""
    chosen = [name.strip() for name in judging.split(",") if name.strip()]
    if unknown := [name for name in chosen if name not in KNOWN]:
        raise ValueError(f"--judges {', '.join(unknown)}: use some of {', '.join(KNOWN)}")
    if judge is not None and (codec_only is not None or model is not None):
        raise ValueError("--judge judges wavs as they are: leave --model and --codec-only out")
    judges.check_installed(name for name in chosen if codec_only is not None or name not in OF_ORIGINALS)  # before anything is spoken
    if judge is None:
        model = model or hub.EMBEDDED
    layers = VoiceLayers.of(voices_dir, shipped=shipped_voices)
    about = {"qwen3-jax": qwen3_jax.__version__}
    originals: Waves | None = None
    spoken: list[speak.Spoken] | None = None
    if judge is not None:
        waves, texts = read_wavs(judge, limit)
        title = f"Speech in {judge.name}"
    else:
        with errors.status("loading the model"):
            tts = Qwen3TTS.from_pretrained(str(model), device=one_of(device), dtype=dtype)
        about |= {"model": str(model), "jax": jax.__version__, "device": jax.devices()[0].device_kind, "machine": platform.machine()}
        if codec_only is not None:
            originals, texts = read_wavs(codec_only, limit)
            waves = watched("through the codec", len(originals), lambda tell: speak.reconstruct(tts.model, originals or [], tell))
            title = f"Codec of {Path(str(model)).name}"
        else:
            texts = (read_sentences(sentences) if sentences else held_out())[:limit]
            who = find_voice(tts, voice, layers, x_vector_only_mode, tell)
            about |= {
                "voice": who if isinstance(who, str) else who.name if who else "-",
                "cloning": who.mode if isinstance(who, Voice) else "-",
            }
            with errors.status("warming up"):
                tts.warmup()
                speak.speak(tts, texts[:1], who, language, seed)
            spoken = watched("speaking", len(texts), lambda tell: speak.speak(tts, texts, who, language, seed, tell))
            waves = [one.wave for one in spoken]
            title = f"Speech of {Path(str(model)).name}"
    write_wavs(out / "wavs", waves, texts)
    teachers = read_wavs(teacher, limit)[0] if teacher else None
    if teachers is not None and len(teachers) != len(waves):
        raise ValueError(f"--teacher {teacher}: {len(teachers)} wavs for {len(waves)} sentences; it must read the same sentences")
    report = Report(
        title=title,
        about=about,
        figures=[],
        rows=[ReportRow(text=text, seconds=len(wave) / SAMPLE_RATE) for text, wave in zip(texts, waves, strict=True)],
    )
    with errors.status("judging") as status:
        judge_words(report, waves, texts, chosen, status.update)
        if spoken is not None:
            report.figures += speak.timing(spoken, SAMPLE_RATE)
            for row, one in zip(report.rows, spoken, strict=True):
                row.finish_reason = one.finish_reason
        if teachers is not None:
            report.figures += speak.lengths(waves, teachers)
        if "similarity" in chosen:
            status.update("judging: likeness")
            own, others = references(layers, voice)
            reference = teachers or originals or own
            rest = {path.name: read_wavs(path, None)[0] for path in other or []} or others
            report.figures += judge_voice(waves, reference, rest)
        if originals is not None:
            report.figures += judge_reconstruction(waves, originals, texts, chosen, status.update)
    report.fill_rows()
    columns: dict[str, Waves] = (
        {"this": waves} | ({"teacher": teachers} if teachers else {}) | ({"original": originals} if originals else {})
    )
    write(report, out, columns)
    console.print(table(report))
    tell(f"{out / 'index.html'}: to listen to and look at")


def watched(what: str, total: int, work: Callable[[Callable[[int], None]], Any]) -> Any:
    """Do work that tells how far it is, behind a progress bar."""
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=errors) as progress:
        task = progress.add_task(what, total=total)
        return work(lambda done: progress.update(task, completed=done))


def read_wavs(folder: Path, limit: int | None) -> tuple[Waves, list[str]]:
    """Sounds at 24 kHz and what they say. Errors as for ``wavs_and_sentences``."""
    paths, texts = wavs_and_sentences(folder)
    return [load_audio(path) for path in paths[:limit]], texts[:limit]


def write_wavs(folder: Path, waves: Waves, texts: list[str]) -> None:
    """0000.wav, ... and sentences.txt; wavs of an earlier, longer run go."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("[0-9][0-9][0-9][0-9].wav"):
        old.unlink()
    for index, wave in enumerate(waves):
        write_wav(folder / f"{index:04}.wav", wave)
    (folder / SENTENCES).write_text("".join(f"{text}\n" for text in texts), "utf-8")


def references(layers: VoiceLayers, name: str | None) -> tuple[Waves, dict[str, Waves]]:
    """The reference recording of the voice of that name, and those of the others in its folder, by id; of none, and of all there are."""
    listing = layers.look()
    own = None if name is None else listing.find(name)
    there = [voice for voice in listing.voices.values() if own is None or voice.folder == own.folder]
    waves = {voice.id: [load_audio(decode(layers.reference(voice), voice.id))] for voice in there}
    return ([] if own is None else waves.pop(own.id)), waves


def judge_words(report: Report, waves: Waves, texts: list[str], chosen: Iterable[str], tell: Callable[[str], None]) -> None:
    """Word errors and naturalness, into the report and its rows."""
    if "wer" in chosen:
        tell("judging: word errors")
        figure, hearings = judges.word_errors(waves, texts)
        report.figures.append(figure)
        for row, hearing in zip(report.rows, hearings, strict=True):
            row.heard = hearing.heard
    if "mos" in chosen:
        tell("judging: naturalness")
        report.figures.append(judges.naturalness(waves))


def judge_voice(waves: Waves, reference: Waves, rest: dict[str, Waves]) -> list[Figure]:
    """Likeness to the reference, and how much nearer it is than the nearest of the rest; nothing without a reference."""
    if not reference:
        return []
    found, own = judges.embeddings(waves), judges.embeddings(reference)
    figures = [judges.likeness(found, own), judges.likeness_to_mean(found, own)]
    others = {name: judges.likeness(found, judges.embeddings(sounds)).value for name, sounds in rest.items()}
    if others:
        nearest = max(others, key=lambda name: others[name])
        figures.append(Figure(f"similarity to the nearest other, {nearest}", others[nearest], judges.LIKENESS_JUDGE, judges.LIKENESS_SCALE))
        figures.append(
            Figure("margin", figures[0].value - others[nearest], judges.LIKENESS_JUDGE, "similarity less that of the nearest other voice")
        )
    return figures


def judge_reconstruction(
    waves: Waves, originals: Waves, texts: list[str], chosen: Iterable[str], tell: Callable[[str], None]
) -> list[Figure]:
    """Against the originals: STOI and PESQ; and the originals' own words and naturalness, which are the ceiling."""
    figures = []
    for name, function in (("stoi", judges.stoi), ("pesq", judges.pesq)):
        if name in chosen:
            tell(f"judging: {name}")
            figures.append(function(waves, originals))
    ceiling = Report(title="", about={}, figures=[], rows=[ReportRow(text=text) for text in texts])
    judge_words(ceiling, originals, texts, chosen, tell)
    return figures + [Figure(f"{figure.name} of the originals", figure.value, figure.judge, figure.scale) for figure in ceiling.figures]
