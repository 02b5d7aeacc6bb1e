"""A text, a voice and how to speak -> prompts, one for each part of the text; everything that is said wrong is refused here."""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qwen3_jax.engine.segment import is_whole
from qwen3_jax.model.checks import check_voice
from qwen3_jax.model.model import Model
from qwen3_jax.model.sampling import Sampling
from qwen3_jax.speech.arguments import check_switch
from qwen3_jax.speech.part import SpokenPart
from qwen3_jax.speech.prepared import PreparedVoices
from qwen3_jax.text.parts import Part, parts_of, whole
from qwen3_jax.text.prompt import CLOSING, ROLE, build, language_id, speaker_name
from qwen3_jax.text.tokenizer import Tokenizer
from qwen3_jax.voices.voice import Voice

FRAMES_PER_TOKEN, SPARE_FRAMES = 25, 125  # default cap on an utterance: 2 s a text token and 10 s on top


class PartPrompts:
    """Prompts of what a checkpoint is asked to say.

    Args:
        model: the checkpoint, as it is whenever something is asked.
        tokenizer: its own; None: its folder has none, and `reader` says what is missing.
        folder: where it lies.
        prepared: where the references of voices have been decoded.
    """

    def __init__(self, model: Callable[[], Model], tokenizer: Tokenizer | None, folder: Path, prepared: PreparedVoices) -> None:
        self._model, self._tokenizer, self._folder, self._prepared = model, tokenizer, folder, prepared

    def of(
        self, text: str, voice: Voice | str | None, language: str, instruct: str | None, seed: int | None,
        *, split: bool, normalize: bool | None, max_frames: int | None, **how: Any,
    ) -> Iterator[SpokenPart]:  # fmt: skip
        """One for each part of the text, or for all of it; each a few ms of work.

        Arguments and errors as in ``Qwen3TTS.generate``. The errors of what does not depend on the part come with the first one.
        """
        check_switch("split", split)
        check_switch("normalize", normalize, or_none=True)
        self.reader(text, "text")
        languages = self._model().config.talker_config.languages
        if not isinstance(language, str):
            known = ", ".join(languages)  # type: ignore[unreachable]  # a caller without types
            raise ValueError(f"language of type {type(language).__name__}: give one of {known}, or auto")
        most = self._model().generation.max_new_tokens - 1
        if split and is_whole(max_frames) and max_frames > most:
            max_frames = most  # of each part; `Request.max_frames` bounds the whole text
        normalize = self._model().generation.normalize if normalize is None else normalize
        reading: Any = {"normalize": normalize, "languages": languages}
        parts = parts_of(text, language, **reading) if split else [Part(whole(text, **reading), 0.0)]
        for part, pause in parts:
            spoken = self.one(part, voice, language, instruct, seed=seed, max_frames=max_frames, **how)
            seed = spoken.seed  # one for all
            yield spoken._replace(pause=pause)

    def one(
        self, text: str, voice: Voice | str | None, language: str, instruct: str | None, *, streaming_text: bool | None,
        seed: int | None, sampling: Sampling | None, max_frames: int | None,
    ) -> SpokenPart:  # fmt: skip
        """A text that is spoken at once, as one prompt."""
        check_switch("streaming_text", streaming_text, or_none=True)
        config = self._model().config
        cloned, speaker = self._voice(voice)
        if instruct is not None:
            self._check_instruct()
        language_id(config, language, speaker)  # refuse a bad name before any other work
        ids = self.reader(text, "text").assistant(text)
        prompt = build(
            config,
            ids,
            language=language,
            speaker=speaker,
            x_vector=None if cloned is None else cloned.x_vector,
            reference_ids=None
            if cloned is None or cloned.transcript is None
            else self.reader(cloned.transcript, "transcript").reference(cloned.transcript),
            reference_codes=None if cloned is None else cloned.codes,
            instruct_ids=None if instruct is None else self.reader(instruct, "instruct").instruction(instruct),
            streaming_text=self._streams_text() if streaming_text is None else streaming_text,
        )
        most = self._model().generation.max_new_tokens - 1  # the published loop's last token never becomes a frame
        if max_frames is None:
            max_frames = min(most, SPARE_FRAMES + FRAMES_PER_TOKEN * len(ids))
        if not is_whole(max_frames) or not 1 <= max_frames <= most:
            raise ValueError(f"max_frames = {max_frames!r}: must be from 1 to {most} (the checkpoint's max_new_tokens - 1)")
        seed = secrets.randbits(32) if seed is None else seed
        if not is_whole(seed) or not 0 <= seed < 2**32:
            raise ValueError(f"seed = {seed!r}: must be a whole number from 0 to {2**32 - 1}")
        state = None if cloned is None else self._prepared.state(cloned)
        return SpokenPart(
            prompt, sampling or Sampling.defaults(self._model().generation), int(seed), int(max_frames), state, len(ids) - ROLE - CLOSING
        )

    def _streams_text(self) -> bool:
        """Unless the caller says."""
        preferred = self._model().generation.streaming_text
        return self._model().config.tts_model_type == "base" if preferred is None else preferred

    def _voice(self, voice: Voice | str | None) -> tuple[Voice | None, str | None]:
        """(cloned voice, preset speaker) as this checkpoint takes them."""
        kind = self._model().config.tts_model_type
        if isinstance(voice, Voice):
            if kind != "base":
                raise ValueError(f"a {kind} checkpoint cannot speak in a cloned voice: load a Base checkpoint")
            check_voice(self._model().config, voice)
            return voice, None
        if kind == "base":
            what = "no voice" if voice is None else f"voice {voice!r}"
            raise ValueError(f"{what}: a Base checkpoint speaks in cloned voices; make one with create_voice(audio, transcript)")
        if kind == "voice_design" and voice is not None:
            raise ValueError(f"voice {voice!r}: a voice_design checkpoint takes its voice from instruct; leave voice out")
        if kind == "custom_voice" and voice is None:
            raise ValueError(f"no voice: this checkpoint speaks as one of {', '.join(sorted(self._model().config.talker_config.spk_id))}")
        return None, None if voice is None else speaker_name(self._model().config, voice)

    def _check_instruct(self) -> None:
        if self._model().config.tts_model_type == "base":
            raise ValueError(
                "instruct: a Base checkpoint takes no instruction; leave it out, or load a custom_voice or voice_design checkpoint"
            )
        if self._model().config.tts_model_size == "0b6":
            raise ValueError("instruct: the 0.6B checkpoints were not trained on instructions; leave it out, or load a 1.7B checkpoint")

    def reader(self, text: str, what: str) -> Tokenizer:
        if not isinstance(text, str):
            raise ValueError(f"{what} of type {type(text).__name__}: must be a string")
        return self._tokenizer or Tokenizer.from_folder(self._folder, self._model().config)

    def ids(self, text: str) -> list[int]:
        """A text's token ids, without those of the turn around it. Errors as in `one`."""
        return self.reader(text, "text").assistant(text)[ROLE:-CLOSING].tolist()
