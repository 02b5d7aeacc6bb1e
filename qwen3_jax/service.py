"""Texts and voices in, many utterances at once out: the front of the engine that knows text. Everything here is on the host.

    service = SpeechService("checkpoint", slots=10)
    for pcm in service.speak("A text of any length.", voice=voice): ...
    live = service.open(voice=voice)
    live.write("Words as they "); live.write("come, "); live.finish()      # and meanwhile: for pcm in live: ...
    async for packet in consumer.packets(service.speak(..., notify=consumer.notify).handle, limit=30): ...
    text = service.live_text(..., notify=consumer.notify); text.write("As open, "); text.finish()      # and text.handle, as above

Long text is spoken part by part (text/split.py) as one utterance: one voice, the codec's state carried over, so that there is no seam. The
same text gives the same audio whether it comes at once or in pieces.
"""

import logging
import threading
from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from qwen3_jax.engine import Engine, Handle, JaxDevice, Options, Pool, Request, Segment, Watch
from qwen3_jax.engine.device import COLUMNS, FRAMES
from qwen3_jax.engine.engine import Build
from qwen3_jax.engine.requests import Notify, Priority
from qwen3_jax.model.model import Model
from qwen3_jax.model.sampling import Sampling
from qwen3_jax.runtime import compilation
from qwen3_jax.speech.arguments import check_switch
from qwen3_jax.speech.part import SpokenPart, request_of
from qwen3_jax.speech.utterance import SpeechStream
from qwen3_jax.text.parts import Part, Parts, parts_of
from qwen3_jax.text.prompt import AUTO
from qwen3_jax.text.scripts import Letters
from qwen3_jax.text.split import settled
from qwen3_jax.tts import Qwen3TTS, load_for
from qwen3_jax.voices.voice import Voice

SLOTS, TIMEOUT = 10, 60.0  # a wait for the next piece of audio, in seconds
WATCH = Watch()
WAIT = partial(Handle.next, timeout=TIMEOUT)
log = logging.getLogger(__name__)


def _warm(device: JaxDevice, alone: bool = True) -> None:
    """Compile, and on a CPU take all programs from the cache then: a step of ten slots takes 40 to 46 ms as compiled, 35 to 38 as read.
    Not where other devices of this process use them."""
    before = compilation.compiled()
    device.warm_up()
    if alone and device.on_cpu and compilation.compiled() > before:
        jax.clear_caches()
        device.warm_up()


class LiveText:
    """The text of an engine's request, as it is written: ``write``, ``write``, ..., ``finish``, from one thread at a time.

    Only text whose tokens are settled is spoken, and no frame is made without text: speech waits for it. In-context cloning lays its
    first words beside the reference's frames, so there it begins when so much text is there.
    """

    def __init__(self, service: "SpeechService", handle: Handle, how: dict[str, Any]) -> None:
        self.handle = handle
        self.texts: list[str] = []  # its parts as they are read, those that are complete
        self._service, self._how = service, how
        self._parts = Parts(how["language"], normalize=service.normalizes(how.pop("normalize")))
        self._letters = Letters(service.tts.languages)  # of the parts that are complete
        self._ready = 0  # characters of the open part whose tokens are settled
        self._given = -1  # tokens of the open part that the engine has; -1: it has no segment yet

    def write(self, text: str) -> None:
        """More text. The work grows with its length, and with that of the part that it belongs to, which is short.

        Raises:
            ValueError: text that cannot be spoken. The request goes on no further: end it.
        """
        for part in self._parts.feed(text):
            self._end_part(part)
        ready = settled(self._parts.rest)
        if ready > self._ready:
            self._ready = ready
            self._go_on(self._parts.rest[:ready])

    def finish(self) -> None:
        """No more text comes. Errors as in ``write``."""
        for part in self._parts.finish():
            self._end_part(part)
        self.handle.finish()

    def _part(self, text: str) -> SpokenPart:
        return self._service.part(text, seed=self.handle.request.seed, **self._how)

    def _go_on(self, text: str) -> None:
        """The engine gets what it does not have of a text whose tokens are settled; of one in letters that no language of the model's has,
        not before there are more words: it may be a quotation, or is refused at the end of its part."""
        if self._letters.mostly_foreign(text):
            return
        if self._given < 0:
            spoken = self._part(text)
            if len(spoken.prompt.trailing):  # its last id, tts_eos, does not stand
                prompt = spoken.prompt._replace(trailing=spoken.prompt.trailing[:-1])
                self.handle.add(Segment(prompt, spoken.max_frames, open=True, pause=self._parts.pause))
                self._given = spoken.tokens
        else:
            ids = self._service.ids(text)
            self.handle.append(ids[self._given :])
            self._given = len(ids)

    def _end_part(self, part: Part) -> None:
        self._letters.add(part.text)
        self._letters.check()
        self.texts.append(part.text)
        spoken = self._part(part.text)._replace(pause=part.pause)
        if self._given < 0:
            self.handle.add(spoken.segment)
        else:
            new = spoken.tokens - self._given + 1  # and tts_eos
            self.handle.append(spoken.prompt.trailing.tolist()[-new:])
            self.handle.end_segment(spoken.max_frames, spoken.tokens)
        self._ready, self._given = 0, -1


class LiveSpeech(SpeechStream):
    """A stream whose text is still being written (``LiveText``)."""

    def __init__(self, text: LiveText, books: int, sample_rate: int) -> None:
        super().__init__(text.handle, books, sample_rate, WAIT)
        self._text = text

    def write(self, text: str) -> None:
        """More text; see ``LiveText.write``. Text that cannot be spoken cancels the utterance, and raises ValueError."""
        try:
            self._text.write(text)
        except ValueError:
            self.cancel()
            raise

    def finish(self) -> None:
        """No more text comes. Errors as in ``write``."""
        try:
            self._text.finish()
        except ValueError:
            self.cancel()
            raise


class SpeechService:
    """A checkpoint that speaks for many at once.

    Args:
        tts: the checkpoint, or what ``Qwen3TTS.from_pretrained`` takes: then its weights are kept as so many slots read them.
        slots: utterances that are spoken at a time on each device; more wait in line.
        columns: positions of a slot (prompt, and a frame each): the longest part of a text. A multiple of 64.
        frames: most frames of a step.
        options: how the slots share the device.
        watch: when speech without end is taken back; None: never.
        warm: compile every program now.
        dtype, devices, tensor_parallel: as of ``Qwen3TTS.from_pretrained``, where ``tts`` is a path. A checkpoint that lies on several
            devices is spoken by all of them: each has its slots, and all have one line (engine/pool.py).

    Raises:
        ValueError: sizes that cannot be used or do not fit into memory; devices of a checkpoint that is loaded already.
    """

    def __init__(
        self, tts: Qwen3TTS | str | Path, *, slots: int = SLOTS, columns: int = COLUMNS, frames: int = FRAMES,
        options: Options | None = None, watch: Watch | None = WATCH, warm: bool = True, dtype: str | None = None,
        devices: str | Sequence[str] | None = None, tensor_parallel: int = 1,
    ) -> None:  # fmt: skip
        if isinstance(tts, (str, Path)):
            tts = load_for(tts, rows=slots, dtype=dtype, devices=devices, tensor_parallel=tensor_parallel)
        elif dtype is not None:
            raise ValueError(f"dtype {dtype!r}: the checkpoint is loaded already; give its folder, or the dtype to from_pretrained")
        elif devices is not None or tensor_parallel > 1:
            raise ValueError(f"devices = {devices!r} of a checkpoint that is loaded already: give them to from_pretrained")
        self.tts, self._watch = tts, watch
        self.books = tts.model.config.talker_config.num_code_groups
        self._lock = threading.Lock()

        alone = len(tts.models) == 1

        def build(model: Model, slots: int, on_cpu: bool) -> JaxDevice:
            if on_cpu:
                model = model._replace(params=jax.device_put(model.params, jax.devices("cpu")[0]))
            device = JaxDevice(model, slots=slots, columns=columns, frames=frames, pooled=not alone)
            log.info("memory: %s", device.plan)
            if warm:
                _warm(device, alone)
            return device

        builds: dict[str, Build] = {name: partial(build, model) for name, model in zip(tts.devices, tts.models, strict=True)}
        self.engine: Engine | Pool
        if alone:
            [(name, one)] = builds.items()
            self.engine = Engine(one, slots=slots, options=options, name=name)
        else:
            self.engine = pool = Pool(builds, slots=slots, options=options)
            tts.works_on = lambda: pool.first_running

    def speak(
        self, text: str, *, voice: Voice | str | None = None, language: str = AUTO, instruct: str | None = None,
        streaming_text: bool | None = None, seed: int | None = None, sampling: Sampling | None = None, max_frames: int | None = None,
        normalize: bool | None = None,
        priority: Priority = "normal", deadline: float | None = None, notify: Notify | None = None, owner: Hashable = None,
    ) -> SpeechStream:  # fmt: skip
        """Queue a text of any length.

        Args:
            text, voice, language, instruct, streaming_text, seed, sampling, normalize: as in ``Qwen3TTS.generate``.
            max_frames: of each part of the text.
            priority, deadline, notify, owner: see engine.Request.

        Raises:
            ValueError: as ``Qwen3TTS.generate``, or a part that does not fit into a slot.
            EngineError: too many wait, or the engine is closed.
        """
        parts = self.parts(
            text, voice=voice, language=language, instruct=instruct, streaming_text=streaming_text, seed=seed, sampling=sampling,
            max_frames=max_frames, normalize=normalize,
        )  # fmt: skip
        handle = self.submit(list(parts), priority=priority, deadline=deadline, notify=notify, owner=owner)
        return SpeechStream(handle, self.books, self.tts.sample_rate, WAIT)

    def parts(
        self, text: str, *, voice: Voice | str | None = None, language: str = AUTO, instruct: str | None = None,
        streaming_text: bool | None = None, seed: int | None = None, sampling: Sampling | None = None, max_frames: int | None = None,
        normalize: bool | None = None,
    ) -> Iterator[SpokenPart]:  # fmt: skip
        """``speak`` in steps, for a caller that has others to serve as well: the parts of a text, for ``submit``, each a few ms of work.

        Arguments and errors as in ``speak``. A token that is reserved for the model's use is refused before the first part.
        """
        if not self.normalizes(normalize):  # words have none
            self.check(text)
        how = {"voice": voice, "instruct": instruct, "streaming_text": streaming_text, "sampling": sampling, "max_frames": max_frames}
        for part in parts_of(text, language, normalize=self.normalizes(normalize), languages=self.tts.languages):
            spoken = self.part(part.text, language=language, seed=seed, **how)
            seed = spoken.seed  # one for all parts
            yield spoken._replace(pause=part.pause)

    def submit(
        self, parts: list[SpokenPart], *, priority: Priority = "normal", deadline: float | None = None, notify: Notify | None = None,
        owner: Hashable = None, open: bool = False,
    ) -> Handle:  # fmt: skip
        """Queue the parts of one text. Arguments and errors as in ``speak``.

        Args:
            open: the first of its parts; ``handle.add(part.segment)`` brings the others, and ``handle.finish()`` ends them.
        """
        request = request_of(parts, watch=self._watch, priority=priority, deadline=deadline, notify=notify, owner=owner, open=open)
        return self.engine.submit(request)

    def open(
        self, *, voice: Voice | str | None = None, language: str = AUTO, instruct: str | None = None, seed: int | None = None,
        sampling: Sampling | None = None, normalize: bool | None = None, priority: Priority = "normal", deadline: float | None = None,
        notify: Notify | None = None, owner: Hashable = None,
    ) -> LiveSpeech:  # fmt: skip
        """An utterance whose text will be written piece by piece. Arguments and errors as in ``speak``."""
        text = self.live_text(
            voice=voice, language=language, instruct=instruct, seed=seed, sampling=sampling, normalize=normalize, priority=priority,
            deadline=deadline, notify=notify, owner=owner,
        )  # fmt: skip
        return LiveSpeech(text, self.books, self.tts.sample_rate)

    def live_text(
        self, *, voice: Voice | str | None = None, language: str = AUTO, instruct: str | None = None, seed: int | None = None,
        sampling: Sampling | None = None, normalize: bool | None = None, priority: Priority = "normal", deadline: float | None = None,
        notify: Notify | None = None, owner: Hashable = None,
    ) -> LiveText:  # fmt: skip
        """Queue a request whose text will be written piece by piece. Arguments and errors as in ``speak``."""
        how: dict[str, Any] = {"voice": voice, "language": language, "instruct": instruct, "streaming_text": True, "sampling": sampling}
        first = self.part("a", seed=seed, **how)  # refuses a bad voice, language or seed now
        request = Request(
            (),
            first.sampling,
            first.seed,
            first.codec_state,
            priority=priority,
            deadline=deadline,
            open=True,
            watch=self._watch,
            notify=notify,
            owner=owner,
        )
        return LiveText(self, self.engine.submit(request), how | {"normalize": normalize})

    def part(self, text: str, **how: Any) -> SpokenPart:
        """A part's prompt, as Qwen3TTS lays it out."""
        how = {"seed": None, "max_frames": None} | how
        return self.tts.prompts.one(text, **(how | {"voice": self.tts._chosen(how["voice"])}))._replace(text=text)

    def check(self, text: str) -> None:
        """Raises ValueError if a text has what no part of it may have, as ``Qwen3TTS.generate`` does."""
        self.tts.prompts.reader(text, "text").check(text)

    def ids(self, text: str) -> list[int]:
        """A text's token ids, without those of the turn around it. Errors as in ``Qwen3TTS.generate``."""
        return self.tts.prompts.ids(text)

    def normalizes(self, wanted: bool | None) -> bool:
        """Whether a text is read as words; None: as the checkpoint has it."""
        check_switch("normalize", wanted, or_none=True)
        return self.tts.model.generation.normalize if wanted is None else wanted

    def close(self, grace: float = 0.0) -> None:
        """Let running utterances finish for ``grace`` seconds at most, then end."""
        self.engine.close(grace)

    def __enter__(self) -> "SpeechService":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
