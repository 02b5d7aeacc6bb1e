"""This project on one request, in a process of its own: ``python -m benchmarks.compare.ours_child prepare|speak|parts|slots JSON``.

prepare: clones the recording's timbre into the file of the voice. The others print figures as JSON; parts: of talker, predictor and codec
alone; slots: of steps with one slot and with eight.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.compare.machine import bandwidth, float32_peak
from benchmarks.compare.parts import parts
from benchmarks.compare.request import Asked
from benchmarks.engine import step_milliseconds
from qwen3_jax import Qwen3TTS, Voice
from qwen3_jax.engine.inline import FRAMES
from qwen3_jax.tts import load_for

WARM = 6  # frames spoken before anything but the load is timed
SLOTS, COLUMNS = 8, 256
Figures = dict[str, Any]


def utterance(tts: Qwen3TTS, voice: Voice, given: Asked, frames: int) -> tuple[float, float, int]:
    """Speak the text for so many frames. Returns seconds to the first sound, seconds in all, and the frames that came."""
    begin, first = time.perf_counter(), 0.0
    pieces = tts.stream(given.text, voice=voice, language=given.language, seed=1, max_frames=frames)
    for _ in pieces:
        first = first or time.perf_counter() - begin
    return first, time.perf_counter() - begin, len(pieces.frames)


def prepare(given: Asked) -> Figures:
    tts = Qwen3TTS.from_pretrained(given.model, dtype=given.dtype)
    voice = tts.create_voice(given.recording)
    voice.save(given.voice)
    utterance(tts, voice, given, WARM)  # fills the compilation cache
    return {}


def speak(given: Asked) -> Figures:
    begin = time.perf_counter()
    tts = Qwen3TTS.from_pretrained(given.model, dtype=given.dtype)
    opened = time.perf_counter() - begin
    voice = Voice.load(given.voice)
    utterance(tts, voice, given, 1)
    loaded = time.perf_counter() - begin
    utterance(tts, voice, given, WARM)
    first = [utterance(tts, voice, given, 1)[0] for _ in range(3)]
    whole = [utterance(tts, voice, given, given.frames) for _ in range(given.utterances)]
    return {
        "open_s": opened, "load_s": loaded, "first_audio_s": statistics.median(first), "frames": whole[0][2],
        "rtf": statistics.median(seconds / (0.08 * frames) for _, seconds, frames in whole),
    }  # fmt: skip


def parts_alone(given: Asked) -> Figures:
    machine = {"bandwidth": bandwidth(), "float32_peak": float32_peak()}
    model = Qwen3TTS.from_pretrained(given.model, dtype=given.dtype).model
    return machine | {"parts": parts(model, machine["bandwidth"], machine["float32_peak"])}


def slots(given: Asked) -> Figures:
    """Medians of three measurements each, in turns."""
    model = load_for(given.model, rows=None, dtype=given.dtype).model
    taken: dict[int, list[float]] = {1: [], SLOTS: []}
    for _ in range(3):
        for streams, found in taken.items():
            found.append(step_milliseconds(model, streams, streams, COLUMNS, FRAMES)["step_median_ms"])
    one, many = (statistics.median(found) for found in taken.values())
    return {"step_ms": one, f"step_{SLOTS}_slots_ms": many, f"step_{SLOTS}_slots_ratio": many / one}


if __name__ == "__main__":
    tasks: dict[str, Callable[[Asked], Figures]] = {"prepare": prepare, "speak": speak, "parts": parts_alone, "slots": slots}
    print(json.dumps(tasks[sys.argv[1]](Asked(**json.loads(sys.argv[2])))))
