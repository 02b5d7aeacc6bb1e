"""Chatterbox-Turbo's four ONNX parts as a Synthesiser (extra ``chatterbox``): a text -> one piece of pcm at 24 kHz.

    recording -> speech_encoder -> prefix embeddings, prompt tokens, speaker's embedding and features
    text ids -> embed_tokens -> after the prefix -> language_model, token by token -> conditional_decoder -> wave

Source: the inference loop that is published with ``ResembleAI/chatterbox-turbo-ONNX`` (greedy, repetition penalty 1.2, three silence tokens
at the end). Parts are told apart by file name, and a part's outputs by their order, which is the published one.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
import sentencex
from tokenizers import Tokenizer

from qwen3_jax.audio import samples as audio
from qwen3_jax.checkpoint.converted import digest_files
from qwen3_jax.checkpoint.hub import local_folder
from qwen3_jax.runtime.devices import several
from qwen3_jax.runtime.extras import needed
from qwen3_jax.shapes import F32
from qwen3_jax.voices.layers import decode
from server.engines.base import OutOfMemory, Refused, SpeechRequest
from server.engines.thread import Synthesis
from server.settings import Settings

MODEL_ID = "ResembleAI/chatterbox-turbo-ONNX"
START, STOP, SILENCE, SILENCES = 6561, 6562, 4299, 3
MAX_TOKENS, PENALTY = 1024, 1.2
MAX_CHARACTERS = 300  # of one pass: about 20 s of speech, half of what MAX_TOKENS allow
WINDOW = 1000  # characters in which sentences are looked for at a time: the work of sentencex grows with their square
PARTS = ("speech_encoder", "embed_tokens", "language_model", "conditional_decoder")
LANGUAGES = ("English",)


class SpeakerPrompt(NamedTuple):
    """What the model knows of a voice; the speech encoder's outputs."""

    prefix: F32[np.ndarray, "B T H"]
    prompt_tokens: np.ndarray  # int64 [B T]
    embedding: F32[np.ndarray, "B _"]
    features: F32[np.ndarray, "B _ _"]


class ChatterboxSynthesiser:
    """See ``server.engines.thread.Synthesiser``.

    Args:
        folder: the parts (in it, or in ``onnx/``) and ``tokenizer.json``.
        providers: onnxruntime's, best first.

    Raises:
        FileNotFoundError: a part is missing; names it.
    """

    sample_rate = 24000
    streaming = False
    languages = LANGUAGES
    presets = None

    def __init__(self, folder: Path, providers: list[str]) -> None:
        import onnxruntime

        self.fingerprint = digest_files(folder)
        self._encoder, self._embed, self._model, self._decoder = (
            onnxruntime.InferenceSession(str(part_of(folder, name)), providers=providers) for name in PARTS
        )
        if not (folder / "tokenizer.json").is_file():
            raise FileNotFoundError(f"{folder} has no tokenizer.json: copy the published one into it")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._past = [
            (one.name, np.float16 if one.type == "tensor(float16)" else np.float32, one.shape) for one in self._model.get_inputs()[3:]
        ]

    def clone(self, wav: bytes, transcript: str | None, name: str) -> SpeakerPrompt:
        """The transcript is of no use to this model."""
        try:
            wave = audio.load_reference(decode(wav, name))
        except ValueError as error:
            raise Refused(str(error)) from error
        return SpeakerPrompt(*self._run(self._encoder, {"audio_values": wave[None]}))

    def to_bytes(self, prompt: SpeakerPrompt) -> bytes:
        return safetensors.numpy.save({name: np.ascontiguousarray(value) for name, value in prompt._asdict().items()})

    def from_bytes(self, data: bytes) -> SpeakerPrompt:
        try:
            return SpeakerPrompt(**safetensors.numpy.load(data))
        except (safetensors.SafetensorError, TypeError) as error:
            raise ValueError(f"not what Chatterbox-Turbo keeps of a voice: {error}") from error

    def speak(self, request: SpeechRequest, prompt: SpeakerPrompt, text: str) -> Synthesis:
        if request.language not in (*LANGUAGES, "Auto"):
            raise Refused(f"language {request.language!r}: Chatterbox-Turbo speaks English")
        return OnePiece(partial(self._wave, request, prompt), self.split_for_passes(text))

    def warm_up(self, request: SpeechRequest, prompt: Any) -> None:
        for _ in self.speak(request, prompt, request.text):
            pass

    def clear(self) -> None:
        """onnxruntime gives no cache to clear."""

    def split(self, text: str) -> list[str]:
        """Sentences that make up the text; one without end is cut after WINDOW characters."""
        found: list[str] = []
        while len(text) > WINDOW:
            *whole, begun = sentencex.segment("en", text[:WINDOW])
            found += whole or [begun]
            text = text[sum(map(len, whole or [begun])) :]
        return [*found, *sentencex.segment("en", text)] or [text]

    def split_for_passes(self, text: str) -> list[str]:
        """Sentences, put together up to MAX_CHARACTERS."""
        passes: list[str] = []
        for sentence in self.split(text):
            if passes and len(passes[-1]) + len(sentence) <= MAX_CHARACTERS:
                passes[-1] += sentence
            elif sentence.strip():
                passes.append(sentence)
        return passes

    def _wave(self, request: SpeechRequest, speaker: SpeakerPrompt, text: str, speech: "OnePiece") -> tuple[F32[np.ndarray, " F"], str]:
        """One pass. Returns its samples, and how its tokens ended."""
        tokens, reason = self._tokens(request, speaker, text, speech)
        row = [*speaker.prompt_tokens[0].tolist(), *tokens, *[SILENCE] * SILENCES]
        feeds = {"speech_tokens": np.array([row], np.int64), "speaker_embeddings": speaker.embedding, "speaker_features": speaker.features}
        return np.asarray(self._run(self._decoder, feeds)[0], np.float32).reshape(-1), reason

    def _tokens(self, request: SpeechRequest, speaker: SpeakerPrompt, text: str, speech: "OnePiece") -> tuple[list[int], str]:
        draw = np.random.default_rng(request.seed)
        ids = np.array([self._tokenizer.encode(text.strip()).ids], np.int64)
        rows = np.concatenate([speaker.prefix, self._run(self._embed, {"input_ids": ids})[0]], axis=1)
        past = {name: np.zeros([1, shape[1], 0, shape[3]], dtype) for name, dtype, shape in self._past}
        made, length = [START], 0
        for _ in range(MAX_TOKENS):
            if speech.cancelled:
                break
            length += rows.shape[1]
            positions = np.arange(length - rows.shape[1], length, dtype=np.int64)[None]
            feeds = {"inputs_embeds": rows, "attention_mask": np.ones((1, length), np.int64), "position_ids": positions, **past}
            logits, *present = self._run(self._model, feeds)
            past = dict(zip(past, present, strict=True))
            token = choose(np.asarray(logits[0, -1], np.float64), made, request.draw, draw)
            if token == STOP:
                return made[1:], "eos"
            made.append(token)
            rows = self._run(self._embed, {"input_ids": np.array([[token]], np.int64)})[0]
        return made[1:], "cancelled" if speech.cancelled else "length"

    def _run(self, session: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        try:
            made: list[np.ndarray] = session.run(None, feeds)
        except Exception as error:  # onnxruntime's errors have no common class but this
            raise OutOfMemory(str(error)) if "memory" in str(error).lower() else error from error
        return made


class OnePiece:
    """An utterance that comes whole: a batch-only model's stream."""

    def __init__(self, make: Any, passes: list[str]) -> None:
        self._make, self._passes = make, passes
        self.cancelled = False
        self.finish_reason: str | None = None

    def __iter__(self) -> Iterator[F32[np.ndarray, " F"]]:
        waves = []
        for text in self._passes:
            wave, self.finish_reason = self._make(text, self)
            if self.cancelled:
                self.finish_reason = "cancelled"
                return
            waves.append(wave)
        yield np.concatenate(waves)

    def cancel(self) -> None:
        self.cancelled = True


def choose(logits: np.ndarray, made: list[int], wanted: dict[str, Any], draw: np.random.Generator) -> int:
    """The next token: the likeliest, as published; with a temperature above 0, drawn by it, top-k and top-p."""
    seen = np.unique(np.array(made, np.int64))
    logits = logits.copy()
    logits[seen] = np.where(logits[seen] < 0, logits[seen] * PENALTY, logits[seen] / PENALTY)
    if not wanted.get("temperature"):
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")[: wanted.get("top_k") or len(logits)]
    weights = np.exp((logits[order] - logits[order[0]]) / wanted["temperature"])
    weights /= weights.sum()
    kept = np.cumsum(weights) - weights < wanted.get("top_p", 1.0)  # the likeliest always stays
    return int(draw.choice(order[kept], p=weights[kept] / weights[kept].sum()))


def part_of(folder: Path, name: str) -> Path:
    """The file of a part. Raises FileNotFoundError."""
    for place in (folder / "onnx" / f"{name}.onnx", folder / f"{name}.onnx"):
        if place.is_file():
            return place
    raise FileNotFoundError(f"{folder} has no {name}.onnx, nor onnx/{name}.onnx: Chatterbox-Turbo is made of {', '.join(PARTS)}")


def load(settings: Settings, device: str | None) -> ChatterboxSynthesiser:
    """The configured parts. Raises FileNotFoundError, MissingExtra, or ValueError for several devices."""
    onnxruntime = needed("onnxruntime", "chatterbox", "TTS_ENGINE=chatterbox")
    if several(settings.device) or settings.tensor_parallel > 1:
        raise ValueError(f"TTS_DEVICE = {settings.device!r}: chatterbox speaks on one device: use cpu or cuda, and no TTS_TENSOR_PARALLEL")
    name = MODEL_ID if settings.model_id == type(settings).model_fields["model_id"].default else settings.model_id
    files = (*(f"onnx/{part}.onnx*" for part in PARTS), "tokenizer.json")
    try:
        folder = local_folder(name, files=files)
    except FileNotFoundError as error:
        there = f"TTS_ENGINE=chatterbox: {name} is no folder here, and the hub does not give it"
        raise FileNotFoundError(f"{there}: place {', '.join(files)} in a folder, and set TTS_MODEL_ID to that") from error
    chosen, there = device or settings.device or "cuda", onnxruntime.get_available_providers()
    wanted = ["CPUExecutionProvider"] if chosen == "cpu" else ["CUDAExecutionProvider", "CPUExecutionProvider"]
    return ChatterboxSynthesiser(folder, [provider for provider in wanted if provider in there])
