"""Voices: what a recording must be, where voices lie, their REST interface, and the same offline."""

import errno
import io
import json
import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.voices.folder import VoiceFolder
from qwen3_jax.voices.layers import Layer, VoiceLayers
from server.http import sample
from server.voices.checks import Refusal, advise, check, check_transcript
from server.voices.command import app
from server.voices.store import Metadata, VoiceGone, VoiceStore
from tests.fake_engine import LIMIT, FakeEngine
from tests.serving import client, running, say, utterance

ROOT = Path(__file__).parent.parent
MOST = 10 * 1024 * 1024
CONSENT = {"name": "Clara", "consent": "I am the speaker and I agree."}


def speech(seconds: float = 5.0, rate: int = 24000, level: float = 0.2) -> np.ndarray:
    """Syllables of noise with pauses: what the checks take for speech."""
    time = np.arange(int(seconds * rate)) / rate
    envelope = np.clip(np.sin(2 * np.pi * 2 * time), 0, 1)
    return (np.random.default_rng(0).normal(0, level, len(time)).clip(-0.9, 0.9) * envelope).astype(np.float32)


def sound(samples: np.ndarray, rate: int = 24000, kind: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "subtype", "rate"),
    [
        ("WAV", "PCM_16", 24000),
        ("WAV", "FLOAT", 48000),
        ("FLAC", None, 44100),
        ("OGG", "VORBIS", 24000),
        ("OGG", "OPUS", 48000),
        ("MP3", None, 44100),
    ],
)
def test_every_format_is_taken(kind: str, subtype: str | None, rate: int) -> None:
    stereo = np.stack([speech(rate=rate), speech(rate=rate)], axis=1)
    clip = check(sound(stereo, rate, kind, subtype), MOST)
    assert (clip.rate, clip.samples.ndim) == (rate, 1)
    assert abs(clip.seconds - 5) < 0.15


def header_only(channels: int = 1, rate: int = 24000, seconds: float = 5.0) -> bytes:
    """A WAV header that promises that much, and a little data."""
    size = int(seconds * rate) * channels * 2
    fields = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2 & 0xFFFFFFFF, channels * 2 & 0xFFFF, 16)
    return (
        b"RIFF"
        + struct.pack("<I", size + 36)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + fields
        + b"data"
        + struct.pack("<I", size)
        + bytes(size)
    )


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        (b"RIFF" + bytes(MOST), "AUDIO_TOO_BIG", str(MOST)),
        (b"", "AUDIO_FORMAT", "first bytes"),
        (b"%PDF-1.7 and so on", "AUDIO_FORMAT", "first bytes"),
        (b"RIFF\0\0\0\0WAVEnonsense", "AUDIO_UNREADABLE", "WAV"),
        (b"fLaC" + os.urandom(100), "AUDIO_UNREADABLE", "FLAC"),
        (b"OggS" + bytes(100), "AUDIO_UNREADABLE", "OGG"),
        (header_only(channels=9), "AUDIO_CHANNELS", "9 channels"),
        (header_only(channels=1024, seconds=0.01), "AUDIO_CHANNELS", "1024 channels"),
        (header_only(rate=4000), "AUDIO_SAMPLE_RATE", "4000 Hz"),
        (header_only(rate=384_000, seconds=4), "AUDIO_SAMPLE_RATE", "384000 Hz"),
        (sound(speech(2.9)), "AUDIO_TOO_SHORT", "2.900 s"),
        (sound(speech(31), kind="FLAC"), "AUDIO_TOO_LONG", "31.000 s"),
        (sound(np.where(np.arange(96000) == 5, np.nan, speech(4)).astype(np.float32), subtype="FLOAT"), "AUDIO_NOT_FINITE", "1 NaN"),
        (sound(np.where(np.arange(96000) < 2, np.inf, speech(4)).astype(np.float32), subtype="FLOAT"), "AUDIO_NOT_FINITE", "2 NaN"),
        (sound(np.zeros(96000)), "AUDIO_SILENT", "dBFS"),
        (sound(np.sign(speech(4))), "AUDIO_CLIPPED", "full scale"),
    ],
)
def test_every_rule_has_its_refusal(data: bytes, code: str, said: str) -> None:
    with pytest.raises(Refusal, match=said) as refused:
        check(data, MOST)
    assert refused.value.code == code
    assert 400 <= refused.value.status < 500


@pytest.mark.slow
def test_audio_bombs_cost_nothing() -> None:
    """10 h of silence in a FLAC of a few MB: refused by its header; with a header that does not say how long, by bounded decoding."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 8000, 1, "PCM_16", format="FLAC") as out:
        for _ in range(36):
            out.write(np.zeros(8_000_000, np.int16))
    bomb = file.getvalue()
    assert len(bomb) < 4_000_000
    liar = bytearray(bomb)
    liar[21] &= 0xF0  # STREAMINFO's 36 bits of total samples: unknown
    liar[22:26] = bytes(4)
    tracemalloc.start()
    for data, code in ((bomb, "AUDIO_TOO_LONG"), (bytes(liar), "AUDIO_TOO_LONG")):
        with pytest.raises(Refusal) as refused:
            check(data, MOST)
        assert refused.value.code == code
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


@given(
    data=st.binary(max_size=300),
    magic=st.sampled_from([b"RIFF\0\0\0\0WAVE", b"fLaC\0\0\0\x22", b"OggS\0\2", b"ID3\4\0", b"\xff\xfb\x90", b""]),
)
@settings(deadline=None, max_examples=150)
def test_no_bytes_do_more_than_be_refused(data: bytes, magic: bytes) -> None:
    with pytest.raises(Refusal):
        check(magic + data, MOST)


CLIP = sound(speech(3.0, 8000), 8000)


@given(
    cuts=st.lists(st.tuples(st.integers(0, len(CLIP) - 1) | st.integers(0, 60), st.integers(0, 255)), max_size=20),
    end=st.integers(0, len(CLIP)),
)
@settings(deadline=None, max_examples=60)
def test_a_damaged_file_is_taken_or_refused(cuts: list[tuple[int, int]], end: int) -> None:
    data = bytearray(CLIP)
    for place, value in cuts:
        data[place] = value
    try:
        clip = check(bytes(data[:end]), MOST)
    except Refusal:
        return
    assert 3 <= clip.seconds <= 30
    assert np.isfinite(clip.samples).all()


def test_transcripts_must_fit() -> None:
    assert check_transcript("  Good evening, everybody.\n", 3.0) == "Good evening, everybody."
    assert check_transcript("こんばんは、マキマです。", 3.0)
    for text, code in (
        ("", "TRANSCRIPT_EMPTY"),
        ("word " * 100, "TRANSCRIPT_MISFIT"),
        ("a", "TRANSCRIPT_MISFIT"),
        ("漢" * 60, "TRANSCRIPT_MISFIT"),
        ("x" * 2001, "TRANSCRIPT_TOO_LONG"),
        ("e" + "\u0301" * 31, "TRANSCRIPT_INVALID"),
    ):
        with pytest.raises(Refusal) as refused:
            check_transcript(text, 5.0)
        assert refused.value.code == code


def test_advice_is_the_specifications() -> None:
    assert advise(check(sound(speech(6.0)), MOST)) == []
    noisy = speech(12.0, 16000) + np.random.default_rng(1).normal(0, 0.1, 192000).astype(np.float32)
    said = " ".join(advise(check(sound(noisy.clip(-0.9, 0.9), 16000, subtype="PCM_U8"), MOST)))
    for part in ("12.0 s", "16000 Hz", "8 bits", "above the background"):
        assert part in said
    assert "lossy" in " ".join(advise(check(sound(speech(6.0), kind="OGG"), MOST)))


async def test_upload_list_listen_speak_delete(voices: Path) -> None:
    engine = FakeEngine()
    data = sound(speech())
    async with running(voices, engine) as server, server.http_client() as http:
        listed = (await http.get("/api/v1/voices")).json()["voices"]
        assert [(voice["id"], voice["isDefault"], voice["modes"]) for voice in listed] == [
            ("anna", False, ["xVector"]),
            ("makima", True, ["icl", "xVector"]),
        ]
        form = CONSENT | {"transcript": "These are the words that are said.", "language": "english"}
        answer = await http.post("/api/v1/voices", files={"audio": ("clip.wav", data)}, data=form)
        assert answer.status_code == 201, answer.text
        made = answer.json()
        assert (made["name"], made["language"], made["modes"], made["durationSeconds"]) == ("Clara", "English", ["icl", "xVector"], 5.0)
        assert made["consent"] == CONSENT["consent"]
        assert engine.prepared == [made["id"]]
        assert sorted(file.name for file in (voices / made["id"]).iterdir()) == ["metadata.json", "reference.wav", "transcript.txt"]
        sample = await http.get(f"/api/v1/voices/{made['id']}/sample.wav")
        assert sample.headers["content-type"] == "audio/wav"
        samples, rate = soundfile.read(io.BytesIO(sample.content))
        assert (rate, len(samples)) == (24000, 120_000)
        async with client(server.url) as connection:
            await say(connection, type="speak", text="Hello.", voice=made["id"])
            assert (await utterance(connection))[1]["type"] == "complete"
        assert engine.requests[0].voice.id == made["id"]
        assert (await http.delete(f"/api/v1/voices/{made['id']}")).status_code == 204
        assert engine.forgotten == [made["id"]]
        assert not (voices / made["id"]).exists()
        for request in (http.delete, lambda path: http.get(f"{path}/sample.wav")):
            gone = await request(f"/api/v1/voices/{made['id']}")
            assert (gone.status_code, gone.json()["error"]["code"]) == (404, "VOICE_NOT_FOUND")
        protected = await http.delete("/api/v1/voices/makima")
        assert (protected.status_code, protected.json()["error"]["code"]) == (403, "VOICE_PROTECTED")


async def test_refused_uploads_say_why_and_leave_nothing(voices: Path) -> None:
    engine = FakeEngine(refuses_voice=True)
    data = sound(speech())
    before = sorted(voices.iterdir())
    async with running(voices, engine) as server, server.http_client() as http:
        cases: list[tuple[Any, Any, int, str]] = [
            (None, CONSENT, 400, "AUDIO_MISSING"),
            (data, {"name": "x"}, 400, "CONSENT_MISSING"),
            (data, {"consent": "yes"}, 400, "NAME_MISSING"),
            (data, CONSENT | {"language": "Klingon"}, 400, "LANGUAGE_UNKNOWN"),
            (b"MZ", CONSENT, 415, "AUDIO_FORMAT"),
            (sound(speech(2)), CONSENT, 422, "AUDIO_TOO_SHORT"),
            (data, CONSENT | {"transcript": "x" * 1000}, 422, "TRANSCRIPT_MISFIT"),
            (data, CONSENT, 422, "VOICE_REFUSED"),
            (bytes(11 * 1024 * 1024), CONSENT, 413, "AUDIO_TOO_BIG"),
        ]
        for audio, form, status, code in cases:
            files = {"audio": ("a.wav", audio)} if audio is not None else {"other": ("b", b"")}
            answer = await http.post("/api/v1/voices", files=files, data=form)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), code
            assert answer.json()["error"]["message"]
    assert sorted(voices.iterdir()) == before


RECORDING = ("a.wav", sound(speech()))


@pytest.mark.parametrize(
    ("more", "code", "field", "said"),
    [
        ([("audio", RECORDING), ("audio", ("b.wav", b"other"))], "FIELD_REPEATED", "audio", "2 fields audio: send one"),
        ([("audio", RECORDING), ("audio", (None, b"words"))], "FIELD_REPEATED", "audio", "2 fields audio: send one"),
        ([("audio", RECORDING), ("name", (None, b"Another"))], "FIELD_REPEATED", "name", "2 fields name: send one"),
        ([("audio", RECORDING), ("consent", ("c.txt", b"No."))], "FIELD_REPEATED", "consent", "2 fields consent: send one"),
        ([("audio", RECORDING), ("transcript", ("t.txt", b"Words."))], "FIELD_IS_FILE", "transcript", "with curl -F 'transcript=<FILE'"),
        ([("audio", (None, b"reference.wav"))], "AUDIO_MISSING", "audio", "with curl -F audio=@FILE"),
    ],
)
async def test_a_form_whose_fields_can_be_read_in_two_ways_is_refused(
    voices: Path, more: list[tuple[str, Any]], code: str, field: str, said: str
) -> None:
    before = sorted(voices.iterdir())
    async with running(voices, FakeEngine()) as server, server.http_client() as http:
        answer = await http.post("/api/v1/voices", files=[*((name, (None, value)) for name, value in CONSENT.items()), *more])
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400 if code == "AUDIO_MISSING" else 422, code, field)
    assert said in error["message"]
    assert sorted(voices.iterdir()) == before


@pytest.mark.parametrize("order", [("audio", "name", "consent", "transcript"), ("transcript", "name", "consent", "audio")])
@pytest.mark.parametrize("lost", [1, 3, 4, 30])
async def test_a_form_that_is_cut_short_is_refused_and_not_taken_without_its_last_field(
    voices: Path, order: tuple[str, ...], lost: int
) -> None:
    fields = {name: value.encode() for name, value in CONSENT.items()} | {
        "transcript": b"These are the words that are said.",
        "audio": RECORDING[1],
    }
    file = b'; filename="a.wav"'
    parts = [b'--EDGE\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (
        name.encode(), file if name == "audio" else b"", fields[name]) for name in order]  # fmt: skip
    form, kind = b"".join(parts) + b"--EDGE--", {"Content-Type": "multipart/form-data; boundary=EDGE"}
    before = sorted(voices.iterdir())
    async with running(voices, FakeEngine()) as server, server.http_client() as http:
        answer = await http.post("/api/v1/voices", content=form[:-lost], headers=kind)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "FORM_CUT_SHORT")
        assert sorted(voices.iterdir()) == before
        answer = await http.post("/api/v1/voices", content=form, headers=kind)  # blanks need not follow the last boundary
        assert (answer.status_code, answer.json()["modes"]) == (201, ["icl", "xVector"])


async def test_a_full_disk_is_told_and_leaves_nothing(
    voices: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = sorted(voices.iterdir())

    def full(path: Path, data: bytes) -> None:
        path.write_bytes(data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("qwen3_jax.voices.files.write_file", full)
    async with running(voices, FakeEngine()) as server, server.http_client() as http:
        answer = await http.post("/api/v1/voices", files={"audio": ("a.wav", sound(speech()))}, data=CONSENT)
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "STORAGE_FULL")
        async with client(server.url) as connection:
            await say(connection, type="speak", text="Hello.")
            assert (await utterance(connection))[1]["type"] == "complete"
    assert sorted(voices.iterdir()) == before
    assert "No space left on device; make room there, or set TTS_VOICES_DIR" in caplog.text


KILLED = """
import os, signal, sys
import numpy as np
from pathlib import Path
from qwen3_jax.voices import files as voice_files
from server.voices import store
from qwen3_jax.voices.folder import VoiceFolder
from qwen3_jax.voices.layers import Layer, VoiceLayers
from server.http import sample
from server.voices.checks import Clip
written = []
def write(path, data):
    Path(path).write_bytes(data[: len(data) // 2])
    written.append(path)
    if len(written) == last:
        os.kill(os.getpid(), signal.SIGKILL)
voice_files.write_file = write
clip = Clip(np.ones(72000, np.float32) / 2, 24000, 16)
for last in (1, 2, 3):
    child = os.fork()
    if child == 0:
        store.VoiceStore(sys.argv[1]).add(clip, "words", store.Metadata(name="x"), f"half-{last}")
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
"""


def test_kill_9_during_an_upload_leaves_no_half_voice(voices: Path) -> None:
    """Killed while each of the three files is being written; a child's start clears away what the one before has left."""
    subprocess.run([sys.executable, "-c", KILLED, str(voices)], cwd=ROOT, timeout=5 * LIMIT, check=True)
    assert [path.name for path in voices.iterdir() if path.name.startswith(".half-3.partial-")], "it was killed in the middle"
    assert list(VoiceStore(voices).voices) == ["anna", "makima"]
    assert sorted(path.name for path in voices.iterdir()) == ["anna", "makima"], "the next start clears away"


def test_the_folder_may_be_a_bucket() -> None:
    store = VoiceStore("memory://bucket/voices")
    clip = check(sound(speech()), MOST)
    made = store.add(clip, "These are the words that are said.", Metadata(name="Clara", owner="key:a"), "clara")
    assert (made.id, made.mode, made.metadata.duration_seconds) == ("clara", "icl", 5.0)
    again = VoiceStore("memory://bucket/voices").voices["clara"]
    assert (again.transcript, again.metadata.owner, again.revision) == (made.transcript, "key:a", made.revision)
    assert soundfile.read(io.BytesIO(store.reference(again)))[1] == 24000
    bucket = fsspec.filesystem("memory")
    bucket.pipe_file("/bucket/voices/clara/transcript.txt", b"Other words.")
    assert store.refresh(now=True)["clara"].revision != made.revision
    bucket.rm_file("/bucket/voices/clara/metadata.json")
    assert store.refresh(now=True) == {}, "what has no metadata is no voice"
    dora = store.add(clip, None, Metadata(), "dora")
    with pytest.raises(ValueError, match="'dora' is there already"):
        store.add(clip, None, Metadata(), "Dora")
    store.remove("dora")
    assert store.voices == {} and not bucket.exists("/bucket/voices/dora/reference.wav")
    with pytest.raises(VoiceGone):
        store.reference(dora)
    with pytest.raises(VoiceGone):
        store.remove(dora)


def test_a_bucket_that_fails_leaves_the_last_listing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    store = VoiceStore("memory://other/voices")
    store.add(check(sound(speech()), MOST), None, Metadata(), "clara")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("503 Slow Down")  # as a bucket's client has it

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "find", fail)
    assert list(store.refresh(now=True)) == ["clara"]
    assert "503 Slow Down" in caplog.text and store.failures == 1
    monkeypatch.undo()
    store.remove("clara")
    assert store.voices == {}


def test_an_unknown_address_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"nowhere://x.*Protocol not known"):
        VoiceStore("nowhere://x")


@pytest.mark.parametrize("name", ["../x", "", ".hidden", "a/b", "a" * 65, "a ", "a\x1b", "-a", "漢" * 63 + "𠮷𠮷"])
def test_ids_are_names_of_folders_and_nothing_else(voices: Path, name: str) -> None:
    with pytest.raises(ValueError, match="id is 1 to 64"):
        VoiceStore(voices).add(check(sound(speech()), MOST), None, Metadata(), name)


def test_the_same_offline(tmp_path: Path, voices: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> str:
        """As the program runs it (qwen3_jax/cli.py): a ValueError is a line on stderr and status 2."""
        app(arguments, standalone_mode=False)
        return capsys.readouterr().out

    folder, clip = ["--voices-dir", str(tmp_path / "own")], tmp_path / "clip.wav"
    clip.write_bytes(sound(speech(6.0)))
    assert "6.0 s" in run("check", str(clip), "--transcript", "These are the words that are said.")
    with pytest.raises(ValueError, match="TRANSCRIPT_MISFIT"):
        run("check", str(clip), "--transcript", "x" * 1000)
    words = ["--transcript", "These are the words that are said.", "--language", "Japanese", "--licence", "CC0-1.0"]
    with pytest.raises(ValueError, match="--consent is required"):
        run("add", str(clip), "--id", "makima", *words, *folder)
    run("add", str(clip), "--id", "makima", *words, "--consent", "The speaker agrees.", *folder)
    about = json.loads((tmp_path / "own" / "makima" / "metadata.json").read_text())
    assert (about["licence"], about["consent"], about["language"]) == ("CC0-1.0", "The speaker agrees.", "Japanese")
    assert "These are" not in run("list", *folder) and "makima" in run("list", *folder)
    run("remove", "Makima", *folder)
    assert "there is no voice" in run("list", "--no-shipped-voices", *folder)
    with pytest.raises(ValueError, match="'makima' is not in"):
        run("remove", "makima", *folder)


RANGES: list[tuple[str, int, slice]] = [  # what is asked for, the status, the bytes; N stands for the file's length
    ("bytes=0-", 206, slice(0, None)),
    ("bytes=0-0", 206, slice(0, 1)),
    ("bytes=10-19", 206, slice(10, 20)),
    ("bytes=100-999999999", 206, slice(100, None)),
    ("bytes=-10", 206, slice(-10, None)),
    ("bytes=-999999999", 206, slice(0, None)),
    ("bytes=N-", 416, slice(0)),
    ("bytes=-0", 416, slice(0)),
    ("bytes=N-N", 416, slice(0)),
    ("bytes=-0,N-", 416, slice(0)),
    ("bytes=" + "9" * 100 + "-", 416, slice(0)),
    ("bytes=0-" + "9" * 100, 206, slice(None)),
    ("BYTES=0-1", 206, slice(0, 2)),
    ("bytes= 0-1 ,,", 206, slice(0, 2)),
    ("bytes=-0,0-1", 206, slice(0, 2)),
    ("bytes=0-9,20-29", 200, slice(None)),
    *(
        (f"bytes={odd}", 200, slice(None))
        for odd in ("9-1", "", "-", "--1", "a-b", "1_0-20", "+1-2", "1 - 2", "0-1,x", "0", "9" * 5000 + "-")
    ),
    ("lines=1-2", 200, slice(None)),
    ("bytes", 200, slice(None)),
    ("nonsense", 200, slice(None)),
]


async def test_a_recording_is_sent_in_ranges(voices: Path) -> None:
    async with running(voices, FakeEngine()) as server, server.http_client() as http:
        place, file = "/api/v1/voices/anna/sample.wav", voices / "anna" / "reference.wav"
        data = file.read_bytes()
        whole = await http.get(place)
        assert (whole.status_code, whole.content, whole.headers["accept-ranges"]) == (200, data, "bytes")
        etag = whole.headers["etag"]
        for asked, status, part in RANGES:
            headers = {"Range": asked.replace("N", str(len(data)))}
            head = await http.head(place, headers=headers)  # RFC 9110: ranges are of GET alone
            assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(data))), asked
            answer = await http.get(place, headers=headers)
            assert answer.status_code == status, asked
            if status == 416:
                assert answer.headers["content-range"] == f"bytes */{len(data)}"
                continue
            start, stop, _ = part.indices(len(data))
            assert answer.content == data[part], asked
            assert (answer.headers["content-length"], answer.headers["etag"]) == (str(stop - start), etag)
            assert answer.headers.get("content-range") == (f"bytes {start}-{stop - 1}/{len(data)}" if status == 206 else None)
        for tag, status in ((etag, 206), (f"W/{etag}", 200), ('"other"', 200), ("Wed, 21 Oct 2015 07:28:00 GMT", 200)):
            assert (await http.get(place, headers={"Range": "bytes=0-9", "If-Range": tag})).status_code == status
        assert (await http.get(place, headers={"If-None-Match": etag})).status_code == 304
        file.write_bytes(sound(speech(4.0)))
        changed = await http.get(place, headers={"Range": "bytes=0-9", "If-Range": etag})
        assert (changed.status_code, len(changed.content)) == (200, file.stat().st_size), "of another recording the rest is of no use"


CONDITIONS: list[tuple[list[tuple[str, str]], int, int]] = [  # headers, status of GET, of DELETE
    ([("If-Match", "TAG")], 200, 204),
    ([("If-Match", "*")], 200, 204),
    ([("If-Match", '"other", TAG')], 200, 204),
    ([("If-Match", '"other"'), ("If-Match", "TAG")], 200, 204),
    ([("If-Match", '"other"')], 412, 412),
    ([("If-Match", "W/TAG")], 412, 412),  # only a strong tag says which recording it is
    ([("If-Match", "")], 412, 412),
    ([("If-None-Match", '"other"')], 200, 204),
    ([("If-None-Match", "W/TAG")], 304, 412),
    ([("If-None-Match", "*")], 304, 412),
    ([("If-Match", '"other"'), ("If-None-Match", "TAG")], 412, 412),
    ([("If-Unmodified-Since", "Wed, 21 Oct 2015 07:28:00 GMT")], 200, 204),  # a recording has no date
]


@pytest.mark.parametrize(("headers", "read", "deleted"), CONDITIONS)
async def test_a_condition_that_does_not_hold_stops_a_request(
    voices: Path, headers: list[tuple[str, str]], read: int, deleted: int
) -> None:
    async with running(voices, FakeEngine()) as server, server.http_client() as http:
        place = f"/api/v1/voices/{(await http.post('/api/v1/voices', files={'audio': RECORDING}, data=CONSENT)).json()['id']}"
        etag = (await http.head(f"{place}/sample.wav")).headers["etag"]
        asked = [(name, value.replace("TAG", etag)) for name, value in headers]
        assert [(await http.request(method, f"{place}/sample.wav", headers=asked)).status_code for method in ("GET", "HEAD")] == [read] * 2
        answer = await http.delete(place, headers=asked)
        assert answer.status_code == deleted
        if deleted == 412:
            assert (answer.json()["error"]["code"], etag in answer.json()["error"]["message"]) == ("PRECONDITION_FAILED", True)
        assert (await http.head(f"{place}/sample.wav")).status_code == (404 if deleted == 204 else 200)
        absent = await http.delete("/api/v1/voices/nobody", headers={"If-Match": '"other"'})
        assert absent.status_code == 404, "what would fail anyway fails for its own reason"


async def test_a_slow_reader_of_a_recording_holds_no_copy_of_it(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size, reads = 3_000_000, []
    piece = sample.PIECE
    (voices / "anna" / "reference.wav").write_bytes(sound(speech(30.0, 48000), 48000))
    real = sample._Pieces.__anext__

    async def counted(self: Any) -> bytes:
        data = await real(self)
        reads.append(len(data))
        return data

    monkeypatch.setattr(sample._Pieces, "__anext__", counted)
    async with running(voices, FakeEngine()) as server, server.http_client() as http:
        async with http.stream("GET", "/api/v1/voices/anna/sample.wav") as answer:
            assert int(answer.headers["content-length"]) > 0.9 * size
            await anext(answer.aiter_raw())
        assert max(reads) == piece
        assert (await http.get("/api/v1/voices/anna/sample.wav")).status_code == 200


async def test_a_bucket_has_ranges_too() -> None:
    store = VoiceStore("memory://ranges/voices")
    store.add(check(sound(speech()), MOST), None, Metadata(), "clara")
    async with running("memory://ranges/voices", FakeEngine()) as server, server.http_client() as http:
        answer = await http.get("/api/v1/voices/clara/sample.wav", headers={"Range": "bytes=0-3"})
        assert (answer.status_code, answer.content) == (206, b"RIFF")
        assert (await http.get("/api/v1/voices/clara/sample.wav", headers={"If-None-Match": answer.headers["etag"]})).status_code == 304
    store.remove("clara")


CONTROLS = ["\0", "\x1b[2J", "\x07", "\x7f", "\x9b31m", "\u2028", "\u202e", "\u2066"]


@pytest.mark.parametrize("field", ["name", "consent", "transcript", "licence", "description", "language"])
async def test_control_characters_are_refused_at_upload(voices: Path, field: str) -> None:
    before = sorted(voices.iterdir())
    async with running(voices, FakeEngine()) as server, server.http_client() as http:
        for control in CONTROLS:
            form = CONSENT | {field: f"These are the words that are said{control}."}
            answer = await http.post("/api/v1/voices", files={"audio": ("a.wav", sound(speech()))}, data=form)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, f"{field.upper()}_INVALID"), control
            assert f"control character U+{ord(control[0]):04X}" in answer.json()["error"]["message"]
    assert sorted(voices.iterdir()) == before


@pytest.mark.parametrize("field", ["name", "consent", "transcript", "licence", "description", "language"])
async def test_fields_that_are_not_utf8_are_refused(voices: Path, field: str) -> None:
    before = sorted(voices.iterdir())
    fields = {name: value.encode() for name, value in CONSENT.items()} | {field: "Élise a été d'accord.".encode("latin-1")}
    async with running(voices, FakeEngine()) as server, server.http_client() as http:
        answer = await http.post("/api/v1/voices", files={"audio": RECORDING, **{name: (None, value) for name, value in fields.items()}})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, f"{field.upper()}_INVALID")
    assert "send it in UTF-8" in error["message"]
    assert sorted(voices.iterdir()) == before


@pytest.mark.parametrize("name", ["\u200b", " \u2060\ufeff ", "\u200e\u200d", "\u00ad"])
async def test_a_name_that_nobody_sees_is_none(voices: Path, name: str) -> None:
    async with running(voices, FakeEngine()) as server, server.http_client() as http:
        answer = await http.post("/api/v1/voices", files={"audio": ("a.wav", sound(speech()))}, data=CONSENT | {"name": name})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "NAME_MISSING")
        answer = await http.post("/api/v1/voices", files={"audio": ("a.wav", sound(speech()))}, data=CONSENT | {"name": "\U0001f600\u200d"})
        assert answer.status_code == 201, "what can be seen is a name"


async def test_forms_are_read_as_everything_else(voices: Path) -> None:
    """Blank fields are absent, languages have codes, a byte order mark and the blanks around a field are dropped."""
    form = {"name": "\ufeff Clara ", "consent": "I agree.\r\nIndeed.", "transcript": " ", "language": "ja-JP", "description": "", "x": "y"}
    async with running(voices, FakeEngine()) as server, server.http_client() as http:
        answer = await http.post("/api/v1/voices/", files={"audio": ("a.wav", sound(speech()))}, data=form)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert (made["name"], made["language"], made["modes"]) == ("Clara", "Japanese", ["xVector"])


def test_a_voice_that_hides_one_of_the_same_id_is_not_taken_for_gone(
    voices: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    above = VoiceFolder(tmp_path / "above")
    store = VoiceStore(VoiceLayers([Layer("named", above), Layer("shipped", VoiceFolder(voices))]))
    store.add(check(sound(speech()), MOST), None, Metadata(), "anna")
    assert store.voices["anna"].folder == above.address and "gone" not in caplog.text
    store.remove("anna")
    assert store.voices["anna"].folder == str(voices)
    assert [record.message for record in caplog.records if "gone" in record.message] == [f"voices gone from {above.address}: anna"]


@pytest.mark.parametrize(("location", "said"), [("", "named ''"), (" ", "named ' '"), ("simplecache::s3://a/b", "chains of addresses")])
def test_what_is_no_folder_of_voices_is_refused_by_name(location: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for use in (lambda: VoiceStore(location), lambda: VoiceLayers.of(location)):
        with pytest.raises(ValueError, match=said):
            use()
