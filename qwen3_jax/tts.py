"""The public API: text and a voice -> speech. Everything a user of the library touches first is here.

tts = Qwen3TTS.from_pretrained()  # the small voice that ships; or a folder, or a hub id
tts.generate("Hello there.").save("hello.wav")
tts.generate("Hello there.", voice="makima", temperature=0.5, seed=1)
for pcm in tts.stream("Hello there.", voice="reference.wav", transcript="What the reference says."): ...
"""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_jax import audio, compilation, hub, voice_choice
from qwen3_jax.arguments import column, sampling_of
from qwen3_jax.checkpoint import identity
from qwen3_jax.checks import check_voice
from qwen3_jax.devices import device_of
from qwen3_jax.encode import encode_codes, encode_x_vector
from qwen3_jax.generate import PROMPT_BUCKETS
from qwen3_jax.model import Model, load
from qwen3_jax.prepared import PreparedVoices
from qwen3_jax.prompt import AUTO, CLOSING, ROLE, build, language_id, speaker_name
from qwen3_jax.sampling import Draw, Sampling
from qwen3_jax.session import Request, prime, warm_up
from qwen3_jax.speech import SpeechStream, speak_batch
from qwen3_jax.text.parts import Part, parts_of, whole
from qwen3_jax.text.tokenizer import Tokenizer
from qwen3_jax.voice import Voice
from qwen3_jax.voice_choice import Given, VoiceInfo

FIRST_CHUNK, CHUNK = 1, 4  # frames per compiled call: first sound soon, then fewer calls
WARM_PROMPTS, WARM_COLUMNS = tuple(rows for rows in PROMPT_BUCKETS if rows <= 192), (128, 256, 512)  # what `warmup` compiles
PREPARED_VOICES = 16  # kept ready for in-context cloning, 5 MB each
FRAMES_PER_TOKEN, SPARE_FRAMES = 25, 125  # default cap on an utterance: 2 s a text token and 10 s on top


class Qwen3TTS:
    """A Qwen3-TTS-12Hz checkpoint, ready to speak. Made by ``from_pretrained``."""

    def __init__(
        self, model: Model, tokenizer: Tokenizer | None, folder: Path, voices_dir: str | Path | None = None, name: str | None = None
    ) -> None:
        self.model = model
        self._name = folder.name if name is None else name  # as the caller knows it
        self._choice = voice_choice.of(self, voices_dir)
        self._tokenizer = tokenizer
        self._folder = folder
        self.prepared = PreparedVoices(lambda codes: prime(self.model, codes), PREPARED_VOICES)

    @classmethod
    def from_pretrained(
        cls, path: str | Path = hub.EMBEDDED, *, device: str | None = None, dtype: str | None = None, voices_dir: str | Path | None = None
    ) -> "Qwen3TTS":
        """Load a checkpoint.

        Args:
            path: a folder in the published layout, a folder made by ``convert``, a hub id such as
                ``Qwen/Qwen3-TTS-12Hz-0.6B-Base`` (downloaded once into the hub's own cache), or ``embedded``, the small English voice
                that ships.
            device: ``cpu``, ``gpu``, ``tpu``, or one of them with an index (``cuda:1``). Default: JAX's own choice.
            dtype: ``float32`` or ``bfloat16`` for talker and predictor. Default: float32 on a CPU, else bfloat16.
            voices_dir: your folder of voices. Default: TTS_VOICES_DIR, else ``voices`` if it exists; the user's and those that ship are
                there too.

        Raises:
            FileNotFoundError: no checkpoint there, and none to be had.
            ValueError: a checkpoint, device or dtype that cannot be used.
        """
        return load_for(path, rows=1, device=device, dtype=dtype, voices_dir=voices_dir)

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(self.model.params["talker"])
        [device] = leaves[0].devices()
        dtype = next(leaf.dtype for leaf in leaves if leaf.ndim == 1)  # norms: matrices may be kept in another (see model.load)
        return f"Qwen3TTS({self._name!r}, {self.model_type}, {device.platform}:{device.id}, {dtype})"

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

    @property
    def voices(self) -> tuple[VoiceInfo, ...]:
        """What ``voice`` takes by name: the voices of the folders, or the preset speakers."""
        if self.model_type == "base":
            return self._choice.known()
        return tuple(VoiceInfo(name, "", "a preset speaker") for name in self.speakers)

    def create_voice(
        self, audio_in: str | Path | tuple[np.ndarray, int], transcript: str | None = None, *, name: str | None = None,
        x_vector_only_mode: bool | None = None,
    ) -> Voice:  # fmt: skip
        """Clone a voice from a recording.

        Args:
            audio_in: a file that soundfile, or PyAV where it is installed, reads, or (samples [F] or [F, channels], rate in Hz).
                3 to 30 s; resampled, mixed to mono.
            transcript: exactly what is said, for in-context cloning; None for x-vector cloning (timbre only).
            name: for people.
            x_vector_only_mode: True, x-vector cloning also where there is a transcript; None: as the checkpoint prefers
                (``generation_config.json``; published ones do not).

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a Base checkpoint; or audio that is silent, clipped, too short, too long or not finite.
        """
        if self.model_type != "base":
            raise ValueError(f"a {self.model_type} checkpoint cannot clone voices: load a Base checkpoint")
        if transcript is not None:
            self._reader(transcript, "transcript").reference(transcript)  # refuse a bad one before any other work
        if self.model.generation.x_vector_only_mode if x_vector_only_mode is None else x_vector_only_mode:
            transcript = None
        wave = audio.load_reference(audio_in)
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
        self.prepared.state(voice)

    def generate(
        self,
        text: str | Sequence[str],
        *,
        voice: Given | Sequence[Given] = None,
        transcript: str | None = None,
        language: str | Sequence[str] = AUTO,
        instruct: str | Sequence[str | None] | None = None,
        streaming_text: bool | None = None,
        seed: int | Sequence[int | None] | None = None,
        sampling: Sampling | None = None,
        max_frames: int | None = None,
        split: bool = True,
        normalize: bool | None = None,
        **draw: Unpack[Draw],
    ) -> Any:
        """Speak a text of any length, or a batch of texts.

        Args:
            text: one text, or a list of texts; then voice, language, instruct and seed may be lists of the same length.
            voice: of a Base checkpoint: a Voice, a name of ``voices``, a voice's folder, a recording, or a file of ``Voice.save``. Default:
                makima, else the first voice. Of a custom_voice checkpoint: one of ``speakers``.
            transcript: what the recording given as voice says. Default: the words in a .txt beside it.
            language: one of ``languages``, an ISO code such as en or en-US, or auto.
            instruct: how to speak, in words (voice_design, and custom_voice but for 0.6B).
            streaming_text: feed one text token a frame. Default, as in the published package: Base yes, others no; unless the
                checkpoint's ``generation_config.json`` says ``non_streaming_mode``.
            seed: 0 to 2^32-1. The same request and seed give the same audio, alone or in a batch. None: a fresh one.
            sampling: default: the checkpoint's.
            max_frames: 80 ms each, of the whole text. Default: for each sentence 125 + 25 per text token, at most the checkpoint's
                max_new_tokens.
            split: speak a long text part by part, without a seam. False: as one prompt, as the published package does.
            normalize: read numbers, dates, abbreviations, Markdown, SSML and the like as English words. Default: the checkpoint's choice:
                the voice that ships does, published checkpoints read the text as it stands.
            draw: fields of Sampling by name, such as temperature=0.5; they go before ``sampling``.

        Returns:
            Speech, or a list of them for a list of texts.

        Raises:
            ValueError: bad input; the message names the value, what is allowed and the fix.
            TypeError: an argument that there is not; the message names the nearest one.
            FloatingPointError: what the model computed is NaN or infinite, so that it would be noise: a damaged checkpoint, as a rule.
        """
        drawn = sampling_of(self.generate, sampling, draw, Sampling.defaults(self.model.generation))
        how: dict[str, Any] = {"streaming_text": streaming_text, "sampling": drawn, "max_frames": max_frames}
        how |= {"split": split, "normalize": normalize}
        if not isinstance(text, (list, tuple)):
            sentences = self._sentences(text, self._chosen(voice, transcript), language, instruct, seed, **how)
            return speak_batch(self.model, [sentences], max_frames)[0]
        columns = [
            column(value, len(text), name)
            for name, value in (("voice", voice), ("language", language), ("instruct", instruct), ("seed", seed))
        ]
        texts = [
            self._sentences(line, self._chosen(given, transcript), *rest, **how) for line, given, *rest in zip(text, *columns, strict=True)
        ]
        return speak_batch(self.model, texts, max_frames)

    def stream(
        self,
        text: str,
        *,
        voice: Given = None,
        transcript: str | None = None,
        language: str = AUTO,
        instruct: str | None = None,
        streaming_text: bool | None = None,
        seed: int | None = None,
        sampling: Sampling | None = None,
        max_frames: int | None = None,
        split: bool = True,
        normalize: bool | None = None,
        first_chunk: int = FIRST_CHUNK,
        chunk: int = CHUNK,
        **draw: Unpack[Draw],
    ) -> SpeechStream:
        """Speak a text piece by piece: the first ``first_chunk`` frames, then ``chunk`` at a time (80 ms a frame).

        Codes do not depend on the chunking, and samples only in float32 rounding. Other arguments and errors as in ``generate``.
        """
        for name, value in (("first_chunk", first_chunk), ("chunk", chunk)):
            if not 1 <= value <= 64:
                raise ValueError(f"{name} = {value}: must be from 1 to 64 frames")
        drawn = sampling_of(self.stream, sampling, draw, Sampling.defaults(self.model.generation))
        how: dict[str, Any] = {"streaming_text": streaming_text, "sampling": drawn, "max_frames": max_frames}
        how |= {"split": split, "normalize": normalize}
        sentences = self._sentences(text, self._chosen(voice, transcript), language, instruct, seed, **how)
        return SpeechStream(self.model, sentences, max_frames, first_chunk, chunk)

    def warmup(self) -> None:
        """Compile ahead what a stream of up to about 30 s needs at default chunk sizes; seconds to minutes on a cold cache.

        Programs are kept in the user's cache folder, so a later process finds them there.
        """
        warm_up(self.model, (FIRST_CHUNK, CHUNK), WARM_PROMPTS, WARM_COLUMNS)

    def _chosen(self, given: Given, transcript: str | None = None) -> Voice | str | None:
        """The voice, as `_request` takes it."""
        if self.model_type == "base":
            return self._choice.voice(given, transcript)
        if transcript is not None:
            raise ValueError(f"transcript: a {self.model_type} checkpoint cannot clone voices: load a Base checkpoint")
        if given is not None and not isinstance(given, (str, Voice)):
            raise ValueError(f"voice of type {type(given).__name__}: a {self.model_type} checkpoint takes the name of a preset speaker")
        return given

    def _sentences(
        self,
        text: str,
        voice: Voice | str | None,
        language: str,
        instruct: str | None,
        seed: int | None,
        *,
        split: bool,
        normalize: bool | None,
        max_frames: int | None,
        **how: Any,
    ) -> list[Request]:
        """One request a sentence, or for as many as are spoken together."""
        self._reader(text, "text")
        if not isinstance(language, str):
            raise ValueError(f"language of type {type(language).__name__}: give one of {', '.join(self.languages)}, or auto")
        most = self.model.generation.max_new_tokens - 1
        if split and max_frames is not None and max_frames > most:
            max_frames = most  # of each sentence; of the whole text whoever speaks them sees to it
        sentences: list[Request] = []
        normalize = self.model.generation.normalize if normalize is None else normalize
        parts = parts_of(text, language, normalize=normalize) if split else [Part(whole(text, normalize=normalize), 0.0)]
        for number, (part, pause) in enumerate(parts):
            request = self._request(part, voice, language, instruct, seed=seed, max_frames=max_frames, **how)
            seed = request.seed  # one for all
            sentences.append(request._replace(segment=number, pause=pause))
        return sentences

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
        """A text that is spoken at once, as one prompt."""
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
        if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
            raise ValueError(f"seed = {seed!r}: must be a whole number from 0 to {2**32 - 1}")
        state = None if cloned is None else self.prepared.state(cloned)
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


def load_for(
    path: str | Path, *, rows: int | None, device: str | None = None, dtype: str | None = None, voices_dir: str | Path | None = None
) -> Qwen3TTS:
    """`Qwen3TTS.from_pretrained`, with the weights kept as batches of so many rows read them.

    Args:
        rows: of more than one (or None, of many) weights are kept in ``dtype``; a single one on a CPU is better served by those of the
            checkpoint, bfloat16 ones under float32 arithmetic.
    """
    compilation.use_persistent_cache()
    chosen = device_of(device)
    if dtype is None:
        dtype = "float32" if chosen.platform == "cpu" else "bfloat16"
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype {dtype!r}: use float32 or bfloat16 (float16 overflows in the code predictor)")
    folder = hub.local_folder(path)
    model = load(folder, dtype=jnp.dtype(dtype), device=chosen, stored=None if rows == 1 else jnp.dtype(dtype))
    try:
        tokenizer = Tokenizer.from_folder(folder, model.config)
    except FileNotFoundError:
        tokenizer = None  # such a checkpoint can be verified and measured; `_reader` says what is missing when text comes
    return Qwen3TTS(model, tokenizer, folder, voices_dir, str(path))
