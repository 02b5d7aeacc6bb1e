"""The scheduler's Device on JAX: host numbers in, compiled calls out, one State owned. Every array of the batch is here.

Calls return at once, but for ``collect``: the device works them off in order, while the host goes on.
"""

from collections import deque
from typing import Any

import jax
import numpy as np

from qwen3_jax.codec.decoder import DecoderState, check_state, init_state
from qwen3_jax.engine import programs
from qwen3_jax.engine.plan import plan, require
from qwen3_jax.engine.requests import Request
from qwen3_jax.engine.slots import NEVER, Opening, Outcome, Text
from qwen3_jax.generate import PromptRows
from qwen3_jax.model import Model
from qwen3_jax.prompt import Prompt, check_prompt
from qwen3_jax.sampling import Draws, Rules, Sampling

PIECES = (16, 64)  # rows of a prompt read at once: the first for prompts of no more, the second for all others
COLUMNS, FRAMES = 1024, 4  # defaults; 1024 positions are 80 s less the prompt


class JaxDevice:
    """All slots on one accelerator, or on the CPU.

    Args:
        model: the checkpoint, where it is to be computed.
        slots: rows of the batch.
        columns: positions of a slot, prompt and frames; a multiple of 64.
        frames: most frames of a launch.

    Raises:
        ValueError: sizes that cannot be used, or do not fit into memory (see plan.py).
    """

    piece = PIECES[-1]

    def __init__(self, model: Model, *, slots: int, columns: int = COLUMNS, frames: int = FRAMES) -> None:
        for name, value, least in (("slots", slots, 1), ("columns", columns, self.piece), ("frames", frames, 1)):
            if value < least:
                raise ValueError(f"{name} = {value}: must be at least {least}")
        if columns % self.piece:
            raise ValueError(f"columns = {columns}: must be a multiple of {self.piece}")
        self.plan = plan(model, slots, columns)
        require(self.plan)
        self.slots, self.columns, self.frames = slots, columns, frames
        self.model = model
        self._graphs = model.graphs
        self._talker = programs.for_rows(model.params["talker"], slots)
        self._decoder = model.params["codec"]["decoder"]
        self._pad = np.int32(model.config.tts_pad_token_id)
        self._width = model.config.talker_config.hidden_size
        self._state = self._start()
        self._place = jax.tree.leaves(self._decoder)[0].sharding
        self._fresh = jax.device_put(init_state(model.codec_config.decoder_config, 1), self._place)
        self._pieces: list[deque[tuple[PromptRows, int]]] = [deque() for _ in range(slots)]

    def check(self, request: Request) -> None:
        """Refuse a request that does not fit, or that would make NaN.

        Raises:
            ValueError: a segment without room for its prompt and one frame a token at least; ids, codes or an x-vector that the checkpoint
                does not have; a codec state that is not one row of its codec, or not finite.
        """
        for segment in request.segments:
            check_prompt(self.model.config, segment.prompt)
            self.check_room(segment.prompt, len(segment.prompt.trailing))
        if request.codec_state is not None:
            check_state(self.model.codec_config.decoder_config, request.codec_state)

    def check_room(self, prompt: Prompt, tokens: int) -> None:
        """Raises ValueError if a prompt and its trailing tokens do not fit into a slot."""
        rows = len(prompt.text)
        if rows + tokens + 1 > self.columns:
            raise ValueError(
                f"a prompt of {rows} rows and {tokens} text tokens: a slot has {self.columns} positions; split the text, shorten the "
                f"reference, or start the engine with more columns"
            )

    def open(self, slot: int, opening: Opening) -> list[int]:
        watch, text = opening.watch, opening.text
        hold, repeats = (NEVER, NEVER) if watch is None else (watch.hold, watch.repeats)
        limits = programs.Limits(np.int32(hold), np.int32(repeats), np.int32(text.overdue), np.int32(text.overdue_end))
        # A voice may have been prepared on the device that a CPU has taken over from.
        codec = self._fresh if opening.codec_state is None else jax.device_put(opening.codec_state, self._place)
        self._state = programs.open_row(
            self._state,
            np.int32(slot),
            programs.Opening(
                seed=np.uint32(opening.seed),
                segment=np.int32(opening.segment),
                rules=_rules(opening.sampling),
                limit=np.int32(text.limit),
                text=self._padded(text.ids),
                text_length=np.int32(len(text.ids)),
                limits=limits,
                codec=None if opening.carry else codec,
            ),
        )
        self._pieces[slot] = deque(self._cut(opening.prompt))
        return [rows.text.shape[1] for rows, _ in self._pieces[slot]]

    def read(self, slot: int) -> None:
        rows, at = self._pieces[slot].popleft()
        self._state = programs.read(self._graphs.talker, self._talker, self._state, np.int32(slot), rows, np.int32(at), first=at == 0)

    def write_text(self, slot: int, text: Text) -> None:
        numbers = (np.int32(value) for value in (len(text.ids), text.limit, text.overdue, text.overdue_end))
        self._state = programs.write_text(self._state, np.int32(slot), self._padded(text.ids), *numbers)

    def rewind(self, slot: int, seed: int, segment: int, attempt: int) -> None:
        self._state = programs.rewind(self._state, np.int32(slot), np.uint32(seed), np.int32(segment), np.int32(attempt))

    def keep(self, slot: int) -> DecoderState:
        return programs.keep(self._state, np.int32(slot))

    def launch(self, quotas: list[int], limit: int) -> programs.Made:
        self._state, made = programs.step(
            self._graphs.talker, self._talker, self._graphs.codec_decoder, self._decoder, self._state,
            np.array(quotas, np.int32), np.int32(limit), self._pad, size=self.frames,
        )  # fmt: skip
        for array in made:
            array.copy_to_host_async()
        return made

    def collect(self, launched: programs.Made) -> Outcome:
        return Outcome(*(np.asarray(array) for array in launched))

    @property
    def on_cpu(self) -> bool:
        """Whether it is this machine's CPU."""
        return all(device.platform == "cpu" for device in self._place.device_set)

    def wait(self) -> None:
        """Until all that was asked of it is done."""
        jax.block_until_ready(self._state)

    def warm_up(self) -> None:
        """Compile every program, by running it on silence; afterwards nobody owns a slot. Seconds to a minute on a cold cache."""
        books = self.model.config.talker_config.num_code_groups
        for rows in (*PIECES, min(2 * PIECES[-1], self.columns)):
            prompt = Prompt(
                np.full(rows, -1, np.int32), np.full((rows, books), -1, np.int32), np.zeros(rows, bool), None, np.zeros(0, np.int32)
            )
            text = Text([], 1, NEVER, NEVER)
            for carry in (False, True):
                pieces = self.open(0, Opening(prompt, text, Sampling(), 0, 0, None, None, carry))
            for _ in pieces:
                self.read(0)
        self.write_text(0, text)
        self.rewind(0, 0, 0, 1)
        self.keep(0)
        self.collect(self.launch([1] * self.slots, 1))
        self._state = self._start()

    def _start(self) -> programs.State:
        graphs = self._graphs
        return programs.start(graphs.talker, self._talker, graphs.codec_decoder, self._decoder, slots=self.slots, columns=self.columns)

    def _padded(self, ids: list[int]) -> np.ndarray:
        if len(ids) > self.columns:
            raise ValueError(f"{len(ids)} text tokens: a slot has {self.columns} positions; end the sentence sooner")
        return np.array(ids + [-1] * (self.columns - len(ids)), np.int32)

    def _cut(self, prompt: Prompt) -> list[tuple[PromptRows, int]]:
        """A prompt's pieces of one size, which depends on its length only: never on the load."""
        length = len(prompt.text)
        size = PIECES[0] if length <= PIECES[0] else PIECES[-1]
        x_vector = np.zeros(self._width, np.float32) if prompt.x_vector is None else prompt.x_vector
        nothing = np.zeros((1, 0), np.int32)

        def piece(array: np.ndarray, at: int, fill: int | bool) -> np.ndarray:
            part = array[at : at + size]
            return np.concatenate([part, np.full((size - len(part), *part.shape[1:]), fill, part.dtype)])[None]

        return [
            (
                PromptRows(
                    piece(prompt.text, at, -1), piece(prompt.codes, at, -1), piece(prompt.speaker, at, False), x_vector[None],
                    np.array([length], np.int32), nothing, np.zeros(1, np.int32),
                ),
                at,
            )
            for at in range(0, length, size)
        ]  # fmt: skip


def _rules(sampling: Sampling) -> Rules:
    """sampling.rules for one row, in NumPy: no transfer per number."""

    def draws(prefix: str, switch: str) -> Any:
        return Draws(
            np.array([getattr(sampling, switch)]),
            np.array([getattr(sampling, prefix + "temperature")], np.float32),
            np.array([getattr(sampling, prefix + "top_k")], np.int32),
            np.array([getattr(sampling, prefix + "top_p")], np.float32),
        )

    return Rules(draws("", "do_sample"), draws("subtalker_", "subtalker_dosample"), np.array([sampling.repetition_penalty], np.float32))
