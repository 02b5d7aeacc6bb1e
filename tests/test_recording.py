"""qwen3_jax/audio/recording.py: what phones, browsers and studios record is read; what cannot be cloned is refused with the same words by
the library, the shell and the server."""

import io
import struct
import sys
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.audio import recording
from qwen3_jax.audio import samples as audio
from qwen3_jax.audio.recording import Refusal
from server.voices import checks
from server.voices.command import app
from tests.fake_engine import FakeEngine
from tests.serving import running

MOST = 10 * 1024 * 1024


def speech(seconds: float = 4.0, rate: int = 24000) -> np.ndarray:
    """Syllables of noise with pauses, float32 [F]."""
    envelope = np.clip(np.sin(4 * np.pi * np.arange(int(seconds * rate)) / rate), 0, 1)
    return (np.random.default_rng(0).normal(0, 0.2, len(envelope)).clip(-0.9, 0.9) * envelope).astype(np.float32)


def sound(samples: np.ndarray, rate: int = 24000, kind: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def by_ffmpeg(container: str, codec: str, samples: np.ndarray, rate: int, *, live: bool = False) -> bytes:
    """A file that FFmpeg writes; ``live`` as a browser's recorder does, which cannot go back to its header."""
    av = pytest.importorskip("av")
    made = io.BytesIO()

    class Pipe(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: object) -> int:
            return made.write(bytes(data))  # type: ignore[call-overload]

    layout = "stereo" if samples.ndim == 2 else "mono"
    with av.open(Pipe() if live else made, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.reshape(len(samples), -1).T), format="fltp", layout=layout)
        frame.sample_rate = rate
        for piece in av.AudioResampler(stream.codec_context.format, layout, rate).resample(frame):
            file.mux(stream.encode(piece))
        file.mux(stream.encode(None))
    return made.getvalue()


def unfinished(data: bytes, size: int) -> bytes:
    """A WAV whose writer never came back to its header."""
    place, mended = data.index(b"data") + 4, bytearray(data)
    mended[4:8] = mended[place : place + 4] = struct.pack("<I", size)
    return bytes(mended)


def film() -> bytes:
    """A video without sound."""
    av = pytest.importorskip("av")
    made = io.BytesIO()
    with av.open(made, "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 16
        file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        file.mux(stream.encode(None))
    return made.getvalue()


def says(data: bytes, bits: int) -> bytes:
    """A WAV, AIFF or CAF whose header has another number of bits in a sample."""
    place, size, order = {
        b"WAVE": (data.find(b"fmt ") + 22, 2, "little"),
        b"AIFF": (data.find(b"COMM") + 14, 2, "big"),
    }.get(data[8:12], (48, 4, "big"))
    return data[:place] + bits.to_bytes(size, order) + data[place + size :]


def contradicting(kind: str, bits: int, given: int) -> bytes:
    """A file of so many bytes a sample whose header says other bits."""
    return says(sound(speech(5.0), kind=kind, subtype=f"PCM_{8 * given}"), bits)


def three_bytes(bits: int) -> bytes:
    """A WAV of so many bits in three bytes, as the format's rule is."""
    return says(sound(speech(), subtype="PCM_24"), bits)


STEREO = np.stack([speech(), -speech()], axis=1)
KINDS: dict[str, tuple[Callable[[], bytes], int]] = {  # what it is -> how it is made, its rate
    "WAV": (lambda: sound(speech()), 24000),
    "WAV, 24 bits": (lambda: sound(speech(rate=48000), 48000, "WAVEX", "PCM_24"), 48000),
    "WAV, 192 kHz": (lambda: sound(speech(rate=192_000), 192_000, "WAV", "FLOAT"), 192_000),
    "WAV, no size": (lambda: unfinished(sound(speech()), 0), 24000),
    "WAV, size unknown": (lambda: unfinished(sound(speech()), 0xFFFFFFFF), 24000),
    "WAV, 5.1": (lambda: sound(np.stack([speech() * (place == 2) for place in range(6)], axis=1)), 24000),
    "WAV, channels in opposite phase": (lambda: sound(STEREO), 24000),
    "WAV, one channel empty": (lambda: sound(np.stack([speech(), 0 * speech()], axis=1)), 24000),
    "WAV, 12 bits in two bytes": (lambda: says(sound(speech()), 12), 24000),
    "WAV, 17 bits in three bytes": (lambda: three_bytes(17), 24000),
    "WAV, 20 bits in three bytes": (lambda: three_bytes(20), 24000),
    "WAV, a constant offset": (lambda: sound(speech() * 0.5 + 0.4), 24000),
    "RF64": (lambda: sound(speech(), kind="RF64"), 24000),
    "AIFF": (lambda: sound(speech(), kind="AIFF"), 24000),
    "AIFF, compressed": (lambda: sound(speech(), kind="AIFF", subtype="ULAW"), 24000),
    "CAF": (lambda: sound(speech(), kind="CAF"), 24000),
    "CAF, ALAC": (lambda: sound(speech(), kind="CAF", subtype="ALAC_16"), 24000),
    "AU": (lambda: sound(speech(), kind="AU"), 24000),
    "m4a": (lambda: by_ffmpeg("ipod", "aac", speech(rate=44100), 44100), 44100),
    "m4a, channels in opposite phase": (lambda: by_ffmpeg("ipod", "aac", STEREO, 24000), 24000),
    "m4a, ALAC": (lambda: by_ffmpeg("ipod", "alac", speech(), 24000), 24000),
    "mp4": (lambda: by_ffmpeg("mp4", "aac", speech(), 24000), 24000),
    "WebM of a browser": (lambda: by_ffmpeg("webm", "libopus", speech(rate=48000), 48000, live=True), 48000),
    "OGG of a browser": (lambda: by_ffmpeg("ogg", "libopus", speech(rate=48000), 48000, live=True), 48000),
    "AAC": (lambda: by_ffmpeg("adts", "aac", speech(), 24000), 24000),
    "AMR": (lambda: by_ffmpeg("amr", "amr_nb", speech(rate=8000), 8000), 8000),
    "MP3": (lambda: sound(speech(rate=44100), 44100, "MP3"), 44100),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_people_record_is_read(kind: str, tmp_path: Path) -> None:
    make, rate = KINDS[kind]
    data = make()
    clip = checks.check(data, MOST)
    assert (clip.rate, clip.samples.dtype, clip.samples.ndim) == (rate, np.float32, 1)
    assert abs(clip.seconds - 4) < 0.1
    level = np.sqrt(np.mean(np.square(clip.samples, dtype=np.float64)))
    assert level > 0.4 * np.sqrt(np.mean(speech() ** 2)), "nothing is lost by mixing down"
    (tmp_path / "reference").write_bytes(data)  # its name tells nothing
    wave = audio.load_reference(tmp_path / "reference")
    assert abs(len(wave) / 24000 - 4) < 0.1
    assert abs(len(audio.load_audio(tmp_path / "reference")) - len(wave)) < 2400


def test_a_mix_is_the_mean_unless_that_cancels() -> None:
    loud, quiet = speech(), 0.3 * np.roll(speech(), 100)
    np.testing.assert_allclose(recording.mix(np.stack([loud, quiet], axis=1)), (loud + quiet) / 2, atol=1e-7)
    np.testing.assert_array_equal(recording.mix(np.stack([loud, -loud * 0.9], axis=1)), loud)
    np.testing.assert_array_equal(audio.load_reference((np.stack([loud, -loud], axis=1), 24000)), loud)


REFUSED: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "too short": (lambda: sound(speech(1.0)), "AUDIO_TOO_SHORT", "audio lasts 1.000 s: 3 to 30 s are taken; send a longer clip"),
    "empty": (lambda: sound(speech(0.0)), "AUDIO_TOO_SHORT", "audio lasts 0.000 s: 3 to 30 s are taken; send a longer clip"),
    "too long": (lambda: sound(speech(31.0)), "AUDIO_TOO_LONG", "audio lasts 31.000 s: 3 to 30 s are taken; cut it"),
    "too long, size unknown": (
        lambda: by_ffmpeg("webm", "libopus", speech(31.0, 48000), 48000, live=True),
        "AUDIO_TOO_LONG",
        "audio lasts more than 30 s: 3 to 30 s are taken; cut it",
    ),
    **{
        f"{kind}, {bits} bits in {given} bytes": (
            partial(contradicting, kind, bits, given),
            "AUDIO_UNREADABLE",
            f"cannot be decoded (its header says {bits} bits a sample, and {given} bytes); export it again",
        )
        for kind, bits, given in (
            ("WAV", 17, 2),
            ("WAV", 7, 2),
            ("WAV", 16, 3),
            ("WAVEX", 24, 2),
            ("WAV", 0, 2),
            ("RF64", 17, 2),
            ("AIFF", 17, 2),
            ("AIFF", 8, 2),
            ("CAF", 17, 2),
        )
    },
    "silent": (
        lambda: sound(np.zeros(96000)),
        "AUDIO_SILENT",
        "audio is silent: -200 dBFS, at least -50 are needed; send audible speech",
    ),
    **{
        f"silent, {what}": (make, "AUDIO_SILENT", "audio is silent: ")
        for what, make in {
            "a constant offset": lambda: sound(np.full(96000, 0.3)),
            "an offset and the noise of a sound card": lambda: sound(0.5 + np.random.default_rng(0).normal(0, 3e-4, 96000)),
            "an offset in one channel": lambda: sound(np.stack([np.full(96000, 0.3), np.zeros(96000)], axis=1)),
            "a drift": lambda: sound(np.linspace(-0.9, 0.9, 96000)),
            "a beat per second": lambda: sound(0.9 * np.sin(2 * np.pi * np.arange(96000) / 24000)),
            "an offset, 192 kHz": lambda: sound(np.full(4 * 192_000, -0.8), 192_000),
        }.items()
    },
    "clipped": (
        lambda: sound(np.sign(speech(4.0)), subtype="FLOAT"),
        "AUDIO_CLIPPED",
        "audio is clipped: 50.0% of it is at full scale, at most 0.5%; record it lower",
    ),
    "another unit": (lambda: sound(speech() * 32768, subtype="FLOAT"), "AUDIO_TOO_LOUD", "full scale is 1 and 100 the most"),
    "NaN": (
        lambda: sound(np.where(np.arange(96000) == 7, np.nan, speech()), subtype="FLOAT"),
        "AUDIO_NOT_FINITE",
        "audio has 1 NaN or infinite samples of 96000: every one must be finite",
    ),
    "nine channels": (lambda: sound(np.stack([speech()] * 9, axis=1)), "AUDIO_CHANNELS", "audio has 9 channels: 1 to 8 are taken"),
    "384 kHz": (lambda: sound(speech(rate=384_000), 384_000), "AUDIO_SAMPLE_RATE", "audio at 384000 Hz: 8000 to 192000 are taken"),
    "a playlist": (lambda: b"#EXTM3U\nhttp://127.0.0.1:9/a.ts\n", "AUDIO_FORMAT", "by its first bytes; convert it to one of them"),
    "half an m4a": (lambda: by_ffmpeg("ipod", "aac", speech(), 24000)[:20000], "AUDIO_UNREADABLE", "begins like MP4 but cannot be decoded"),
    "a film without sound": (film, "AUDIO_UNREADABLE", "audio is MP4 without a track of sound"),
}


@pytest.fixture(scope="session")
def base_tts(checkpoint: Callable[[str], Path]) -> Any:
    from qwen3_jax import Qwen3TTS

    return Qwen3TTS.from_pretrained(checkpoint("base"))


@pytest.mark.parametrize("fault", REFUSED)
def test_library_shell_and_server_refuse_with_the_same_words(fault: str, tmp_path: Path, base_tts: Any) -> None:
    make, code, said = REFUSED[fault]
    data, file = make(), tmp_path / "clip"
    file.write_bytes(data)
    with pytest.raises(Refusal) as server:
        checks.check(data, MOST)
    assert said in str(server.value) and server.value.code == code and 400 <= server.value.status < 500
    with pytest.raises(Refusal) as library:
        base_tts.create_voice(file)
    assert str(library.value) == f"{file}: {server.value}"
    with pytest.raises(ValueError, match=f"^{code}: ") as shell:
        app(["check", str(file)], standalone_mode=False)
    assert str(shell.value) == f"{code}: {library.value}"


async def test_the_refusal_of_an_upload_has_these_words(voices: Path) -> None:
    form = {"name": "Clara", "consent": "I agree."}
    async with running(voices, FakeEngine()) as server, server.http_client() as http:
        for fault in ("too short", "silent", "a playlist"):
            make, code, said = REFUSED[fault]
            answer = await http.post("/api/v1/voices", files={"audio": ("a", make())}, data=form)
            assert answer.json()["error"]["code"] == code and said in answer.json()["error"]["message"]
        answer = await http.post("/api/v1/voices", files={"audio": ("a.m4a", KINDS["m4a"][0]())}, data=form)
        assert (answer.status_code, round(answer.json()["durationSeconds"])) == (201, 4)


def test_without_pyav_the_refusal_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data = KINDS["m4a"][0]()
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(Refusal, match=r'audio is MP4, which needs PyAV here: install PyAV: pip install "qwen3-jax\[audio\]"') as refused:
        checks.check(data, MOST)
    assert refused.value.code == "AUDIO_NEEDS_PYAV"
    assert checks.check(KINDS["WAV"][0](), MOST).seconds == 4
    with pytest.raises(Refusal, match="begins like CAF but cannot be decoded"):
        checks.check(b"caff\0\1\0\0" + bytes(100), MOST)


def test_tables_of_packets_without_end_are_refused_before_they_are_made() -> None:
    """An MP4 of a few kB that says it has 200 million packets, for which FFmpeg would take 4.8 GB."""
    data = bytearray(KINDS["m4a"][0]())
    place = data.index(b"stsz") + 8
    data[place : place + 8] = struct.pack(">II", 1, 200_000_000)
    tracemalloc.start()
    with pytest.raises(Refusal, match="it says that it has 200000000 packets"):
        checks.check(bytes(data), MOST)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    caf = sound(speech(), kind="CAF", subtype="ALAC_16").replace(b"alac", b"xlac")  # so that soundfile does not read it
    place = caf.index(b"pakt") + 12
    with pytest.raises(Refusal, match="it says that it has 80000000 packets"):
        checks.check(caf[:place] + struct.pack(">Q", 80_000_000) + caf[place + 8 :], MOST)
    sounding = KINDS["m4a"][0]()
    place = sounding.index(b"mdat") + 1000
    with pytest.raises(Refusal) as refused:  # a damaged packet, and no table
        checks.check(sounding[:place] + b"stsz" + b"\xff" * 12 + sounding[place + 16 :], MOST)
    assert "packets" not in str(refused.value)


DAMAGED = [KINDS[kind][0] for kind in ("m4a", "WebM of a browser", "AAC", "AMR", "CAF", "AIFF", "AU", "OGG of a browser")]
_made: dict[int, bytes] = {}


@given(
    which=st.integers(0, len(DAMAGED) - 1),
    cuts=st.lists(st.tuples(st.floats(0, 1) | st.floats(0, 0.01), st.binary(min_size=1, max_size=4)), max_size=12),
    end=st.floats(0.3, 1),
)
@settings(deadline=None, max_examples=40)
def test_a_damaged_file_is_taken_or_refused(which: int, cuts: list[tuple[float, bytes]], end: float) -> None:
    data = bytearray(_made.setdefault(which, DAMAGED[which]()))
    for place, value in cuts:
        start = int(place * (len(data) - 1))
        data[start : start + len(value)] = value
    try:
        clip = checks.check(bytes(data[: int(end * len(data))]), MOST)
    except Refusal:
        return
    assert 3 <= clip.seconds <= 30 and np.isfinite(clip.samples).all()
