"""The public API: text and a voice -> speech. Everything a user of the library touches first is here.

tts = Qwen3TTS.from_pretrained("checkpoint")
voice = tts.create_voice("reference.wav", "What the reference says.")
tts.generate("Hello there.", voice=voice).save("hello.wav")
for pcm in tts.stream("Hello there.", voice=voice): ...
"""

import secrets
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_jax import audio, compilation, hub
from qwen3_jax.checkpoint import identity
from qwen3_jax.checks import check_voice
from qwen3_jax.codec import DecoderState
from qwen3_jax.encode import encode_codes, encode_x_vector
from qwen3_jax.generate import PROMPT_BUCKETS
from qwen3_jax.model import Model, load
from qwen3_jax.prompt import AUTO, CLOSING, ROLE, build, language_id, speaker_name
from qwen3_jax.sampling import Sampling
from qwen3_jax.session import BATCH_BUCKETS, Request, Session, prime, warm_up
from qwen3_jax.speech import Speech, SpeechStream
from qwen3_jax.text import Tokenizer
from qwen3_jax.voice import Voice

FIRST_CHUNK, CHUNK, OFFLINE_CHUNK = 1, 4, 8  # frames per compiled call: first sound soon, then fewer calls
WARM_PROMPTS, WARM_COLUMNS = tuple(rows for rows in PROMPT_BUCKETS if rows <= 192), (128, 256, 512)  # what `warmup` compiles
PREPARED_VOICES = 16  # kept ready for in-context cloning, 5 MB each
FRAMES_PER_TOKEN, SPARE_FRAMES = 25, 125  # default cap on an utterance: 2 s a text token and 10 s on top


class Qwen3TTS:
    """A Qwen3-TTS-12Hz checkpoint, ready to speak. Made by ``from_pretrained``."""

    def __init__(self, model: Model, tokenizer: Tokenizer | None, folder: Path) -> None:
        self.model = model
        self._tokenizer = tokenizer
        self._folder = folder
        # Least recently used first; a state goes with its voice, so that nothing stays of one that nobody holds any more.
        self._prepared: OrderedDict[weakref.ref[Voice], DecoderState] = OrderedDict()
        self._lock = threading.Lock()
        self.prepared_voices = PREPARED_VOICES

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: str | None = None, dtype: str | None = None) -> "Qwen3TTS":
        """Load a checkpoint.

        Args:
            path: a folder in the published layout, a folder made by ``convert``, or a hub id such as
                ``Qwen/Qwen3-TTS-12Hz-0.6B-Base`` (downloaded once into the hub's own cache).
            device: ``cpu``, ``gpu``, ``tpu``, or one of them with an index (``cuda:1``). Default: JAX's own choice.
            dtype: ``float32`` or ``bfloat16`` for talker and predictor. Default: float32 on a CPU, else bfloat16.

        Raises:
            FileNotFoundError: no checkpoint there, and none to be had.
            ValueError: a checkpoint, device or dtype that cannot be used.
        """
        return cls._load(path, device, dtype, several=False)

    @classmethod
    def for_many(cls, path: str | Path, *, device: str | None = None, dtype: str | None = None) -> "Qwen3TTS":
        """`from_pretrained` for many utterances at once: weights are kept in ``dtype``, also where a single one is better served by
        those of the checkpoint (bfloat16 ones under float32 arithmetic, on a CPU)."""
        return cls._load(path, device, dtype, several=True)

    @classmethod
    def _load(cls, path: str | Path, device: str | None, dtype: str | None, *, several: bool) -> "Qwen3TTS":
        compilation.use_persistent_cache()
        chosen = _device(device)
        if dtype is None:
            dtype = "float32" if chosen.platform == "cpu" else "bfloat16"
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype {dtype!r}: use float32 or bfloat16 (float16 overflows in the code predictor)")
        folder = hub.local_folder(path)
        model = load(folder, dtype=jnp.dtype(dtype), device=chosen, stored=jnp.dtype(dtype) if several else None)
        try:
            tokenizer = Tokenizer.from_folder(folder, model.config)
        except FileNotFoundError:
            tokenizer = None  # such a checkpoint can be verified and measured; `_reader` says what is missing when text comes
        return cls(model, tokenizer, folder)

    @property
    def sample_rate(self) -> int:
        """Hz of all audio made."""
        return self.model.codec_config.output_sample_rate

    @property
    def model_type(self) -> str:
        """``base`` (clones voices), ``custom_voice`` (preset speakers) or ``voice_design`` (described in words)."""
        return self.model.config.tts_model_type

    @property
    def languages(self) -> tuple[str, ...]:
        """Names that ``language`` takes, besides ``auto``; any case."""
        return self.model.config.talker_config.languages

    @property
    def fingerprint(self) -> str:
        """What tells this checkpoint from others; voices cloned by one are of no use to another."""
        return identity(self._folder)

    @property
    def speakers(self) -> tuple[str, ...]:
        """Preset speakers; empty but for custom_voice checkpoints."""
        return tuple(sorted(self.model.config.talker_config.spk_id))

    def create_voice(
        self, audio_in: str | Path | tuple[np.ndarray, int], transcript: str | None = None, *, name: str | None = None,
        x_vector_only_mode: bool | None = None,
    ) -> Voice:  # fmt: skip
        """Clone a voice from a recording.

        Args:
            audio_in: a file that soundfile reads, or (samples [F] or [F, channels], rate in Hz). Resampled, mixed to mono.
            transcript: exactly what is said, for in-context cloning; None for x-vector cloning (timbre only).
            name: for people.
            x_vector_only_mode: True, x-vector cloning also where there is a transcript; None: as the checkpoint prefers
                (``generation_config.json``; published ones do not).

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a Base checkpoint; or audio that is silent, too short, too long or not finite.
        """
        if self.model_type != "base":
            raise ValueError(f"a {self.model_type} checkpoint cannot clone voices: load a Base checkpoint")
        if transcript is not None:
            self._reader(transcript, "transcript").reference(transcript)  # refuse a bad one before any other work
        if self.model.generation.x_vector_only_mode if x_vector_only_mode is None else x_vector_only_mode:
            transcript = None
        wave = audio.load_audio(audio_in)
        audio.check_reference(wave)
        x_vector = encode_x_vector(self.model, wave)
        codes = None if transcript is None else encode_codes(self.model, wave)
        if name is None:
            name = "voice" if isinstance(audio_in, tuple) else Path(audio_in).stem
        return Voice(x_vector, codes, transcript, name)

    def prepare(self, voice: Voice) -> None:
        """Do ahead what the first utterance in a voice has to do: decode its reference, which in-context cloning continues.

        Raises:
            ValueError: a voice that this checkpoint cannot speak in.
        """
        check_voice(self.model.config, voice)
        self._codec_state(voice)

    def _codec_state(self, voice: Voice) -> DecoderState | None:
        if voice.codes is None:
            return None
        key = weakref.ref(voice, self._leave)
        with self._lock:  # two utterances in a new voice decode its reference once
            if key not in self._prepared:
                self._prepared[key] = prime(self.model, voice.codes)
            self._prepared.move_to_end(key)
            while len(self._prepared) > self.prepared_voices:
                self._prepared.popitem(last=False)
            return self._prepared[key]

    def _leave(self, voice: "weakref.ref[Voice]") -> None:
        """Without the lock: it is called wherever the last one lets go of a voice."""
        self._prepared.pop(voice, None)

    def generate(
        self,
        text: str | Sequence[str],
        *,
        voice: Voice | str | Sequence[Voice | str | None] | None = None,
        language: str | Sequence[str] = AUTO,
        instruct: str | Sequence[str | None] | None = None,
        streaming_text: bool | None = None,
        seed: int | Sequence[int | None] | None = None,
        sampling: Sampling | None = None,
        max_frames: int | None = None,
    ) -> Any:
        """Speak a text, or a batch of texts.

        Args:
            text: one text, or a sequence; then the other arguments may be sequences of the same length.
            voice: a Voice (Base checkpoints) or a preset speaker's name (custom_voice).
            language: one of ``languages``, or auto.
            instruct: how to speak, in words (voice_design, and custom_voice but for 0.6B).
            streaming_text: feed one text token a frame. Default, as in the published package: Base yes, others no; unless the
                checkpoint's ``generation_config.json`` says ``non_streaming_mode``.
            seed: 0 to 2^32-1. The same request and seed give the same audio, alone or in a batch. None: a fresh one.
            sampling: default: the checkpoint's.
            max_frames: 80 ms each. Default: 125 + 25 per text token, at most the checkpoint's max_new_tokens.

        Returns:
            Speech, or a list of them for a sequence of texts.

        Raises:
            ValueError: bad input; the message names the value, what is allowed and the fix.
            FloatingPointError: what the model computed is NaN or infinite, so that it would be noise: a damaged checkpoint, as a rule.
        """
        if isinstance(text, str):
            return self._speak([self._request(text, voice, language, instruct, streaming_text, seed, sampling, max_frames)])[0]
        columns = [
            _column(value, len(text), name)
            for name, value in (("voice", voice), ("language", language), ("instruct", instruct), ("seed", seed))
        ]
        requests = [
            self._request(line, *row[:3], streaming_text, row[3], sampling, max_frames) for line, *row in zip(text, *columns, strict=True)
        ]
        size = BATCH_BUCKETS[-1]
        return [speech for start in range(0, len(requests), size) for speech in self._speak(requests[start : start + size])]

    def stream(
        self,
        text: str,
        *,
        voice: Voice | str | None = None,
        language: str = AUTO,
        instruct: str | None = None,
        streaming_text: bool | None = None,
        seed: int | None = None,
        sampling: Sampling | None = None,
        max_frames: int | None = None,
        first_chunk: int = FIRST_CHUNK,
        chunk: int = CHUNK,
    ) -> SpeechStream:
        """Speak a text piece by piece: the first ``first_chunk`` frames, then ``chunk`` at a time (80 ms a frame).

        Codes do not depend on the chunking, and samples only in float32 rounding. Other arguments and errors as in ``generate``.
        """
        for name, value in (("first_chunk", first_chunk), ("chunk", chunk)):
            if not 1 <= value <= 64:
                raise ValueError(f"{name} = {value}: must be from 1 to 64 frames")
        request = self._request(text, voice, language, instruct, streaming_text, seed, sampling, max_frames)
        return SpeechStream(Session(self.model, [request]), request.seed, first_chunk, chunk, self.sample_rate)

    def warmup(self) -> None:
        """Compile ahead what a stream of up to about 30 s needs at default chunk sizes; seconds to minutes on a cold cache.

        Programs are kept in the user's cache folder, so a later process finds them there.
        """
        warm_up(self.model, (FIRST_CHUNK, CHUNK), WARM_PROMPTS, WARM_COLUMNS)

    def _speak(self, requests: list[Request]) -> list[Speech]:
        session = Session(self.model, requests)
        pieces: list[list[Any]] = [[] for _ in requests]
        while session.running:
            for row, piece in zip(pieces, session.step(OFFLINE_CHUNK), strict=True):
                row.append(piece)
        return [
            Speech(
                np.concatenate([piece.pcm for piece in row]) if row else np.zeros(0, np.float32),
                self.sample_rate,
                np.concatenate([piece.codes for piece in row]) if row else np.zeros((0, session.books), np.int32),
                reason or "length",
                request.seed,
            )
            for row, reason, request in zip(pieces, session.finish_reasons, requests, strict=True)
        ]

    def _request(
        self,
        text: str,
        voice: Voice | str | None,
        language: str,
        instruct: str | None,
        streaming_text: bool | None,
        seed: int | None,
        sampling: Sampling | None,
        max_frames: int | None,
    ) -> Request:
        config = self.model.config
        cloned, speaker = self._voice(voice)
        if instruct is not None:
            self._check_instruct()
        language_id(config, language, speaker)  # refuse a bad name before any other work
        ids = self._reader(text, "text").assistant(text)
        prompt = build(
            config,
            ids,
            language=language,
            speaker=speaker,
            x_vector=None if cloned is None else cloned.x_vector,
            reference_ids=None
            if cloned is None or cloned.transcript is None
            else self._reader(cloned.transcript, "transcript").reference(cloned.transcript),
            reference_codes=None if cloned is None else cloned.codes,
            instruct_ids=None if instruct is None else self._reader(instruct, "instruct").instruction(instruct),
            streaming_text=self._streams_text() if streaming_text is None else streaming_text,
        )
        most = self.model.generation.max_new_tokens - 1  # the published loop's last token never becomes a frame
        if max_frames is None:
            max_frames = min(most, SPARE_FRAMES + FRAMES_PER_TOKEN * len(ids))
        if not 1 <= max_frames <= most:
            raise ValueError(f"max_frames = {max_frames}: must be from 1 to {most} (the checkpoint's max_new_tokens - 1)")
        seed = secrets.randbits(32) if seed is None else seed
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed = {seed}: must be from 0 to {2**32 - 1}")
        state = None if cloned is None else self._codec_state(cloned)
        return Request(prompt, sampling or Sampling.defaults(self.model.generation), seed, max_frames, state, len(ids) - ROLE - CLOSING)

    def _streams_text(self) -> bool:
        """Unless the caller says."""
        whole = self.model.generation.non_streaming_mode
        return self.model_type == "base" if whole is None else not whole

    def _voice(self, voice: Voice | str | None) -> tuple[Voice | None, str | None]:
        """(cloned voice, preset speaker) as this checkpoint takes them."""
        kind = self.model_type
        if isinstance(voice, Voice):
            if kind != "base":
                raise ValueError(f"a {kind} checkpoint cannot speak in a cloned voice: load a Base checkpoint")
            check_voice(self.model.config, voice)
            return voice, None
        if kind == "base":
            what = "no voice" if voice is None else f"voice {voice!r}"
            raise ValueError(f"{what}: a Base checkpoint speaks in cloned voices; make one with create_voice(audio, transcript)")
        if kind == "voice_design" and voice is not None:
            raise ValueError(f"voice {voice!r}: a voice_design checkpoint takes its voice from instruct; leave voice out")
        if kind == "custom_voice" and voice is None:
            raise ValueError(f"no voice: this checkpoint speaks as one of {', '.join(self.speakers)}")
        return None, None if voice is None else speaker_name(self.model.config, voice)

    def _check_instruct(self) -> None:
        if self.model_type == "base":
            raise ValueError(
                "instruct: a Base checkpoint takes no instruction; leave it out, or load a custom_voice or voice_design checkpoint"
            )
        if self.model.config.tts_model_size == "0b6":
            raise ValueError("instruct: the 0.6B checkpoints were not trained on instructions; leave it out, or load a 1.7B checkpoint")

    def _reader(self, text: str, what: str) -> Tokenizer:
        if not isinstance(text, str):
            raise ValueError(f"{what} of type {type(text).__name__}: must be a string")
        return self._tokenizer or Tokenizer.from_folder(self._folder, self.model.config)


def _device(name: str | None) -> jax.Device:
    if name is None:
        return jax.devices()[0]
    platform, _, index = name.partition(":")
    try:
        found = jax.devices(platform)
        return found[int(index or 0)]
    except (RuntimeError, IndexError, ValueError) as error:
        have = ", ".join(sorted({f"{device.platform}:{device.id}" for device in jax.devices()} | {"cpu:0"}))
        raise ValueError(f"device {name!r} is not to be had: this machine has {have}") from error


def _column(value: Any, rows: int, name: str) -> list[Any]:
    """One value for every row, or one each."""
    if value is None or isinstance(value, (str, int, Voice)):
        return [value] * rows
    if len(value) != rows:
        raise ValueError(f"{name}: {len(value)} values for {rows} texts; give one for all, or one each")
    return list(value)
