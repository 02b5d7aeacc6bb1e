"""What engines make of voices is a cache: damaged, unreadable or unwritable, it is made anew from the recording; and it is bounded."""

import errno
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qwen3_jax import Qwen3TTS, Voice
from qwen3_jax.audio.samples import write_wav
from qwen3_jax.checkpoint import folders
from qwen3_jax.voices.layers import VoiceLayers
from server.engines import chatterbox, prompts
from server.engines.base import Refused
from server.engines.qwen3_cloner import Cloner
from server.voices import cache
from server.voices.cache import Name, PromptCache
from server.voices.store import VoiceGone, VoiceStore
from tests.fake_engine import LIMIT
from tests.fake_tts import FakeTTS
from tests.serving import make_voices, prompts_of

NAME = Name("/folder", "anna", "content", "model")


def prepared(voices: Path | VoiceStore, name: str = "makima", tts: FakeTTS | None = None) -> FakeTTS:
    """Have a voice prepared as an engine does. Returns the model, which knows what it has cloned."""
    store = voices if isinstance(voices, VoiceStore) else VoiceStore(voices)
    tts = tts or FakeTTS()
    prompt = prompts.prepared(store, store.voices[name], Cloner(tts))
    assert prompt.name == name and prompt.transcript == store.voices[name].transcript
    return tts


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # of a number: without the checksum it would be spoken
    path.write_bytes(data)


def to_folder(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut short": lambda path: os.truncate(path, path.stat().st_size // 2),
    "cut to the checksum": lambda path: os.truncate(path, 32),
    "emptied": lambda path: os.truncate(path, 0),
    "scrambled": lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
    "with one bit flipped": flip,
    "of another format": lambda path: path.write_bytes(b"{}"),
    "a folder": to_folder,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_prompt_is_made_anew(damage: str, voices: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert prepared(voices).cloned == [("makima", "Good evening.")]
    assert prepared(voices).cloned == []
    [kept] = prompts_of(voices)
    DAMAGES[damage](kept)
    store = VoiceStore(voices)
    assert prepared(store).cloned == [("makima", "Good evening.")]
    assert prepared(store).cloned == [], "it has been written anew"
    assert [record.levelno for record in caplog.records if "made anew" in record.getMessage()] == [logging.WARNING]


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"nonsense",
        Voice(np.zeros(4, np.float32)).to_bytes()[:-3],
        Voice(np.zeros(4, np.float32)).to_bytes().replace(b"qwen3-jax-voice-1", b"qwen3-jax-voice-0"),
        Voice(np.zeros(4, np.float32)).to_bytes().replace(b"x_vector", b"y_vector"),
        Voice(np.zeros(4, np.float32), np.zeros((1, 16), np.int32), "a").to_bytes().replace(b"transcript", b"transcribe"),
    ],
    ids=["empty", "nonsense", "cut", "another version", "another tensor", "half of it"],
)
def test_what_another_version_kept_is_made_anew(bad: bytes, voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole as a file, but of no use to this model."""
    with monkeypatch.context() as changed:
        changed.setattr(Cloner, "to_bytes", lambda *_: bad)
        assert len(prepared(voices).cloned) == 1
    assert len(prepared(voices).cloned) == 1
    assert prepared(voices).cloned == []
    with pytest.raises(ValueError, match="what Chatterbox-Turbo keeps|not a voice file|both codes and transcript"):
        chatterbox.ChatterboxSynthesiser.from_bytes(SimpleNamespace(), bad)


def test_what_the_model_refuses_of_it_is_made_anew(voices: Path) -> None:
    """Codes out of range are found by the model, when it decodes them ahead."""
    prepared(voices)

    class Strict(FakeTTS):
        def prepare(self, voice: Voice) -> None:
            if not self.cloned:
                raise ValueError("code 5000: codes are 0 to 2047")

    assert prepared(voices, tts=Strict()).cloned == [("makima", "Good evening.")]


def test_a_prompt_is_of_a_model_its_preference_a_recording_and_a_transcript(voices: Path, tmp_path: Path) -> None:
    prepared(voices)
    assert prepared(voices, tts=FakeTTS(fingerprint="another")).cloned
    assert prepared(voices).cloned == [] == prepared(voices, tts=FakeTTS(fingerprint="another")).cloned, "each keeps its own"
    timbre = FakeTTS()
    generation = timbre.model.generation.__class__(max_new_tokens=100, x_vector_only_mode=True)
    type_with_preference = type("Timbre", (FakeTTS,), {"model": property(lambda _: SimpleNamespace(generation=generation))})
    assert prepared(voices, tts=type_with_preference()).cloned
    recording = voices / "makima" / "reference.wav"
    info = recording.stat()
    write_wav(recording, np.random.default_rng(5).normal(0, 0.1, 84000).astype(np.float32))
    os.utime(recording, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert recording.stat().st_size == info.st_size
    assert prepared(voices).cloned, "same size, same time, another recording"
    assert len(prompts_of(voices)) == 1, "nothing is kept of the one before"
    (voices / "makima" / "transcript.txt").write_text("Good morning.", "utf-8")
    assert prepared(voices).cloned == [("makima", "Good morning.")]
    copy = make_voices(tmp_path / "copy")
    (copy / "makima" / "transcript.txt").write_text("Good day.", "utf-8")
    assert prepared(copy).cloned == [("makima", "Good day.")], "a folder of the same name elsewhere is another voice"


def test_prompts_of_deleted_voices_go(voices: Path, tmp_path: Path) -> None:
    elsewhere = make_voices(tmp_path / "elsewhere")
    for folder in (voices, elsewhere):
        for name in ("anna", "makima"):
            prepared(folder, name)
    store = VoiceStore(voices)
    assert len(prompts_of(voices)) == 4
    store.remove("anna")
    assert len(prompts_of(voices)) == 3
    (voices / "makima").rename(tmp_path / "gone")  # another process
    store.refresh(now=True)
    assert len(prompts_of(voices)) == 2
    (elsewhere / "anna").rename(tmp_path / "gone too")  # while nobody looked
    VoiceStore(elsewhere)
    assert len(prompts_of(voices)) == 1
    assert prepared(elsewhere).cloned == [], "another folder's voice of the same id is not meant"


def test_a_voice_that_is_deleted_while_it_is_cloned_leaves_nothing(voices: Path) -> None:
    store = VoiceStore(voices)
    begun, go_on = threading.Event(), threading.Event()

    class Slow(FakeTTS):
        def create_voice(self, *given: Any, **more: Any) -> Voice:
            begun.set()
            assert go_on.wait(LIMIT)
            return super().create_voice(*given, **more)

    voice = store.voices["anna"]
    with ThreadPoolExecutor(1) as threads:
        cloned = threads.submit(prompts.prepared, store, voice, Cloner(Slow()))
        assert begun.wait(LIMIT)
        store.remove("anna")
        go_on.set()
        assert cloned.result(LIMIT).name == "anna", "whoever waits for it may have it"
    assert prompts_of(voices) == []
    with pytest.raises(VoiceGone):
        prompts.prepared(store, voice, Cloner(FakeTTS()))


@pytest.mark.parametrize("where", ["in a file's place", "read-only", "nowhere"])
def test_without_a_folder_to_write_to_voices_are_cloned_each_time(
    where: str, voices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if where == "nowhere":
        monkeypatch.setattr(folders, "_said", set())
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr("os.path.expanduser", lambda path: path)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "not here"))
    elif where == "read-only":

        def refuse(*_: object) -> None:
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(cache, "write_whole", refuse)
    else:
        (tmp_path / "cache" / "qwen3-jax").mkdir(parents=True)
        (tmp_path / "cache" / "qwen3-jax" / "prompts").write_text("in the way")
    store = VoiceStore(voices)
    for _ in range(2):
        for name in ("anna", "makima"):
            assert [one for one, _ in prepared(store, name).cloned] == [name]
    store.remove("anna")
    told = [record.getMessage() for record in caplog.records if "not kept" in record.getMessage()]
    assert len(told) == 1 and "XDG_CACHE_HOME" in told[0]


def test_what_was_used_least_recently_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = PromptCache(tmp_path / "prompts")
    names = [NAME._replace(voice=voice) for voice in "abcd"]
    for age, name in enumerate(names[:3]):
        kept.save(name, bytes(100))
        os.utime(tmp_path / "prompts" / name.file, (age, age))
    assert kept.load(names[0]) == bytes(100), "and so it is the newest"
    monkeypatch.setattr(cache, "MAX_FILES", 2)
    kept.save(names[3], bytes(100))
    assert [kept.load(name) is not None for name in names] == [True, False, False, True]
    monkeypatch.setattr(cache, "MAX_BYTES", 250)
    kept.save(names[1], bytes(100))
    assert sum(kept.load(name) is not None for name in names) == 1
    assert (tmp_path / "prompts").stat().st_mode & 0o777 == 0o700


def test_two_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    kept = PromptCache(tmp_path)
    data = [bytes([number]) * 100_000 for number in range(4)]
    with ThreadPoolExecutor(len(data)) as threads:
        saved = [threads.submit(kept.save, NAME, one) for _ in range(10) for one in data]
        while not all(one.done() for one in saved):
            assert (found := kept.load(NAME)) is None or found in data
    assert os.listdir(tmp_path) == [NAME.file] and kept.load(NAME) in data


def test_a_voice_in_a_bucket_has_its_prompt_here(voices: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").put(str(voices), "/prompts-bucket", recursive=True)
    fsspec.filesystem("memory").pipe_file("/prompts-bucket/makima/metadata.json", b"{}")
    store = VoiceStore("memory://prompts-bucket")
    assert len(prepared(store).cloned) == 1 and prepared(store).cloned == []
    assert len(prompts_of(voices)) == 1
    assert not [path for path in fsspec.filesystem("memory").find("/prompts-bucket") if "prompt" in path.rpartition("/")[2]]
    store.remove("makima")
    assert prompts_of(voices) == []


def test_a_voice_that_the_model_refuses_at_start_gives_way_to_the_one_below(voices: Path, tmp_path: Path) -> None:
    user = make_voices(tmp_path / "data" / "qwen3-jax" / "voices")
    store = VoiceStore(VoiceLayers.of(voices, shipped=False))
    voice = store.voices["makima"]
    prompts.pass_over(store, voice, Refused("the recording is silent"), last=False)
    assert store.voices["makima"].folder == str(user)
    (voices / "makima" / "transcript.txt").write_text("Another.", "utf-8")
    assert store.refresh(now=True)["makima"].folder == str(voices), "it has changed, so it is tried again"
    with pytest.raises(Refused):
        prompts.pass_over(store, voice, Refused("the recording is silent"), last=True)


def test_the_library_keeps_nothing_of_a_voice_that_nobody_holds(checkpoint: Callable[[str], Path]) -> None:
    tts = Qwen3TTS.from_pretrained(checkpoint("base"))
    voices = [tts.create_voice((np.random.default_rng(seed).normal(0, 0.1, 84000).astype(np.float32), 24000), "Words.") for seed in (1, 2)]
    for voice in voices:
        tts.prepare(voice)
    assert len(tts.prepared) == 2
    del voice, voices[0]
    assert len(tts.prepared) == 1
    tts.prepare(voices[0])
    assert len(tts.prepared) == 1
