"""Listen and Speak together: ``python -m benchmarks.listen [--json OUT] [--echo-minutes 10]``.

The server is a process of its own with the voice that ships; the clients are here, in real time, over ``/api/v1/listen`` and
``/api/v1/speak``. Users speak with another voice that ships, which the server made before. Their speech begins, and is over, where a step
of 10 ms comes within 30 dB of its loudest one; the microphone hands over 20 ms at a time. Word times and what was heard of an interrupted
utterance are held against Whisper tiny.en's word times (extra `eval`) of the same utterance, spoken to its end with the same seed.

OUT: {duck_p95_ms, silence_p95_ms (interruption: immediate), confirm_p95_ms (confirm), final_p95_ms, first_audio_p95_ms, round_trip_wer,
word_times_median_ms (as they stand at the end), word_times_running_median_ms (as they were first told), word_times_bias_ms,
spoken_words_off_p95, audio_end_off_p95_ms, underruns, underrun_ms (of ten Speak sessions beside two Listen sessions),
false_interruptions_echo_20_db, false_interruptions_echo_10_db, false_interruptions_noise, the same with ``false_ducks_``,
echo_duck_p95_ms, echo_silence_p95_ms (real speech over the echo), echo_missed of echo_tries, echo_minutes,
missed_interruptions (speech that did not interrupt)}, and p50 beside each p95.
"""

import argparse
import asyncio
import json
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import soxr

from benchmarks import server
from benchmarks.listen_clients import WAIT, Loudspeaker, Message, Microphone, conversation, opened, running, silence
from benchmarks.listen_sounds import RATE, at_level, clicks, edges, music, room, typing
from benchmarks.listen_texts import EVERYDAY, plain
from qwen3_jax.evaluate import judges
from qwen3_jax.shapes import F32

SECTIONS = ("words", "round-trip", "interruptions", "answers", "load", "disturbances")
QUICK = "duck"  # a part of interruptions, by itself: about a minute
UNJUDGED = {QUICK, "silence"}  # on request only, and without a judge
DUCKED_BY = 1.2  # seconds of speech that are enough for it
USER = "heart"  # whose voice users have; the server answers in its default one
USER_DB, NOISE_DB = -20.0, -30.0
SETTLE_SECONDS = 1.5  # of quiet between two tries
MISSED_SECONDS = 1.0  # after speech that has not interrupted till then
LATE_SECONDS = 3.0  # in which it may do so all the same
SENTENCES = EVERYDAY[:20]
LONG = tuple(" ".join(EVERYDAY[first : first + 5]) for first in (4, 20, 30))
THREE_SECONDS = tuple(sorted((text for text in EVERYDAY if "," not in text), key=len)[-8:])  # without a pause inside


@dataclass
class Reading:
    """An utterance that was spoken to its end.

    Attributes:
        words: (word, start, end) in ms, as they stand at its end; ``first``: as they were told first.
        judged: (index of the word in the text, start, end), as Whisper has them; words that it did not hear are left out.
    """

    text: str
    pcm: F32[np.ndarray, " F"]
    words: list[tuple[str, float | None, float | None]]
    first: list[tuple[str, float | None, float | None]]
    judged: list[tuple[int, float, float]]


async def read_all(base: str, texts: Sequence[str], voice: str | None, *, judged: bool) -> list[Reading]:
    """Each text spoken to its end, four at a time, with seeds 1, 2, ..."""
    readings: dict[int, Reading] = {}

    async def some(numbers: range) -> None:
        async with opened(f"{base}/api/v1/speak", {"language": "English"}) as connection:
            loudspeaker = Loudspeaker(connection)
            async with running(loudspeaker):
                for number in numbers:
                    name = str(number)
                    await loudspeaker.speak(
                        texts[number], name, seed=number + 1, wordTimes=judged, **({} if voice is None else {"voice": voice})
                    )
                    _, end = await loudspeaker.told.end_of(name)
                    if end["type"] != "complete":
                        raise RuntimeError(f"{texts[number]!r} was not spoken: {end}")
                    told = [one for _, one in loudspeaker.told.messages if one["type"] == "words" and one.get("requestId") == name]
                    pcm = np.concatenate(loudspeaker.pcm[name])
                    readings[number] = Reading(texts[number], pcm, *told_words(told), [])

    await asyncio.gather(*(some(range(first, len(texts), 4)) for first in range(4)))
    made = [readings[number] for number in range(len(texts))]
    if judged:
        for reading in made:
            reading.judged = whisper_words(reading)
    return made


def told_words(messages: list[Message]) -> tuple[list[Any], list[Any]]:
    """``words`` messages -> the words as they stand after the last, and each as it was told first."""
    words: list[Any] = []
    first: list[Any] = []
    for message in messages:
        new = [(one["word"], one["startMs"], one["endMs"]) for one in message["words"]]
        at = message.get("first", len(words))
        words = words[:at] + new
        first += words[len(first) :]
    return words, first


def whisper_words(reading: Reading) -> list[tuple[int, float, float]]:
    """See ``Reading.judged``."""
    model, _ = judges._whisper()
    segments, _ = model.transcribe(judges.hear(reading.pcm), language="en", beam_size=5, temperature=0.0, word_timestamps=True)
    heard = [(plain(word.word), 1000 * word.start, 1000 * word.end) for segment in segments for word in segment.words]
    said = [plain(word) for word in reading.text.split()]
    blocks = SequenceMatcher(None, said, [word for word, _, _ in heard], autojunk=False).get_matching_blocks()
    return [(block.a + step, *heard[block.b + step][1:]) for block in blocks for step in range(block.size)]


def word_errors(readings: list[Reading], *, first: bool) -> list[float]:
    """Signed, in ms, of starts and ends."""
    errors = []
    for reading in readings:
        words = reading.first if first else reading.words
        for index, *judged in reading.judged:
            if index < len(words):
                errors += [ours - theirs for ours, theirs in zip(words[index][1:], judged, strict=True) if ours is not None]
    return errors


def as_user(reading: Reading) -> F32[np.ndarray, " F"]:
    return at_level(soxr.resample(reading.pcm, 24_000, RATE), USER_DB)


async def round_trip(base: str, readings: list[Reading]) -> dict[str, float]:
    """Sentences that the server spoke, said into a microphone: what it writes down."""
    heard: dict[int, str] = {}

    async def some(numbers: range) -> None:
        async with opened(f"{base}/api/v1/listen", {}) as connection:
            microphone = Microphone(connection, room(10, np.random.default_rng(numbers.start)))
            async with running(microphone):
                await asyncio.sleep(0.5)
                for number in numbers:
                    begin = microphone.say(as_user(readings[number]))
                    end = begin + len(readings[number].pcm) / 24_000
                    await asyncio.sleep(max(0.0, end + SETTLE_SECONDS - monotonic()))
                    await microphone.settle()
                    heard[number] = " ".join(one["text"] for at, one in microphone.told.messages if one["type"] == "final" and at > begin)

    await asyncio.gather(*(some(range(first, len(readings), 2)) for first in range(2)))
    normalise = judges._whisper()[1]
    errors = words = 0
    for number, reading in enumerate(readings):
        [hearing] = judges.assign([normalise(reading.text).split()], normalise(heard[number]).split())
        errors, words = errors + hearing.errors, words + hearing.words
    return {"round_trip_wer": round(errors / words, 4)}


async def barge_in(
    base: str, readings: list[Reading], users: list[Reading], tries: int, interruption: str, figures: dict[str, list[float]],
    most_seconds: float | None = None,
) -> None:  # fmt: skip
    """A user speaks while the server does; ``most_seconds``: of the user's speech."""
    most = None if most_seconds is None else round(RATE * most_seconds)
    async with conversation(base, f"barge-{interruption}", room(10, np.random.default_rng(1)), interruption=interruption) as pair:
        for number in range(tries):
            reading, user = readings[number % len(readings)], users[number % len(users)]
            await interrupt_once(*pair, reading, number % len(readings) + 1, as_user(user)[:most], 1.2 + 0.37 * (number % 7), figures)


async def interrupt_once(
    microphone: Microphone, loudspeaker: Loudspeaker, reading: Reading, seed: int, speech: F32[np.ndarray, " F"], after: float,
    figures: dict[str, list[float]],
) -> None:  # fmt: skip
    """Speak, and be interrupted ``after`` seconds of it have sounded. Adds to duck, silence, off and end, or to missed."""
    name = f"{time.monotonic_ns()}"
    await loudspeaker.speak(reading.text, name, seed=seed)
    told = loudspeaker.told
    if not await played(loudspeaker, name, after):  # the speech before it was found out too late
        figures["missed"].append(1.0)
        await asyncio.sleep(LATE_SECONDS)
        return
    spoken = microphone.say(speech)
    begin, over = spoken + edges(speech)[0] / RATE, spoken + len(speech) / RATE
    try:
        at, message = await told.next(lambda one: one["type"] == "interrupted", begin, over + MISSED_SECONDS - monotonic())
    except TimeoutError:
        figures["missed"].append(1.0)
        await loudspeaker.cancel()
        await told.next(lambda one: one.get("code") == "CANCELLED", over)
        over += LATE_SECONDS
    else:
        figures["missed"].append(0.0)
        figures["duck"] += [when - begin for when, one in told.messages if when >= begin and one["type"] == "ducked"][:1]
        figures["silence"].append(at - begin)
        heard = loudspeaker.played(name)  # it has stopped
        figures["end"].append(abs(message["audioEndMs"] / 1000 - heard))
        figures["off"].append(abs(len(message["spokenText"].split()) - words_heard(reading, 1000 * heard)))
        if message["spokenText"] + message["remainingText"] != reading.text:
            raise RuntimeError(f"the two texts are not the utterance's: {message}")
    await asyncio.sleep(max(0.0, over + SETTLE_SECONDS - monotonic()))


def words_heard(reading: Reading, ms: float) -> int:
    """How many words have been heard by then, half of the last one at least: Whisper's times."""
    return max((index + 1 for index, start, end in reading.judged if start + end <= 2 * ms), default=0)


async def played(loudspeaker: Loudspeaker, name: str, seconds: float) -> bool:
    """Wait until so much of an utterance has sounded. False if it was interrupted before."""
    async with asyncio.timeout(WAIT):
        while loudspeaker.played(name) < seconds:  # time passes
            await asyncio.sleep(0.005)
            if loudspeaker.told.has(name, "interrupted") or loudspeaker.told.has(name, "error"):
                return False
    return True


async def answers(base: str, users: list[Reading], tries: int, figures: dict[str, list[float]]) -> None:
    """A user says something, and the echo answers."""
    async with conversation(base, "answers", room(10, np.random.default_rng(2)), respond=True) as (microphone, loudspeaker):
        for number in range(tries):
            speech = as_user(users[number % len(users)])
            end = microphone.say(speech) + edges(speech)[1] / RATE
            at, _ = await microphone.told.next(lambda one: one["type"] == "final" and bool(one["text"].strip()), end)
            figures["final"].append(at - end)
            async with asyncio.timeout(WAIT):
                while not (first := [one for one, _ in loudspeaker.first_frames if one > end]):  # noqa: ASYNC110  # frames, no messages
                    await asyncio.sleep(0.001)
            figures["first_audio"].append(first[0] - end)
            await loudspeaker.cancel()
            await asyncio.sleep(SETTLE_SECONDS)


async def undisturbed(
    base: str, name: str, readings: list[Reading], users: list[Reading], seconds: float, background: F32[np.ndarray, " F"],
    echo_db: float | None, over: dict[str, list[float]],
) -> dict[str, float]:  # fmt: skip
    """The server speaks all the time, and nobody else does; then, if there is an echo, a user does, over it. Counts interruptions."""
    async with conversation(base, name, background, echo_db=echo_db) as (microphone, loudspeaker):
        end, number = monotonic() + seconds, 0
        while monotonic() < end:
            reading = readings[number % len(readings)]
            await loudspeaker.speak(reading.text, f"{name}-{number}", seed=number % len(readings) + 1)
            await loudspeaker.told.end_of(f"{name}-{number}")
            while loudspeaker.sounding() is not None:  # noqa: ASYNC110  # time passes
                await asyncio.sleep(0.02)
            number += 1
        found = {
            f"false_interruptions_{name}": float(loudspeaker.told.count("interrupted")),
            f"false_ducks_{name}": float(loudspeaker.told.count("ducked")),
        }
        if echo_db is not None:
            for number in range(5):
                speech = as_user(users[number % len(users)])
                await interrupt_once(
                    microphone, loudspeaker, readings[number % len(readings)], number % len(readings) + 1, speech, 1.5, over
                )
    return found


async def ten_and_two(base: str, users: list[Reading], minutes: float) -> dict[str, float]:
    """Ten that listen to the server beside two that talk to it."""
    figures, end = server.ClientFigures(), monotonic() + 60 * minutes

    async def talk(number: int) -> None:
        async with opened(f"{base}/api/v1/listen", {}) as connection:
            microphone = Microphone(connection, room(10, np.random.default_rng(number)))
            async with running(microphone):
                while monotonic() < end:
                    speech = as_user(users[number % len(users)])
                    microphone.say(speech)
                    await asyncio.sleep(len(speech) / RATE + 1.0)
                    number += 1
                if not microphone.told.count("final"):
                    raise RuntimeError("two that talk: nothing was heard of them")

    async with asyncio.TaskGroup() as clients:
        for number in range(10):
            clients.create_task(server.client(f"{base}/api/v1/speak", number, end, figures))
        for number in range(2):
            clients.create_task(talk(number))
    if figures.errors:
        raise RuntimeError(f"ten that listen: {figures.errors}")
    return {
        "underruns": float(figures.underruns),
        "underrun_ms": round(1000 * figures.underrun, 1),
        "underrun_utterances": figures.utterances,
    }


async def measure(base: str, arguments: argparse.Namespace) -> dict[str, float]:
    """All figures, or those of some sections."""
    wanted, tries = arguments.only.split(",") if arguments.only else list(SECTIONS), arguments.tries
    judged = not {*wanted} <= UNJUDGED
    tell("speech of the server, and of users")
    everyday = await read_all(base, SENTENCES, None, judged=True) if {"words", "round-trip"} & {*wanted} else []
    long = await read_all(base, LONG, None, judged=judged)
    users = await read_all(base, THREE_SECONDS, USER, judged=False)
    made: dict[str, float] = {}
    for section in wanted:
        tell(section)
        figures: dict[str, list[float]] = {name: [] for name in ("duck", "silence", "end", "off", "final", "first_audio", "missed")}
        if section == "words":
            for name, first in (("word_times", False), ("word_times_running", True)):
                errors = word_errors(everyday + long, first=first)
                made[f"{name}_median_ms"] = round(float(np.median(np.abs(errors))), 1)
                made[f"{name}_bias_ms"] = round(float(np.median(errors)), 1)
        elif section == "round-trip":
            made |= await round_trip(base, everyday)
        elif section == QUICK:
            await barge_in(base, long, users, tries, "confirm", figures, DUCKED_BY)
            made |= spread("duck", figures["duck"]) | {"missed_interruptions": sum(figures["missed"])}
        elif section == "silence":
            made |= await silence(base, room(10, np.random.default_rng(3)), as_user(users[0]), 60 * arguments.silence_minutes)
        elif section == "interruptions":
            await barge_in(base, long, users, tries, "confirm", figures)
            made |= spread("confirm", figures["silence"]) | spread("duck", figures["duck"])
            figures["silence"] = []
            await barge_in(base, long, users, tries, "immediate", figures)
            made |= spread("silence", figures["silence"]) | spread("audio_end_off", figures["end"])
            off = figures["off"] or [float("nan")]
            made |= {f"spoken_words_off_p{part}": round(float(np.percentile(off, part)), 1) for part in (95, 50)}
            made["missed_interruptions"] = sum(figures["missed"])
        elif section == "answers":
            await answers(base, users, tries, figures)
            made |= spread("final", figures["final"]) | spread("first_audio", figures["first_audio"])
        elif section == "load":
            made |= await ten_and_two(base, users, arguments.minutes)
        else:
            made |= await disturbances(base, long, users, 60 * arguments.echo_minutes, figures)
            made |= spread("echo_duck", figures["duck"]) | spread("echo_silence", figures["silence"])
            made |= {"echo_missed": sum(figures["missed"]), "echo_tries": len(figures["missed"]), "echo_minutes": arguments.echo_minutes}
    return made


async def disturbances(
    base: str, long: list[Reading], users: list[Reading], seconds: float, figures: dict[str, list[float]]
) -> dict[str, float]:
    """The server's own echo, and noise, while it speaks; all at once."""
    rng = np.random.default_rng(5)
    noise = np.concatenate([at_level(make(20, rng), NOISE_DB) for make in (typing, clicks, music)])
    made: dict[str, float] = {}
    for found in await asyncio.gather(
        undisturbed(base, "echo_20_db", long, users, seconds, room(10, rng), -20.0, figures),
        undisturbed(base, "echo_10_db", long, users, seconds, room(10, rng), -10.0, figures),
        undisturbed(base, "noise", long, users, seconds, noise + room(60, rng), None, figures),
    ):
        made |= found
    return made


def spread(name: str, seconds: list[float]) -> dict[str, float]:
    return {f"{name}_p95_ms": server.percentile(seconds, 95), f"{name}_p50_ms": server.percentile(seconds, 50)}


def tell(what: str) -> None:
    print(f"{what} ...", file=sys.stderr, flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--tries", type=int, default=20, help="of each latency")
    parser.add_argument("--minutes", type=float, default=0.5, help="of ten Speak sessions beside two Listen sessions")
    parser.add_argument("--echo-minutes", type=float, default=1.0, help="of echo, and of noise")
    parser.add_argument("--silence-minutes", type=float, default=30.0, help="of a client that says nothing (--only silence)")
    parser.add_argument("--only", help=f"some of {','.join(SECTIONS)}; or {QUICK}, the first figure by itself; or silence")
    arguments = parser.parse_args()
    if arguments.only and (odd := {*arguments.only.split(",")} - {*SECTIONS} - UNJUDGED):
        parser.error(f"--only {', '.join(odd)}: there are {', '.join((*SECTIONS, *sorted(UNJUDGED)))}")
    if not arguments.only or not {*arguments.only.split(",")} <= UNJUDGED:
        judges._whisper()  # which says what is missing
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "stderr"
        options = {"TTS_LIMIT_SESSIONS": "1000", "TTS_MAX_SESSIONS": "1000", "TTS_MODEL_ID": "embedded"}
        process = server.launch([sys.executable, "-m", "server"], port, options, said)
        try:
            made = asyncio.run(measure(f"ws://127.0.0.1:{port}", arguments))
        except BaseException:
            print(said.read_text()[-3000:], file=sys.stderr)
            raise
        finally:
            process.terminate()
            process.wait(60)
    for name, value in made.items():
        print(f"  {name:36} {value:>10}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
