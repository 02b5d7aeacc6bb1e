"""Checkpoint + golden file -> one Result per part: what the reference implementation computed, computed again in float32.

Relative error = greatest absolute error / root mean square of the reference; for waves it is the root mean square of the
error over that of the reference, because the reference's own float32 rounding reaches 0.93e-4 of it in its worst sample
(measured against the reference in float64). Generation is greedy, as the golden's was.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert.golden import FRAMES, Expected, Golden, read_golden
from qwen3_jax.audio.samples import mel_spectrogram
from qwen3_jax.codec.decoder import DecoderState, init_state
from qwen3_jax.engine import Request, Segment
from qwen3_jax.engine.inline import FRAMES as AT_ONCE
from qwen3_jax.engine.inline import Inline
from qwen3_jax.model import encode
from qwen3_jax.model.model import Model, is_int8, load
from qwen3_jax.model.sampling import Sampling
from qwen3_jax.shapes import F32, I32, Array
from qwen3_jax.text import prompt

TOLERANCE = 1e-4  # of the root mean square: mel, x-vector, waves, hidden states; codes must be identical
GREEDY = Sampling(do_sample=False, subtalker_dosample=False)


class Result(NamedTuple):
    """A row of the table."""

    part: str
    error: float | None  # greatest absolute error
    relative: float | None
    codes_equal: bool | None
    passed: bool
    note: str = ""


def verify(folder: Path, golden_file: Path) -> list[Result]:
    """Run everything that the golden file holds.

    Args:
        folder: a checkpoint, converted or in the published layout.
        golden_file: see golden.py.

    Raises:
        FileNotFoundError: no checkpoint, or no golden file.
        ValueError: a file that cannot be used, or a golden of another kind of checkpoint.
    """
    golden = read_golden(golden_file)
    if is_int8(folder):
        raise ValueError(f"{folder} holds weights rounded to int8, which differ too much: verify what it was converted from")
    model = load(folder, dtype=jnp.dtype(jnp.float32))
    with jax.default_matmul_precision("highest"):  # float32 on GPUs and TPUs too
        results = [*_encoders(model, golden), *_decoder(model, golden)]
        for (name, streaming), rows in golden.cases.items():
            results += _generation(model, golden, f"{name}_{'st' if streaming else 'ns'}", rows, streaming)
    if not results:
        raise ValueError(f"{golden_file} holds nothing to compare; make it again")
    return results


def _encoders(model: Model, golden: Golden) -> Iterator[Result]:
    arrays = golden.arrays
    if "wav" not in arrays:
        return
    if "mel" in arrays:
        yield _close("mel", mel_spectrogram(arrays["wav"]), arrays["mel"])
    if "spk" in arrays:
        yield _close("x-vector", encode.encode_x_vector(model, arrays["wav"]), arrays["spk"])
    if "codec_codes" in arrays:
        equal = np.array_equal(encode.encode_codes(model, arrays["wav"]), arrays["codec_codes"])
        yield Result("codec encode", None, None, equal, equal)


@functools.partial(jax.jit, static_argnames=("graph",), donate_argnames=("state",))
def _decode(graph: Any, params: Any, codes: I32[Array, "B N K"], state: DecoderState) -> tuple[F32[Array, "B F"], DecoderState]:
    return nnx.merge(graph, params)(codes, state)


def _decoder(model: Model, golden: Golden) -> Iterator[Result]:
    if not {"dec_codes", "dec_wav_full"} <= golden.arrays.keys():
        return
    codes, wave = golden.arrays["dec_codes"].astype(np.int32), golden.arrays["dec_wav_full"]
    for part, size in (("codec decode, whole", codes.shape[1]), ("codec decode, frame by frame", 1)):
        state = init_state(model.codec_config.decoder_config, len(codes))
        pieces = []
        for begin in range(0, codes.shape[1], size):
            pcm, state = _decode(model.graphs.codec_decoder, model.params["codec"]["decoder"], codes[:, begin : begin + size], state)
            pieces.append(np.asarray(pcm[0]))
        yield _close(part, np.concatenate(pieces), wave, worst=False)


def _generation(model: Model, golden: Golden, name: str, rows: list[Expected], streaming: bool) -> Iterator[Result]:
    inline = Inline(model, slots=len(rows), first=AT_ONCE, each=AT_ONCE, ahead=True, hidden=True)
    prompts = [_prompt(model, golden, row, streaming) for row in rows]
    handles = [inline.submit(Request((Segment(one, FRAMES),), GREEDY, seed=0)) for one in prompts]
    for number, (row, handle) in enumerate(zip(rows, handles, strict=True)):
        while not handle.ended:
            inline.run_round()
        packets = list(iter(handle.take, None))
        ours = np.concatenate([row.codes[:0], *(packet.codes for packet in packets)])
        hidden = np.concatenate([row.hidden[:0], *(packet.hidden for packet in packets if packet.hidden is not None)])
        equal = np.array_equal(ours, row.codes)
        note = "" if equal else f"{len(ours)} frames for {len(row.codes)}, equal up to frame {_agreement(ours, row.codes)}"
        if equal and (handle.finish_reason == "eos") != (len(row.codes) < FRAMES):
            equal, note = False, f"finish reason {handle.finish_reason} after {len(ours)} frames"
        # up to the first difference both have read the same codes, so their hidden states compare
        shared = min(_agreement(ours, row.codes) + 1, len(ours), len(row.codes))
        close = _close(f"{name}.{number}", hidden[:shared], row.hidden[:shared])
        yield close._replace(codes_equal=equal, passed=close.passed and equal, note=note)


def _agreement(ours: np.ndarray, theirs: np.ndarray) -> int:
    """How many frames are equal before the first that differs."""
    shared = min(len(ours), len(theirs))
    differ = np.flatnonzero((ours[:shared] != theirs[:shared]).any(axis=1))
    return int(differ[0]) if len(differ) else shared


def _prompt(model: Model, golden: Golden, expected: Expected, streaming: bool) -> prompt.Prompt:
    row = expected.row
    return prompt.build(
        model.config,
        expected.input_ids,
        language=row.language,
        speaker=row.speaker,
        x_vector=row.x_vector * golden.arrays["spk"] if row.x_vector else None,
        reference_ids=expected.ref_ids,
        reference_codes=golden.arrays[row.reference] if row.reference else None,
        instruct_ids=expected.instruct_ids,
        streaming_text=streaming,
    )


def _close(part: str, ours: np.ndarray, theirs: np.ndarray, *, worst: bool = True) -> Result:
    if ours.shape != theirs.shape:
        return Result(part, None, None, None, False, f"shape {list(ours.shape)}, expected {list(theirs.shape)}")
    if not theirs.size:
        return Result(part, 0.0, 0.0, None, True)
    difference = np.abs(ours.astype(np.float64) - theirs)
    error = float(difference.max())
    relative = (error if worst else _rms(difference)) / _rms(theirs)
    return Result(part, error, relative, None, bool(relative <= TOLERANCE))  # NaN fails


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))
