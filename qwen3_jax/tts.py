"""The public API: text and a voice -> speech. Everything a user of the library touches first is here.

tts = Qwen3TTS.from_pretrained()  # the small voice that ships; or a folder, or a hub id
tts.generate("Hello there.").save("hello.wav")
tts.generate("Hello there.", voice="makima", temperature=0.5, seed=1)
for pcm in tts.stream("Hello there.", voice="reference.wav", transcript="What the reference says."): ...
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_jax.audio import samples as audio
from qwen3_jax.checkpoint import hub
from qwen3_jax.checkpoint.converted import identity
from qwen3_jax.checkpoint.sharding import check_split, put
from qwen3_jax.codec import DecoderState
from qwen3_jax.engine.inline import Inline
from qwen3_jax.engine.segment import is_whole
from qwen3_jax.model.checks import check_voice
from qwen3_jax.model.decode import prime
from qwen3_jax.model.encode import encode_codes, encode_x_vector
from qwen3_jax.model.model import DTYPES, Model, is_int8, load, read_configs
from qwen3_jax.model.sampling import Draw, Sampling
from qwen3_jax.runtime import compilation
from qwen3_jax.runtime.allocation import give_back
from qwen3_jax.runtime.devices import name_of_place, places_of
from qwen3_jax.shapes import I32
from qwen3_jax.speech.arguments import check_switch, column, sampling_of
from qwen3_jax.speech.part import request_of
from qwen3_jax.speech.prepared import PreparedVoices
from qwen3_jax.speech.prompts import PartPrompts
from qwen3_jax.speech.utterance import Speech, SpeechStream, batch_on, stream
from qwen3_jax.text.prompt import AUTO
from qwen3_jax.text.tokenizer import Tokenizer
from qwen3_jax.voices import choice as voice_choice
from qwen3_jax.voices.choice import Given, VoiceInfo
from qwen3_jax.voices.voice import Voice

FIRST_CHUNK, CHUNK = 1, 4  # frames per compiled call: first sound soon, then fewer calls
WARM_COLUMNS = (256, 512)  # positions that `warmup` compiles for
PREPARED_VOICES = 16  # kept ready for in-context cloning, 5 MB each


class How(Draw, total=False):
    """Arguments of `Qwen3TTS.generate` that a batch has in common."""

    transcript: str | None
    streaming_text: bool | None
    sampling: Sampling | None
    max_frames: int | None
    split: bool
    normalize: bool | None


class Qwen3TTS:
    """A Qwen3-TTS-12Hz checkpoint, ready to speak. Made by ``from_pretrained``."""

    def __init__(
        self, model: Model, tokenizer: Tokenizer | None, folder: Path, voices_dir: str | Path | None = None, name: str | None = None,
        others: Sequence[Model] = (),
    ) -> None:  # fmt: skip
        self.models: tuple[Model, ...] = (model, *others)  # the same weights, on a device each
        self.works_on: Callable[[], int] = lambda: 0  # which of them computes what has no slot: single texts, voices
        self._name = folder.name if name is None else name  # as the caller knows it
        self._choice = voice_choice.of(self, voices_dir)
        self._folder = folder
        self._process = os.getpid()
        self.prepared = PreparedVoices(self._prime, PREPARED_VOICES)
        self.prompts = PartPrompts(lambda: self.model, tokenizer, folder, self.prepared)

    @classmethod
    def from_pretrained(
        cls, path: str | Path = hub.EMBEDDED, *, device: str | None = None, dtype: str | None = None, voices_dir: str | Path | None = None,
        devices: str | Sequence[str] | None = None, tensor_parallel: int = 1,
    ) -> "Qwen3TTS":  # fmt: skip
        """Load a checkpoint.

        Args:
            path: a folder in the published layout, a folder made by ``convert``, a hub id such as
                ``Qwen/Qwen3-TTS-12Hz-0.6B-Base`` (downloaded once into the hub's own cache), or ``embedded``, the small English voice
                that ships.
            device: ``cpu``, ``gpu``, ``tpu``, or one of them with an index (``cuda:1``). Default: JAX's own choice.
            dtype: of talker and predictor: ``float32``, ``bfloat16``, or ``int8``: float32 arithmetic with matrices rounded to int8, a
                scale a row. Default: int8 if the folder was converted to it; else float32 on a CPU, and bfloat16 elsewhere.
            voices_dir: your folder of voices. Default: TTS_VOICES_DIR, else ``voices`` if it exists; the user's and those that ship are
                there too.
            devices: instead of ``device``: ``all``, or names of several of one kind (``cuda:0,cuda:1``, or a list). The weights are read
                once and put on each; a list of texts, and a SpeechService, are spoken by all of them.
            tensor_parallel: devices that one set of the talker's weights is split over. The same codes but for float32 rounding.

        Raises:
            FileNotFoundError: no checkpoint there, and none to be had.
            ValueError: a checkpoint, device or dtype that cannot be used.
        """
        how: dict[str, Any] = {"devices": devices, "tensor_parallel": tensor_parallel}
        return load_for(path, rows=1, device=device, dtype=dtype, voices_dir=voices_dir, **how)

    def __repr__(self) -> str:
        talker = self.model.params["talker"]
        int8 = talker["codec_head"]["weight"].dtype == jnp.int8
        dtype = "int8" if int8 else talker["model"]["norm"]["weight"].dtype  # other matrices may be kept in another (see model.load)
        return f"Qwen3TTS({self._name!r}, {self.model_type}, {', '.join(self.devices)}, {dtype})"

    @property
    def model(self) -> Model:
        """The checkpoint in memory."""
        return self.models[self.works_on()]

    @model.setter
    def model(self, model: Model) -> None:
        at = self.works_on()
        self.models = (*self.models[:at], model, *self.models[at + 1 :])

    @property
    def devices(self) -> tuple[str, ...]:
        """Where its weights are, for each set of them: ``cuda:0``, or ``tpu:0+tpu:1`` where they are split over two devices."""
        return tuple(name_of_place(jax.tree.leaves(model.params)[0]) for model in self.models)

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
        self._check_process()
        if self.model_type != "base":
            raise ValueError(f"a {self.model_type} checkpoint cannot clone voices: load a Base checkpoint")
        check_switch("x_vector_only_mode", x_vector_only_mode, or_none=True)
        if transcript is not None:
            self.prompts.reader(transcript, "transcript").reference(transcript)  # refuse a bad one before any other work
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
        self._check_process()
        check_voice(self.model.config, voice)
        self.prepared.state(voice)

    def _prime(self, codes: I32[np.ndarray, "T K"]) -> DecoderState:
        """Of several devices each puts the one state, which is the host's, where it needs it."""
        state = prime(self.model, codes)
        return state if len(self.models) == 1 else jax.device_get(state)

    @overload
    def generate(
        self,
        text: str,
        *,
        voice: Given = None,
        language: str = AUTO,
        instruct: str | None = None,
        seed: int | None = None,
        **how: Unpack[How],
    ) -> Speech: ...

    @overload
    def generate(
        self, text: list[str] | tuple[str, ...], *, voice: Given | Sequence[Given] = None, language: str | Sequence[str] = AUTO,
        instruct: str | Sequence[str | None] | None = None, seed: int | Sequence[int | None] | None = None, **how: Unpack[How],
    ) -> list[Speech]: ...  # fmt: skip

    def generate(
        self,
        text: str | list[str] | tuple[str, ...],
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
    ) -> Speech | list[Speech]:
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
            seed: 0 to 2^32-1. The same request and seed give the same codes, in float32 alone or in a batch. None: a fresh one.
            sampling: default: the checkpoint's.
            max_frames: 80 ms each, of the whole text. Default: for each part 125 + 25 per text token, at most the checkpoint's
                max_new_tokens.
            split: speak a long text part by part, without a seam. False: as one prompt, as the published package does.
            normalize: read numbers, dates, abbreviations, Markdown, SSML and the like as English words. Default: the checkpoint's choice:
                the voice that ships does, published checkpoints read the text as it stands.
            draw: fields of Sampling by name, such as temperature=0.5 (0: greedy); they go before ``sampling``.

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
        many = isinstance(text, (list, tuple))
        texts = list(text) if many else [text]
        columns = [
            column(value, len(texts), name) if many else [value]
            for name, value in (("voice", voice), ("language", language), ("instruct", instruct), ("seed", seed))
        ]
        rows = zip(texts, *columns, strict=True)
        spoken = [list(self.prompts.of(line, self._chosen(given, transcript), *rest, **how)) for line, given, *rest in rows]
        made = batch_on([self.model] if len(spoken) == 1 else self.models, [request_of(parts, max_frames=max_frames) for parts in spoken])
        return made if many else made[0]

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
            if not is_whole(value) or not 1 <= value <= 64:
                raise ValueError(f"{name} = {value!r}: must be from 1 to 64 frames")
        drawn = sampling_of(self.stream, sampling, draw, Sampling.defaults(self.model.generation))
        how: dict[str, Any] = {"streaming_text": streaming_text, "sampling": drawn, "max_frames": max_frames}
        how |= {"split": split, "normalize": normalize}
        parts = self.prompts.of(text, self._chosen(voice, transcript), language, instruct, seed, **how)
        return stream(self.model, request_of(list(parts), max_frames=max_frames), first_chunk, chunk)

    def warmup(self) -> None:
        """Compile ahead what a stream of up to about 30 s needs at default chunk sizes; seconds to minutes on a cold cache.

        Programs are kept in the user's cache folder, so a later process finds them there.
        """
        self._check_process()
        Inline(self.model, slots=1, first=FIRST_CHUNK, each=CHUNK).device.warm_up(WARM_COLUMNS)
        if self.model_type == "base":
            prime(self.model, np.zeros((1, self.model.config.talker_config.num_code_groups), np.int32))

    def _check_process(self) -> None:
        """Refuse to compute in a forked process: JAX's threads are not there, so it would wait for ever."""
        if os.getpid() != self._process:
            raise RuntimeError(
                f"the model was loaded in process {self._process}, and this one ({os.getpid()}) was forked from it: load the model here, "
                "or start processes with multiprocessing.get_context('spawn')"
            )

    def _chosen(self, given: Given, transcript: str | None = None) -> Voice | str | None:
        """The voice, as `PartPrompts.one` takes it."""
        self._check_process()
        if self.model_type == "base":
            return self._choice.voice(given, transcript)
        if transcript is not None:
            raise ValueError(f"transcript: a {self.model_type} checkpoint cannot clone voices: load a Base checkpoint")
        if given is not None and not isinstance(given, (str, Voice)):
            raise ValueError(f"voice of type {type(given).__name__}: a {self.model_type} checkpoint takes the name of a preset speaker")
        return given


def load_for(
    path: str | Path, *, rows: int | None, device: str | None = None, dtype: str | None = None, voices_dir: str | Path | None = None,
    devices: str | Sequence[str] | None = None, tensor_parallel: int = 1,
) -> Qwen3TTS:  # fmt: skip
    """`Qwen3TTS.from_pretrained`, with the weights kept as batches of so many rows read them.

    Args:
        rows: of more than one (or None, of many) weights are kept in ``dtype``; a single one on a CPU is better served by those of the
            checkpoint, bfloat16 ones under float32 arithmetic.
    """
    compilation.use_persistent_cache()
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype {dtype!r}: use float32, bfloat16 or int8 (float16 overflows in the code predictor)")
    places = places_of(device, devices, tensor_parallel)
    chosen = places[0] if isinstance(places[0], jax.Device) else places[0].devices.flat[0]
    folder = hub.local_folder(path)
    int8 = is_int8(folder)
    if dtype is None:
        dtype = "int8" if int8 else "float32" if chosen.platform == "cpu" else "bfloat16"
    if tensor_parallel > 1:
        if int8 or dtype == "int8":
            raise ValueError(f"tensor_parallel = {tensor_parallel}: weights of int8 are not split over devices; use bfloat16 or float32")
        check_split(read_configs(folder)[0].talker_config, tensor_parallel)
    alone = rows == 1 and tensor_parallel == 1
    stored = None if alone and dtype != "int8" and not int8 else jnp.dtype(dtype)
    model = load(folder, dtype=jnp.dtype("float32" if dtype == "int8" else dtype), device=chosen, stored=stored, lean=True)
    give_back()  # what was read to be converted
    first, *others = [model if place is chosen else model._replace(params=put(model.params, place)) for place in places]
    try:
        tokenizer = Tokenizer.from_folder(folder, model.config)
    except FileNotFoundError:
        tokenizer = None  # such a checkpoint can be verified and measured; `PartPrompts.reader` says what is missing when text comes
    return Qwen3TTS(first, tokenizer, folder, voices_dir, str(path), others)
