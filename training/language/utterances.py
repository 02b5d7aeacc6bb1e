"""A corpus, its latents and a tokenizer -> utterances (text ids, frames, voice, what is said when), and batches of them for objective.py.

A batch depends on the seed and the step only. Its rows are of one form: text that comes a token a frame, or all of it beforehand;
language named or left open; with others of the same voice before it, as in-context cloning has it, or without. The speaker row is
made from a window of the same voice's speech, anywhere in it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from qwen3_jax.audio.samples import mel_spectrogram
from qwen3_jax.model.config import ModelConfig
from qwen3_jax.shapes import F32, I32, Integer
from qwen3_jax.text.prompt import AUTO, CLOSING, REFERENCE_CLOSING, ROLE, build
from qwen3_jax.text.tokenizer import Tokenizer
from training.corpus.shards import ManifestLine
from training.corpus.teachers import UNIT
from training.language.corruption import CodeCorruption
from training.language.objective import LanguageBatch, LanguageExample, assemble, make_example
from training.latents import phonemes
from training.latents.quantiser import FRAME, Latents
from training.latents.voice_streams import SAMPLE_RATE, VoiceStream, chosen_lines, load_streams

LENGTHS = (40, 48, 56, 64, 80, 128)  # rows of prompt and frames; one trace each
SHORT = 64
CONTEXT = 256  # rows of an utterance that goes on from others
LANGUAGE = "english"
REFERENCE = 3 * SAMPLE_RATE  # samples at most
_CONTROL = 11  # rows of a prompt that are neither text nor reference, at most
_SHORTEST = SAMPLE_RATE  # of a reference, where the voice has as much
_HOP = 256  # samples between frames of the speaker encoder's mel
_WHOLE = 9600  # samples to which `data.padded` pads
_READINGS = 3  # of a voice of few hours, at most
_BRIEF = 20  # frames of a short phrase, at most
_GONE_WRONG = 0.4  # share of utterances whose earlier frames the talker is told a little wrong


class TrainingUtterance(msgspec.Struct, frozen=True):
    """What is said, as the product's tokenizer has it: ids [T] of the whole turn; and how: codes [N K].

    ``voice`` is an index. ``said`` [N+1 2]: of each frame and of the end, the first token of the text that is said in it and the first
    one after; the end has the token after the last one, which is tts_eos. None if the teacher's words are not the text's.
    """

    voice: int
    ids: I32[np.ndarray, "..."]
    codes: I32[np.ndarray, "..."]
    said: Any  # int32 [N+1 2] or None
    latent: Any = None  # [N D], whitened
    words: Any = None  # {token of the text that ends a word: the word's phonemes}
    timing: Any = None  # int8 [N 4]: the phoneme in the middle of each quarter of a frame


class UtteranceCorpus(msgspec.Struct):
    """Utterances, and each voice's waves, int16 [F], for references."""

    utterances: list[TrainingUtterance]
    waves: list[np.ndarray]


class RowLayout(msgspec.Struct, frozen=True):
    """How the rows of a batch are laid out."""

    streaming_text: bool
    language: str
    in_context: bool = False


def load(corpus: Path, run: Path, hours: float, latents: Latents, tokenizer: Tokenizer) -> UtteranceCorpus:
    """The first ``hours`` of each voice, in memory; references come from their first half hour.

    A voice of so few hours that they fit into ``hours`` twice or three times is read as often, each time with its frames' borders
    elsewhere: the same speech in other codes.

    Raises:
        FileNotFoundError: there is no corpus.
    """
    utterances: list[TrainingUtterance] = []
    waves: dict[str, np.ndarray] = {}
    for again in range(_READINGS):
        lines = chosen_lines(corpus, hours, again)
        for stream in load_streams(corpus, run, hours, latents, speech=0.5, again=again):
            waves.setdefault(stream.voice, stream.wave)
            utterances += _of_stream(list(waves).index(stream.voice), stream, lines[stream.voice], latents, tokenizer)
    return UtteranceCorpus(utterances, list(waves.values()))


def _of_stream(
    voice: int, stream: VoiceStream, lines: list[ManifestLine], latents: Latents, tokenizer: Tokenizer
) -> Iterator[TrainingUtterance]:
    spread = latents.spread[: latents.components].astype(np.float16)
    start = 0
    for line in lines:
        frames = -(-line.samples // FRAME)
        ids = tokenizer.assistant(line.text)
        pieces = tokenizer.pieces(ids[ROLE:-CLOSING])
        said, words = spoken_tokens(line, pieces, frames), word_phonemes(line.text, line.phonemes, pieces)
        whole = slice(start, start + frames)
        codes, latent = stream.codes[whole].astype(np.int32), stream.main[whole] / spread
        yield TrainingUtterance(voice, ids, codes, said, latent, words, phonemes.quarters(line.phonemes, line.durations, frames))
        start += -(-line.samples // _WHOLE) * _WHOLE // FRAME


def spoken_tokens(line: ManifestLine, pieces: list[str], frames: int) -> Integer[np.ndarray, "{frames}+1 2"] | None:
    """`TrainingUtterance.said`, by the teacher's durations: words by their phonemes, and the pieces of a word by their letters."""
    starts, clock, before = [], 0, " "
    last = 0
    for symbol, units in zip(line.phonemes.replace("_", " "), line.durations, strict=True):
        if symbol != " " and before == " ":
            starts.append(clock)
        clock += units
        last = clock if symbol != " " else last
        before = symbol
    if len(starts) != len(line.text.split()):
        return None
    bounds = np.array([*starts, last], np.float64) * UNIT / FRAME  # of the words, in frames; a pause belongs to the word before it
    ends, place, word, letters = [], 0.0, -1, 0
    sizes = [len(word) for word in line.text.split()]
    for piece in pieces:
        text = piece.replace("\u0120", " ")
        if text.startswith(" ") or word < 0:
            word, letters = word + 1, 0
        letters += len(text.strip())
        place = bounds[word] + (bounds[word + 1] - bounds[word]) * min(letters / sizes[word], 1.0)
        ends.append(place)
    ends.append(np.inf)  # the end of speech
    begins = np.array([0.0, *ends[:-1]])
    at = np.arange(frames + 1)
    first = np.searchsorted(ends, at, side="right")
    after = np.maximum(np.searchsorted(begins, at + 1, side="left"), first + 1)
    first[-1], after[-1] = len(pieces), len(pieces) + 1
    return np.stack([first, after], axis=1).astype(np.int32)


def word_phonemes(text: str, said: str, pieces: list[str]) -> dict[int, list[int]]:
    """`TrainingUtterance.words`: of each word's last piece, the numbers of its phonemes without stress; none if the teacher's words are
    not the text's."""
    words = said.replace("_", " ").split()
    if len(words) != len(text.split()):
        return {}
    begins = [place for place, piece in enumerate(pieces) if place == 0 or piece.startswith("\u0120")]
    ends = [*(place - 1 for place in begins[1:]), len(pieces) - 1]
    known = [[1 + phonemes.PHONES.index(symbol) for symbol in word if symbol in phonemes.PHONES] for word in words]
    return dict(zip(ends, known, strict=False))


def without_leading_silence(utterance: TrainingUtterance) -> TrainingUtterance:
    """Without the silent frames before the speech, but for the last of them, which plans what the next one says. Teachers pause for a
    third of a second there, and a listener waits for it."""
    if utterance.timing is None or not utterance.timing.any():
        return utterance
    skip = max(0, int(utterance.timing.any(axis=1).argmax()) - 1)
    cut = {name: None if (told := getattr(utterance, name)) is None else told[skip:] for name in ("codes", "said", "latent", "timing")}
    return msgspec.structs.replace(utterance, **cut)


def joined(first: TrainingUtterance, second: TrainingUtterance) -> TrainingUtterance:
    """Two of a voice, one after the other."""
    body = len(first.ids) - CLOSING
    own = body - ROLE
    told = first.said is not None and second.said is not None
    known = {own + token: phonemes for token, phonemes in (second.words or {}).items()}
    return TrainingUtterance(
        first.voice,
        np.concatenate([first.ids[:body], second.ids[ROLE:]]),
        np.concatenate([first.codes, second.codes]),
        np.concatenate([first.said[:-1], second.said + own]) if told else None,
        None if first.latent is None else np.concatenate([first.latent, second.latent]),
        (first.words or {}) | known,
        None if first.timing is None else np.concatenate([first.timing, second.timing]),
    )


def rows_of(
    config: ModelConfig, utterance: TrainingUtterance, form: RowLayout, reference: TrainingUtterance | None = None
) -> LanguageExample:
    """An utterance's rows and labels; the x-vector is filled in on the device. The frames of a reference are learnt, too."""
    before = np.zeros(0, np.int32) if reference is None else reference.ids[: len(reference.ids) - CLOSING + REFERENCE_CLOSING]
    prompt = build(
        config,
        utterance.ids,
        language=form.language,
        x_vector=np.zeros(config.talker_config.hidden_size, np.float32),
        reference_ids=None if reference is None else before,
        reference_codes=None if reference is None else reference.codes,
        streaming_text=form.streaming_text,
    )
    whole = utterance if reference is None else joined(reference, utterance)
    own = len(whole.ids) - ROLE - CLOSING
    start = len(prompt.text) - (0 if reference is None else len(reference.codes))  # after the row of codec_bos
    first = start - 1 if form.streaming_text else start - own - 2  # the row of the text's first token
    spoken = None if whole.said is None else whole.said + first
    sounds = {first + token: phonemes for token, phonemes in (whole.words or {}).items()}
    text = np.concatenate([prompt.text[start:], prompt.trailing])
    begun = prompt._replace(text=prompt.text[:start], codes=prompt.codes[:start], speaker=prompt.speaker[:start], trailing=text)
    return make_example(begun, whole.codes, config, spoken, whole.latent, sounds, whole.timing)


def reference_mel(wave: np.ndarray, noise: np.random.Generator) -> F32[np.ndarray, "..."]:
    """Mel of 1 to 3 s from anywhere in a voice's speech."""
    most = min(REFERENCE, len(wave))
    length = int(noise.integers(min(_SHORTEST, most), most + 1))
    start = int(noise.integers(len(wave) - length + 1))
    return mel_spectrogram(wave[start : start + length].astype(np.float32) / 32768)


def size_of(utterance: TrainingUtterance, *, streaming_text: bool) -> int:
    """Rows that it takes at most, without a reference."""
    return _CONTROL + len(utterance.codes) + (0 if streaming_text else len(utterance.ids) - ROLE - CLOSING)


def batches(
    config: ModelConfig, speech: UtteranceCorpus, *, rows: int, picks: int, seed: int,
    missteps: CodeCorruption | None = None, glances: int = 0,
    streaming: float = 0.3, in_context: float = 0.15, hidden: float = 0.2, evenness: float = 0.25,
    brief: float = 4.0,
) -> Callable[[int], LanguageBatch]:  # fmt: skip
    """A step's batch. Too long utterances are left out. Where all of the text is there, speech begins `without_leading_silence`.

    Args:
        config: the checkpoint's.
        speech: to draw from.
        rows: positions of a batch, so there are rows / 40 of the shortest utterances in one, or rows / 128 of the longest.
        picks: frames of a batch that the predictor sees.
        seed: with the step, it says all.
        missteps: what the predictor is told of some frames is a little wrong, and so are all frames of some utterances and book 0 of
            references; None: all true.
        glances: frames of which the predictor reads book 0 only.
        streaming: share of batches whose text comes a token a frame.
        in_context: share of batches that go on from others of the same voice, as many as fit.
        hidden: up to this share of an utterance's frames, drawn for each utterance, the talker is not told, so that it reads the text and
            does not learn utterances by heart.
        evenness: 0, voices count as much as they have; 1, alike. (At 0.5 a voice of 384 utterances was learnt by heart.)
        brief: how much more often an utterance of no more than 1.6 s is drawn. What people type first is as short as that.

    Raises:
        ValueError: no utterance is short enough, in one of the two forms of the text.
    """
    count = np.bincount([utterance.voice for utterance in speech.utterances], minlength=len(speech.waves))
    weight = np.array([float(count[utterance.voice]) ** -evenness for utterance in speech.utterances])
    weight *= np.where([len(utterance.codes) <= _BRIEF for utterance in speech.utterances], brief, 1.0)
    groups = {}
    for streaming_text in (False, True):
        sizes = np.array([size_of(utterance, streaming_text=streaming_text) for utterance in speech.utterances])
        fits = np.searchsorted(LENGTHS, sizes)
        groups[streaming_text] = [(np.flatnonzero(fits == place), length) for place, length in enumerate(LENGTHS) if (fits == place).any()]
    if not all(groups.values()):
        raise ValueError(f"no utterance of the corpus fits into {LENGTHS[-1]} rows: make shorter ones")
    short = np.concatenate([group for group, length in groups[False] if length <= SHORT] or [np.zeros(0, np.int64)])
    same_voice = [short[[speech.utterances[number].voice == voice for number in short]] for voice in range(len(speech.waves))]

    def batch(step: int) -> LanguageBatch:
        noise = np.random.default_rng([seed, step])
        streams, named, follows = noise.random(3) < (streaming, 0.5, in_context)
        form = RowLayout(bool(streams), LANGUAGE if named else AUTO, bool(follows) and len(short) > 0)
        fitting = groups[form.streaming_text]
        share = np.array([weight[group].sum() for group, _ in fitting])
        group, length = fitting[noise.choice(len(fitting), p=share / share.sum())]
        if form.in_context:
            group, length = short, CONTEXT
        chosen = [speech.utterances[number] for number in noise.choice(group, rows // length, p=weight[group] / weight[group].sum())]
        if not form.streaming_text:  # else the pause is the time in which the text comes
            chosen = [without_leading_silence(utterance) for utterance in chosen]
        taught = []
        for utterance in chosen:
            reference = before(utterance, noise) if form.in_context else None
            one = rows_of(config, utterance, form, reference)
            frames = np.flatnonzero(np.arange(len(one.labels)) > one.start)  # rows that hold a frame to be learnt
            if missteps is not None and noise.random() < _GONE_WRONG:
                at = frames - 1  # the row that was to find it
                one.rows.codes[frames] = missteps.frames(one.labels[at], one.latent[at], noise)
            if missteps is not None and reference is not None:
                first = frames[: len(reference.codes)]
                quarters = one.timing[first - 1, : phonemes.QUARTERS]
                one.rows.codes[first, 0] = missteps.heard(np.maximum(quarters, 0), one.labels[first - 1, 0], noise)
            one.rows.codes[frames[noise.random(len(frames)) < hidden * noise.random()]] = -1
            taught.append(one)
        mels = [reference_mel(speech.waves[utterance.voice], noise) for utterance in chosen]
        return assemble(taught, mels, length, REFERENCE // _HOP, picks, noise, missteps, glances)

    def before(utterance: TrainingUtterance, noise: np.random.Generator) -> TrainingUtterance:
        others = same_voice[utterance.voice]
        room = CONTEXT - size_of(utterance, streaming_text=False)
        found = speech.utterances[noise.choice(others)]
        while noise.random() < 0.75:
            longer = joined(speech.utterances[noise.choice(others)], found)
            if len(longer.ids) + len(longer.codes) > room:
                break
            found = longer
        return found

    return batch
