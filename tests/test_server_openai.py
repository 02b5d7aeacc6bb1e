"""OpenAI's endpoints, asked by the real ``openai`` package over a real socket; and the encoders behind them."""

import asyncio
import base64
import io
import json
import re
import sys
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import soundfile

from qwen3_jax.audio.files import write_sound
from server.http.encode import CONTENT_TYPES, Tempo, Unavailable, encoder
from server.ops import logs
from server.voices import names
from tests.fake_engine import FRAME, LIMIT, FakeEngine, pcm16
from tests.serving import Server, make_voices, running, until


def ask(server: Server) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.http}/v1", api_key="none", max_retries=0)


def wave(seconds: float = 1.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(int(24000 * seconds)) / 24000)).astype(np.float32)


def encoded(kind: str, pcm: np.ndarray, size: int = 1920) -> bytes:
    coder = encoder(kind)
    return b"".join([coder.write(pcm[start : start + size]) for start in range(0, len(pcm), size)] + [coder.finish()])


def decoded(kind: str, data: bytes) -> tuple[np.ndarray, int]:
    """Samples and rate, by an independent reader (FFmpeg, as PyAV has it)."""
    if kind == "pcm":
        return np.frombuffer(data, "<i2") / 32768, 24000
    av = pytest.importorskip("av", reason="the extra audio")
    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(audio=0))
        samples = [frame.to_ndarray().reshape(len(frame.layout.channels), -1)[0].astype(np.float64) for frame in frames]
        scale = 32768.0 if frames[0].format.name.startswith("s16") else 1.0
        return np.concatenate(samples) / scale, frames[0].sample_rate


@pytest.mark.parametrize("kind", sorted(CONTENT_TYPES))
def test_every_format_but_flac_is_streamed_and_says_what_went_in(kind: str) -> None:
    coder, sound, early = encoder(kind), wave(2.0), 0
    data = b""
    for start in range(0, len(sound), 1920):
        data += coder.write(sound[start : start + 1920])
        early = early or (len(data) > 100 and start)
    data += coder.finish()
    assert kind == "flac" or early < len(sound) / 2, "bytes leave long before the end"
    samples, rate = decoded(kind, data)
    assert abs(len(samples) / rate - 2.0) < 0.1
    spectrum = np.abs(np.fft.rfft(samples[: rate // 2 * 2] * np.hanning(rate // 2 * 2)))
    assert abs(spectrum.argmax() * rate / (rate // 2 * 2) - 440) < 2
    assert abs(np.sqrt(np.mean(samples**2)) - 0.3535) < 0.03


@pytest.mark.parametrize("kind", sorted(CONTENT_TYPES))
def test_no_format_takes_what_is_not_finite(kind: str) -> None:
    if kind == "aac":
        pytest.importorskip("av", reason="the extra audio")
    sound = wave()
    sound[5] = np.nan
    with pytest.raises(FloatingPointError, match="audio has 1 NaN or infinite samples of 24000"):
        encoder(kind).write(sound)


@pytest.mark.parametrize("speed", [1.0, 1.5])
@pytest.mark.parametrize("kind", sorted(CONTENT_TYPES))
def test_readers_find_the_length_of_a_stream_with_pauses(kind: str, speed: float) -> None:
    """A third of it is silence, in which a variable bit rate falls to its least. FFmpeg's word for a whole file is what players show."""
    sound = wave(18.0) * (np.arange(18 * 24000) // 24000 % 3 > 0)
    if speed != 1:
        pytest.importorskip("av")
        tempo = Tempo(speed)
        sound = np.concatenate([*(tempo.write(sound[start : start + 1920]) for start in range(0, len(sound), 1920)), tempo.finish()])
    data = encoded(kind, sound.astype(np.float32))
    samples, rate = decoded(kind, data)
    assert abs(len(samples) / rate - 18 / speed) < 0.1
    if kind not in ("pcm", "aac"):  # soundfile reads neither
        samples, rate = soundfile.read(io.BytesIO(data))
        assert abs(len(samples) / rate - 18 / speed) < 0.1
    if kind not in ("pcm", "aac"):  # an ADTS stream tells no length, and FFmpeg guesses one
        av = pytest.importorskip("av")
        with av.open(io.BytesIO(data)) as container:
            assert abs(container.duration / av.time_base - 18 / speed) < 0.1


@pytest.mark.parametrize("ending", [".wav", ".flac", ".mp3", ".ogg", ".opus"])
def test_readers_find_the_length_of_a_saved_file(tmp_path: Path, ending: str) -> None:
    av = pytest.importorskip("av")
    sound = wave(18.0) * (np.arange(18 * 24000) // 24000 % 3 > 0)
    write_sound(tmp_path / f"a{ending}", sound.astype(np.float32), 24000)
    assert abs(soundfile.info(tmp_path / f"a{ending}").duration - 18) < 0.1
    with av.open(str(tmp_path / f"a{ending}")) as container:
        assert abs(container.duration / av.time_base - 18) < 0.1
        assert abs(sum(frame.samples for frame in container.decode(audio=0)) / container.streams.audio[0].rate - 18) < 0.1


@pytest.mark.parametrize("kind", sorted(CONTENT_TYPES))
def test_pieces_without_samples_change_nothing(kind: str) -> None:
    """A change of speed holds samples back, so the first pieces after it may be empty."""
    if kind == "aac":
        pytest.importorskip("av", reason="the extra audio")
    coder, sound, empty = encoder(kind), wave(), np.zeros(0, np.float32)
    data = coder.write(empty) + coder.write(sound) + coder.write(empty) + coder.finish()
    samples, expected = (decoded(kind, one)[0] for one in (data, encoded(kind, sound, len(sound))))
    np.testing.assert_array_equal(samples, expected)


SIZES: tuple[tuple[int, ...], ...] = (  # of pieces, in samples
    (0, 2, 398, 0, 23600),
    (1,),
    (1, 1, 1),
    (2, 1, 24000, 1, 1, 1),
    (480,),
    (3000,),
    (1920, 1, 0, 1920),
)


@pytest.mark.parametrize("speed", [0.25, 0.7, 1.01, 2.0, 2.5, 4.0])
@pytest.mark.parametrize("sizes", SIZES)
def test_pieces_of_every_size_change_the_speed(sizes: tuple[int, ...], speed: float) -> None:
    """Empty ones, and ones that are too short for the filter to make anything of them; what comes out has the length that it should."""
    pytest.importorskip("av", reason="the extra audio")
    tempo, sound = Tempo(speed), wave(2.0)
    made = [*(tempo.write(sound[:size]) for size in sizes), tempo.finish()]
    assert sum(map(len, made)) == round(sum(sizes) / speed)
    assert sum(sizes) < 480 or np.abs(np.concatenate(made)).max() > 0.4, "the sound, and not the silence after it"


def test_a_streamed_wav_has_one_header() -> None:
    data = encoded("wav", wave())
    assert data.count(b"RIFF") == 1
    assert data[44:] == encoded("pcm", wave())
    assert len(soundfile.read(io.BytesIO(data))[0]) == 24000


@pytest.mark.parametrize("speed", [0.25, 0.8, 1.5, 4.0])
def test_speed_changes_the_length_and_not_the_pitch(speed: float) -> None:
    pytest.importorskip("av", reason="the extra audio")
    tempo, sound = Tempo(speed), wave(3.0)
    made = np.concatenate([*(tempo.write(sound[start : start + 1920]) for start in range(0, len(sound), 1920)), tempo.finish()])
    assert abs(len(made) / 24000 - 3.0 / speed) < 0.1
    spectrum = np.abs(np.fft.rfft(made * np.hanning(len(made))))
    assert abs(spectrum.argmax() * 24000 / len(made) - 440) < 5


def test_without_pyav_the_answer_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    for make in (lambda: encoder("aac"), lambda: Tempo(2.0)):
        with pytest.raises(Unavailable, match="its operator can install PyAV"):
            make()


@pytest.mark.parametrize("kind", sorted(CONTENT_TYPES))
async def test_the_openai_package_gets_every_format(voices: Path, kind: str) -> None:
    engine = FakeEngine(frames=12)
    async with (
        running(voices, engine) as server,
        ask(server) as client,
        client.audio.speech.with_streaming_response.create(
            model="tts-1", voice="alloy", input=" Hello. ", response_format=kind, instructions="calmly"
        ) as response,
    ):
        assert response.headers["content-type"] == CONTENT_TYPES[kind]
        data = b"".join([piece async for piece in response.iter_bytes()])
    if kind in ("pcm", "wav"):
        assert data[-12 * 2 * FRAME :] == pcm16(1, 12)
    samples, rate = decoded(kind, data)
    assert abs(len(samples) / rate - 0.96) < 0.1
    assert (engine.requests[0].text, engine.requests[0].voice.id) == ("Hello.", "makima")


async def test_audio_comes_while_it_is_made(voices: Path) -> None:
    gate = asyncio.Semaphore(1)
    async with running(voices, FakeEngine(gate=gate)) as server, ask(server) as client:
        async with client.audio.speech.with_streaming_response.create(
            model="tts-1", voice="makima", input="Hello.", response_format="pcm"
        ) as response:
            pieces = response.iter_bytes()
            first = await asyncio.wait_for(anext(pieces), LIMIT)
            assert first == pcm16(1, 1)
            gate.release()
            gate.release()
            assert b"".join([piece async for piece in pieces]) == pcm16(1, 3, first=1)


async def test_server_sent_events(voices: Path) -> None:
    body = {"model": "gpt-4o-mini-tts", "voice": {"id": "anna"}, "input": "Hello.", "response_format": "pcm", "stream_format": "sse"}
    engine = FakeEngine()
    async with running(voices, engine) as server, server.http_client() as http:
        answer = await http.post("/v1/audio/speech", json=body)
    assert answer.headers["content-type"] == "text/event-stream"
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]
    *deltas, done = events
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert b"".join(base64.b64decode(event["audio"]) for event in deltas) == pcm16(1, 3)
    assert done == {"type": "speech.audio.done", "usage": {"input_tokens": 6, "output_tokens": 3, "total_tokens": 9}}
    assert engine.requests[0].voice.id == "anna"


async def test_models_and_voices(voices: Path) -> None:
    async with running(voices, FakeEngine()) as server, ask(server) as client, server.http_client() as http:
        assert "tts-1" in [model.id async for model in client.models.list()]
        assert (await http.get("/v1/audio/voices")).json() == {
            "voices": [{"id": "anna", "name": "anna"}, {"id": "makima", "name": "makima"}]
        }


async def test_aliases(voices: Path) -> None:
    engine = FakeEngine()
    make_voices(voices, "george", "heart", "nova")
    async with running(voices, engine, voice_aliases={"Alloy": "anna", "echo": "gone"}) as server, ask(server) as client:
        asked = ("alloy", "ALLOY", "nova", "Makima", "onyx", "echo", "Shimmer", "default")
        for voice in asked:
            await client.audio.speech.create(model="tts-1", voice=voice, input="Hello.", response_format="pcm", speed=1.0)
        with pytest.raises(openai.NotFoundError, match="nobody"):
            await client.audio.speech.create(model="tts-1", voice="nobody", input="Hello.")
        async with server.http_client() as http:
            listed = {voice["id"]: voice["aliases"] for voice in (await http.get("/api/v1/voices/")).json()["voices"]}
    spoken = ["anna", "anna", "nova", "makima", "george", "george", "heart", "makima"]
    assert [request.voice.id for request in engine.requests] == spoken
    assert {"ash", "ballad", "cedar", "fable", "onyx", "verse"} <= set(listed["george"])
    assert {"coral", "marin", "sage", "shimmer"} == set(listed["heart"]) and listed["nova"] == [] and "Alloy" in listed["anna"]


def test_names_of_openais_are_voices_of_the_same_sex() -> None:
    """Of those that ship, and of the presets of published checkpoints."""
    shipped = {path.parent.name: json.loads(path.read_text())["description"] for path in Path("voices").glob("*/metadata.json")}
    presets = {"ryan": "male", "eric": "male", "serena": "female", "vivian": "female"}
    for there, default in ((shipped, "makima"), (presets, "vivian")):
        sexes = {name: re.search(r"\b(fe)?male\b", there[names.stands_for(name, there, default)])[0] for name in names.OPENAI}
        assert {name for name, sex in sexes.items() if sex == "male"} == {"ash", "ballad", "cedar", "echo", "fable", "onyx", "verse"}
        assert len(sexes) == 13


LENIENT: list[tuple[dict[str, object], dict[str, object]]] = [  # what is sent beside input, what is spoken
    ({"model": None, "voice": None, "response_format": None, "speed": None, "language": None, "seed": None, "stream_format": None}, {}),
    ({"speed": "1.0", "seed": "7"}, {"seed": 7}),
    ({"seed": -1}, {}),
    ({"speed": " 1.0 ", "seed": "", "response_format": "pcm ", "stream_format": ""}, {}),
    ({"voice": "\ufeffanna"}, {"voice": "anna"}),
    ({"response_format": "PCM", "stream_format": "Audio", "model": "TTS-1"}, {}),
    ({"voice": "Anna "}, {"voice": "anna"}),
    ({"voice": {"id": "ANNA"}}, {"voice": "anna"}),
    ({"voice": {"id": None}}, {}),
    ({"voice": {"name": "Anna"}}, {"voice": "anna"}),
    ({"voice": {"id": "\ufeffanna ", "name": "makima", "provider": "x"}}, {"voice": "anna"}),
    ({"voice": {"id": None, "name": "anna"}}, {"voice": "anna"}),
    ({"voice": " "}, {}),
    ({"language": "de"}, {"language": "German"}),
    ({"language": "en-US"}, {}),
    ({"language": "pt_BR"}, {"language": "Portuguese"}),
    ({"language": ""}, {}),
    ({"user": "me", "extra_body": {"x": [1, None]}, "instructions": "Calmly."}, {}),
    ({"input": "\ufeff Hello. \n"}, {}),
    ({"input": " " * 100 + "x" * 4096 + "\n"}, {"text": "x" * 4096}),
]


@pytest.mark.parametrize(("body", "spoken"), LENIENT)
async def test_what_is_harmless_is_taken(voices: Path, body: dict[str, object], spoken: dict[str, object]) -> None:
    engine = FakeEngine()
    async with running(voices, engine) as server, server.http_client() as http:
        data = b"\xef\xbb\xbf" + json.dumps({"input": "Hello.", "response_format": "pcm"} | body).encode()
        answer = await http.post("/v1/audio/speech/", content=data)
        assert answer.status_code == 200, answer.text
    [request] = engine.requests
    expected = {"text": "Hello.", "voice": "makima", "language": "English", "seed": None} | spoken
    assert {"text": request.text, "voice": request.voice.id, "language": request.language, "seed": request.seed} == expected


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ({"input": None}, "INVALID_MESSAGE", "input"),
        ({"speed": "fast"}, "INVALID_MESSAGE", "speed"),
        ({"speed": "nan"}, "INVALID_MESSAGE", "speed"),
        ({"speed": 5}, "INVALID_MESSAGE", "speed"),
        ({"seed": -2}, "INVALID_MESSAGE", "seed"),
        ({"voice": 5}, "INVALID_MESSAGE", "voice 5 must be a text of at most 128 characters or an object with id or name"),
        ({"voice": {}}, "INVALID_MESSAGE", "voice {} must be"),
        ({"voice": {"voice_id": "anna"}}, "INVALID_MESSAGE", "voice {'voice_id': 'anna'} must be"),
        ({"voice": {"ID": "anna"}}, "INVALID_MESSAGE", "voice {'ID': 'anna'} must be"),
        ({"voice": {"id": 5}}, "INVALID_MESSAGE", "voice {'id': 5} must be"),
        ({"voice": {"id": ["anna"]}}, "INVALID_MESSAGE", "voice"),
        ({"voice": ["anna"]}, "INVALID_MESSAGE", "voice ['anna'] must be"),
        ({"response_format": "mp4"}, "INVALID_MESSAGE", "response_format"),
        ({"language": "Klingon"}, "INVALID_LANGUAGE", "this model speaks English"),
        ({"input": " \ufeff "}, "INVALID_TEXT", "1 to 4096"),
        ({"input": "x" * 4097}, "INVALID_TEXT", "4097 characters: must be 1 to 4096"),
    ],
)
async def test_what_matters_is_refused(voices: Path, body: dict[str, object], code: str, said: str) -> None:
    engine = FakeEngine()
    async with running(voices, engine) as server, server.http_client() as http:
        answer = await http.post("/v1/audio/speech", json={"input": "Hello."} | body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert said in answer.json()["error"]["message"] and not engine.requests


async def test_one_model(voices: Path) -> None:
    async with running(voices, FakeEngine(), model_id="Qwen/Base") as server, ask(server) as client, server.http_client() as http:
        for name in ("tts-1", "tts-1-hd", "gpt-4o-mini-tts", "Qwen/Base"):
            assert (await client.models.retrieve(name.upper())).id == name
            assert (await http.get(f"/v1/models/{name}/")).json()["id"] == name
        with pytest.raises(openai.NotFoundError, match="'gpt-5' is not here: Qwen/Base, tts-1"):
            await client.models.retrieve("gpt-5")
        assert (await http.get("/v1/models/")).status_code == 200


async def test_presets_are_found_in_any_case(tmp_path: Path) -> None:
    engine = FakeEngine(presets=("Alice_Smith", "ryan", "serena"))
    async with running(tmp_path, engine, default_voice="RYAN") as server, ask(server) as client:
        for voice in ("ALICE_smith", "Ryan", "onyx", "nova", "alloy"):
            await client.audio.speech.create(model="tts-1", voice=voice, input="Hello.", response_format="pcm")
    assert [request.voice for request in engine.requests] == ["Alice_Smith", "ryan", "ryan", "serena", "ryan"]


async def test_errors_are_those_of_the_package(voices: Path) -> None:
    engine = FakeEngine()
    async with running(voices, engine, jwt_secret="a secret of more than thirty-two bytes", auth="off") as server, ask(server) as client:
        for text, kind, code in (
            ("  ", openai.BadRequestError, "INVALID_TEXT"),
            ("x" * 4097, openai.BadRequestError, "INVALID_TEXT"),
            ("refuse", openai.BadRequestError, "INVALID_TEXT"),
            ("break", openai.InternalServerError, "SYNTHESIS_ERROR"),
            ("nan", openai.InternalServerError, "SYNTHESIS_ERROR"),
            ("memory", openai.InternalServerError, "GPU_OUT_OF_MEMORY"),
        ):
            with pytest.raises(kind) as raised:
                await client.audio.speech.create(model="tts-1", voice="alloy", input=text)
            assert raised.value.code == code
        with pytest.raises(openai.BadRequestError):
            await client.audio.speech.create(model="tts-1", voice="alloy", input="Hello.", speed=9)
        with pytest.raises(openai.BadRequestError):
            await client.post("/audio/speech", content=b'{"input":' + b"[" * 30_000, cast_to=object)
        engine.healed = True
        assert (await client.audio.speech.create(model="tts-1", voice="alloy", input="break", response_format="pcm")).content
        with pytest.raises(openai.APIConnectionError):  # a failure in the middle must not look like an end
            (await client.audio.speech.create(model="tts-1", voice="alloy", input="fail", response_format="pcm")).read()
        async with server.http_client() as http:  # "break" twice, "nan" and "memory" were tried again, the others not
            assert "tts_retries_total 4.0" in (await http.get("/metrics")).text
    async with running(voices, FakeEngine(), jwt_secret="a secret of more than thirty-two bytes") as server, ask(server) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.audio.speech.create(model="tts-1", voice="alloy", input="Hello.")


@pytest.mark.parametrize("grace", [LIMIT, 0.2])
async def test_going_down_finishes_what_is_on_its_way_or_cuts_it(voices: Path, grace: float, caplog: pytest.LogCaptureFixture) -> None:
    gate = asyncio.Semaphore(1)
    async with running(voices, FakeEngine(gate=gate), grace=grace) as server:
        body = {"input": "Hello.", "voice": "alloy", "response_format": "pcm"}
        async with server.http_client() as http, http.stream("POST", "/v1/audio/speech", json=body) as answer:
            pieces = answer.aiter_raw()
            heard = await anext(pieces)
            server.stop.set()
            await until(server.context.draining.is_set)
            if grace == LIMIT:
                gate.release()
                gate.release()
                assert heard + b"".join([piece async for piece in pieces]) == pcm16(1, 3)
            else:
                with pytest.raises(httpx.RemoteProtocolError):
                    [piece async for piece in pieces]
        await asyncio.wait_for(asyncio.shield(server.task), LIMIT)
    shown = [record for record in caplog.records if logs._Context().filter(record)]
    assert not [record for record in shown if record.levelname == "ERROR"], "the operator has meant it"


async def test_a_client_that_goes_away_ends_the_generation(voices: Path) -> None:
    engine = FakeEngine(frames=1000, gate=asyncio.Semaphore(2))
    async with running(voices, engine) as server:
        body = {"input": "Hello.", "voice": "alloy", "response_format": "pcm"}
        async with server.http_client() as http, http.stream("POST", "/v1/audio/speech", json=body) as answer:
            await anext(answer.aiter_raw())
        await asyncio.wait_for(engine.handles[0].cancelled.wait(), LIMIT)
        await until(lambda: engine.active == 0)
