"""The scheduler's Device on JAX: host numbers in, compiled calls out, one batch owned. Every array of the batch is here.

Calls return at once, but for ``collect``: the device works them off in order, while the host goes on.

The batch has a row for each slot that speaks, and grows and shrinks with them in the sizes of ``rows``: so a lone voice costs what it
costs alone. A prompt is read into a state of one row, which takes its place in the batch when all of it is read. So nothing but a step,
and what moves rows, is compiled for each size. The KV caches grow in the same way, in the sizes of ``columns``.
"""

import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_jax.codec.decoder import DecoderState, check_state, init_state
from qwen3_jax.engine import programs
from qwen3_jax.engine.batch import Batch
from qwen3_jax.engine.pieces import columns_for, cut, lengths_that_need, silence
from qwen3_jax.engine.plan import plan, require
from qwen3_jax.engine.requests import Request
from qwen3_jax.engine.slots import NEVER, Opening, Outcome, Text
from qwen3_jax.model.decode import decode
from qwen3_jax.model.frame import PromptRows
from qwen3_jax.model.model import Model
from qwen3_jax.model.sampling import Sampling, rules
from qwen3_jax.text.prompt import Prompt, check_prompt

PIECES = (16, 64)  # rows of a prompt read at once: the first for prompts of no more, the second for all others
COLUMNS, FRAMES = 1024, 4  # defaults; 1024 positions are 80 s less the prompt
SHRINKS = 4  # launches in a row for which a smaller batch would do, before it shrinks


def sizes_up_to(slots: int) -> tuple[int, ...]:
    """1, 2, 4, 8, ... and ``slots``."""
    return (*(1 << power for power in range(slots.bit_length()) if 1 << power < slots), slots)


def _exact(model: Model) -> bool:
    """Whether activations are float32."""
    return bool(model.params["talker"]["model"]["norm"]["weight"].dtype == jnp.float32)


@dataclass
class _Reading:
    """A slot whose prompt is being read."""

    opening: Opening
    pieces: deque[tuple[PromptRows, int]]
    columns: int
    state: programs.State | None = None  # one row; None before the first piece


@dataclass
class _Launched:
    """A step, and which row each slot had."""

    made: programs.Made
    rows: dict[int, int]


class JaxDevice:
    """All slots on one accelerator, or on the CPU.

    Args:
        model: the checkpoint, where it is to be computed.
        slots: requests that speak at a time.
        columns: positions of a slot, prompt and frames; multiples of 64. More than one number: the caches begin with the first that
            does, and grow.
        frames: most frames of a launch.
        rows: sizes of the batch, ascending, the last one ``slots``. Default: 1, 2, 4, 8 and so on where it computes in float32 on a CPU,
            where each row costs; else ``slots``. An accelerator reads the weights whatever the number of rows, and bfloat16 rounds
            otherwise in another size, so that codes would depend on the load.
        pieces: rows of a prompt that are read at once, ascending: the first that holds all of it, else the last, again and again.
            Small ones let others speak between two; large ones read the weights less often.
        wide: whether batches of more rows than one read a float32 copy of narrow weights, on a CPU.
        hidden: hand out the talker's hidden states, too.
        together: the codec is a program of its own, and decodes a full launch's frames at once; requests are not watched then.
        pooled: other devices may serve a request that has given its slot back here (pool.py), so what it goes on from is the host's.

    Raises:
        ValueError: sizes that cannot be used, or do not fit into memory (see plan.py).
    """

    piece = PIECES[-1]

    def __init__(
        self, model: Model, *, slots: int, columns: int | Sequence[int] = COLUMNS, frames: int = FRAMES,
        rows: Sequence[int] | None = None, pieces: Sequence[int] = PIECES, wide: bool = True, hidden: bool = False, together: bool = False,
        pooled: bool = False,
    ) -> None:  # fmt: skip
        self._lengths = (columns,) if isinstance(columns, int) else tuple(columns)
        for name, value, least in (("slots", slots, 1), ("columns", self._lengths[0], self.piece), ("frames", frames, 1)):
            if value < least:
                raise ValueError(f"{name} = {value}: must be at least {least}")
        for length in self._lengths:
            if length % self.piece:
                raise ValueError(f"columns = {length}: must be a multiple of {self.piece}")
        self.slots, self.columns, self.frames = slots, self._lengths[-1], frames
        self.model, self._hidden, self._together, self._pooled = model, hidden, together, pooled
        self._graphs = model.graphs
        self._decoder = model.params["codec"]["decoder"]
        self._place = jax.tree.leaves(self._decoder)[0].sharding
        self._sizes = tuple(rows) if rows is not None else sizes_up_to(slots) if self.on_cpu and _exact(model) else (slots,)
        if list(self._sizes) != sorted({*self._sizes, slots}):
            raise ValueError(f"rows = {self._sizes}: must ascend, and end with the number of slots, {slots}")
        self._talker = model.params["talker"]
        if len(self._lengths) == 1:  # caches that grow are refused by the device when they meet its end
            self.plan = plan(model, slots, self.columns)
            require(self.plan)
        self._wide = programs.for_rows(self._talker, slots) if wide else self._talker
        self._pieces, self.piece = tuple(pieces), pieces[-1]
        self._pad = np.int32(model.config.tts_pad_token_id)
        self._width = model.config.talker_config.hidden_size
        self._fresh = jax.device_put(init_state(model.codec_config.decoder_config, 1), self._place)
        self._states: dict[int, tuple[weakref.ref[np.ndarray], DecoderState]] = {}  # the host's codec states that lie here, by identity
        self._reading: dict[int, _Reading] = {}
        self._batch: Batch | None = None
        self._idle = 0  # launches in a row for which a smaller batch would have done

    def check(self, request: Request) -> None:
        """Refuse a request that does not fit, or that would make NaN.

        Raises:
            ValueError: a segment without room for its prompt and one frame a token at least; ids, codes or an x-vector that the checkpoint
                does not have; a watch that this device does not keep; a codec state that is not one row of its codec, or not finite.
        """
        if self._together and request.watch is not None:
            raise ValueError("watch: this device decodes frames together and watches none; leave it out")
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
        pieces = cut(opening.prompt, self._pieces, self._width)
        columns = columns_for(self._lengths, len(opening.prompt.text))
        assert columns is not None, "`check` has refused it"
        self._reading[slot] = _Reading(opening, deque(pieces), columns)
        return [rows.text.shape[1] for rows, _ in pieces]

    def read(self, slot: int) -> None:
        reading = self._reading[slot]
        rows, at = reading.pieces.popleft()
        if reading.state is None:
            new = self._begun(reading.opening)
            reading.state = programs.begin(self._graphs.talker, self._wide, rows, new, columns=reading.columns)
        else:
            reading.state = programs.read(self._graphs.talker, self._wide, reading.state, rows, np.int32(at))

    def write_text(self, slot: int, text: Text) -> None:
        numbers = [np.int32(value) for value in (len(text.ids), text.limit, text.overdue, text.overdue_end)]
        if (reading := self._reading.get(slot)) is not None:
            reading.opening = reading.opening._replace(text=text)
            if reading.state is not None:
                reading.state = programs.write_text(reading.state, np.int32(0), self._padded(text.ids), *numbers)
            return
        batch = self._speaking
        batch.state = programs.write_text(batch.state, np.int32(batch.row(slot)), self._padded(text.ids), *numbers)

    def rewind(self, slot: int, seed: int, segment: int, attempt: int) -> None:
        batch = self._speaking
        batch.state = programs.rewind(batch.state, np.int32(batch.row(slot)), np.uint32(seed), np.int32(segment), np.int32(attempt))

    def keep(self, slot: int) -> DecoderState:
        return programs.keep(self._speaking.state, np.int32(self._speaking.row(slot)))

    def lend(self, state: DecoderState) -> DecoderState:
        return jax.device_get(state) if self._pooled else state  # of a device that fails, nobody could read it any more

    def close(self, slot: int) -> None:
        self._reading.pop(slot, None)
        if self._batch is not None and slot in self._batch.owners:
            self._batch.owners[self._batch.row(slot)] = None
            if self._batch.count == 0 and self._sizes[0] == 1:
                self._batch = None  # begun anew with the next row

    @property
    def alone(self) -> bool:
        """Where each row costs, and the program of one row is compiled."""
        return self._sizes[0] == 1 < self.slots

    def launch_alone(self, slot: int, limit: int) -> _Launched:
        reading = self._reading.pop(slot)
        assert reading.state is not None and not (reading.pieces or reading.opening.carry), "its prompt is read; it begins"
        reading.state, launched = self._step(reading.state, [limit], limit, {slot: 0})
        self._place_row(slot, reading, limit)
        return launched

    def launch(self, quotas: list[int], limit: int) -> _Launched:
        for slot in [slot for slot, reading in self._reading.items() if not reading.pieces]:
            self._place_row(slot, self._reading.pop(slot))
        batch = self._fitting()
        made = [0 if owner is None else quotas[owner] for owner in batch.owners]
        for owner, quota in zip(batch.owners, made, strict=True):
            if owner is not None and quota:
                batch.ends[owner] = min(self.columns - 1, batch.ends[owner] + quota)
        batch.widen(self._length(max(end for owner, end in batch.ends.items() if owner in batch.owners) + 1))
        batch.state, launched = self._step(
            batch.state, made, limit, {owner: row for row, owner in enumerate(batch.owners) if owner is not None}
        )
        return launched

    def _step(self, state: programs.State, made: list[int], limit: int, rows: dict[int, int]) -> tuple[programs.State, _Launched]:
        state, found = programs.step(
            self._graphs.talker, self._talker if len(made) == 1 else self._wide, self._graphs.codec_decoder, self._decoder, state,
            np.array(made, np.int32), np.int32(limit), self._pad, size=self.frames,
            hidden=self._hidden, silent=self._together,
        )  # fmt: skip
        if self._together:
            state, found = self._sounded(state, found, limit)
        jax.tree.map(lambda array: array.copy_to_host_async(), found)
        return state, _Launched(found, rows)

    def _sounded(self, state: programs.State, made: programs.Made, limit: int) -> tuple[programs.State, programs.Made]:
        """The step's frames with their samples: a full launch's at once, others one by one, so that there are two programs."""
        frames, graph = self.frames if limit == self.frames else 1, self._graphs.codec_decoder
        for at in range(0, limit, frames):
            codes, valid = programs.piece(made, np.int32(at), frames=frames)
            samples, codec = decode(graph, self._decoder, codes, state.codec, valid)
            reason, made = programs.sound(made, samples, np.int32(at))
            state = state._replace(codec=codec, reason=reason)
        return state, made

    def collect(self, launched: _Launched) -> Outcome:
        made = jax.tree.map(np.asarray, launched.made)
        rows = [launched.rows.get(slot, 0) for slot in range(self.slots)]  # of a slot without a row nobody reads anything
        codes, pcm, hidden = (None if of is None else of[:, rows] for of in (made.codes, made.pcm, made.hidden))
        return Outcome(codes, pcm, made.counts[rows], made.reason[rows], made.held[rows], hidden)

    @property
    def on_cpu(self) -> bool:
        """Whether it is this machine's CPU."""
        return all(device.platform == "cpu" for device in self._place.device_set)

    @property
    def batch(self) -> int:
        """Rows of the batch as it is; 0 before the first."""
        return 0 if self._batch is None else len(self._batch.owners)

    def wait(self) -> None:
        """Until all that was asked of it is done."""
        jax.block_until_ready((self._batch and self._batch.state, [reading.state for reading in self._reading.values()]))

    def warm_up(self, columns: Sequence[int] | None = None) -> None:
        """Compile every program, by running it on silence; afterwards nobody owns a slot. Seconds to a minute on a cold cache.

        Args:
            columns: those of the device's to compile for. Default: all.
        """
        self._batch = None
        for length in columns or self._lengths:
            for slot in range(self.slots):
                prompts = lengths_that_need(length, self._lengths, self._pieces)
                for rows in prompts if slot == 0 else prompts[:1]:
                    for carry in (False, True):
                        self._silence(slot, rows, length, carry)
                if slot + 1 in self._sizes:
                    self._exercise(slot)
            while (at := self._sizes.index(self.batch)) > 0:
                for owner in self._speaking.owners[self._sizes[at - 1] :]:
                    if owner is not None:
                        self.close(owner)
                self._idle = SHRINKS
                self._exercise(0)
            if length < self._lengths[-1]:
                self._speaking.widen(self._length(length + 1))
            self._batch = None
        self._reading.clear()

    def _silence(self, slot: int, rows: int, columns: int, carry: bool) -> None:
        prompt = silence(rows, self.model.config.talker_config.num_code_groups)
        pieces = self.open(slot, Opening(prompt, Text([], 1, NEVER, NEVER), Sampling(), 0, 0, None, None, carry))
        self._reading[slot].columns = columns
        for _ in pieces:
            self.read(slot)
        self._place_row(slot, self._reading.pop(slot))

    def _exercise(self, slot: int) -> None:
        """What is compiled for each size of the batch."""
        for limit in {1, self.frames} if self._together else {1}:
            self.collect(self.launch([1] * self.slots, limit))
        self.write_text(slot, Text([], 1, NEVER, NEVER))
        self.rewind(slot, 0, 0, 1)
        self.keep(slot)

    # The batch

    @property
    def _speaking(self) -> Batch:
        assert self._batch is not None, "nobody speaks"
        return self._batch

    def _place_row(self, slot: int, reading: _Reading, made: int = 0) -> None:
        """The prompt is read, and so many frames may have been made: the row takes its place."""
        one, carry = reading.state, reading.opening.carry
        assert one is not None
        batch, end = self._batch, min(self.columns, len(reading.opening.prompt.text) + made) - 1
        if self._sizes[0] == 1 and (batch is None or (len(batch.owners) == 1 and batch.owners[0] in (None, slot))):
            if carry and batch is not None:
                one = one._replace(codec=batch.state.codec)
            self._batch = Batch(one, [slot], reading.columns, {slot: end})
            return
        if batch is None:
            batch = self._batch = Batch(self._start(self._sizes[0], reading.columns), [None] * self._sizes[0], reading.columns)
        if slot not in batch.owners:
            if None not in batch.owners:
                batch.resize(self._sizes[self._sizes.index(len(batch.owners)) + 1])
            batch.owners[batch.owners.index(None)] = slot
        batch.widen(self._length(reading.columns))
        if reading.columns < batch.columns:
            one = one._replace(caches=[programs.widen(layer, columns=batch.columns) for layer in one.caches])
        batch.state = programs.insert(batch.state, one, np.int32(batch.row(slot)), np.bool_(carry))
        batch.ends[slot] = end

    def _fitting(self) -> Batch:
        """The batch, smaller if so few rows have spoken for a while."""
        batch = self._speaking
        at = self._sizes.index(len(batch.owners))
        self._idle = self._idle + 1 if at and batch.count <= self._sizes[at - 1] else 0
        while self._idle > SHRINKS and at and batch.count <= self._sizes[at - 1]:  # step by step: each pair of sizes is a program
            at -= 1
            batch.resize(self._sizes[at])
        return batch

    def _length(self, columns: int) -> int:
        """The next size of KV caches that has room for so many columns."""
        return next(length for length in self._lengths if length >= columns)

    def _start(self, rows: int, columns: int) -> programs.State:
        graphs = self._graphs
        return programs.start(
            graphs.talker, self._talker, graphs.codec_decoder, self._decoder, rows=rows, columns=columns, text=self.columns
        )

    # Host numbers as the programs take them

    def _begun(self, opening: Opening) -> programs.NewRow:
        watch, text = opening.watch, opening.text
        hold, repeats = (NEVER, NEVER) if watch is None else (watch.hold, watch.repeats)
        codec = self._fresh if opening.codec_state is None else self._here(opening.codec_state)
        return programs.NewRow(
            seed=np.array([opening.seed], np.uint32),
            segment=np.array([opening.segment], np.int32),
            rules=rules([opening.sampling]),
            limit=np.array([text.limit], np.int32),
            text=self._padded(text.ids)[None],
            text_length=np.array([len(text.ids)], np.int32),
            limits=programs.Limits(*(np.array([value], np.int32) for value in (hold, repeats, text.overdue, text.overdue_end))),
            codec=codec,
        )

    def _here(self, state: DecoderState) -> DecoderState:
        """A codec state on this device. One of the host's stays here as long as the host has it: a prepared voice is put here once."""
        leaf: Any = state.position
        if isinstance(leaf, jax.Array):
            return jax.device_put(state, self._place)  # of the device that a CPU has taken over from, perhaps
        key, states = id(leaf), self._states
        if key not in states:
            states[key] = weakref.ref(leaf, lambda _: states.pop(key, None)), jax.device_put(state, self._place)
        return states[key][1]

    def _padded(self, ids: list[int]) -> np.ndarray:
        if len(ids) > self.columns:
            raise ValueError(f"{len(ids)} text tokens: a slot has {self.columns} positions; end the sentence sooner")
        return np.array(ids + [-1] * (self.columns - len(ids)), np.int32)
