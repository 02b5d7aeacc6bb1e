"""vox-tts on one request, in its own environment (vox-tts 0.19.5). Needs nothing of this project.

usage: vox_child.py say|prepare|speak JSON, with the fields of benchmarks/compare/request.py
say: clones the recording with its transcript, and speaks once. prepare: clones its timbre into the file of the voice. speak: prints figures
as JSON.
"""

import json
import statistics
import sys
import time
from typing import Any

import vox

Request = dict[str, Any]

SAMPLES = 1920  # of a frame
WARM = 6  # frames spoken before anything but the load is timed


def begun(given: Request) -> Any:
    return vox.Engine(given["model"], device="cpu", threads=given["threads"])


def utterance(engine: Any, voice: Any, given: Request, frames: int, **how: int) -> tuple[float, float, float]:
    """Speak the text for so many frames. Returns seconds to the first sound, seconds in all, and the frames that came."""
    begin, first, samples = time.perf_counter(), 0.0, 0
    session = engine.session(voice, max_frames=frames, seed=1, language=given["language"], **how)
    for piece in session.feed(given["text"]).end():
        first = first or time.perf_counter() - begin
        samples += len(piece)
    return first, time.perf_counter() - begin, samples / SAMPLES


def say(given: Request) -> None:
    engine = begun(given)
    voice = engine.clone_voice(given["recording"], given["transcript"])
    utterance(engine, voice, given, given["frames"])


def prepare(given: Request) -> None:
    begun(given).clone_voice(given["recording"], xvector_only=True).save(given["voice"])


def speak(given: Request) -> None:
    soon = {"chunk_frames": 1, "chunk_samples": SAMPLES}  # the first frame is handed out, as ours is
    begin = time.perf_counter()
    engine = begun(given)
    opened = time.perf_counter() - begin
    voice = engine.load_voice(given["voice"])
    utterance(engine, voice, given, 1, **soon)
    loaded = time.perf_counter() - begin
    utterance(engine, voice, given, WARM)
    first = [utterance(engine, voice, given, 1, **soon)[0] for _ in range(3)]
    whole = [utterance(engine, voice, given, given["frames"]) for _ in range(given["utterances"])]
    parts = engine.stats()["backend"]["ms_per_frame"]
    result = {
        "open_s": opened, "load_s": loaded, "first_audio_s": statistics.median(first), "frames": whole[0][2],
        "first_audio_default_s": statistics.median(spoken[0] for spoken in whole),
        "rtf": statistics.median(seconds / (0.08 * frames) for _, seconds, frames in whole),
        **{f"{name}_ms": parts[name] for name in ("talker", "predictor", "codec")},
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    {"say": say, "prepare": prepare, "speak": speak}[sys.argv[1]](json.loads(sys.argv[2]))
