"""Word times against Whisper's own: ``python -m benchmarks.word_times [--known] [--fit] [--json OUT]``, in this process, over no socket.

Forty everyday sentences in each of two voices that ship, a quarter of them in two more, and paragraphs of four; Whisper is the tiny.en of
the extra `eval`. OUT: for ``complete`` (all of a part has come) and ``running`` (a word as it was when it began to be heard), the median
and 90th percentile of the absolute error of starts and ends, the median of the error itself, and the median of what is left without that;
``cpu_ms_per_second`` of audio.

``--known``: eSpeak's speech instead, whose word times are known (benchmarks/espeak.py): how far from where words begin ours, and
Whisper's own, begin. ``--fit`` prints the tables of qwen3_jax/speech/word_trellis.py, learnt from every other sentence of two voices: the
mean and the spread of what the likeliest path gives to each kind of sound, twice.
"""

import argparse
import json
import time
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.listen_texts import EVERYDAY, plain
from qwen3_jax import Qwen3TTS
from qwen3_jax.checkpoint.hub import EMBEDDED
from qwen3_jax.evaluate import judges
from qwen3_jax.shapes import F32
from qwen3_jax.speech import word_trellis
from qwen3_jax.speech.word_features import Features
from qwen3_jax.speech.word_times import TimedWord, WordTimes, spelled_sounds
from qwen3_jax.text.parts import parts_of
from qwen3_jax.voices.choice import find_voice
from qwen3_jax.voices.layers import VoiceLayers

FRAME = 1920


@dataclass
class SpokenText:
    """Attributes: ``pieces`` as they came, each with the number of its part; ``judged``: (word, start, end) in ms."""

    voice: str
    text: str
    parts: list[str]
    pieces: list[tuple[F32[np.ndarray, " F"], int]]
    judged: list[tuple[str, float, float]]

    @property
    def seconds(self) -> float:
        return sum(len(pcm) for pcm, _ in self.pieces) / 24_000


def speak_all() -> list[SpokenText]:
    """The texts, spoken and judged."""
    tts, model = Qwen3TTS.from_pretrained(EMBEDDED), judges._whisper()[0]
    paragraphs = [" ".join(EVERYDAY[first : first + 4]) for first in range(0, len(EVERYDAY), 4)]
    jobs = [(voice, text) for voice in ("makima", "heart") for text in (*EVERYDAY, *paragraphs)]
    jobs += [(voice, text) for voice in ("emma", "george") for text in EVERYDAY[::4]]
    made = []
    for seed, (voice, text) in enumerate(jobs):
        stream = tts.stream(text, voice=find_voice(tts, voice, VoiceLayers.of(), True), language="English", seed=seed)
        pieces = []
        while (packet := stream._following(stream.handle)) is not None:
            pieces.append((packet.pcm, packet.segment))
        sound = judges.hear(np.concatenate([pcm for pcm, _ in pieces]))
        segments, _ = model.transcribe(sound, language="en", beam_size=5, temperature=0.0, word_timestamps=True)
        judged = [(word.word, 1000 * word.start, 1000 * word.end) for segment in segments for word in segment.words]
        made.append(SpokenText(voice, text, [part.text for part in parts_of(text, "english", normalize=True)], pieces, judged))
    return made


def times_of(spoken: SpokenText, *, running: bool) -> list[TimedWord]:
    """Every word's times when all is over, or as they were when the word began to be heard."""
    times = WordTimes(24_000)
    times.write(spoken.text)
    for part in spoken.parts:
        times.add_part(part)
    told: list[TimedWord] = []
    for pcm, number in spoken.pieces:
        times.feed(pcm, number)
        if running:
            told += times.known()[len(told) :]
    times.finish()
    return told + times.known()[len(told) :]


def figures(texts: list[SpokenText], *, running: bool) -> dict[str, float]:
    """See the module's docstring."""
    errors, began = list[float](), time.process_time()
    for spoken in texts:
        words = times_of(spoken, running=running)
        ours, theirs = [plain(word.word) for word in words], [plain(word) for word, _, _ in spoken.judged]
        for block in SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks():
            for step in range(block.size):
                _, start, end = words[block.a + step]
                if start is not None and end is not None:
                    errors += [start - spoken.judged[block.b + step][1], end - spoken.judged[block.b + step][2]]
    spent, bias = time.process_time() - began, float(np.median(errors))
    return {
        "median_ms": float(np.median(np.abs(errors))),
        "p90_ms": float(np.percentile(np.abs(errors), 90)),
        "bias_ms": bias,
        "median_without_bias_ms": float(np.median(np.abs(np.array(errors) - bias))),
        "cpu_ms_per_second": round(1000 * spent / sum(spoken.seconds for spoken in texts), 2),
        "words": len(errors) // 2,
    }


def known() -> dict[str, dict[str, float]]:
    """Errors of the beginnings of words that eSpeak speaks: ours, and Whisper's."""
    from benchmarks.espeak import Espeak

    espeak, model = Espeak(), judges._whisper()[0]
    errors: dict[str, list[float]] = {"ours": [], "whisper": []}
    for text in EVERYDAY:
        pcm, true = espeak.speak(text)
        times = WordTimes(24_000)
        times.write(text)
        times.feed(pcm)
        times.finish()
        segments, _ = model.transcribe(judges.hear(pcm), language="en", beam_size=5, temperature=0.0, word_timestamps=True)
        found = {
            "ours": [(word.word, float(word.start_ms or 0)) for word in times.known()],
            "whisper": [(word.word, 1000 * word.start) for segment in segments for word in segment.words],
        }
        for name, words in found.items():
            matcher = SequenceMatcher(None, [plain(word) for word, _ in true], [plain(word) for word, _ in words], autojunk=False)
            for block in matcher.get_matching_blocks():
                errors[name] += [words[block.b + step][1] - true[block.a + step][1] for step in range(block.size)]
    return {
        name: {
            "median_ms": float(np.median(np.abs(one))),
            "p90_ms": float(np.percentile(np.abs(one), 90)),
            "bias_ms": float(np.median(one)),
            "words": len(one),
        }
        for name, one in errors.items()
    }


def fit(texts: list[SpokenText], rounds: int = 2) -> None:
    """Learn the tables, and print them."""
    silence, table = word_trellis.SILENCE, word_trellis
    for _ in range(rounds):
        found: list[list[Any]] = [[] for _ in range(silence + 1)]
        lengths: list[list[float]] = [[] for _ in range(silence)]
        for spoken in texts:
            features = Features(24_000)
            for number, part in enumerate(spoken.parts):
                features.begin()
                seen = features.feed(np.concatenate([pcm for pcm, one in spoken.pieces if one == number]))
                words = spelled_sounds(part.split())
                trellis = table.Trellis(words, 1.0)
                trellis.advance(table.fits(seen))
                quiet = np.ones(len(seen), bool)
                for sound, begin, end in trellis.path(over=True):
                    steps = slice(int(begin), int(end))
                    found[words.kinds[sound]].append(seen[steps])
                    lengths[words.kinds[sound]].append(end - begin)
                    quiet[steps] = False
                found[silence].append(seen[quiet])
        for kind in range(len(table.MEANS)):
            all_steps = np.concatenate(found[kind])
            table.MEANS[kind], table.DEVIATIONS[kind] = all_steps.mean(0), np.maximum(all_steps.std(0), 1.5)
            table.STEPS[kind] = np.exp(np.mean(np.log(lengths[kind])))
        table.SILENCE_MEAN[:] = np.concatenate(found[silence]).mean(0)
    for name in ("MEANS", "DEVIATIONS", "SILENCE_MEAN", "STEPS"):
        print(f"{name} = {getattr(table, name).round(1).tolist()}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--fit", action="store_true", help="learn the tables, and print them and what they give on the rest")
    parser.add_argument("--known", action="store_true", help="speech of eSpeak, whose word times are known")
    arguments = parser.parse_args()
    if arguments.known:
        print(json.dumps(known(), indent=1))
        return
    texts = speak_all()
    if arguments.fit:
        learnt = [spoken for spoken in texts if spoken.voice in ("makima", "heart") and spoken.text in EVERYDAY[::2]]
        fit(learnt)
        texts = [spoken for spoken in texts if spoken not in learnt]
    made = {name: figures(texts, running=name == "running") for name in ("complete", "running")}
    print(json.dumps(made, indent=1))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
