"""The default recogniser and voice activity, without a hub: a recording is understood, over a real socket."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from qwen3_jax.evaluate.judges import assign
from server.listen.smart_turn import SmartTurn, model_file
from tests.fake_engine import FakeEngine
from tests.hearing import hear_until, send, start
from tests.serving import client, running

VOICE = Path(__file__).parent.parent / "voices" / "george"
ROOM = np.random.default_rng(0).normal(0, 1e-4, 16000).astype(np.float32)


@pytest.fixture(scope="module")
def spoken() -> np.ndarray:
    """A recording at 16 kHz, with a second of a quiet room before and after it."""
    pcm, rate = soundfile.read(VOICE / "reference.wav", dtype="float32")
    return np.concatenate([ROOM, soxr.resample(pcm, rate, 16000), ROOM])


def words_of(text: str) -> list[str]:
    return "".join(one for one in text.lower() if one.isalpha() or one == " ").split()


async def test_a_recording_is_understood(voices: Path, spoken: np.ndarray) -> None:
    async with running(voices, FakeEngine()) as server, client(server.url.replace("speak", "listen")) as connection:
        assert (await start(connection))["language"] == "English"
        await send(connection, (spoken * 32767).astype("<i2").tobytes(), 640)
        await send(connection, (np.tile(ROOM, 3) * 3e5).astype("<i2").tobytes(), 640)  # hiss
        await connection.send('{"type": "commit"}')
        heard = await hear_until(connection, "final")
        while heard[-1]["text"]:  # that of commit is empty, for nobody speaks any more
            heard += await hear_until(connection, "final")
    assert heard[0]["type"] == "speechStarted"
    assert 900 <= heard[0]["audioMs"] <= 1500
    finals = [message for message in heard[:-1] if message["type"] == "final"]
    said = words_of((VOICE / "transcript.txt").read_text("utf-8"))
    assert assign([said], [word for final in finals for word in words_of(final["text"])])[0].errors <= 1, finals
    for final in finals:
        times = [(word["startMs"], word["endMs"]) for word in final["words"]]
        assert len(times) == len(final["text"].split())
        assert all(final["startMs"] <= begin <= end <= final["endMs"] for begin, end in times)
        assert times == sorted(times)


def test_the_recognisers_process_starts_without_jax() -> None:
    code = "import sys, server.listen.worker; print([one for one in ('jax', 'quart', 'pydantic') if one in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.skipif(importlib.util.find_spec("pipecat") is None, reason="smart-turn comes with pip install --no-deps pipecat-ai")
def test_a_whole_sentence_is_over_and_half_of_it_is_not(spoken: np.ndarray) -> None:
    path = model_file(None)
    assert path is not None
    model = SmartTurn(path)
    end = int(np.nonzero(np.abs(spoken) > 0.01)[0][-1])
    assert model.probability(spoken[: end + 3200]) > 10 * model.probability(spoken[: end // 2])
